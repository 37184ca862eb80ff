"""Images that stay in their files: rows of bytes, read where a batch asks for them.

They are read by place and not mapped into the address space: of a mapped file that is cut short
meanwhile the next access ends the process, where reading ends in a line. The memory in use stays
flat; the system keeps what it can in its own cache, which is free memory to every other program.
Shapes: N images, B batch, R bytes an image."""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualprop import memory
from dualprop.errors import DataError

# Images read at a time when the whole set is brought to the device.
CHUNK = 8192
# Bytes read at once where single ones are asked for.
BLOCK = 1 << 16


class PlacedFile:
    """A file whose bytes are read by their place, from any thread: `file[i]`, `file[i:j]`.

    Raises DataError where it can't be opened or is empty; and, reading, where it has become shorter
    or the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self.descriptor)
            status = os.fstat(self.descriptor)
        except OSError as error:
            raise DataError(f"{path} can't be read ({error.strerror or error}). Check its permissions.") from None
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} can't be read: it is no file. Replace it.")
        self.size = status.st_size
        if self.size == 0:
            raise DataError(f"{path} is empty; replace it.")
        # Else each row would read 128 KiB around it, forty times what is asked for.
        self._advise("POSIX_FADV_RANDOM", 0, 0)
        self._begin, self._block = 0, b""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int | slice) -> int | bytes:
        """A byte, or those of a slice of step 1."""
        if isinstance(place, slice):
            start, stop, _ = place.indices(self.size)
            return self._bytes(start, max(start, stop))
        return self._bytes(place, place + 1)[0]

    def read_into(self, buffer: np.ndarray, place: int) -> None:
        """Fill the buffer, contiguous uint8, with the bytes from `place` on."""
        done = 0
        while done < len(buffer):
            try:
                number = self._read_once(buffer.data[done:], place + done)
            except OSError as error:
                raise DataError(f"{self.path} can't be read any more ({error.strerror or error}).") from None
            if number == 0:
                raise DataError(f"{self.path} has become shorter since it was opened. Restore it, and continue.")
            done += number

    def expect(self, place: int, length: int) -> None:
        """Have the system fetch these bytes ahead, beside others."""
        self._advise("POSIX_FADV_WILLNEED", place, length)

    def _bytes(self, start: int, stop: int) -> bytes:
        if not self._begin <= start <= stop <= self._begin + len(self._block):
            block = np.empty(max(stop - start, min(BLOCK, self.size - start)), np.uint8)
            self.read_into(block, start)
            if len(block) > BLOCK:
                return block.tobytes()
            self._begin, self._block = start, block.tobytes()
        return self._block[start - self._begin : stop - self._begin]

    def _read_once(self, buffer: memoryview, place: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [buffer], place)
        with self._lock:  # Windows has one place for all threads
            os.lseek(self.descriptor, place, os.SEEK_SET)
            content = os.read(self.descriptor, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _advise(self, advice: str, place: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, place, length, getattr(os, advice))


class MappedFiles:
    """Images in several files, numbered through: file i holds the rows from `starts`[i] to
    `starts`[i+1]."""

    def __init__(self, files: Sequence[tuple[PlacedFile, int, int]], row_bytes: int) -> None:
        """files: of each the file, the offset of its first image, and their number."""
        self.files = [file for file, _, _ in files]
        self.offsets = [offset for _, offset, _ in files]
        self.starts = np.cumsum([0, *(number for _, _, number in files)])
        self.row_bytes = row_bytes

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """(B, R) uint8: the images of these rows (B,) int64, in their order."""
        # A disk is quickest in ascending order; each row is read once.
        ascending, places = np.unique(rows, return_inverse=True)
        images = np.empty((len(ascending), self.row_bytes), np.uint8)
        runs = list(self._runs(ascending))
        for file, place, begin, end in runs:
            file.expect(place, (end - begin) * self.row_bytes)
        for file, place, begin, end in runs:
            file.read_into(images[begin:end].reshape(-1), place)
        return images[places]

    def sample(self, number: int = 16) -> np.ndarray:
        """(≤ number × files, R) uint8: so many images of each file, evenly spaced, the first and
        the last among them."""
        sizes = np.diff(self.starts)
        local = [np.unique(np.linspace(0, size - 1, min(number, size)).round().astype(np.int64)) for size in sizes if size]
        starts = [start for start, size in zip(self.starts, sizes, strict=False) if size]
        return self.gather(np.concatenate([start + rows for start, rows in zip(starts, local, strict=True)]))

    def _runs(self, rows: np.ndarray) -> Iterator[tuple[PlacedFile, int, int, int]]:
        """Runs of these ascending rows that lie side by side: their file, its place there, and
        begin and end among the rows."""
        breaks = (np.diff(rows) > 1) | (np.diff(np.searchsorted(self.starts, rows, side="right")) > 0)
        begins = np.concatenate([[0], np.flatnonzero(breaks) + 1]) if len(rows) else np.empty(0, np.int64)
        numbers = np.searchsorted(self.starts, rows[begins], side="right") - 1
        places = rows[begins] - self.starts[numbers]
        ends = np.append(begins[1:], len(rows))
        for i, place, begin, end in zip(numbers.tolist(), places.tolist(), begins.tolist(), ends.tolist(), strict=True):
            yield self.files[i], self.offsets[i] + place * self.row_bytes, begin, end


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
        return images


def fits(num_bytes: int, device: torch.device | str) -> bool:
    """Whether this many bytes are at most half of the device's free memory; the rest is the
    training's."""
    return num_bytes <= memory.free(device) / 2
