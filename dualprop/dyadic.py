"""The fused engine: dyadic activations inside autograd, and `dualize`, which puts them into any module.

An ordinary forward pass; in the backward pass, where autograd would multiply the cotangent dy by f'(a), a dyadic activation
returns the difference of its two states,

    [ f(a + d·b dy) - f(a - u·b dy) ] / b,      b = β N / (loss scale)

so that -b dy is the nudge Δ of one downward sweep (Høier et al. 2023, appendix on efficient implementation). u and d are the
shares of s⁺ and s⁻: (α, 1-α) for DP, (1-α, α) for DP⊤. States and gradients use the forward pass's mean, f(a): that is
exactly DP⊤ at α ∈ {0, 1}, and DP at α = ½ while no unit crosses a kink. Autocast, torch.compile and any training loop that
calls backward() work; the transforms of torch.func do not.

The difference needs the drive a, the map above needs f(a): one of them is kept and the other computed again (`recompute`), so
that no more memory is taken than by back-propagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dualprop import kernels, recompute
from dualprop.errors import SettingError
from dualprop.kernels import Kernel
from dualprop.settings import as_tuple, checked_beta


@dataclass(frozen=True)
class Nudge:
    """Shares of s⁺ and s⁻, and `strength` b, what turns the cotangent into the nudge: Δ = -b dy."""

    up: float
    down: float
    strength: float
    kernel: Kernel = "auto"


class _DyadicActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, activation: kernels.Activation, nudge: Nudge) -> Tensor:
        ctx.save_for_backward(a)
        ctx.activation, ctx.nudge = activation, nudge
        return activation.f(a)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (a,), (dy,), nudge = ctx.saved_tensors, cotangents, ctx.nudge
        b = nudge.strength
        return kernels.difference(ctx.activation, a, dy, nudge.down * b, nudge.up * b, 1 / b, nudge.kernel), None, None


def dyadic_activation(a: Tensor, activation: kernels.Activation, nudge: Nudge) -> Tensor:
    """f(a), whose backward pass is the dyadic difference in place of f'(a) dy. Elementwise; keeps shape and dtype."""
    if not (torch.is_grad_enabled() and a.requires_grad):
        return activation.f(a)
    state: Tensor = _DyadicActivation.apply(a, activation, nudge)
    recompute.register(state, a, activation)
    return state


@dataclass(frozen=True)
class Dualization:
    """The settings that `dualize` gives to every activation of a model; see there."""

    coupling: Literal["original", "transposed"]
    alpha: float
    loss_reduction: Literal["mean", "sum"] | int
    loss_scale: float | Callable[[], float]
    kernel: Kernel

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
        kernels.check(self.kernel)

    def nudge(self, batch_size: int, beta: float) -> Nudge:
        """The nudge for activations whose first dimension is `batch_size`."""
        scale = self.loss_scale() if callable(self.loss_scale) else self.loss_scale
        terms = self.loss_reduction if isinstance(self.loss_reduction, int) else batch_size
        if self.loss_reduction == "sum":
            terms = 1
        up, down = (self.alpha, 1 - self.alpha) if self.coupling == "original" else (1 - self.alpha, self.alpha)
        return Nudge(up, down, beta * terms / scale, self.kernel)


class Dyadic(nn.Module):
    """An activation that backward-propagates dyadic differences. It has no parameters and no state."""

    def __init__(self, activation: kernels.Activation, description: str, settings: Dualization, beta: float) -> None:
        super().__init__()
        self.activation, self.description, self.settings, self.beta = activation, description, settings, beta

    def forward(self, a: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.activation.f(a)
        return dyadic_activation(a, self.activation, self.settings.nudge(a.shape[0], self.beta))

    def extra_repr(self) -> str:
        return f"{self.description}, {self.settings.coupling}, alpha={self.settings.alpha:g}, beta={self.beta:g}"


def dualize(
    model: nn.Module,
    *,
    coupling: Literal["original", "transposed"] = "original",
    alpha: float = 0.5,
    beta: float | Sequence[float] = 1.0,
    loss_reduction: Literal["mean", "sum"] | int = "mean",
    loss_scale: float | Callable[[], float] = 1.0,
    leave: Sequence[str] = (),
    kernel: Kernel = "auto",
    recompute_states: bool = True,
) -> nn.Module:
    """Convert every activation of `model` in place; then `loss.backward()` in any training loop is dual propagation.

    Parameters and `state_dict` stay as they are. Modules and functional calls (`F.relu(x)`, `x.tanh()`) are converted;
    whatever might be an activation and is not known is refused by name before anything is changed. Only `forward` methods
    are read: an activation in another method that you call yourself (`model.encode(x)`) stays with back-propagation. A
    rewritten forward keeps the values that the module's plain attributes have now, and can't be pickled.

    Args:
        coupling: "original" (DP) or "transposed" (DP⊤).
        alpha: in [0, 1], the weight of s⁺ in the mean.
        beta: nudging strength per example, > 0; one, or one per activation in the order of the model's modules.
        loss_reduction: how the loss is reduced over the batch, since DP is not homogeneous in the loss: "mean" over the
            activations' first dimension, "sum", or the number of terms of the mean (tokens, say).
        loss_scale: whatever else multiplies the loss: 1/4 when four batches accumulate, `scaler.get_scale` for a
            GradScaler (a function is asked at every forward pass).
        leave: names of modules, module types or functions that are to be left to plain back-propagation.
        kernel: how the differences are computed, see `dualprop.kernels`: "auto", "native", "compiled" or "eager". Under
            torch.compile it is inductor that does.
        recompute_states: keep each activation's drive alone and compute its state again in the backward pass, so that no more
            memory is taken than by back-propagation; if not, both are kept, which saves one elementwise pass a layer. Both are
            kept, too, inside other saved-tensor hooks: a checkpoint around the model, `save_on_cpu`.

    Returns:
        The model (a new module only where `model` itself is one activation).

    Raises:
        UnsupportedModuleError: names a module or function that can't be converted, and the remedy.
        SettingError: a setting out of its range.
    """
    from dualprop.conversion import convert

    settings = Dualization(coupling, alpha, loss_reduction, loss_scale, kernel)
    betas = as_tuple(checked_beta(beta))

    def make(activation: kernels.Activation, description: str, index: int) -> Dyadic:
        return Dyadic(activation, description, settings, betas[0] if len(betas) == 1 else betas[index])

    converted = convert(model, make, tuple(leave), None if len(betas) == 1 else len(betas))
    if recompute_states:
        recompute.attach(converted)
    return converted
