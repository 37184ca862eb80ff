"""The work of a dyad, elementwise but for softmax: from drive a and feedback Δ to s̄ and δ.

    s⁺ = f(a + u Δ),  s⁻ = f(a - d Δ),  s̄ = α s⁺ + (1-α) s⁻,  δ = s⁺ - s⁻

Written out, each is several passes over memory where back-propagation's derivative takes one. So
there are three kernels:

    native     one vectorised pass by `dyadic.c`, for piecewise linear activations on CPUs
    compiled   one pass by inductor: Triton on GPUs, C++ on CPUs (the first call takes seconds)
    eager      PyTorch's operations; large CPU tensors are walked in pieces that fit the cache

"auto" takes the first that fits without a wait: native on CPUs, compiled on CUDA where Triton is
installed, else eager. Half-precision activations are subtracted in float32, since their rounding is
as large as the differences (32 % error at |δ| = 0.01 in bfloat16). None of them subtracts two
states that are nearly equal: every digit is kept however small β is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.kernels import compiled, formulas, native
from dualprop.kernels.activation import Activation

Kernel = Literal["auto", "native", "compiled", "eager"]
KERNELS: tuple[Kernel, ...] = ("auto", "native", "compiled", "eager")


# Elements a piece: three float32 pieces fill 3 MB of cache. Smaller ones gain less than they lose
# by waking the threads for each operation (20 µs after a matrix product on two cores). So do
# activations of less than two pieces.
PIECE = 262144


# The kernel that does the work, for the whole process; see `using`.
_in_use: Kernel = "auto"


def current() -> Kernel:
    """The kernel in use."""
    return _in_use


@contextlib.contextmanager
def using(kernel: Kernel) -> Iterator[None]:
    """Inside, the process's elementwise work is done by this kernel.

    A backward pass uses the kernel of its forward pass.

    The kernel changes how a number is computed, and so its rounding, never what is computed.

    Raises:
        SettingError: there is no such kernel, or it can't run here.
    """
    global _in_use
    check(kernel)
    before, _in_use = _in_use, kernel
    try:
        yield
    finally:
        _in_use = before


def check(kernel: str) -> None:
    """Raise SettingError where a kernel asked for by name does not exist or can't run here."""
    if kernel not in KERNELS:
        raise SettingError(f"kernel must be {', '.join(KERNELS[:-1])} or {KERNELS[-1]}, got {kernel!r}.")
    if kernel == "native" and not native.is_available():
        raise SettingError(f"kernel='native' can't be had: {native.reason()}. Use kernel='auto'.")


def chosen(device: torch.device | str) -> Kernel:
    """The kernel that "auto" is on a device."""
    if torch.device(device).type == "cpu":
        return "native" if native.is_available() else "eager"
    return "compiled" if torch.device(device).type == "cuda" and compiled.has_triton() else "eager"


