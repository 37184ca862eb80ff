"""A dataset of Hugging Face that `save_to_disk` has written, where the package datasets is
installed.

One column of images and one of classes are images; else it is a table. The parts "train" and
"test", or else "validation", are as it has them. Nothing is downloaded and no code of the dataset
runs: the files hold Arrow tables and their types."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dualprop import memory
from dualprop.data.own import images, parquet, tables, targets
from dualprop.data.own.columns import Column, Table
from dualprop.data.own.examples import Own
from dualprop.data.own.inputs import Inputs
from dualprop.data.own.reading import Reading
from dualprop.data.tasks import Task
from dualprop.errors import DataError


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` has written the folder."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read(path: Path, reading: Reading) -> Own:
    """The examples of the dataset. Raises DataError."""
    try:
        import datasets
    except ImportError:
        remedy = "Install it: pip install 'dualprop[datasets]'; or save the data as Parquet"
        raise DataError(f"{path} is read by the package datasets, which is not installed. {remedy}.") from None
    with warnings.catch_warnings():
        # Of what the package pickles to tell whether it has seen a selection before.
        warnings.simplefilter("ignore")
        return _read(datasets, path, reading)


def _read(datasets: Any, path: Path, reading: Reading) -> Own:
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # its files are JSON and Arrow, whose damage is told in many ways
        raise DataError(f"{path} can't be read as a saved dataset ({memory.first_line(error)}). Save it again.") from None
    if not isinstance(saved, datasets.DatasetDict):
        return _of_part(datasets, path, saved, reading)
    test = next((name for name in ("test", "validation") if name in saved), None)
    if "train" not in saved:
        raise DataError(f"{path} has the parts {', '.join(saved)}, and no 'train'. Save it with one.")
    if test is None:
        return _of_part(datasets, path, saved["train"], reading)
    together = datasets.concatenate_datasets([saved["train"], saved[test]])
    own, num_train = _of_part(datasets, path, together, reading), len(saved["train"])
    if len(own.x) != len(together):
        raise DataError(f"{path}: rows that lack a value can't be dropped from parts. Give --reading.missing mean.")
    return Own(own.x[:num_train], own.y[:num_train], own.task, own.inputs, (own.x[num_train:], own.y[num_train:]), own.remarks)


def _of_part(datasets: Any, path: Path, part: Any, reading: Reading) -> Own:
    kinds = part.features
    pictures = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    if not pictures:
        return tables.of_table(_table(datasets, path, part), reading)
    classes = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    named = reading.listed(reading.target) or tuple(classes)
    if len(pictures) > 1 or len(named) != 1 or named[0] not in kinds:
        raise DataError(f"{path}: of its columns {', '.join(kinds)} one holds images. Name the class: --reading.target NAME.")
    table = _table(datasets, path, part.select_columns(list(named)))
    if (gaps := np.flatnonzero(table.columns[0].missing)).size:
        raise table.error(int(gaps[0]), named[0], f"no value, as in {gaps.size} rows. Leave them out.")
    y, task = targets.of_columns(table, table.columns, reading)
    if isinstance(kinds[named[0]], datasets.ClassLabel):
        # In its own order, and with the classes that no row has.
        names = tuple(kinds[named[0]].names)
        y, task = np.array([names.index(task.names[k]) for k in y.tolist()], np.int64), Task("classification", names)
    return Own(*_images(path, part, pictures[0], reading, y, task))


def _images(
    path: Path, part: Any, name: str, reading: Reading, y: np.ndarray, task: Task
) -> tuple[np.ndarray, np.ndarray, Task, Inputs]:
    """The images of a column, brought to one form."""
    first = part[0][name]
    colour = ("grey" if first.mode in ("1", "L") else "rgb") if reading.colour == "auto" else reading.colour
    inputs = Inputs("images", size=reading.size, fit=reading.fit, colour=colour)

    def each() -> Iterator[tuple[Path, np.ndarray]]:
        for row in range(len(part)):
            where = path / f"row {row + 1}"
            try:
                picture = part[row][name]
            except Exception as error:
                raise DataError(f"{where}: its image can't be decoded ({memory.first_line(error)}). Remove it.") from None
            pixels = images.pixels_of(where, picture, inputs)
            if row == 0:
                what = f"{path}, {len(part)} images,"
                memory.check(2 * len(part) * pixels.size, what, "Give a smaller --reading.size.")
            yield where, pixels

    return images.stacked(each(), len(part)), y, task, inputs


def _table(datasets: Any, path: Path, part: Any) -> Table:
    """Its columns, classes by their names."""
    table = parquet.from_arrow(path, part.with_format("arrow")[:])
    names = {name: kind.names for name, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)}

    def named(column: Column) -> Column:
        if column.name not in names or column.numbers is None:
            return column
        known = names[column.name]
        return Column(column.name, words=[None if np.isnan(n) or n < 0 else known[int(n)] for n in column.numbers])

    return Table(path, tuple(map(named, table.columns)), table.places, table.remarks)
