"""What a table or an array is to teach: targets of one task, found or as said.

N examples, K targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualprop.data.own.columns import Column, Table
from dualprop.data.own.reading import Reading
from dualprop.data.tasks import Task, TaskKind
from dualprop.errors import DataError

# Taken for the target where none is named.
USUAL = ("target", "label", "class", "y")
# More whole numbers than these are taken for numbers and not for classes.
MAX_WHOLE = 20
MAX_CLASSES = 10_000


def columns_of(table: Table, reading: Reading) -> list[Column]:
    """The target columns. Raises DataError where they are not named and none is called as usual."""
    names = reading.listed(reading.target)
    if not names:
        names = tuple(name for name in table.names if name.lower() in USUAL)
        if len(names) != 1:
            shown = ", ".join(table.names[:20]) + (", …" if len(table.names) > 20 else "")
            raise DataError(f"{table.path}: which column is predicted is not said. Give --reading.target NAME, one of {shown}.")
    return [table.column(name, "--reading.target names") for name in names]


def kind_of(columns: Sequence[Column], reading: Reading) -> TaskKind:
    """The task that the targets, which have no gaps, are of."""
    if reading.task != "auto":
        return reading.task
    numbers = [column.numbers for column in columns if column.numbers is not None]
    if len(numbers) < len(columns):
        return "classification"
    if len(columns) > 1:
        return "multilabel" if all(np.isin(each, (0, 1)).all() for each in numbers) else "regression"
    different = np.unique(numbers[0])
    is_whole = bool((different == np.round(different)).all())
    return "classification" if is_whole and len(different) <= MAX_WHOLE else "regression"


def of_columns(table: Table, columns: Sequence[Column], reading: Reading) -> tuple[np.ndarray, Task]:
    """Targets of the rows, and their task. Raises DataError, which names row and column."""
    kind = kind_of(columns, reading)
    names = tuple(column.name for column in columns)
    if kind == "classification":
        if len(columns) > 1:
            raise DataError(f"{table.path}: a class is in one column, and the targets are {', '.join(names)}. Name one.")
        words = columns[0].as_words().words or []
        classes = class_names([word or "" for word in words])
        _check_classes(table, names[0], classes, len(words))
        places = {name: k for k, name in enumerate(classes)}
        return np.array([places[word or ""] for word in words], np.int64), Task(kind, classes)
    for column in columns:
        if column.numbers is None:
            what = f"{(column.words or [''])[0]!r:.40} is no number, which {kind} needs. Choose another --reading.task."
            raise table.error(0, column.name, what)
        for row in np.flatnonzero(~np.isin(column.numbers, (0, 1))) if kind == "multilabel" else ():
            raise table.error(int(row), column.name, f"a label is 0 or 1, got {column.numbers[row]:g}. Correct it.")
    y = np.stack([column.numbers for column in columns if column.numbers is not None], 1).astype(np.float32)
    return y, Task(kind, names)


def class_names(words: Sequence[str]) -> tuple[str, ...]:
    """The different words in order: of numbers by their size, else by the alphabet."""
    different = set(words)
    try:
        return tuple(sorted(different, key=float))
    except ValueError:
        return tuple(sorted(different))


def _check_classes(table: Table, column: str, classes: tuple[str, ...], num_examples: int) -> None:
    if len(classes) < 2:
        raise DataError(f"{table.path}: column '{column}' holds {len(classes)} class; there is nothing to tell apart.")
    if len(classes) > min(MAX_CLASSES, num_examples // 2):
        told = f"{len(classes)} different values in {num_examples} rows, too many for classes"
        raise DataError(f"{table.path}: column '{column}' holds {told}. Name another target, or --reading.task regression.")


def of_array(where: str, y: np.ndarray, reading: Reading) -> TaskKind:
    """The task of an array of targets (N,) or (N, K). Raises DataError where that is not clear.

    Whole numbers (N,) are classes, and (N, K) of 0 and 1 labels; other floats are numbers."""
    if y.dtype.kind not in "iufb":
        raise DataError(f"{where} has dtype {y.dtype}; store classes as integers, or numbers as floats.")
    if not np.isfinite(y).all():
        raise DataError(f"{where} holds NaN or inf. Leave those examples out.")
    if y.ndim not in (1, 2):
        raise DataError(f"{where} has shape {y.shape}, expected ({len(y)},): one class an example; or (N, K) of numbers.")
    if reading.task != "auto":
        return reading.task
    if y.ndim == 2 and y.shape[1] > 1 and bool(((y == 1).sum(1) == 1).all() and ((y == 0).sum(1) == y.shape[1] - 1).all()):
        told = "one class index per example: each row holds one 1. Store y.argmax(1), or give --reading.task multilabel"
        raise DataError(f"{where} has shape {y.shape}, expected ({len(y)},), {told}.")
    if y.ndim == 2:
        return "multilabel" if bool(np.isin(y, (0, 1)).all()) else "regression"
    if y.dtype.kind == "f" and bool((y == np.round(y)).all()):
        told = "store labels as integers, or give --reading.task regression"
        raise DataError(f"{where} has dtype {y.dtype}; {told}.")
    return "regression" if y.dtype.kind == "f" else "classification"
