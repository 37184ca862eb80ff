"""What the kernels ask of an activation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class Activation(Protocol):
    """A function that keeps shape, and the same written over its argument where possible.

    `is_elementwise` says that each value depends on one argument, so that it may be walked in
    pieces. `piecewise` is how `dyadic.c` writes it, None where it can't.
    """

    @property
    def is_elementwise(self) -> bool: ...
    @property
    def piecewise(self) -> tuple[int, float, float] | None: ...

    def f(self, a: Tensor) -> Tensor: ...
    def f_(self, a: Tensor) -> Tensor: ...
