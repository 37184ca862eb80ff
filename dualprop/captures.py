"""Whether a step is being captured: noted once, to be repeated for other batches without Python.

Its Python must then ask for no number of the batch, since a repetition would not ask again. A CUDA
graph notes what is launched. On the CPU `training.replay` notes PyTorch's operations, and is told
here of what others compute on raw memory. All of it is of the thread that captures.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Of a function, its arguments, and those tensors among them that it writes to.
Note = Callable[[Callable[..., Any], Sequence[Any], Sequence[Tensor]], None]


class _OfThread(threading.local):
    note: Note | None = None
    num_measurements = 0


_here = _OfThread()


@contextlib.contextmanager
def recording(note: Note) -> Iterator[None]:
    """Inside, a step is noted on the CPU; `note` is called before each function on raw memory."""
    before, _here.note = _here.note, note
    try:
        yield
    finally:
        _here.note = before


def is_recording() -> bool:
    """Whether a step is being noted on the CPU."""
    return _here.note is not None


def noted(call: Callable[..., Any], arguments: Sequence[Any], written: Sequence[Tensor]) -> None:
    """Say that `call` is about to be given these arguments, each tensor as its address."""
    if _here.note is not None:
        _here.note(call, arguments, written)


def forbid_waiting(t: Tensor) -> bool:
    """Whether a number of this tensor may not be waited for now."""
    return is_recording() or (t.is_cuda and torch.cuda.is_current_stream_capturing())


def may_measure(t: Tensor) -> bool:
    """Whether an inference may be measured now, which waits for numbers of this tensor."""
    _here.num_measurements += 1
    return not forbid_waiting(t)


def num_measurements() -> int:
    """How often `may_measure` was asked so far."""
    return _here.num_measurements
