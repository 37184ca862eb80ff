"""The work of a dyad, elementwise but for softmax: from drive a and feedback Δ to its mean and difference.

    s⁺ = f(a + u Δ),  s⁻ = f(a - d Δ),  s̄ = α s⁺ + (1-α) s⁻,  δ = s⁺ - s⁻

Written out, each is several passes over memory where back-propagation's derivative takes one. Large CPU tensors are
therefore walked in pieces that stay in the cache, over one scratch piece; `compiled=True` has inductor make one
vectorised pass of it (needs a C++ compiler; the first call takes seconds). Half-precision activations are subtracted in
float32: their rounding is as large as the differences (32 % error at |δ| = 0.01 in bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


class Activation(Protocol):
    """A function that keeps shape, and the same written over its argument (or not, where it can't be). Only where each value
    depends on one argument may it be walked in pieces."""

    @property
    def is_elementwise(self) -> bool: ...

    def f(self, a: Tensor) -> Tensor: ...
    def f_(self, a: Tensor) -> Tensor: ...


# Elements a piece: three float32 pieces fill 3 MB of cache. Smaller ones lose more to waking the threads for each operation
# (20 µs after a matrix product on two cores) than they gain; and so do activations of less than two.
PIECE = 262144
_KERNELS: dict[Callable[..., Any], Callable[..., Any]] = {}  # compiled once a process


def dyad(
    neuron: Activation,
    a: Tensor,
    delta: Tensor,
    up: float,
    down: float,
    alpha: float,
    compiled: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and difference of f(a + up·delta) and f(a - down·delta); same shape as a.

    With `overwrite` they may be written over a and delta, which nobody may need any more.
    """
    if compiled:
        return _compiled(_dyad)(neuron, a, delta, up, down, alpha)
    if not _worth_pieces(neuron, a, delta):
        return _dyad(neuron, a, delta, up, down, alpha)
    mean, difference = (a, delta) if overwrite else (torch.empty_like(a), torch.empty_like(a))
    scratch = torch.empty(PIECE, dtype=a.dtype)
    for a_, delta_, mean_, difference_ in _pieces(a, delta, mean, difference):
        plus = neuron.f_(torch.add(a_, delta_, alpha=up, out=scratch[: a_.numel()]))
        minus = neuron.f_(torch.add(a_, delta_, alpha=-down, out=mean_))
        torch.sub(plus, minus, out=difference_)
        torch.add(minus, difference_, alpha=alpha, out=mean_)
    return mean, difference


def one_sided_difference(
    neuron: Activation, a: Tensor, delta: Tensor, strength: float, free: Tensor, overwrite: bool = False
) -> Tensor:
    """f(a + strength·delta) - free, or free minus it where strength < 0: δ when one state is free = f(a), known already.

    With `overwrite` it may be written over delta, which nobody may need any more.
    """
    if not (_worth_pieces(neuron, a, delta) and free.is_contiguous()):
        nudged = neuron.f_(_shifted(a, delta, strength))
        return torch.sub(*((nudged, free) if strength > 0 else (free, nudged)), out=nudged)
    result = delta if overwrite else torch.empty_like(a)
    for a_, delta_, free_, result_ in _pieces(a, delta, free, result):
        nudged = neuron.f_(torch.add(a_, delta_, alpha=strength, out=result_))
        torch.sub(*((nudged, free_) if strength > 0 else (free_, nudged)), out=result_)
    return result


def difference(
    neuron: Activation,
    a: Tensor,
    delta: Tensor,
    up: float,
    down: float,
    scale: float = 1.0,
    compiled: bool = False,
) -> Tensor:
    """scale · (f(a + up·delta) - f(a - down·delta)), taken in float32 or wider and returned in a's dtype."""
    if compiled:
        return _compiled(_difference)(neuron, a, delta, up, down, scale)
    if not _worth_pieces(neuron, a, delta):
        return _difference(neuron, a, delta, up, down, scale)
    result, scratch = torch.empty_like(a), torch.empty(PIECE, dtype=a.dtype)
    for a_, delta_, result_ in _pieces(a, delta, result):
        scratch_ = scratch[: a_.numel()]
        plus = neuron.f_(torch.add(a_, delta_, alpha=up, out=result_))
        minus = neuron.f_(torch.add(a_, delta_, alpha=-down, out=scratch_))
        torch.sub(plus, minus, out=result_)
        if scale != 1:
            result_.mul_(scale)
    return result


def _dyad(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float, alpha: float) -> tuple[Tensor, Tensor]:
    plus = neuron.f_(_shifted(a, delta, up))
    minus = neuron.f_(_shifted(a, delta, -down))
    difference = plus.sub_(minus)
    return minus.add_(difference, alpha=alpha), difference


def _difference(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float, scale: float) -> Tensor:
    dtype = a.dtype
    if dtype in (torch.float16, torch.bfloat16):
        a, delta = a.float(), delta.float()
    plus = neuron.f(a) if up == 0 else neuron.f_(_shifted(a, delta, up))
    minus = neuron.f(a) if down == 0 else neuron.f_(_shifted(a, delta, -down))
    # Not in place: f(a) may be a itself.
    result = plus - minus
    return (result if scale == 1 else result.mul_(scale)).to(dtype)


def _shifted(a: Tensor, delta: Tensor, strength: float) -> Tensor:
    """a + strength·delta, in memory of its own."""
    # Written out for inductor: where delta is a matrix product that nothing else reads, it folds an addition with `alpha` into
    # addmm and forgets the alpha (torch 2.13).
    return a + strength * delta if torch.compiler.is_compiling() else torch.add(a, delta, alpha=strength)


def _compiled(function: F) -> F:
    if function not in _KERNELS:
        _KERNELS[function] = torch.compile(function, dynamic=True)
    return cast("F", _KERNELS[function])


def _worth_pieces(neuron: Activation, a: Tensor, delta: Tensor) -> bool:
    return (
        neuron.is_elementwise
        and not torch.compiler.is_compiling()
        and a.device.type == "cpu"
        and a.numel() > 2 * PIECE
        and a.dtype == delta.dtype
        and a.dtype in (torch.float32, torch.float64)
        and a.is_contiguous()
        and delta.is_contiguous()
    )


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)
