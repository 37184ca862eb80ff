"""Images that stay in their files: rows of bytes, mapped into the address space and read where a
batch asks for them.

The memory in use stays flat: pages that were read are let go again after a while. The system keeps
what it can of them in its own cache, which is free memory to every other program.
Shapes: N images, B batch, R bytes an image."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualprop.errors import DataError

# A page fault maps up to 64 KiB around a row. Letting go costs about a millisecond, and those
# pages' faults again.
BYTES_PER_FAULT = 1 << 16
KEEP_BYTES = 1 << 27
# Images read at a time when the whole set is brought to the device.
CHUNK = 8192


def open_map(path: Path) -> mmap.mmap:
    """The file mapped privately: what would be written to it stays in memory. Raises DataError,
    also where it is empty."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError:
        raise DataError(f"{path} is empty; replace it.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}). Check its permissions.") from None


def advise(mapping: mmap.mmap, advice: str) -> None:
    """madvise with the constant of this name, where the system has it."""
    if hasattr(mmap, advice):
        mapping.madvise(getattr(mmap, advice))


class MappedFiles:
    """Images in several files, numbered through: file i holds the rows from `starts`[i] to
    `starts`[i+1]."""

    def __init__(self, files: Sequence[tuple[mmap.mmap, int, int]], row_bytes: int) -> None:
        """files: of each its map, the offset of its first image, and their number."""
        self.maps = [mapping for mapping, _, _ in files]
        self.pixels = [
            np.frombuffer(mapping, np.uint8, number * row_bytes, offset).reshape(number, row_bytes)
            for mapping, offset, number in files
        ]
        self.offsets = [offset for _, offset, _ in files]
        self.starts = np.cumsum([0, *(number for _, _, number in files)])
        self.row_bytes = row_bytes
        self._num_read = 0
        for mapping in self.maps:
            # Else each row would read 128 KiB around it, forty times what is asked for.
            advise(mapping, "MADV_RANDOM")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """(B, R) uint8: the images of these rows (B,) int64, in their order."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        bounds = np.searchsorted(ascending, self.starts)
        # np.take leaves Python free while the disk is read; and a disk is quickest in ascending
        # order.
        gathered = np.empty((len(rows), self.row_bytes), np.uint8)
        for i, (start, begin, end) in enumerate(zip(self.starts, bounds, bounds[1:], strict=False)):
            if begin < end:
                local = ascending[begin:end] - start
                self._read_ahead(i, local)
                np.take(self.pixels[i], local, axis=0, out=gathered[begin:end], mode="clip")
        self._num_read += len(rows)
        if self._num_read * BYTES_PER_FAULT > KEEP_BYTES:
            self._num_read = 0
            self.let_go()
        images = np.empty_like(gathered)
        images[order] = gathered
        return images

    def sample(self, number: int = 16) -> np.ndarray:
        """(≤ number × files, R) uint8: so many images of each file, evenly spaced, the first and
        the last among them."""
        sizes = np.diff(self.starts)
        local = [np.unique(np.linspace(0, size - 1, min(number, size)).round().astype(np.int64)) for size in sizes if size]
        starts = [start for start, size in zip(self.starts, sizes, strict=False) if size]
        return self.gather(np.concatenate([start + rows for start, rows in zip(starts, local, strict=True)]))

    def _read_ahead(self, i: int, rows: np.ndarray) -> None:
        """Ask for the pages of these ascending rows of file i at once; else each page fault would
        wait for its own."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        is_dense = rows[-1] - rows[0] < 4 * len(rows)
        firsts, lasts = (rows[:1], rows[-1:]) if is_dense else (rows, rows)
        begins = self.offsets[i] + firsts * self.row_bytes
        ends = self.offsets[i] + (lasts + 1) * self.row_bytes
        begins -= begins % mmap.PAGESIZE
        # A call for each row, a microsecond: asked for so, a batch of 100 comes from the disk in a
        # tenth of the time.
        for begin, length in zip(begins.tolist(), (ends - begins).tolist(), strict=True):
            self.maps[i].madvise(mmap.MADV_WILLNEED, begin, length)

    def let_go(self) -> None:
        """Give the pages that were read back to the system, which may keep them in its cache."""
        for mapping in self.maps:
            advise(mapping, "MADV_DONTNEED")


class MappedImages:
    """Some rows of MappedFiles, as images (N, C, H, W) uint8; to Examples it is as a tensor on the
    CPU, read when indexed."""

    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(self, files: MappedFiles, shape: tuple[int, ...], rows: np.ndarray | None = None) -> None:
        """shape: of one image, (C, H, W). rows: (N,) int64; all, in order, by default."""
        self.files = files
        self.rows = np.arange(files.starts[-1]) if rows is None else rows
        self.shape = (len(self.rows), *shape)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> MappedImages:
        """The images at `indices`, still in their files."""
        return MappedImages(self.files, self.shape[1:], self.rows[indices])

    def sample(self) -> np.ndarray:
        """Some images of each of the files, whichever rows these are, by which a set is known."""
        return self.files.sample()

    @property
    def num_bytes(self) -> int:
        return len(self.rows) * self.files.row_bytes

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """As `Tensor.index_select` along dimension 0."""
        assert dim == 0
        return torch.from_numpy(self.files.gather(self.rows[indices.numpy()])).view(-1, *self.shape[1:])

    def to(self, device: torch.device | str) -> Tensor:
        """All images read onto `device`; beside them no more memory is taken than for a few
        thousand."""
        images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for begin in range(0, len(self), CHUNK):
            images[begin : begin + CHUNK] = self.index_select(0, torch.arange(begin, min(begin + CHUNK, len(self)))).to(device)
        self.files.let_go()
        return images


def fits(num_bytes: int, device: torch.device | str) -> bool:
    """Whether this many bytes are at most half of the device's free memory; the rest is the
    training's."""
    device = torch.device(device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return num_bytes <= free / 2


def free_memory() -> int:
    """Bytes of main memory that are free or can be freed at once, within the limit of the container
    if there is one."""
    limits = []
    with contextlib.suppress(OSError):
        limits.append(1024 * _entry(Path("/proc/meminfo"), "MemAvailable:"))
    groups = (
        ("", "memory.max", "memory.current", "file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "cache"),
    )
    for folder, limit, used, cached in groups:
        group = Path("/sys/fs/cgroup") / folder
        # There is no such group, or its limit is the word "max".
        with contextlib.suppress(OSError, ValueError):
            in_use = int((group / f"memory.{used}").read_text()) - _entry(group / "memory.stat", cached)
            limits.append(int((group / f"memory.{limit}").read_text()) - in_use)
    # Where nothing is known, what ImageNet32 fits into twice.
    return min(limits) if limits else 8 * 10**9


def _entry(path: Path, name: str) -> int:
    """The number after `name` in a file of such lines, 0 without one."""
    words = (line.split() for line in path.read_text().splitlines())
    return next((int(number) for first, number, *_ in words if first == name), 0)
