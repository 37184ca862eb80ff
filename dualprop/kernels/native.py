"""The one-pass kernels of a unit for CPUs: `dyadic.c`, compiled once and called on raw memory.

Written out in PyTorch a dyad is five passes over memory, a settled unit of predictive coding eight.
This is one, and it subtracts in float32 or wider without cancelling. The machine's C compiler
builds the library at the first use (seconds) and keeps it, see `building`. It shares PyTorch's
OpenMP threads. Where there is no compiler, or PyTorch runs other threads, `is_available` says no
and `reason` why; only speed is lost.
$DUALPROP_NATIVE=0 turns it off.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import dualprop.captures as captures
from dualprop.errors import DualpropError
from dualprop.kernels import building

# The kind of activation that is `gelu.h`'s.
GELU = 3
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
# Below this a second thread costs more to wake than it saves.
PER_THREAD = 32768

# An activation in C: its kind, and two constants.
InC = tuple[int, float, float]

NO_ACTIVATION: InC = (0, 0.0, 0.0)

_INT, _LONG, _REAL, _ADDRESS = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
# By kernel: the number of its tensors, and its settings.
_SIGNATURES: dict[str, tuple[int, list[Any]]] = {
    "difference": (3, [_REAL] * 3),
    "dyad": (4, [_REAL] * 3),
    "settle": (4, [_INT]),
    "error": (5, [_INT]),
    "move": (8, [_REAL] * 2),
}


class NativeError(DualpropError):
    """The kernel could not be built or loaded; the message says why and what to do."""


def is_available() -> bool:
    """Whether the kernel runs here. The first call builds it."""
    return _library()[0] is not None


def reason() -> str:
    """Why it does not run here; empty where it does."""
    return _library()[1]


@functools.cache
def build() -> str:
    """What built it; empty where it does not run."""
    return building.described() if is_available() else ""


def takes(in_c: InC | None, *tensors: Tensor) -> bool:
    """Whether the kernel can be applied.

    It takes an activation that is written in C, and CPU tensors of one type in one dense layout.
    """
    first = tensors[0]
    return (
        in_c is not None
        and first.dtype in DTYPES
        and (in_c[0] != GELU or first.dtype != torch.float64)
        and all(t.device.type == "cpu" and t.dtype == first.dtype for t in tensors)
        and dense_layout(*tensors) is not None
        and is_available()
    )


def dense_layout(*tensors: Tensor) -> torch.memory_format | None:
    """The memory format in which all of them fill their memory alike, without gaps; else None."""
    shape = tensors[0].shape
    if any(t.shape != shape for t in tensors):
        return None
    for layout in (torch.contiguous_format, {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))):
        if layout is not None and all(t.is_contiguous(memory_format=layout) for t in tensors):
            return layout
    return None


def difference(in_c: InC, a: Tensor, delta: Tensor, up: float, down: float, scale: float, out: Tensor) -> Tensor:
    """out ← scale · (f(a + up·delta) - f(a - down·delta)), and out, which may be a or delta.

    `takes` must have accepted them.
    """
    _run("difference", in_c, (a, delta), (out,), up, down, scale)
    return out


def dyad(
    in_c: InC,
    a: Tensor,
    delta: Tensor,
    up: float,
    down: float,
    alpha: float,
    mean: Tensor,
    difference: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and difference of f(a + up·delta) and f(a - down·delta), written to the last two.

    These may be a and delta.
    """
    _run("dyad", in_c, (a, delta), (mean, difference), up, down, alpha)
    return mean, difference


def settle(in_c: InC, a: Tensor, pull: Tensor, state: Tensor | None, signal: Tensor) -> Tensor:
    """Write f(a + pull), unless `state` is None, and f'(a) ⊙ (f(a + pull) - a); give the latter.

    f is a projection. `takes` must have accepted them.
    """
    _run("settle", in_c, (a, pull), (state, signal), state is not None)
    return signal


def error(in_c: InC, a: Tensor, free: Tensor | None, move: Tensor, out: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """ε = move - (f(a) - free), written to `out`, and f'(a) ⊙ ε to `signal`.

    Without a `free` ε is `move` itself, which is given back. `takes` must have accepted them.
    """
    is_predicted = free is not None
    _run("error", in_c, (a, free, move), (out if is_predicted else None, signal), is_predicted)
    return out if is_predicted else move, signal


def move(read: Sequence[Tensor], step: float, keep: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of pull, error, velocity v, move d and free state: v ← keep v + step (pull - error), d + v,
    free + d. `takes` must have accepted them."""
    velocity, moved, state = (torch.empty_like(read[0]) for _ in range(3))
    _run("move", NO_ACTIVATION, read, (velocity, moved, state), step, keep)
    return velocity, moved, state


def _run(name: str, in_c: InC, read: Sequence[Tensor | None], written: Sequence[Tensor | None], *settings: float) -> None:
    """Call a kernel on the tensors' memory."""
    first = read[0]
    assert first is not None
    function = _function(name, first.dtype, in_c[0] == GELU)
    tensors, rest = (*read, *written), (*settings, first.numel(), _threads(first))
    if captures.is_recording():
        arguments = (*in_c, *(0 if t is None else t for t in tensors), *rest)
        captures.noted(function, arguments, [t for t in written if t is not None])
    function(*in_c, *[0 if t is None else t.data_ptr() for t in tensors], *rest)


def _threads(a: Tensor) -> int:
    return min(torch.get_num_threads(), 1 + a.numel() // PER_THREAD)


@functools.cache
def _function(name: str, dtype: torch.dtype, is_gelu: bool) -> Any:
    library, reason = _library()
    if library is None:
        raise NativeError(reason)
    function = getattr(library, f"{'gelu_' if is_gelu else ''}{name}_{DTYPES[dtype]}")
    num_tensors, settings = _SIGNATURES[name]
    function.argtypes = [_INT, _REAL, _REAL, *[_ADDRESS] * num_tensors, *settings, _LONG, _INT]
    function.restype = None
    return function


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("DUALPROP_NATIVE", "1") == "0":
        return None, "$DUALPROP_NATIVE is 0"
    if "OpenMP" not in torch.__config__.parallel_info():
        return None, "this PyTorch runs no OpenMP threads"
    try:
        return building.library(), ""
    except building.BuildError as error:
        return None, str(error)
