"""The user's own data: a .npz file of the arrays x_train, y_train and, both or neither, x_test,
y_test.

x holds vectors (N, D), grey images (N, H, W), or images with channels, in uint8 or floating point
(kept as float32). Four dimensions are (N, C, H, W) if the second is at most 4 and smaller than the
two after it, (N, H, W, C) if the last is at most 4 and smaller than the two before it. Anything
else is refused, unless an entry `layout`, "NCHW" or "NHWC", says what it is; where there is one, it
decides. y holds the classes 0..K-1 as integers (N,), or numbers or labels, (N,) or (N, K), see
`targets`; an entry `target_names` names them. Pickle is never read: opening a file runs no code of
its author.

A folder of x_train.npy, y_train.npy and so on is read alike.
"""

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from dualprop import memory
from dualprop.data.own import targets
from dualprop.data.own.examples import Own
from dualprop.data.own.inputs import Inputs
from dualprop.data.own.reading import Reading
from dualprop.data.splits import count_classes
from dualprop.data.tasks import Task, TaskKind
from dualprop.errors import DataError

WANTED = ("x_train", "y_train", "x_test", "y_test", "layout", "target_names")
MOST_NAME = 200


def read(path: Path, reading: Reading) -> Own:
    """The arrays of the file at `path`, images as (N, C, H, W). DataErrors name the file, the array
    and the remedy."""
    return of_entries(path, _entries(path), reading)


def of_entries(path: Path, entries: dict[str, np.ndarray], reading: Reading) -> Own:
    """What arrays by their names are, as `read` has it."""
    for name, partner in (("x_train", "x_train"), ("y_train", "y_train"), ("x_test", "y_test"), ("y_test", "x_test")):
        if name not in entries and partner in (name, *entries):
            raise DataError(f"{path} has no array {name}; it holds {list(entries)}. Add it.")
    layout = _layout(path, entries)
    x_train, y_train = _inputs(path, "x_train", entries, layout), entries["y_train"]
    _check_lengths(path, "train", x_train, y_train)
    kind = targets.of_array(f"{path}: y_train", y_train, reading)
    if "x_test" not in entries:
        if len(x_train) < 2:
            raise DataError(f"{path}: {len(x_train)} training example can't be divided in two; store more.")
        num_classes = count_classes(y_train, y_train, str(path)) if kind == "classification" else 0
        y, task = _targets(path, kind, y_train, num_classes, entries)
        return Own(x_train, y, task, Inputs("arrays"))
    x_test, y_test = _inputs(path, "x_test", entries, layout), entries["y_test"]
    _check_lengths(path, "test", x_test, y_test)
    if y_test.shape[1:] != y_train.shape[1:]:
        shapes = f"shape {y_test.shape[1:]} in y_test, {y_train.shape[1:]} in y_train"
        raise DataError(f"{path}: a target has {shapes}; make them equal.")
    targets.of_array(f"{path}: y_test", y_test, replace(reading, task=kind))
    if x_test.shape[1:] != x_train.shape[1:]:
        shapes = f"shape {x_test.shape[1:]} in x_test, {x_train.shape[1:]} in x_train"
        raise DataError(f"{path}: an example has {shapes}; make them equal.")
    if x_test.dtype != x_train.dtype:
        raise DataError(f"{path}: only one of x_train and x_test is uint8; store both in the same type and range.")
    num_classes = count_classes(y_train, y_test, str(path)) if kind == "classification" else 0
    y, task = _targets(path, kind, y_train, num_classes, entries)
    of_test, _ = _targets(path, kind, y_test, num_classes, entries)
    return Own(x_train, y, task, Inputs("arrays"), (x_test, of_test))


def _targets(
    path: Path, kind: TaskKind, y: np.ndarray, num_classes: int, entries: dict[str, np.ndarray]
) -> tuple[np.ndarray, Task]:
    """(N,) int64 or (N, K) float32, and the task with its names."""
    if kind != "classification":
        y = y.astype(np.float32).reshape(len(y), -1)
        if kind == "multilabel" and not np.isin(y, (0, 1)).all():
            raise DataError(f"{path}: a label is 0 or 1, and y holds others. Correct them, or give --reading.task regression.")
    num_outputs = num_classes or y.shape[1]
    prefix = {"classification": "", "regression": "y", "multilabel": "label "}[kind]
    names = tuple(f"{prefix}{k}" for k in range(num_outputs)) if num_outputs > 1 or not prefix else (prefix.strip(),)
    if "target_names" in entries:
        names = tuple(str(name) for name in entries["target_names"].reshape(-1))
        if len(names) != num_outputs or len(set(names)) != len(names) or not all(0 < len(n) <= MOST_NAME for n in names):
            raise DataError(f"{path}: target_names must hold {num_outputs} different words, got {len(names)}. Correct them.")
    return (y.astype(np.int64) if kind == "classification" else y), Task(kind, names)


def read_folder(folder: Path, reading: Reading) -> Own:
    """The arrays that lie in the folder, each as NAME.npy."""
    entries = {name: array_of(folder / f"{name}.npy") for name in WANTED if (folder / f"{name}.npy").is_file()}
    return of_entries(folder, entries, reading)


def array_of(path: Path) -> np.ndarray:
    """The array of a .npy file. Raises DataError."""
    size = path.stat().st_size
    if 2 * size > memory.free():
        raise DataError(f"{path} holds {size / 1e9:.1f} GB, too much for this machine's memory. Store less.")
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}). Check its permissions.") from None
    except Exception as error:  # damage makes numpy and its tokenizer raise nearly anything
        if "allow_pickle" in str(error):
            raise DataError(f"{path} holds Python objects (a pickle), which is refused. Store plain numbers.") from None
        raise DataError(f"{path} is damaged or no .npy file. Write it again with np.save.") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is no .npy file. Write it with np.save.")
    return array


def _entries(path: Path) -> dict[str, np.ndarray]:
    """The entries of the archive, read (those that we don't need are left empty) and its handle
    closed."""
    if not os.path.isfile(path):  # unlike Path.is_file, False where a folder above may not be searched
        raise DataError(f"{path} does not exist. Give the path of a .npz file, as np.savez writes it.")
    entry = ""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is truncated or no .npz file. Write it with np.savez, as x_train=… and so on.")
            _check_memory(path, file, WANTED)
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                entries = {}
                for entry in archive.files:
                    entries[entry] = archive[entry] if entry in WANTED else np.empty(0)
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
    if y.ndim not in (1, 2) or (y.ndim == 2 and not y.shape[1]):
        told = f"y_{part} has shape {y.shape}, expected ({len(x)},): one class index per example"
        raise DataError(f"{path}: {told}; or ({len(x)}, K) of numbers or labels.")
    if len(x) != len(y):
        raise DataError(f"{path}: x_{part} holds {len(x)} examples but y_{part} {len(y)} labels. Make them equal.")
