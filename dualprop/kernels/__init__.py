"""The elementwise work of a dyad: `dyadic` is what is computed, `native` (C) and `compiled` how."""

from dualprop.kernels.activation import Activation
from dualprop.kernels.dyadic import (
    KERNELS,
    Kernel,
    check,
    chosen,
    current,
    difference,
    dyad,
    one_sided_difference,
    using,
)

__all__ = [
    "KERNELS",
    "Activation",
    "Kernel",
    "check",
    "chosen",
    "current",
    "difference",
    "dyad",
    "one_sided_difference",
    "using",
]
