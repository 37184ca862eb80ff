"""The kernel of GPUs: one pass over memory by inductor (Triton on GPUs, C++ on CPUs).

The first call takes seconds.

`dyad` and `difference` are what it compiles, and what any `torch.compile` around us sees. They keep
every digit however small β is: on one piece of a piecewise linear activation nothing is subtracted.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dualprop.kernels.activation import HALF, Activation

F = TypeVar("F", bound=Callable[..., Any])
_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}  # once a process


def dyad(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Mean and difference of f(a + up·delta) and f(a - down·delta), in the dtype and shape of a."""
    dtype = a.dtype
    if dtype in HALF:
        mean, difference = dyad(neuron, a.float(), delta.float(), up, down, alpha)
        return mean.to(dtype), difference.to(dtype)
    difference = _span(neuron, a, delta, up, down)
    return neuron.f(_shifted(a, delta, -down)) + alpha * difference, difference


def difference(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float, scale: float) -> Tensor:
    """scale · (f(a + up·delta) - f(a - down·delta)), in the dtype and shape of a.

    It is taken in float32 or wider.
    """
    dtype = a.dtype
    if dtype in HALF:
        a, delta = a.float(), delta.float()
    return (scale * _span(neuron, a, delta, up, down)).to(dtype)


def function(formula: F) -> F:
    """The formula compiled, for shapes of any size."""
    if formula not in _COMPILED:
        _COMPILED[formula] = torch.compile(formula, dynamic=True)
    return cast("F", _COMPILED[formula])


@functools.cache
def has_triton() -> bool:
    """Whether inductor can compile for GPUs."""
    return importlib.util.find_spec("triton") is not None


def _span(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float) -> Tensor:
    """f(a + up·delta) - f(a - down·delta), as `dyadic.c` has it.

    Where both lie on one piece of a piecewise linear f, it is the slope times what is between them,
    so that nothing cancels. NaN stays NaN.
    """
    plus, minus = _shifted(a, delta, up), _shifted(a, delta, -down)
    far, span = neuron.f(plus) - neuron.f(minus), (up + down) * delta
    if neuron.piecewise is None:
        return far
    kind, first, second = neuron.piecewise
    if kind == 2:
        inside = (plus > first) & (minus > first) & (plus < second) & (minus < second)
        return torch.where(inside, span, far)
    rise = torch.where((plus > 0) & (minus > 0), span, far)
    return torch.where((plus < 0) & (minus < 0), first * span, rise) if kind == 1 else rise


def _shifted(a: Tensor, delta: Tensor, strength: float) -> Tensor:
    """a + strength·delta, in new memory."""
    # Not torch.add: where delta is a matrix product that nothing else reads, inductor folds an
    # addition with `alpha` into addmm and forgets the alpha (torch 2.13).
    return a + strength * delta
