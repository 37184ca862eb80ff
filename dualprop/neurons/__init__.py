"""Neurons: activations with the potentials whose proximal maps they are. See `units`."""

from dualprop.neurons.names import NEURONS, from_module, from_name, module, names
from dualprop.neurons.units import (
    GELU,
    AbstractNeuron,
    Function,
    HardSigmoid,
    Identity,
    LeakyReLU,
    ReLU,
    Scale,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)

__all__ = [
    "GELU",
    "NEURONS",
    "AbstractNeuron",
    "Function",
    "HardSigmoid",
    "Identity",
    "LeakyReLU",
    "ReLU",
    "Scale",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "from_module",
    "from_name",
    "module",
    "names",
]
