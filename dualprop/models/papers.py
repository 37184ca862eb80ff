"""The architectures of the papers, as plain `nn.Sequential`; where paths merge it is a `Layered`.

C channels, H×W space, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from dualprop import neurons
from dualprop.errors import SettingError
from dualprop.network.layered import Layered
from dualprop.settings import Positive, Units, conform
from dualprop.softmax import SoftmaxPool2d

# Kinds of 2×2 pools; the last two are differentiable everywhere.
POOLS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
    "softmax": lambda: SoftmaxPool2d(2),
}


@dataclass(frozen=True)
class MLP:
    """Fully connected: one hidden layer per width, then a linear output.

    Attributes:
        widths: units per hidden layer.
        activation: a neuron's name, see `dualprop list neurons`.
        init: of weights with n inputs. "uniform": on ±1/√n, biases too, as PyTorch draws them.
            "normal": variance 1/n, biases zero (LeCun; the authors' code for the study of
            asymmetric nudging).
        output: the output neuron: "identity" for logits, "softmax" for probabilities (log loss).
    """

    widths: Units = (1000, 1000, 1000)
    activation: str = "relu"
    init: str = "uniform"
    output: str = "identity"

    def __post_init__(self) -> None:
        conform(self)
        neurons.from_name(self.activation)
        neurons.from_name(self.output)
        if self.init not in ("uniform", "normal"):
            raise SettingError(f"init must be 'uniform' or 'normal', got {self.init!r}.")

    is_convolutional = False

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
        pool: what halves the space: 2×2 pooling "after" or "before" the activation, or "stride" 2.
        pooling: "max", "average" or "softmax", see `pooling`.
    """

    channels: Units = (32, 64, 128)
    activation: str = "relu"
    pool: str = "before"
    pooling: str = "max"

    def __post_init__(self) -> None:
        conform(self)
        neurons.from_name(self.activation)
        if self.pool not in ("before", "after", "stride"):
            raise SettingError(f"pool must be 'before', 'after' or 'stride', got {self.pool!r}.")
        _check_pooling(self.pooling)

    is_convolutional = True

    @property
    def depth(self) -> int:
        """L, the number of layers of neurons."""
        return len(self.channels) + 1

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
        """The model for images (N, C, H, W), logits (N, K).

        Raises SettingError where they are no images or too small.
        """
        if len(input_shape) != 3:
            raise SettingError(f"a ConvNet reads images (C, H, W), but an example has shape {input_shape}. Use an MLP.")
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for new_channels in self.channels:
            stride = 2 if self.pool == "stride" else 1
            conv = nn.Conv2d(channels, new_channels, 3, stride=stride, padding=1)
            act, pool = neurons.module(self.activation), POOLS[self.pooling]()
            layers += {"before": [conv, pool, act], "after": [conv, act, pool], "stride": [conv, act]}[self.pool]
            channels = new_channels
            height, width = ((height + 1) // 2, (width + 1) // 2) if stride == 2 else (height // 2, width // 2)
        if height * width == 0:
            raise SettingError(f"{len(self.channels)} halvings leave nothing of {input_shape[1:]} pixels. Use fewer channels.")
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, num_classes))


Stages = list[tuple[list[nn.Module], nn.Module, list[nn.Module]]]


