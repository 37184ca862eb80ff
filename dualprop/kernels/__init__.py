"""The elementwise work of a layer's units: `dyadic` and `predicted` are what is computed.

`native` (C) and `compiled` are how.
"""

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
from dualprop.kernels.predicted import errors, moved, settled, signal

__all__ = [
    "KERNELS",
    "Activation",
    "Kernel",
    "check",
    "chosen",
    "current",
    "difference",
    "dyad",
    "errors",
    "moved",
    "one_sided_difference",
    "settled",
    "signal",
    "using",
]
