"""The work of a unit of a predictive coding network: from drive a and pull T to state and signal.

Settled, in closed form:

    f a projection onto a range      state = f(a + T)       signal = f'(a) ⊙ (state - a)
    any other                        state = f(a) + T       signal = f'(a) ⊙ T

By gradient steps, with a state that is `move` d away from the forward pass's, `free`:

    errors        ε = d - (f(a) - free)           signal = f'(a) ⊙ ε
    moved         v ← m v + γ (pull - ε)          d ← d + v,  state = free + d

One vectorised pass in C on CPUs where f is written so, else PyTorch's operations.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dualprop.kernels import dyadic, native
from dualprop.kernels.activation import Activation


class Unit(Activation, Protocol):
    """An activation that may project onto `reach`, the ends of its range."""

    @property
    def is_projection(self) -> bool: ...
    @property
    def reach(self) -> tuple[float, float]: ...
    def derivative(self, a: Tensor) -> Tensor: ...
    def pull(self, a: Tensor, signal: Tensor) -> Tensor: ...
    def f_and_pull(self, a: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]: ...


def settled(neuron: Unit, a: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """State and signal, in a's dtype and shape."""
    if _is_native(neuron, a, pull):
        state, signal = torch.empty_like(a), torch.empty_like(a)
        native.settle(cast("Any", neuron.in_c), a, pull, state, signal)
        return state, signal
    if neuron.is_projection:
        return neuron.f_(a + pull), _cut(neuron, a, pull)
    state, signal = neuron.f_and_pull(a, pull)
    return state + pull, signal


def signal(neuron: Unit, a: Tensor, pull: Tensor) -> Tensor:
    """The signal alone."""
    if _is_native(neuron, a, pull):
        return native.settle(cast("Any", neuron.in_c), a, pull, None, torch.empty_like(a))
    return _cut(neuron, a, pull) if neuron.is_projection else neuron.pull(a, pull)


def errors(neuron: Unit, a: Tensor, free: Tensor | None, move: Tensor | None) -> tuple[Tensor, Tensor]:
    """ε and its signal. No `free`: the drive is the forward pass's; no `move`: so is the state."""
    if move is not None and _takes(neuron.in_c, a, move, *(() if free is None else (free,))):
        return native.error(cast("Any", neuron.in_c), a, free, move, torch.empty_like(a), torch.empty_like(a))
    predicted = None if free is None else neuron.f(a) - free
    error = -predicted if move is None else move if predicted is None else move - predicted  # type: ignore[operator]
    return error, neuron.pull(a, error)


def moved(
    pull: Tensor | None,
    error: Tensor | None,
    velocity: Tensor | None,
    move: Tensor | None,
    free: Tensor,
    step: float,
    keep: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new velocity, move and state; what is None is zero."""
    read = [t for t in (pull, error, velocity, move, free) if t is not None]
    if len(read) == 5 and _takes(native.NO_ACTIVATION, *read):
        return native.move(read, step, keep)
    force = pull if error is None else -error if pull is None else pull - error
    push = step * (torch.zeros_like(free) if force is None else force)
    velocity = push if velocity is None else torch.add(push, velocity, alpha=keep)
    move = velocity if move is None else move + velocity
    return velocity, move, free + move


def _takes(in_c: native.InC | None, *tensors: Tensor) -> bool:
    """Whether these are for the native kernel, as it is in use."""
    if dyadic.current() not in ("auto", "native") or torch.compiler.is_compiling():
        return False
    if in_c is None or in_c[0] == native.GELU or tensors[0].dtype == torch.bfloat16:
        return False
    return native.takes(in_c, *tensors)


def _cut(neuron: Unit, a: Tensor, pull: Tensor) -> Tensor:
    # Where f' = 1, clip(a + T) - a is T cut to the room on either side. Nothing cancels.
    low, high = neuron.reach
    error = pull if low == -math.inf else torch.maximum(pull, low - a)
    error = error if high == math.inf else torch.minimum(error, high - a)
    return error * neuron.derivative(a)


def _is_native(neuron: Unit, a: Tensor, pull: Tensor) -> bool:
    if dyadic.current() not in ("auto", "native") or torch.compiler.is_compiling():
        return False
    is_written = neuron.is_projection or (neuron.in_c is not None and neuron.in_c[0] == native.GELU)
    return is_written and a.dtype in (torch.float32, torch.float64) and native.takes(neuron.in_c, a, pull)