def dyad(
    neuron: Activation,
    a: Tensor,
    delta: Tensor,
    up: float,
    down: float,
    alpha: float,
    kernel: Kernel | None = None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and difference of f(a + up·delta) and f(a - down·delta), in a's dtype and shape.

    Each is rounded once.

    With `overwrite` they may be written over a and delta, which must not be needed any more.
    Without a `kernel` it is the one in use.
    """
    delta = _alike(delta, a)
    if _is_native(kernel, neuron, a, delta):
        mean, difference = (a, delta) if overwrite else (torch.empty_like(a), torch.empty_like(a))
        return native.dyad(cast("Any", neuron.in_c), a, delta, up, down, alpha, mean, difference)
    if _is_compiled(kernel, a):
        return compiled.function(formulas.dyad)(neuron, a, delta, up, down, alpha)
    if not _worth_pieces(neuron, a, delta):
        return formulas.dyad(neuron, a, delta, up, down, alpha)
    mean, difference = (a, delta) if overwrite else (torch.empty_like(a), torch.empty_like(a))
    for a_, delta_, mean_, difference_ in _pieces(a, delta, mean, difference):
        mean_of_piece, difference_of_piece = formulas.dyad(neuron, a_, delta_, up, down, alpha)
        mean_.copy_(mean_of_piece)
        difference_.copy_(difference_of_piece)
    return mean, difference


def one_sided_difference(
    neuron: Activation,
    a: Tensor,
    delta: Tensor,
    strength: float,
    free: Tensor,
    kernel: Kernel | None = None,
    overwrite: bool = False,
) -> Tensor:
    """f(a + strength·delta) - free, or free minus it where strength < 0.

    That is δ when one state is free = f(a), which is given.

    With `overwrite` it may be written over delta, which must not be needed any more.
    """
    delta = _alike(delta, a)
    up, down = (strength, 0.0) if strength > 0 else (0.0, -strength)
    if _is_native(kernel, neuron, a, delta):
        # Computing f(a) again is free, reading it is not.
        out = delta if overwrite else torch.empty_like(a)
        return native.difference(cast("Any", neuron.in_c), a, delta, up, down, 1.0, out)
    if _is_compiled(kernel, a):
        return compiled.function(formulas.difference)(neuron, a, delta, up, down, 1.0)
    if not (_worth_pieces(neuron, a, delta) and native.dense_layout(a, delta, free) is not None):
        return formulas.one_sided_difference(neuron, a, delta, strength, free)
    result = delta if overwrite else torch.empty_like(a)
    for a_, delta_, free_, result_ in _pieces(a, delta, free, result):
        result_.copy_(formulas.one_sided_difference(neuron, a_, delta_, strength, free_))
    return result


def difference(
    neuron: Activation,
    a: Tensor,
    delta: Tensor,
    up: float,
    down: float,
    scale: float = 1.0,
    kernel: Kernel | None = None,
) -> Tensor:
    """scale · (f(a + up·delta) - f(a - down·delta)), in a's dtype.

    It is taken in float32 or wider.
    """
    if torch.is_grad_enabled() and (a.requires_grad or delta.requires_grad):
        return formulas.difference(neuron, a, delta, up, down, scale)
    if not torch.compiler.is_compiling():
        delta = _alike(delta, a)
    if _is_native(kernel, neuron, a, delta):
        return native.difference(cast("Any", neuron.in_c), a, delta, up, down, scale, torch.empty_like(a))
    if _is_compiled(kernel, a):
        return compiled.function(formulas.difference)(neuron, a, delta, up, down, scale)
    if not _worth_pieces(neuron, a, delta):
        return formulas.difference(neuron, a, delta, up, down, scale)
    result = torch.empty_like(a)
    for a_, delta_, result_ in _pieces(a, delta, result):
        result_.copy_(formulas.difference(neuron, a_, delta_, up, down, scale))
    return result


def _is_native(kernel: Kernel | None, neuron: Activation, a: Tensor, delta: Tensor) -> bool:
    if (kernel or _in_use) not in ("auto", "native") or torch.compiler.is_compiling():
        return False
    return native.takes(neuron.in_c, a, delta)


def _is_compiled(kernel: Kernel | None, a: Tensor) -> bool:
    kernel = kernel or _in_use
    # Inside a user's torch.compile everything is compiled anyway.
    wanted = kernel == "compiled" or (kernel == "auto" and a.is_cuda and compiled.has_triton())
    return wanted and not torch.compiler.is_compiling()


def _alike(delta: Tensor, a: Tensor) -> Tensor:
    """delta in the dtype of a and, where a is dense, its layout: one pass over both needs that."""
    if delta.dtype != a.dtype:
        delta = delta.to(a.dtype)
    if a.device.type != "cpu" or native.dense_layout(a, delta) is not None or native.dense_layout(a) is None:
        return delta
    return torch.empty_like(a).copy_(delta)


def _worth_pieces(neuron: Activation, a: Tensor, delta: Tensor) -> bool:
    return (
        neuron.is_elementwise
        and not torch.compiler.is_compiling()
        and a.device.type == "cpu"
        and a.numel() > 2 * PIECE
        and a.dtype == delta.dtype
        and a.dtype in (torch.float32, torch.float64)
        and native.dense_layout(a, delta) is not None
    )


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    # In memory's order: all of them are dense in one layout.
    return zip(*(tensor.as_strided((tensor.numel(),), (1,)).split(PIECE) for tensor in tensors), strict=True)
