"""One .npy file as a table: the columns are the fields of its records, or the numbers "0", "1", …
of its second axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dualprop.data import npz
from dualprop.data.own import tables
from dualprop.data.own.columns import Column, Table
from dualprop.data.own.examples import Own
from dualprop.data.own.reading import Reading
from dualprop.errors import DataError


def read(path: Path, reading: Reading) -> Own:
    """The examples of the file. Raises DataError."""
    array = npz.array_of(path)
    names = array.dtype.names
    if names is None and array.ndim != 2:
        told = f"has shape {array.shape}; a table has two axes, or one of records"
        raise DataError(f"{path} {told}. Store images and targets as x_train and y_train in an .npz file.")
    if names is not None and array.ndim != 1:
        raise DataError(f"{path} holds records of shape {array.shape}, expected one axis. Flatten it.")
    if not array.size:
        raise DataError(f"{path} is empty. Store at least one row.")
    columns = (
        [_column(path, name, array[name]) for name in names]
        if names is not None
        else [_column(path, str(number), array[:, number]) for number in range(array.shape[1])]
    )
    return tables.of_table(Table(path, tuple(columns), [f"row {row}" for row in range(len(array))]), reading)


def _column(path: Path, name: str, values: np.ndarray) -> Column:
    if values.ndim != 1 or values.dtype.kind not in "iufbUS":
        raise DataError(f"{path}: column '{name}' holds {values.dtype}{values.shape[1:]}, no number or word. Leave it out.")
    if values.dtype.kind in "US":
        words = values.astype(str).tolist()
        return Column(name, words=[word.strip() or None for word in words])
    numbers = values.astype(np.float64)
    beyond = np.flatnonzero(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max))
    if beyond.size:
        row = int(beyond[0])
        raise DataError(f"{path}: row {row}, column '{name}': {numbers[row]:g} is beyond what float32 holds. Correct it.")
    return Column(name, numbers=numbers)
