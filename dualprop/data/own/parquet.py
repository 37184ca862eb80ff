"""Tables in Parquet files, and Arrow tables at large: by pyarrow, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dualprop import memory
from dualprop.data.own.columns import Column, Table
from dualprop.errors import DataError


def arrow() -> Any:
    """The package pyarrow. Raises DataError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        remedy = "Install it: pip install 'dualprop[tables]'; or save the table as CSV"
        raise DataError(f"Parquet files are read by the package pyarrow, which is not installed. {remedy}.") from None
    return pyarrow


def read(path: Path) -> Table:
    """The table in the file. Raises DataError."""
    pyarrow = arrow()
    try:
        with path.open("rb") as source, pyarrow.parquet.ParquetFile(source) as file:
            about = file.metadata
            size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            # What is declared may be compressed by dictionaries, and words take more than bytes.
            if max(4 * size, 8 * about.num_rows * about.num_columns) > memory.free():
                raise DataError(f"{path} holds {about.num_rows} rows of {size / 1e9:.1f} GB, too much for memory. Take fewer.")
            table = file.read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as Parquet ({memory.first_line(error)}). Write it again.") from None
    return from_arrow(path, table)


def from_arrow(path: Path, table: Any) -> Table:
    """The columns of an Arrow table. Raises DataError for one that is no numbers, truths or words,
    and for rows that are none."""
    pyarrow = arrow()
    if not table.num_rows or not table.num_columns:
        raise DataError(f"{path} holds {table.num_columns} columns of {table.num_rows} rows. Store some.")
    names = table.column_names
    for number, name in enumerate(names):
        if names.index(name) < number:
            raise DataError(f"{path}: two columns are named '{name}'. Rename one.")
    columns = tuple(_column(pyarrow, path, name, table.column(number)) for number, name in enumerate(names))
    return Table(path, columns, _Places(table.num_rows))


class _Places(list[str]):
    """Places of rows counted from 1: a Parquet file has no lines."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(f"row {row}" for row in range(1, num_rows + 1))


def _column(pyarrow: Any, path: Path, name: str, values: Any) -> Column:
    types, kind = pyarrow.types, values.type
    if types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    if types.is_null(kind):
        return Column(name, numbers=np.full(len(values), np.nan))
    if types.is_boolean(kind):
        values = values.cast(pyarrow.int8())
    elif types.is_decimal(kind):
        values = values.cast(pyarrow.float64())
    elif types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return Column(name, words=values.to_pylist())
    elif not (types.is_integer(kind) or types.is_floating(kind)):
        told = f"holds {kind}, which is no number or word"
        raise DataError(f"{path}: column '{name}' {told}. Leave it out by --reading.ignore {name}, or convert it.")
    numbers = values.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    for row in np.flatnonzero(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max)):
        raise DataError(f"{path}: row {row + 1}, column '{name}': {numbers[row]:g} is beyond what float32 holds. Correct it.")
    return Column(name, numbers=numbers)
