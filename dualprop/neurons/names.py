"""Neurons by the modules and by the names that stand for them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dualprop.errors import SettingError, UnsupportedModuleError, closest
from dualprop.neurons.units import AbstractNeuron, HardSigmoid, Identity, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh

# The activation modules that explicit inference understands, by exact type: a subclass may differ.
NEURONS: dict[type[nn.Module], Callable[..., AbstractNeuron]] = {
    nn.Identity: lambda module: Identity(),
    nn.ReLU: lambda module: ReLU(),
    nn.LeakyReLU: lambda module: LeakyReLU(module.negative_slope),
    nn.Hardtanh: lambda module: HardSigmoid(module.min_val, module.max_val),
    nn.ReLU6: lambda module: HardSigmoid(0.0, 6.0),
    nn.Sigmoid: lambda module: Sigmoid(),
    nn.Tanh: lambda module: Tanh(),
    nn.Softmax: lambda module: Softmax(module.dim),
}

_BY_NAME: dict[str, Callable[[], AbstractNeuron]] = {
    "identity": Identity,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "hard_sigmoid": HardSigmoid,
    "hard_tanh": lambda: HardSigmoid(-1.0, 1.0),
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
}


def names() -> list[str]:
    """The neurons' names, as recipes and `dualprop list neurons` spell them."""
    return list(_BY_NAME)


def from_name(name: str) -> AbstractNeuron:
    """The neuron of that name. Raises SettingError for an unknown one."""
    if name not in _BY_NAME:
        raise SettingError(f"unknown neuron '{name}'.{closest(name, names())} Known: {', '.join(names())}.")
    return _BY_NAME[name]()


def module(name: str) -> nn.Module:
    """The PyTorch activation module of the neuron of that name."""
    neuron = from_name(name)
    if isinstance(neuron, HardSigmoid):
        return nn.Hardtanh(neuron.low, neuron.high)
    if isinstance(neuron, Softmax):
        return nn.Softmax(neuron.dim)
    return {Identity: nn.Identity, ReLU: nn.ReLU, LeakyReLU: nn.LeakyReLU, Sigmoid: nn.Sigmoid, Tanh: nn.Tanh}[type(neuron)]()


def from_module(activation: nn.Module, name: str) -> AbstractNeuron:
    """The neuron of an activation module. Raises UnsupportedModuleError, naming `name`."""
    make = NEURONS.get(type(activation))
    if make is None:
        raise UnsupportedModuleError(f"'{name}' is {activation}, which is no known neuron.")
    return make(activation)
