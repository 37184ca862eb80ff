"""The work of a unit of a predictive coding network: from drive a and pull T to state and signal.

    f a projection onto a range      state = f(a + T)       signal = f'(a) ⊙ (state - a)
    any other                        state = f(a) + T       signal = f'(a) ⊙ T

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
