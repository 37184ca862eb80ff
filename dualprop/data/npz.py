"""The user's own data: a .npz file of the arrays x_train, y_train and, both or neither, x_test,
y_test.

x holds vectors (N, D), grey images (N, H, W), or images with channels, in uint8 or floating point
(kept as float32). Four dimensions are (N, C, H, W) if the second is at most 4 and smaller than the
two after it, (N, H, W, C) if the last is at most 4 and smaller than the two before it. Anything
else is refused, unless an entry `layout`, "NCHW" or "NHWC", says what it is; where there is one, it
decides. y holds the classes 0..K-1 as integers (N,). Without x_test a fixed random sixth is the
test set, the same for every seed. Pickle is never read: opening a file runs no code of its author.
"""

import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from dualprop import memory
from dualprop.data.splits import Arrays, draw
from dualprop.errors import DataError

TEST_FRACTION = 1 / 6
TEST_SEED = 0


def read(path: Path) -> Arrays:
    """The arrays of the file at `path`, images as (N, C, H, W). DataErrors name the file, the array
    and the remedy."""
    entries = _entries(path)
    for name, partner in (("x_train", "x_train"), ("y_train", "y_train"), ("x_test", "y_test"), ("y_test", "x_test")):
        if name not in entries and partner in (name, *entries):
            raise DataError(f"{path} has no array {name}; it holds {list(entries)}. Add it.")
    layout = _layout(path, entries)
    x_train, y_train = _inputs(path, "x_train", entries, layout), entries["y_train"]
    _check_lengths(path, "train", x_train, y_train)
    if "x_test" not in entries:
        train, test = draw(len(x_train), TEST_FRACTION, TEST_SEED, str(path))
        return Arrays(x_train[train], y_train[train], x_train[test], y_train[test])
    x_test, y_test = _inputs(path, "x_test", entries, layout), entries["y_test"]
    _check_lengths(path, "test", x_test, y_test)
    if x_test.shape[1:] != x_train.shape[1:]:
        shapes = f"shape {x_test.shape[1:]} in x_test, {x_train.shape[1:]} in x_train"
        raise DataError(f"{path}: an example has {shapes}; make them equal.")
    if x_test.dtype != x_train.dtype:
        raise DataError(f"{path}: only one of x_train and x_test is uint8; store both in the same type and range.")
    return Arrays(x_train, y_train, x_test, y_test)


def _entries(path: Path) -> dict[str, np.ndarray]:
    """The entries of the archive, read (those that we don't need are left empty) and its handle
    closed."""
    if not os.path.isfile(path):  # unlike Path.is_file, False where a folder above may not be searched
        raise DataError(f"{path} does not exist. Give the path of a .npz file, as np.savez writes it.")
    wanted = ("x_train", "y_train", "x_test", "y_test", "layout")
    entry = ""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is truncated or no .npz file. Write it with np.savez, as x_train=… and so on.")
            _check_memory(path, file, wanted)
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                entries = {}
                for entry in archive.files:
                    entries[entry] = archive[entry] if entry in wanted else np.empty(0)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}). Check its permissions.") from None
    except MemoryError:
        raise DataError(f"{path}: {entry!r} does not fit into memory. Store fewer examples, or uint8.") from None
    except Exception as error:  # damage makes zipfile, numpy and its tokenizer raise nearly anything
        if "allow_pickle" in str(error):
            reason = f"{entry!r} holds Python objects (a pickle), which is refused. Store a plain array of numbers"
            raise DataError(f"{path}: {reason}.") from None
        place = f" at {entry!r}" if entry else ""
        raise DataError(f"{path} is damaged{place}. Write it again with np.savez.") from None
    for entry, value in entries.items():
        if not isinstance(value, np.ndarray):  # a member of the zip that is no .npy file comes as bytes
            raise DataError(f"{path}: {entry!r} is not an array. Write the file with np.savez.")
    return entries


def _check_memory(path: Path, file: IO[bytes], wanted: tuple[str, ...]) -> None:
    """Raise DataError where the arrays declare more than memory holds: little of a file can inflate
    to anything."""
    with zipfile.ZipFile(file) as archive:
        sizes = [info.file_size for info in archive.infolist() if info.filename.removesuffix(".npy") in wanted]
    # Floats are copied once, and the split of what is tested too.
    if 2 * sum(sizes) > memory.free():
        raise DataError(f"{path} inflates to {sum(sizes) / 1e9:.1f} GB, too much for this machine's memory. Store less.")


def _layout(path: Path, entries: dict[str, np.ndarray]) -> str:
    """Where the channels of four-dimensional x are: "NCHW" or "NHWC", by the rule in this file's
    head."""
    if "layout" in entries:
        layout = str(entries["layout"])
        if layout not in ("NCHW", "NHWC"):
            raise DataError(f"{path}: layout must be 'NCHW' or 'NHWC', got {layout!r}.")
        return layout
    shape = entries["x_train"].shape
    if len(shape) != 4:
        return "NCHW"
    _, second, third, last = shape
    if second <= 4 and second < min(third, last):
        return "NCHW"
    if last <= 4 and last < min(second, third):
        return "NHWC"
    question = f"which axis of x_train {shape} holds the channels is not clear"
    raise DataError(f"{path}: {question}. Add an entry layout='NCHW' or layout='NHWC' to the file.")


def _inputs(path: Path, name: str, entries: dict[str, np.ndarray], layout: str) -> np.ndarray:
    """(N, C, H, W) or (N, D), contiguous, uint8 or finite float32."""
    x = entries[name]
    if x.ndim not in (2, 3, 4):
        expected = "vectors (N, D) or images (N, H, W), (N, C, H, W) or (N, H, W, C)"
        raise DataError(f"{path}: {name} has shape {x.shape}, expected {expected}.")
    if not x.size:
        raise DataError(f"{path}: {name} is empty, of shape {x.shape}. Store at least one example.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and layout == "NHWC":
        x = x.transpose(0, 3, 1, 2)
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind != "f":
        raise DataError(f"{path}: {name} has dtype {x.dtype}. Store it as uint8 or float32.")
    with np.errstate(over="ignore"):  # what float32 can't hold becomes inf, and is refused below
        x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{path}: {name} holds NaN, inf or numbers beyond float32. Replace them.")
    return x


def _check_lengths(path: Path, part: str, x: np.ndarray, y: np.ndarray) -> None:
    if y.ndim != 1:
        raise DataError(f"{path}: y_{part} has shape {y.shape}, expected ({len(x)},): one class index per example.")
    if len(x) != len(y):
        raise DataError(f"{path}: x_{part} holds {len(x)} examples but y_{part} {len(y)} labels. Make them equal.")
