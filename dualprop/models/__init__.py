"""The architectures of the recipes: a frozen description builds a model for a data set.

PyTorch's initialisers draw the weights from the global generator, which the trainer seeds. What
follows from the images (`Whitening`) is fitted to them afterwards.
"""

from collections.abc import Callable

from dualprop.errors import SettingError, closest
from dualprop.models.fast import FastConvNet, Whitening
from dualprop.models.own import OwnModel
from dualprop.models.papers import MLP, POOLS, VGG, ConvNet, vgg5, vgg10, vgg10_skip, vgg16
from dualprop.models.unmade import Unmade

Architecture = MLP | ConvNet | VGG | FastConvNet | OwnModel

MODELS: dict[str, type[MLP] | type[ConvNet] | type[VGG] | type[FastConvNet] | type[OwnModel]] = {
    "mlp": MLP,
    "conv_net": ConvNet,
    "vgg": VGG,
    "fast_conv_net": FastConvNet,
    "own": OwnModel,
}

# What the command line and a recipe's user name them by.
NAMED: dict[str, Callable[[], Architecture]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "vgg5": vgg5,
    "vgg10": vgg10,
    "vgg10-skip": vgg10_skip,
    "vgg16": vgg16,
    "fast": FastConvNet,
}


def from_name(name: str) -> Architecture:
    """The architecture of that name, or the user's own, "path.py:build". Raises SettingError."""
    if name in NAMED:
        return NAMED[name]()
    if ".py" in name:
        return OwnModel(name)
    raise SettingError(
        f"unknown model '{name}'.{closest(name, list(NAMED))} Known: {', '.join(NAMED)}, or your own function, path.py:build."
    )


__all__ = [
    "MLP",
    "MODELS",
    "NAMED",
    "POOLS",
    "VGG",
    "Architecture",
    "ConvNet",
    "FastConvNet",
    "OwnModel",
    "Unmade",
    "Whitening",
    "from_name",
    "vgg5",
    "vgg10",
    "vgg10_skip",
    "vgg16",
]
