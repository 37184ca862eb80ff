"""What the kernels ask of an activation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class Activation(Protocol):
    """A function that keeps shape, and the same written over its argument where possible.

    `rise` is f(low + span) - f(low), with all digits of span; `state` is f(low), where known.

    `is_elementwise` says that each value depends on one argument, so that it may be walked in
    pieces. `piecewise` is the kind and constants of a piecewise linear one, `in_c` of one that
    `dyadic.c` or `gelu.h` has; else None. `is_of_state`: f' is a function of f(a), so that
    back-propagation keeps that alone.
    """

    @property
    def is_elementwise(self) -> bool: ...
    @property
    def is_of_state(self) -> bool: ...
    @property
    def piecewise(self) -> tuple[int, float, float] | None: ...
    @property
    def in_c(self) -> tuple[int, float, float] | None: ...

    def f(self, a: Tensor) -> Tensor: ...
    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor: ...
    def f_(self, a: Tensor) -> Tensor: ...
