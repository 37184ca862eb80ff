"""The architectures of the papers and benchmarks, as plain `nn.Sequential`. A frozen description builds one for a data set.

C channels, H×W space, K classes. Weights are drawn by PyTorch's own initialisers from the global generator; the trainer
seeds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from dualprop import neurons
from dualprop.errors import SettingError


@dataclass(frozen=True)
class MLP:
    """Fully connected: one hidden layer per width, then a linear output.

    Attributes:
        widths: units per hidden layer.
        activation: a neuron's name, see `dualprop list neurons`.
        init: of weights with n inputs: "uniform" on ±1/√n, biases too, as PyTorch draws them, or "normal" with variance 1/n,
            biases zero (LeCun; the authors' own code for the study of asymmetric nudging).
        output: the output neuron's name: "identity" for logits, "softmax" for probabilities and the log loss.
    """

    widths: tuple[int, ...] = (1000, 1000, 1000)
    activation: str = "relu"
    init: str = "uniform"
    output: str = "identity"

    def __post_init__(self) -> None:
        _check(self.widths, "widths")
        neurons.from_name(self.activation)
        neurons.from_name(self.output)
        if self.init not in ("uniform", "normal"):
            raise SettingError(f"init must be 'uniform' or 'normal', got {self.init!r}.")

    @property
    def depth(self) -> int:
        """L, the number of layers of neurons."""
        return len(self.widths) + 1

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
        """The model for inputs (N, *input_shape), outputs (N, K)."""
        layers: list[nn.Module] = [nn.Flatten()] if len(input_shape) > 1 else []
        width = prod(input_shape)
        for new_width in self.widths:
            layers += [nn.Linear(width, new_width), neurons.module(self.activation)]
            width = new_width
        layers += [nn.Linear(width, num_classes)] + ([] if self.output == "identity" else [neurons.module(self.output)])
        for layer in layers:
            if self.init == "normal" and isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class ConvNet:
    """3×3 convolutions, each halving the space, then a linear output.

    Attributes:
        channels: per convolution.
        activation: a neuron's name, see `dualprop list neurons`.
        pool: how the space is halved: "after" or "before" the activation by 2×2 max-pooling, or by "stride" 2.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    activation: str = "relu"
    pool: str = "before"

    def __post_init__(self) -> None:
        _check(self.channels, "channels")
        neurons.from_name(self.activation)
        if self.pool not in ("before", "after", "stride"):
            raise SettingError(f"pool must be 'before', 'after' or 'stride', got {self.pool!r}.")

    @property
    def depth(self) -> int:
        """L, the number of layers of neurons."""
        return len(self.channels) + 1

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
        """The model for images (N, C, H, W), logits (N, K). Raises SettingError where they are no images or too small."""
        if len(input_shape) != 3:
            raise SettingError(f"a ConvNet reads images (C, H, W), but an example has shape {input_shape}. Use an MLP.")
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for new_channels in self.channels:
            stride = 2 if self.pool == "stride" else 1
            conv = nn.Conv2d(channels, new_channels, 3, stride=stride, padding=1)
            act, pool = neurons.module(self.activation), nn.MaxPool2d(2)
            layers += {"before": [conv, pool, act], "after": [conv, act, pool], "stride": [conv, act]}[self.pool]
            channels = new_channels
            height, width = ((height + 1) // 2, (width + 1) // 2) if stride == 2 else (height // 2, width // 2)
        if height * width == 0:
            raise SettingError(f"{len(self.channels)} halvings leave nothing of {input_shape[1:]} pixels. Use fewer channels.")
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, num_classes))


MODELS: dict[str, type[MLP] | type[ConvNet]] = {"mlp": MLP, "conv_net": ConvNet}


def _check(sizes: tuple[int, ...], name: str) -> None:
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SettingError(f"{name} must be positive whole numbers, got {sizes}.")