@dataclass(frozen=True)
class VGG:
    """3×3 convolutions in runs, 2×2 pools behind some, then dense layers; no batch norm.

    The defaults are VGG16, the network of Høier et al. (2023), appendix C, and Høier & Zach (2024),
    §6.2. `vgg5` and `vgg10` give the others. How the weights of VGG16 were drawn is not recorded.
    "he" trains it without batch norm, where PyTorch's initialisers would shrink the signal by 0.4 a
    layer.

    Attributes:
        channels: per convolution.
        pooled: the numbers (from 1) of the convolutions that a pool follows.
        dense: units per hidden fully connected layer.
        activation: a neuron's name, see `dualprop list neurons`.
        pool: "after" the activation (the 2023 code) or "before" it (the 2024 code and the PCN's).
            The prediction is the same.
        init: of weights with n inputs. "he": normal of variance 2/n, no biases. "uniform": on
            ±1/√n, as PyTorch draws them. "uniform_fan_out": on ±1/√m in a convolution of
            m = channels out × kernel size (Kerjan et al. 2026).
        gain: what all weights are multiplied by.
        output_gain: multiplies the output layer's weights too (0.2 with squared error on
            ImageNet32, ibid.).
        skips: pairs of convolutions (from, to). The state of the first is added to the drive of the
            second, by a 1×1 convolution of fitting stride (ibid., VGG10Skip: 2 to 5 and 5 to 8).
        pooling: "max", "average" or "softmax", see `pooling`.
    """

    channels: Units = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    pooled: Units = (2, 4, 7, 10, 13)
    dense: Units = (4096, 4096)
    activation: str = "relu"
    pool: str = "after"
    init: str = "he"
    gain: Positive = 1.0
    output_gain: Positive = 1.0
    skips: tuple[tuple[int, int], ...] = ()
    pooling: str = "max"

    def __post_init__(self) -> None:
        conform(self)
        neurons.from_name(self.activation)
        if sorted(set(self.pooled)) != list(self.pooled) or not all(1 <= k <= len(self.channels) for k in self.pooled):
            raise SettingError(
                f"pooled must be rising numbers from 1 to {len(self.channels)}, of convolutions that a pool follows, "
                f"got {self.pooled}."
            )
        if self.pool not in ("before", "after"):
            raise SettingError(f"pool must be 'before' or 'after', got {self.pool!r}.")
        _check_pooling(self.pooling)
        if self.init not in ("he", "uniform", "uniform_fan_out"):
            raise SettingError(f"init must be 'he', 'uniform' or 'uniform_fan_out', got {self.init!r}.")
        if len(set(self.skips)) != len(self.skips) or not all(
            len(pair) == 2 and 1 <= pair[0] < pair[1] - 1 and pair[1] <= len(self.channels) for pair in self.skips
        ):
            raise SettingError(
                f"skips must be pairs of convolutions from 1 to {len(self.channels)}, (from, to) with one or more between, got "
                f"{self.skips}."
            )

    is_convolutional = True

    @property
    def depth(self) -> int:
        """L, the number of layers of neurons."""
        return len(self.channels) + len(self.dense) + 1

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """The model for images (N, C, H, W), logits (N, K): `nn.Sequential`, with skips `Layered`.

        Raises SettingError where they are no images or too small.
        """
        if len(input_shape) != 3:
            raise SettingError(f"a VGG reads images (C, H, W), but an example has shape {input_shape}. Use an MLP.")
        width, *space = input_shape
        height_and_width = prod(side // 2 ** len(self.pooled) for side in space)
        if height_and_width == 0:
            raise SettingError(
                f"{len(self.pooled)} pools leave nothing of {tuple(space)} pixels. Pool after fewer convolutions."
            )
        # Per layer: what stands before its map, the map, what stands between it and the activation.
        stages: list[tuple[list[nn.Module], nn.Module, list[nn.Module]]] = []
        entry: list[nn.Module] = []
        for number, channels in enumerate(self.channels, start=1):
            pools: list[nn.Module] = [POOLS[self.pooling]()] if number in self.pooled else []
            is_before = self.pool == "before"
            stages.append((entry, nn.Conv2d(width, channels, 3, padding=1), pools if is_before else []))
            entry, width = ([] if is_before else pools), channels
        entry, width = [*entry, nn.Flatten()], width * height_and_width
        for units in self.dense:
            stages.append((entry, nn.Linear(width, units), []))
            entry, width = [], units
        output = nn.Linear(width, num_classes)
        stages.append((entry, output, []))
        for _, layer, _ in stages:
            self._draw(layer)
        with torch.no_grad():
            output.weight.mul_(self.output_gain)
        return self._layered(stages, space) if self.skips else self._chain(stages)

    def _chain(self, stages: Stages) -> nn.Sequential:
        layers: list[nn.Module] = []
        for entry, layer, exit_ in stages[:-1]:
            layers += [*entry, layer, *exit_, neurons.module(self.activation)]
        entry, output, _ = stages[-1]
        return nn.Sequential(*layers, *entry, output)

    def _layered(self, stages: Stages, space: Sequence[int]) -> Layered:
        layers: list[tuple[nn.Module | None, dict[int, nn.Module]]] = []
        for k, (entry, layer, exit_) in enumerate(stages, start=1):
            maps: dict[int, nn.Module] = {k - 1: nn.Sequential(*entry, layer, *exit_)}
            for source in (source for source, target in self.skips if target == k):
                channels = self.channels[source - 1], self.channels[k - 1]
                deepest = 2 ** self._halvings(k)
                if any(side % deepest for side in space):
                    raise SettingError(f"the skip to layer {k} needs sides that {deepest} divides, got {tuple(space)} pixels.")
                maps[source] = nn.Conv2d(*channels, 1, stride=2 ** (self._halvings(k) - self._halvings(source)))
                self._draw(maps[source])
            layers.append((None if k == len(stages) else neurons.module(self.activation), maps))
        return Layered(layers)

    def _halvings(self, k: int) -> int:
        """How often the space has been halved where layer k's state is."""
        return sum(number <= k if self.pool == "before" else number < k for number in self.pooled)

    def _draw(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if self.init == "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif self.init == "uniform_fan_out" and isinstance(layer, nn.Conv2d):
            bound = (layer.out_channels * prod(layer.kernel_size)) ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
        if self.gain != 1:
            with torch.no_grad():
                layer.weight.mul_(self.gain)


def vgg16(pool: str = "after") -> VGG:
    """13 convolutions and 4096-4096-K, for images of 32×32."""
    return VGG(pool=pool)


def vgg5(pool: str = "before") -> VGG:
    """Kerjan et al. (2026), table 5: convolutions 128, 256P, 512P, 512P, 512P and the output.

    For images of 32×32.

    The table lists five convolutions and a fully connected layer, though the text calls the network
    one of five layers: L = 6.
    """
    return VGG((128, 256, 512, 512, 512), (2, 3, 4, 5), (), pool=pool, init="uniform")


def vgg10_skip(pool: str = "before") -> VGG:
    """VGG10 with skips from layer 2 to 5 and from 5 to 8 (Kerjan et al. 2026, VGG10Skip).

    They are strided 1×1 convolutions.

    Where they join is not recorded. Here it is at the drive, behind the pool of layer 8, so the
    second has stride 4.
    """
    return dataclasses.replace(vgg10(pool), skips=((2, 5), (5, 8)))


def vgg10(pool: str = "before") -> VGG:
    """Kerjan et al. (2026), table 5: eight convolutions and 2048-K.

    For images of 224×224 (or any of 32 and more).
    """
    channels = (64, 128, 256, 256, 512, 512, 512, 512)
    return VGG(channels, (1, 2, 4, 6, 8), (2048,), pool=pool, init="uniform_fan_out")


def _check_pooling(pooling: str) -> None:
    if pooling not in POOLS:
        raise SettingError(f"pooling must be 'max', 'average' or 'softmax', got {pooling!r}.")
