"""The fused engine: dyadic activations inside autograd.

The forward pass is an ordinary one. In the backward pass autograd would multiply the cotangent dy
by f'(a). A dyadic activation instead returns the difference of its two states,

    [ f(a + d·b dy) - f(a - u·b dy) ] / b,      b = β N / (loss scale)

so that -b dy is the nudge Δ of one downward sweep (Høier et al. 2023, appendix on efficient
implementation). u and d are the shares of s⁺ and s⁻: (α, 1-α) for DP, (1-α, α) for DP⊤.

States and gradients use the forward pass's mean, f(a). That is exactly DP⊤ at α ∈ {0, 1}, and DP at
α = ½ while no unit crosses a kink. Autocast, torch.compile and any training loop that calls
backward() work. The transforms of torch.func do not.

The difference needs the drive a, the map above needs f(a). One of them is kept and the other
computed again (`recompute`), so that memory is no more than back-propagation's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dualprop import kernels
from dualprop.errors import SettingError
from dualprop.fused import recompute
from dualprop.kernels import Kernel


@dataclass(frozen=True)
class CotangentNudge:
    """The shares of s⁺ and s⁻, and `strength` b, which makes the cotangent a nudge: Δ = -b dy.

    The difference is taken by the kernel in use now.
    """

    up: float
    down: float
    strength: float
    kernel: Kernel = field(default_factory=kernels.current)


class _DyadicActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, activation: kernels.Activation, nudge: CotangentNudge) -> Tensor:
        ctx.save_for_backward(a)
        ctx.activation, ctx.nudge = activation, nudge
        return activation.f(a)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (a,), (dy,), nudge = ctx.saved_tensors, cotangents, ctx.nudge
        b = nudge.strength
        return kernels.difference(ctx.activation, a, dy, nudge.down * b, nudge.up * b, 1 / b, nudge.kernel), None, None


def dyadic_activation(a: Tensor, activation: kernels.Activation, nudge: CotangentNudge) -> Tensor:
    """f(a), with the dyadic difference in place of f'(a) dy in its backward pass.

    Elementwise; keeps shape and dtype.
    """
    if not (torch.is_grad_enabled() and a.requires_grad):
        return activation.f(a)
    state: Tensor = _DyadicActivation.apply(a, activation, nudge)
    recompute.register(state, a, activation)
    return state


@dataclass(frozen=True)
class Dualization:
    """The settings that `dualize` gives to every activation of a model. See there."""

    coupling: Literal["original", "transposed"]
    alpha: float
    loss_reduction: Literal["mean", "sum"] | int
    loss_scale: float | Callable[[], float]

    def __post_init__(self) -> None:
        if self.coupling not in ("original", "transposed"):
            raise SettingError(f"coupling must be 'original' or 'transposed', got {self.coupling!r}.")
        if not 0 <= self.alpha <= 1:
            raise SettingError(f"alpha must be in [0, 1], got {self.alpha:g}.")
        terms = self.loss_reduction
        if terms not in ("mean", "sum") and not (isinstance(terms, int) and not isinstance(terms, bool) and terms > 0):
            raise SettingError(
                f"loss_reduction must be 'mean', 'sum' or the number of terms that the mean runs over, got {terms!r}."
            )
        if not callable(self.loss_scale) and not self.loss_scale > 0:
            raise SettingError(f"loss_scale must be positive, got {self.loss_scale}.")

    def nudge(self, batch_size: int, beta: float) -> CotangentNudge:
        """The nudge for activations whose first dimension is `batch_size`."""
        scale = self.loss_scale() if callable(self.loss_scale) else self.loss_scale
        terms = self.loss_reduction if isinstance(self.loss_reduction, int) else batch_size
        if self.loss_reduction == "sum":
            terms = 1
        up, down = (self.alpha, 1 - self.alpha) if self.coupling == "original" else (1 - self.alpha, self.alpha)
        return CotangentNudge(up, down, beta * terms / scale)


class Dyadic(nn.Module):
    """An activation that propagates dyadic differences backward, without parameters or state."""

    def __init__(self, activation: kernels.Activation, description: str, settings: Dualization, beta: float) -> None:
        super().__init__()
        self.activation, self.description, self.settings, self.beta = activation, description, settings, beta

    def forward(self, a: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.activation.f(a)
        return dyadic_activation(a, self.activation, self.settings.nudge(a.shape[0], self.beta))

    def extra_repr(self) -> str:
        return f"{self.description}, {self.settings.coupling}, alpha={self.settings.alpha:g}, beta={self.beta:g}"
