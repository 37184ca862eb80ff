"""Neurons: activations with the potentials whose proximal maps they are. See `units`."""

from dualprop.neurons.functions import GELU, Function, SiLU
from dualprop.neurons.names import NEURONS, from_module, from_name, module, names
from dualprop.neurons.units import (
    AbstractNeuron,
    HardSigmoid,
    Identity,
    LeakyReLU,
    ReLU,
    Scale,
    Sigmoid,
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
