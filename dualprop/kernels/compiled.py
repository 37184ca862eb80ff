"""The kernel of GPUs: one pass over memory by inductor (Triton on GPUs, C++ on CPUs).

The first call takes seconds.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])
_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}  # once a process


def function(formula: F) -> F:
    """The formula compiled, for shapes of any size."""
    if formula not in _COMPILED:
        _COMPILED[formula] = torch.compile(formula, dynamic=True)
    return cast("F", _COMPILED[formula])


@functools.cache
def has_triton() -> bool:
    """Whether inductor can compile for GPUs."""
    return importlib.util.find_spec("triton") is not None
