"""Where the arrays of a .npz lie in it, so that they can be mapped; it is a zip of .npy files, each
a header and its elements.

What is stored as it stands is mapped in place. What is compressed can't be, and is unpacked once
into the cache. Nothing is unpickled: a header is a literal, and arrays of objects are refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from dualprop.data.pickles import Stored
from dualprop.errors import DataError
from dualprop.system.syncing import sync_folder

LOCAL_HEADER = 30
# What is left over from an unpacking that was killed is removed once it has not grown for an hour.
ABANDONED_SECONDS = 3600


def members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays in the file by their names, without .npy. Raises DataError where it is no .npz."""

    def read() -> dict[str, zipfile.ZipInfo]:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}

    return _guarded(path, "", read)


def locate(path: Path, info: zipfile.ZipInfo) -> Stored:
    """Where an uncompressed array lies in the file."""

    def read() -> Stored:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER)
            if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise ValueError("no local header")
            # The name and the extra field, whose lengths may differ from those in the directory at
            # the file's end.
            lengths = struct.unpack("<HH", header[26:30])
            begin = info.header_offset + LOCAL_HEADER + sum(lengths)
            file.seek(begin)
            stored = header_of(file)
            if stored.offset + _num_bytes(stored) != begin + info.file_size:
                raise ValueError("sizes differ")
            if begin + info.file_size > os.fstat(file.fileno()).st_size:
                raise ValueError("truncated")
            return stored

    return _guarded(path, info.filename, read)


def locate_unpacked(path: Path, info: zipfile.ZipInfo) -> Stored:
    """Where a compressed array lies in the .npy file that `unpack` makes of it."""

    def read() -> Stored:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            stored = header_of(file)
            if stored.offset + _num_bytes(stored) != info.file_size:
                raise ValueError("sizes differ")
            return stored

    return _guarded(path, info.filename, read)


def is_mappable(info: zipfile.ZipInfo) -> bool:
    """Whether the array is stored as it stands."""
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 0x1


def header_of(file: IO[bytes]) -> Stored:
    """Type, shape and place of the array whose .npy begins where `file` stands. Raises ValueError,
    or what numpy does."""
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = reader(file)
    if dtype.hasobject or by_columns or any(n < 0 for n in shape):
        raise ValueError("not plain numbers, row by row")
    return Stored(dtype, shape, file.tell())


def _num_bytes(stored: Stored) -> int:
    total = stored.dtype.itemsize
    for n in stored.shape:
        total *= int(n)
    return total


def small(path: Path, info: zipfile.ZipInfo, limit: int) -> np.ndarray:
    """An array of at most `limit` bytes, read and checked by its CRC."""
    if info.file_size > limit:
        raise DataError(f"{path}: {info.filename} holds {info.file_size} bytes, {limit} are expected at most; replace it.")

    def read() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            file.read()  # to the end, where the CRC is compared
            return array

    return _guarded(path, info.filename, read)


def unpacked(path: Path, info: zipfile.ZipInfo, folder: Path) -> Path:
    """Where the array is, or is to be, as a .npy file of its own in `folder`; named after the file
    that it is of, its place and time and sizes. A name by its CRC alone could be taken by another
    file made to have the same."""
    status = path.stat()
    told = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{info.filename}\0{info.CRC}\0{info.file_size}"
    return folder / f"{path.stem}-{info.filename.removesuffix('.npy')}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npy"


def unpack(path: Path, info: zipfile.ZipInfo, folder: Path) -> Path:
    """The array as a .npy file of its own in `folder`, written whole or not at all, unless it is
    there already."""
    target = unpacked(path, info, folder)
    if target.is_file() and target.stat().st_size == info.file_size:
        return target

    def write() -> Path:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as out, zipfile.ZipFile(path) as archive, archive.open(info) as file:
                shutil.copyfileobj(file, out, 1 << 20)
                if out.tell() != info.file_size:
                    raise ValueError("the member inflates to another size than it declares")
                out.flush()
                os.fsync(out.fileno())  # its name and size will say that it is whole
            os.replace(temporary, target)
            sync_folder(folder)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return target

    return _guarded(path, info.filename, write)


def make_room(needed: int, folder: Path, why: str) -> None:
    """Make `folder`, with `needed` bytes free in it. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.part"):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DataError(f"can't write to the cache folder {folder} ({error.strerror or error}). {why}") from None
    if needed > 0.95 * free:
        raise DataError(f"{folder} needs {needed / 1e9:.1f} GB and has {free / 1e9:.1f} GB free. {why}")


def _guarded(path: Path, member: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; the errors of zipfile, zlib and numpy, which are of nearly any kind, as
    one DataError."""
    place = f" at {member!r}" if member else ""
    try:
        return work()
    except OSError as error:
        reason = f"({error.strerror or error}). Check its permissions and the space in the cache."
        raise DataError(f"{path} can't be read{place} {reason}") from None
    except Exception as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: {member!r} holds Python objects (a pickle), which is refused; replace it.") from None
        raise DataError(f"{path} is truncated, damaged or no .npz file{place}; replace it.") from None
