"""A network that learns CIFAR in minutes: few convolutions on whitened patches, each normalised.

After Jordan (2024), "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498: what each
part is worth is measured there. N batch, C channels, H×W space, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from dualprop import neurons
from dualprop.errors import SettingError
from dualprop.settings import Positive, Units, conform

# Activations that are no proximal maps, and so no neurons by name.
_SMOOTH: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
# Channels of a group, and how much of a batch's statistics goes into the running ones.
_GROUP, _MOMENTUM = 16, 0.4


class Whitening(nn.Conv2d):
    """A fixed convolution onto the principal components of k×k patches and onto their negatives.

    With patches p, of covariance Σ v_i λ_i v_iᵀ over the images, outputs are ± v_iᵀ p / √(λ_i + ε):
    uncorrelated and of equal variance, at most (ibid., §3.2). (N, C, H, W) → (N, 2Ck², H-k+1,
    W-k+1). Before `fit` they are components of noise.
    """

    def __init__(self, channels: int, size: int = 2, epsilon: float = 5e-4) -> None:
        super().__init__(channels, 2 * channels * size**2, size, bias=False)
        self.epsilon = epsilon
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the components of the patches of these images (N, C, H, W), as they are shown to the
        network. The sum over them is in float64."""
        patches = nn.functional.unfold(x, self.kernel_size).transpose(1, 2).flatten(0, 1).double()
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        # Each column's sign is the solver's choice; either is here.
        scaled = (components / (variances + self.epsilon).sqrt()).T.flip(0)
        self.weight.copy_(torch.cat([scaled, -scaled]).view_as(self.weight))


class Scaled(nn.Module):
    """Outputs times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


@dataclass(frozen=True)
class FastConvNet:
    """Whitened patches, then groups of 3×3 convolutions that each halve the space, then a linear
    output of the largest state in each channel.

    A group's first convolution is followed by a 2×2 max pool. All are normalised before their
    activation, and begin as the identity on their first channels.

    Attributes:
        channels: per group.
        convolutions: per group.
        activation: "gelu", "silu", or a neuron's name, see `dualprop list neurons`.
        norm: "batch", whose scale is fixed at 1; "group", of 16 channels each; or "none", of which
            the convolutions have biases.
        whitening: pixels on each side of a whitened patch; 0 for none.
        output_scale: what logits are multiplied by.
    """

    channels: Units = (64, 256, 256)
    convolutions: Annotated[int, Interval(ge=1, le=100)] = 2
    activation: str = "gelu"
    norm: Literal["batch", "group", "none"] = "batch"
    whitening: Annotated[int, Interval(ge=0, le=16)] = 2
    output_scale: Positive = 1 / 9

    def __post_init__(self) -> None:
        conform(self)
        self._activation()
        if self.norm == "group" and any(number % _GROUP for number in self.channels):
            raise SettingError(f"norm='group' needs channels in multiples of {_GROUP}, got {self.channels}.")

    is_convolutional = True

    @property
    def depth(self) -> int:
        """L, the number of layers of neurons."""
        return bool(self.whitening) + len(self.channels) * self.convolutions + 1

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
        """The model for images (N, C, H, W), logits (N, K).

        Raises SettingError where they are no images or too small.
        """
        if len(input_shape) != 3:
            raise SettingError(f"a FastConvNet reads images (C, H, W), but an example has shape {input_shape}. Use an MLP.")
        width, *space = input_shape
        side = min(space) - max(0, self.whitening - 1)
        if side >> len(self.channels) < 1:
            raise SettingError(f"{len(self.channels)} halvings leave nothing of {tuple(space)} pixels. Use fewer channels.")
        layers: list[nn.Module] = []
        if self.whitening:
            whitening = Whitening(width, self.whitening)
            layers += [whitening, self._activation()]
            width = whitening.out_channels
        for channels in self.channels:
            for number in range(self.convolutions):
                pool = [nn.MaxPool2d(2)] if number == 0 else []
                layers += [self._convolution(width, channels), *pool, *self._norm(channels), self._activation()]
                width = channels
        output = nn.Linear(width, num_classes, bias=False)
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), output, Scaled(self.output_scale))

    def _activation(self) -> nn.Module:
        return _SMOOTH[self.activation]() if self.activation in _SMOOTH else neurons.module(self.activation)

    def _convolution(self, width: int, channels: int) -> nn.Conv2d:
        layer = nn.Conv2d(width, channels, 3, padding=1, bias=self.norm == "none")
        if layer.bias is not None:
            # Nothing else keeps the signal's scale.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        else:
            nn.init.dirac_(layer.weight[:width])
        return layer

    def _norm(self, channels: int) -> list[nn.Module]:
        if self.norm == "none":
            return []
        if self.norm == "group":
            return [nn.GroupNorm(channels // _GROUP, channels)]
        norm = nn.BatchNorm2d(channels, momentum=_MOMENTUM)
        norm.weight.requires_grad_(False)
        return [norm]
