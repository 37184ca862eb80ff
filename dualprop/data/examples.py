"""Examples on the device, and batches of them: a batch is (x - mean) / std of the rows that a
permutation names.

Pixels stay uint8 until a batch is taken: a quarter of the memory, and the gather moves a quarter of
the bytes. Nothing runs in Python per example. Shapes: N examples, B batch, C channels, H×W space, D
features."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dualprop.data.augmentation import Augmentation, Draws
from dualprop.data.mapped import MappedImages
from dualprop.data.prefetch import ahead
from dualprop.errors import SettingError


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, labels, and the constants that normalise the inputs; all on one device, or the images
    in files.

    x: (N, C, H, W) images or (N, D) vectors, uint8 or float32. y: (N,) int64, classes 0..K-1.
    mean, std: float32 in the units of x (pixels 0..255 for MNIST), (C, 1, 1) for images, (D,) or ()
    for vectors. Batches are on their device; where x is mapped, y is on the CPU.
    """

    x: Tensor | MappedImages
    y: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on `device`, read onto it where they are in files."""
        return Examples(self.x.to(device), self.y.to(device), self.mean.to(device), self.std.to(device))

    def batch(
        self,
        indices: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        draws: Draws | None = None,
        channels_last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(x - mean) / std of the examples at `indices` (B,) int64, as `dtype`, and their labels
        (B,) int64.

        draws: the crops and flips of these examples, on their device. channels_last: the memory
        format of x. The arithmetic is float32 (float64 where `dtype` is): half precision is rounded
        to once, at the end.
        """
        return self.finish(*self.rows(indices), dtype, draws=draws, channels_last=channels_last)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.mean.device

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """x and y as they are kept, at `indices`; in main memory, and ready to be copied, where x
        is mapped."""
        indices = indices.to(self.x.device)
        x, y = self.x.index_select(0, indices), self.y.index_select(0, indices)
        is_copied = self.device.type == "cuda" and x.device.type == "cpu"
        return (x.pin_memory(), y.pin_memory()) if is_copied else (x, y)

    def finish(
        self,
        x: Tensor,
        y: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        draws: Draws | None = None,
        channels_last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The batch of these `rows`; see `batch`."""
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        x = self._normalised(x if draws is None else draws.apply(x), dtype)
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x, y

    def _normalised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == torch.uint8 and dtype != torch.float64:
            scale, shift = self._scale_and_shift
            return torch.addcmul(shift, x.to(torch.float32), scale).to(dtype)
        # Subtract first: x·(1/std) - mean/std would cancel where a feature's mean is far larger
        # than its std.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return ((x.to(wide) - self.mean.to(wide)) / self.std.to(wide)).to(dtype)

    @cached_property
    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """1/std and -mean/std: one multiply-add normalises bytes, and is exact enough, as none is
        far from the mean."""
        return 1 / self.std, -self.mean / self.std


def batches(
    examples: Examples,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    start: int = 0,
    drop_last: bool = False,
    augmentation: Augmentation | None = None,
    epoch: int = 0,
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of normalised batches (x: (B, *shape) of `dtype`, y: (B,) int64), from batch number
    `start` on.

    With a `generator` (on the CPU) the order is one permutation, drawn when this function is
    called, and after it every crop and flip of `augmentation`, which needs one; so a run resumes in
    mid-epoch from the generator's state at the epoch's start and the number of batches done.
    Without one the order is that of the examples. `epoch` counts from 0, for flips that alternate.
    The last batch is smaller where `batch_size` does not divide N, or left out with `drop_last`.
    channels_last: the memory format of images. Raises SettingError.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size}.")
    if drop_last and batch_size > len(examples):
        raise SettingError(f"batch_size {batch_size} exceeds the {len(examples)} examples; lower it or keep the last.")
    num_batches = len(examples) // batch_size if drop_last else -(-len(examples) // batch_size)
    if not 0 <= start <= num_batches:
        raise SettingError(f"start must be in [0, {num_batches}], the batches of one epoch, got {start}.")
    if not dtype.is_floating_point:
        raise SettingError(f"dtype must be a floating-point type, got {dtype}.")
    if generator is not None and generator.device.type != "cpu":
        raise SettingError(f"generator must be on the CPU, where every run draws its order, not {generator.device}.")
    augmentation = augmentation or Augmentation()
    augmentation.check(tuple(examples.x.shape[1:]))
    if augmentation.is_on and generator is None:
        raise SettingError("augmentation needs a generator to draw from; leave it out where nothing is random.")
    if channels_last and examples.x.ndim != 4:
        raise SettingError("channels_last is a memory format of images, and these examples are vectors; leave it out.")
    # The order is drawn on the CPU and moved once: the same seed gives the same batches on every
    # device.
    order = torch.arange(len(examples)) if generator is None else torch.randperm(len(examples), generator=generator)
    draws = None if generator is None else augmentation.draw(order, generator, epoch)
    parts = order.to(examples.x.device).split(batch_size)[start:num_batches]
    drawn = [None] * len(parts) if draws is None else draws.to(examples.device).split(batch_size)[start:num_batches]
    kept = (examples.rows(indices) for indices in parts)
    rows = ahead(kept) if isinstance(examples.x, MappedImages) else kept
    return (
        examples.finish(x, y, dtype, draws=moves, channels_last=channels_last)
        for (x, y), moves in zip(rows, drawn, strict=True)
    )
