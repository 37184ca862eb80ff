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

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dualprop import kernels
from dualprop.fused import recompute
from dualprop.kernels import Kernel
from dualprop.reading.memory import memory_of_its_own


class Met(Protocol):
    """What is told that a backward pass has come to an activation, and its nudges."""

    def meet(self) -> None: ...
    def look(self, k: int, activation: object, a: Tensor, dy: Tensor, up: float, down: float) -> None: ...


@dataclass(frozen=True)
class CotangentNudge:
    """The shares of s⁺ and s⁻, and `strength` b, which makes the cotangent a nudge: Δ = -b dy.

    The difference is taken by the kernel in use now. `origin` is the forward pass
    that it is of, `k` the number of the activation there.
    """

    up: float
    down: float
    strength: float
    kernel: Kernel = field(default_factory=kernels.current)
    origin: Met | None = None
    k: int = 0


class _DyadicActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, activation: kernels.Activation, nudge: CotangentNudge) -> Tensor:
        ctx.save_for_backward(a)
        ctx.activation, ctx.nudge = activation, nudge
        return activation.f(a)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (a,), (dy,), nudge = ctx.saved_tensors, cotangents, ctx.nudge
        if nudge.origin is not None:
            nudge.origin.meet()
            nudge.origin.look(nudge.k, ctx.activation, a, dy, nudge.up * nudge.strength, nudge.down * nudge.strength)
        b = nudge.strength
        return kernels.difference(ctx.activation, a, dy, nudge.down * b, nudge.up * b, 1 / b, nudge.kernel), None, None


class _WrittenOver(torch.autograd.Function):
    """The same, the state written over its drive: `drive` is the drive, kept by other means."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, drive: Tensor, activation: kernels.Activation, nudge: CotangentNudge) -> Tensor:
        ctx.save_for_backward(drive)
        ctx.mark_dirty(a)
        ctx.activation, ctx.nudge = activation, nudge
        return a

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        return *_DyadicActivation.backward(ctx, *cotangents), None


def dyadic_activation(a: Tensor, activation: kernels.Activation, nudge: CotangentNudge, inplace: bool = False) -> Tensor:
    """f(a), with the dyadic difference in place of f'(a) dy in its backward pass.

    Elementwise; keeps shape and dtype. In place, a holds f(a) afterwards, and so do its views.
    """
    if not (torch.is_grad_enabled() and a.requires_grad):
        return a.copy_(activation.f(a)) if inplace else activation.f(a)
    if inplace and torch.compiler.is_compiling():
        return a.copy_(_DyadicActivation.apply(a.clone(), activation, nudge))
    if inplace:
        drive = _write_over(a, activation)
        state: Tensor = _WrittenOver.apply(a, drive, activation, nudge)
    else:
        drive = a
        state = _DyadicActivation.apply(a, activation, nudge)
    if inplace or activation.is_of_state:
        # Else back-propagation keeps both too.
        recompute.register(state, drive, activation)
    return state


def _write_over(a: Tensor, activation: kernels.Activation) -> Tensor:
    """Write f(a) over a. What a was comes back, in memory of its own."""
    if a.is_leaf:
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    with torch.no_grad():
        drive = memory_of_its_own(a)
        if drive is not None:
            # Memories are exchanged: nothing is copied.
            a.data = activation.f(drive)
            torch.autograd.graph.increment_version(a)
            return drive
        drive = a.detach().clone()
        a.copy_(activation.f(drive))
    return drive
