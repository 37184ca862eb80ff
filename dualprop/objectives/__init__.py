"""The scalar objectives behind the rules: of a layered network, and of bilevel programmes."""

from dualprop.objectives.bilevel import Relaxation, arovr, rovr, sprovr
from dualprop.objectives.layered import (
    conjugate,
    dyadic,
    hopfield,
    inverse,
    lagrangian,
    layer_energy,
    lifted,
    predictive_coding,
)

__all__ = [
    "Relaxation",
    "arovr",
    "conjugate",
    "dyadic",
    "hopfield",
    "inverse",
    "lagrangian",
    "layer_energy",
    "lifted",
    "predictive_coding",
    "rovr",
    "sprovr",
]
