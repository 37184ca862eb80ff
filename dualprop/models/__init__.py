"""The architectures of the recipes: a frozen description builds a model for a data set.

PyTorch's initialisers draw the weights from the global generator, which the trainer seeds. What
follows from the images (`Whitening`) is fitted to them afterwards.
"""

from dualprop.models.fast import FastConvNet, Whitening
from dualprop.models.papers import MLP, POOLS, VGG, ConvNet, vgg5, vgg10, vgg10_skip, vgg16
from dualprop.models.unmade import Unmade

Architecture = MLP | ConvNet | VGG | FastConvNet

MODELS: dict[str, type[MLP] | type[ConvNet] | type[VGG] | type[FastConvNet]] = {
    "mlp": MLP,
    "conv_net": ConvNet,
    "vgg": VGG,
    "fast_conv_net": FastConvNet,
}

__all__ = [
    "MLP",
    "MODELS",
    "POOLS",
    "VGG",
    "Architecture",
    "ConvNet",
    "FastConvNet",
    "Unmade",
    "Whitening",
    "vgg5",
    "vgg10",
    "vgg10_skip",
    "vgg16",
]
