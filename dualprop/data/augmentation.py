"""Random crops and flips of a batch of images: pad-p crop moves an image by up to p pixels each
way; what comes in from outside is zeros or the image's own reflection.

What an epoch needs is drawn at once, on the CPU, from the generator that also draws its order;
applying it is one gather of the raw pixels on their device. Zeros are pixels, before normalisation:
black, not the mean, as torchvision pads. Shapes: N examples, B batch, C channels, H×W space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dualprop.errors import SettingError
from dualprop.settings import Pixels, conform


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; as it stands, not at all.

    Attributes:
        pad: pixels on each side, from which a window of the image's size is cut at random.
        padding: "zeros", or "reflect" for the image mirrored at its edges.
        flip: whether an image is mirrored, left to right, with probability 1/2.
        flips: "random", or "alternating": which images are mirrored is drawn for the first epoch,
            and from then on each is every other time. Two epochs show both of all images (Jordan
            2024, §3.6).
    """

    pad: Pixels = 0
    padding: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    flips: Literal["random", "alternating"] = "random"

    def __post_init__(self) -> None:
        conform(self)
        if self.padding == "reflect" and not self.pad:
            raise SettingError("padding='reflect' has no meaning without pad. Set pad, or leave padding out.")
        if self.flips == "alternating" and not self.flip:
            raise SettingError("flips='alternating' has no meaning without flip. Set flip=True, or leave flips out.")

    @property
    def is_on(self) -> bool:
        return self.pad > 0 or self.flip

    def check(self, input_shape: tuple[int, ...]) -> None:
        """Raise SettingError where examples of this shape, (C, H, W) or (D,), can't be varied
        so."""
        if self.is_on and len(input_shape) != 3:
            raise SettingError(f"only images can be cropped and flipped, not vectors {input_shape}; leave out augmentation.")
        if self.pad and self.pad >= min(input_shape[1:]):
            raise SettingError(f"pad must be smaller than the images, {input_shape[1]}×{input_shape[2]}, got {self.pad}.")

    def draw(self, order: Tensor, generator: torch.Generator, epoch: int = 0) -> Draws | None:
        """Crops and flips for the examples of these numbers (N,), in this order, in epoch 0, 1, …;
        None, and no number drawn, where there is nothing to draw."""
        if not self.is_on:
            return None
        moves = torch.zeros(len(order), 3, dtype=torch.int32)
        if self.pad:
            moves[:, :2] = torch.randint(2 * self.pad + 1, (len(order), 2), generator=generator, dtype=torch.int32)
        if self.flip and self.flips == "random":
            moves[:, 2] = torch.randint(2, (len(order),), generator=generator, dtype=torch.int32)
        elif self.flip:
            # The same in each epoch, so that a run which is resumed goes on with them.
            drawn = torch.randint(2, (len(order),), generator=torch.Generator().manual_seed(len(order)), dtype=torch.int32)
            moves[:, 2] = (drawn[order] + epoch) % 2
        return Draws(self.pad, moves, self.padding)


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for each example. moves: (N, 3) int32, the window's first row and column in
    the padded image, each in [0, 2·pad], and 1 where it is flipped, else 0."""

    pad: int
    moves: Tensor
    padding: str = "zeros"

    def to(self, device: torch.device | str) -> Draws:
        return Draws(self.pad, self.moves.to(device), self.padding)

    def split(self, batch_size: int) -> list[Draws]:
        """Batch by batch; the last may be smaller."""
        return [Draws(self.pad, moves, self.padding) for moves in self.moves.split(batch_size)]

    def apply(self, x: Tensor) -> Tensor:
        """The windows of the raw images x (B, C, H, W), of the same shape and type, on their
        device."""
        num_images, channels, height, width = x.shape
        padded = pad(x, self.pad, self.padding).flatten(2)
        top, left, flipped = self.moves.to(torch.int64)[:, :, None].unbind(1)
        rows = top + torch.arange(height, device=x.device)
        across = torch.arange(width, device=x.device)
        columns = left + torch.where(flipped == 1, width - 1 - across, across)
        # One index a pixel, shared by the channels: on two cores half the time of indexing rows,
        # columns and channels apart.
        pixels = rows[:, :, None] * (width + 2 * self.pad) + columns[:, None, :]
        windows = padded.gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1))
        return windows.view(num_images, channels, height, width)


def pad(x: Tensor, width: int, padding: str = "zeros") -> Tensor:
    """Images x (B, C, H, W) with `width` pixels on each side, of "zeros" or by "reflect"."""
    if padding == "zeros" or not width:
        return F.pad(x, (width,) * 4)
    # PyTorch reflects no bytes.
    rows, columns = (_reflected(side, width, x.device) for side in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


def _reflected(side: int, width: int, device: torch.device) -> Tensor:
    """Where each pixel of a padded side comes from: 2 1 | 0 1 2 3 | 2 1, say."""
    positions = torch.arange(-width, side + width, device=device).abs()
    return side - 1 - (side - 1 - positions).abs()
