"""A table as examples: its rows, with numbers as they are and categories as 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dualprop import memory
from dualprop.data.own import csv_files, parquet, targets
from dualprop.data.own.columns import Column, Table, feature_of, of_text
from dualprop.data.own.examples import Own
from dualprop.data.own.inputs import Inputs
from dualprop.data.own.reading import Reading
from dualprop.errors import DataError

READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": csv_files.read,
    ".tsv": csv_files.read,
    ".parquet": parquet.read,
}


def read(path: Path, reading: Reading) -> Own:
    """The examples of the table at `path`, whose suffix says how it is written."""
    return of_table(READERS[path.suffix.lower()](path), reading)


def of_table(table: Table, reading: Reading) -> Own:
    """The examples of a table. Raises DataError, which names row and column."""
    is_index = not table.columns[0].name
    remarks = ["the first column has no name, as a saved index of rows has none: it is left out"] if is_index else []
    table = Table(table.path, table.columns[is_index:], table.places, table.remarks)
    table = of_text(table, reading.listed(reading.categories))
    for name in reading.listed(reading.categories):
        table.column(name, "--reading.categories names")
    columns = targets.columns_of(table, reading)
    ignored = reading.listed(reading.ignore)
    for name in ignored:
        table.column(name, "--reading.ignore names")
    names = [column.name for column in columns]
    inputs = [column for column in table.columns if column.name not in (*names, *ignored)]
    table, inputs, columns, told = _without_gaps(table, inputs, columns, reading)
    remarks += told
    is_named = reading.listed(reading.categories)
    inputs = [column.as_words() if column.name in is_named else column for column in inputs]
    for column in list(inputs):
        if bool(column.missing.all()):
            remarks.append(f"column '{column.name}' holds no value: it is left out")
            inputs.remove(column)
        elif _is_row_number(column):
            remarks.append(f"column '{column.name}' counts the rows; if it means nothing, --reading.ignore '{column.name}'")
    if not inputs:
        raise DataError(f"{table.path} has no column to predict {', '.join(names)} from. Add one.")
    y, task = targets.of_columns(table, columns, reading)
    features = tuple(feature_of(table, column) for column in inputs)
    made = Inputs("table", features, tuple(names))
    num_bytes = 4 * len(table.places) * len(made.names)
    memory.check(2 * num_bytes, f"{table.path}, {len(made.names)} inputs a row,", "Leave out columns by --reading.ignore.")
    renewed = Table(table.path, tuple(inputs), table.places)
    return Own(made.encode(renewed), y, task, made, remarks=tuple(remarks))


def _without_gaps(
    table: Table, inputs: list[Column], columns: list[Column], reading: Reading
) -> tuple[Table, list[Column], list[Column], list[str]]:
    """The table, its inputs and its targets with every gap treated as said, and what was done."""
    for column in columns:
        rows = np.flatnonzero(column.missing)
        if rows.size and reading.missing != "drop":
            what = f"no value, as in {rows.size} of {len(table.places)} rows. Fill it in, or give --reading.missing drop."
            raise table.error(int(rows[0]), column.name, what)
    gaps = {column.name: column.missing for column in (*inputs, *columns)}
    told = [f"{name} ({int(gap.sum())})" for name, gap in gaps.items() if gap.any() and not gap.all()]
    if not told:
        return table, inputs, columns, []
    shown = ", ".join(told[:10]) + (f" and {len(told) - 10} more" if len(told) > 10 else "")
    if reading.missing == "refuse":
        name, gap = next((name, gap) for name, gap in gaps.items() if gap.any())
        raise table.error(int(np.flatnonzero(gap)[0]), name, "no value. Fill it in, or give --reading.missing mean or drop.")
    if reading.missing == "mean":
        done = "the training part's mean takes their place, and a category that is missing is none"
        return table, inputs, columns, [f"values are missing in {shown}: {done}"]
    # A column without any value is left out, and drops no row.
    kept = np.flatnonzero(~np.any([gap for gap in gaps.values() if not gap.all()], axis=0))
    if not kept.size:
        raise DataError(f"{table.path}: every row lacks a value. Give --reading.missing mean, or fill them in.")
    table = table.rows(kept)
    by_name = {column.name: column for column in table.columns}
    remark = f"values are missing in {shown}: {len(gaps[columns[0].name]) - len(kept)} rows are left out"
    return table, [by_name[each.name] for each in inputs], [by_name[each.name] for each in columns], [remark]


def _is_row_number(column: Column) -> bool:
    numbers = column.numbers
    if numbers is None or len(numbers) < 3:
        return False
    steps = np.diff(numbers)
    return bool((steps == 1).all())
