"""The work of a unit of a predictive coding network: from drive a and pull T to state and signal.

For an f that projects onto a range, elementwise:

    state = f(a + T)        signal = f'(a) ⊙ (state - a)

One vectorised pass by `dyadic.c` on CPUs, else PyTorch's operations, to the same bits.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dualprop.kernels import dyadic, native
from dualprop.kernels.activation import Activation


class Projection(Activation, Protocol):
    """An activation that projects onto `reach`, the ends of its range."""

    @property
    def reach(self) -> tuple[float, float]: ...
    def derivative(self, a: Tensor) -> Tensor: ...


def settled(neuron: Projection, a: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """State and signal, in a's dtype and shape."""
    if _is_native(neuron, a, pull):
        state, signal = torch.empty_like(a), torch.empty_like(a)
        native.settle(cast("Any", neuron.piecewise), a, pull, state, signal)
        return state, signal
    return neuron.f_(a + pull), _signal(neuron, a, pull)


def signal(neuron: Projection, a: Tensor, pull: Tensor) -> Tensor:
    """The signal alone."""
    if _is_native(neuron, a, pull):
        return native.settle(cast("Any", neuron.piecewise), a, pull, None, torch.empty_like(a))
    return _signal(neuron, a, pull)


def _signal(neuron: Projection, a: Tensor, pull: Tensor) -> Tensor:
    # Where f' = 1, clip(a + T) - a is T cut to the room on either side. Nothing cancels.
    low, high = neuron.reach
    error = pull if low == -math.inf else torch.maximum(pull, low - a)
    error = error if high == math.inf else torch.minimum(error, high - a)
    return error * neuron.derivative(a)


def _is_native(neuron: Projection, a: Tensor, pull: Tensor) -> bool:
    if dyadic.current() not in ("auto", "native") or torch.compiler.is_compiling():
        return False
    return a.dtype in (torch.float32, torch.float64) and native.takes(neuron.piecewise, a, pull)
