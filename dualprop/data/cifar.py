"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their python form: pickled dictionaries of pixels
(N, 3072) uint8, each row an image as (3, 32, 32), and of labels."""

from __future__ import annotations

import numpy as np

from dualprop.data import pickles
from dualprop.errors import DataError

SHAPE = (3, 32, 32)


def cifar10(name: str, contents: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test of CIFAR-10's files by their names: x (N, 3, 32, 32) uint8,
    y (N,) int64."""
    *train, test = (batch(content, "labels", f"{name}'s {file}") for file, content in sorted(contents.items()))
    x, y = zip(*train, strict=True)
    return np.concatenate(x), np.concatenate(y), *test


def cifar100(name: str, contents: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same of CIFAR-100's files, with the 100 fine labels."""
    train, test = (batch(contents[file], "fine_labels", f"{name}'s {file}") for file in ("train", "test"))
    return *train, *test


def batch(content: bytes, labels: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8, writable, and labels (N,) int64 of one file, which DataErrors
    call `where`."""
    entries = pickles.read(content, where)
    x, y = entries.get("data"), entries.get(labels)
    if not isinstance(x, pickles.Stored) or not isinstance(y, list):
        raise DataError(f"{where} lacks 'data' or '{labels}'; it holds {sorted(entries)[:6]}. Replace it.")
    if x.dtype != np.uint8 or len(x.shape) != 2 or x.shape[1] != 3072 or not x.shape[0]:
        raise DataError(f"{where} holds pixels {x.shape} {x.dtype}, not (N, 3072) uint8; replace it.")
    if len(y) != x.shape[0] or not all(type(label) is int and 0 <= label < 100 for label in y):
        raise DataError(f"{where} does not hold {x.shape[0]} labels from 0 to 99; replace it.")
    # A copy: an array over immutable bytes is read-only, and torch warns of those.
    return x.read(content).reshape(-1, *SHAPE).copy(), np.array(y, np.int64)
