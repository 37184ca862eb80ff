"""New examples from files, as a model reads them: pictures, arrays and tables.

Each file gives (N, *input_shape) numbers in the units of the data that was trained on, and where
each of its examples is: "row 3" of a table, say. All are read before any is predicted, so that a
file that can't be read is told before the first line is written.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from dualprop import memory
from dualprop.data import Description
from dualprop.data.own import images, tables
from dualprop.data.own.columns import Table, of_text
from dualprop.data.own.inputs import Inputs
from dualprop.errors import DataError
from dualprop.training import files

ARRAYS = (".npz", ".npy")
# Bytes of a file of arrays.
LARGEST = 1 << 36


@dataclass(frozen=True, eq=False)
class Given:
    """Examples x (N, *input_shape) of a file, and the place of each in it, "" of the only one."""

    path: Path
    x: np.ndarray
    places: Sequence[str]
    remarks: tuple[str, ...] = ()


def read(path: Path, description: Description) -> Given:
    """The examples in the file. Raises DataError, which names it, the row, and the remedy."""
    suffix = path.suffix.lower()
    kinds = (*ARRAYS, *tables.READERS, *images.SUFFIXES)
    if suffix not in kinds:
        raise DataError(f"{path} is of no kind that is read: {', '.join(kinds)}.")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path} is no regular file. Give files; of a folder its pictures: {path}/*.png.")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}). Check its name.") from None
    if suffix in images.SUFFIXES:
        return _picture(path, description)
    return _table(path, description) if suffix in tables.READERS else _arrays(path, description)


def _picture(path: Path, description: Description) -> Given:
    if not description.is_image or not description.white:
        what = "pictures" if not description.is_image else "numbers that pixels can't be turned into"
        reads = f"vectors of {description.input_shape[0]} numbers" if not description.is_image else what
        raise DataError(f"{path} is a picture, and the model was trained on {reads}. Give .npz, .npy or .csv files.")
    channels, height, width = description.input_shape
    if channels not in (1, 3):
        raise DataError(f"{path} is a picture, and the model reads {channels} channels. Give .npz or .npy files.")
    inputs = description.inputs
    if inputs.source != "images":
        inputs = Inputs("images", colour="grey" if channels == 1 else "rgb")
    # Images that all had one size were not brought to any. A new one of another is, to a square.
    side = inputs.size or (height if height == width else 0)
    x, size = images.read_one(path, dataclasses.replace(inputs, size=side))
    if x.shape != description.input_shape:
        shapes = f"{size[0]}×{size[1]} pixels, and the model reads {width}×{height}"
        raise DataError(f"{path} has {shapes}. Bring it to that size.")
    done = {"crop": "cut to its middle and resized", "pad": "resized, with black around it", "stretch": "stretched"}
    remarks = (
        (f"{path}: {size[0]}×{size[1]} pixels, {done[inputs.fit]} to {width}×{height}.",) if size != (width, height) else ()
    )
    # White is 255 in a file.
    x = x if description.white == 255 else (x * np.float32(description.white / 255)).astype(np.float32)
    return Given(path, x[None], [""], remarks)


def _table(path: Path, description: Description) -> Given:
    table = tables.READERS[path.suffix.lower()](path)
    names = description.inputs.names
    if names:
        categories = [feature.column for feature in description.inputs.features if feature.words]
        x = description.inputs.encode(of_text(table, categories))
        gaps = np.argwhere(np.isnan(x))
        for row, column in gaps:
            x[row, column] = description.mean[column]
        return Given(path, x, table.places, tuple(_told(table, description.inputs, gaps)))
    return Given(path, _numbers(of_text(table), description), table.places)


def _told(table: Table, inputs: Inputs, gaps: np.ndarray) -> Iterator[str]:
    """What of the table was filled in, and what of it is not read."""
    if len(gaps):
        counted = Counter(inputs.names[column] for _, column in gaps)
        shown = ", ".join(f"{name} ({number})" for name, number in counted.items())
        yield f"{table.path}: values are missing in {shown}; the training part's mean takes their place."
    read = {feature.column for feature in inputs.features}
    if others := [each.name for each in table.columns if each.name not in read]:
        yield f"{table.path}: not read: {', '.join(others)}."


def _numbers(table: Table, description: Description) -> np.ndarray:
    """The rows of a table whose columns have no names that the model knows: all are its inputs."""
    wanted = prod(description.input_shape)
    if len(table.columns) != wanted:
        has = f"{len(table.columns)} columns, and an example has {wanted} numbers"
        raise DataError(f"{table.path} has {has}. Give these alone, and a first line with the columns' names.")
    for column in table.columns:
        for row in np.flatnonzero(column.missing) if column.numbers is not None else [0]:
            raise table.error(int(row), column.name, "a number is expected. Correct it.")
    x = np.stack([column.numbers for column in table.columns if column.numbers is not None], axis=1)
    return x.astype(np.float32).reshape(-1, *description.input_shape)


def _arrays(path: Path, description: Description) -> Given:
    array, remarks = _array(path)
    shape = description.input_shape
    if description.is_image:
        channels, height, width = shape
        if array.shape[1:] == (height, width, channels) != shape:
            array = array.transpose(0, 3, 1, 2)
        elif array.shape[1:] == (height, width) and channels == 1:
            array = array[:, None]
    if array.shape[1:] != shape:
        expected = f"(N, {', '.join(map(str, shape))})"
        raise DataError(f"{path} has an array of shape {array.shape}, and the model reads {expected}. Give one of these.")
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise DataError(f"{path} has an array of {array.dtype}. Store numbers, uint8 or float32.")
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{path} holds NaN, inf or numbers beyond float32. Replace them.")
    return Given(path, np.ascontiguousarray(array), [str(row) for row in range(len(array))], remarks)


def _array(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The array of a .npy, or of a .npz the one that holds examples, and which that was."""
    try:
        # Links are the user's own here: what they lead to is what is asked for.
        content = io.BytesIO(files.read(Path(os.path.realpath(path)), LARGEST))
        if path.suffix.lower() == ".npy":
            # Of anything else NumPy says that it may be a pickle.
            np.lib.format.read_magic(content)
            content.seek(0)
            return np.load(content, allow_pickle=False), ()
        with zipfile.ZipFile(content) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        others = [each for each in sizes if each != "layout"]
        names = [each for each in ("x", "x_test") if each in sizes] or others
        if len(names) != 1 and names[:1] != ["x"]:
            raise DataError(f"{path} holds {', '.join(others)[:200]}. Name the array of examples x.")
        name = names[0]
        if 2 * sizes[name] > memory.free():
            raise DataError(f"{path} inflates to {sizes[name] / 1e9:.1f} GB, too much for this machine's memory. Store less.")
        content.seek(0)
        told = (f"{path}: its {name} is read.",) if name != "x" else ()
        with np.load(content, allow_pickle=False) as read:
            array = read[name]
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {name!r} is no array. Write it by np.savez.")
        return array, told
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damage makes zipfile, numpy and its tokenizer raise nearly anything
        if memory.is_lacking(error):
            raise
        if "allow_pickle" in str(error):
            raise DataError(f"{path} holds Python objects (a pickle), which is refused. Store plain numbers.") from None
        raise DataError(f"{path} is truncated or damaged ({memory.first_line(error)}). Write it again by NumPy.") from None
