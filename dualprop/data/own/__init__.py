"""The user's own data: tables, folders of images, arrays, and Hugging Face's datasets on disk; see
`reading` for what can be said of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from dualprop.data.own.examples import Own
from dualprop.data.own.reading import Reading
from dualprop.errors import DataError

SUFFIXES = (".npz", ".npy", ".csv", ".tsv", ".parquet")
# More files than these in a folder are not looked at one by one to see whether they changed.
MAX_FILES = 5_000_000

__all__ = ["SUFFIXES", "Own", "Reading", "is_path", "read"]


def is_path(name: str) -> bool:
    """Whether a data set's name is the path of own data: by its suffix, or as it has a folder in
    it."""
    return name.lower().endswith(SUFFIXES) or os.sep in name or "/" in name or name in (".", "..")


def read(path: Path, reading: Reading) -> Own:
    """The examples at `path`: of the last read, if nothing has changed there since. Raises
    DataError, which names the file and the remedy."""
    if not path.exists():
        what = f"a folder, or a file that ends in {', '.join(SUFFIXES)}"
        raise DataError(f"{path} does not exist. Give the path of {what}.")
    return _read(path.absolute(), path, reading, tuple(_state(path)))


@functools.lru_cache(maxsize=1)
def _read(_: Path, path: Path, reading: Reading, state: tuple[object, ...]) -> Own:
    from dualprop.data import npz
    from dualprop.data.own import huggingface, images, structured, tables

    if path.is_dir():
        if huggingface.is_saved(path):
            return huggingface.read(path, reading)
        if (path / "x_train.npy").is_file():
            return npz.read_folder(path, reading)
        if images.is_folder_of_images(path):
            return images.read(path, reading)
        hint = "class folders of images, x_train.npy and y_train.npy, or a saved dataset of Hugging Face"
        raise DataError(f"{path} holds nothing that is read: {hint}. Give a folder with one of these, or a file.")
    if not path.is_file():
        raise DataError(f"{path} is no regular file. Give a file or a folder.")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return npz.read(path, reading)
    if suffix == ".npy":
        return structured.read(path, reading)
    if suffix in tables.READERS:
        return tables.read(path, reading)
    raise DataError(f"{path} is of no kind that is read. Known are {', '.join(SUFFIXES)} and folders.")


def _state(path: Path) -> Iterator[object]:
    """What changes where the data does: names, sizes and times."""
    if not path.is_dir():
        status = path.stat()
        yield status.st_size, status.st_mtime_ns, status.st_ino
        return
    number = 0
    for place, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            number += 1
            if number > MAX_FILES:
                raise DataError(f"{path} holds more than {MAX_FILES} files. Give a folder of fewer.")
            try:
                status = os.stat(os.path.join(place, name))
                yield place, name, status.st_size, status.st_mtime_ns
            except OSError:
                yield place, name
