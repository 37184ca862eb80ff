"""Tables as text: .csv and .tsv in UTF-8, whose first line holds the columns' names.

Columns are divided by the character of , ; tab and | that the first line has most of."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dualprop import memory
from dualprop.data.own.columns import Column, Table, word_or_none
from dualprop.errors import DataError

DIVIDERS = ",;\t|"
MAX_COLUMNS = 20_000
# A word in memory, beside its characters.
BYTES_A_CELL = 60


def read(path: Path) -> Table:
    """The table in the file, all words. Raises DataError, which names the row."""
    size = path.stat().st_size
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, file, size)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 (byte {error.start} of a block). Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}). Check its permissions.") from None


def _read(path: Path, file: TextIO, size: int) -> Table:
    # A first line without an end is not read whole to be told from one.
    head = file.readline(1 << 22)
    if not head.strip():
        raise DataError(f"{path} has no first line with the columns' names. Add one.")
    divider = max(DIVIDERS, key=head.count)
    file.seek(0)
    lines = _rows(path, file, divider)
    _, names = next(lines)
    names = [name.strip() for name in names]
    _check_names(path, names)
    cells = head.count(divider) + 1
    words: list[list[str | None]] = [[] for _ in names]
    places: list[str] = []
    most = memory.free()
    for line, row in lines:
        if not row or (len(row) == 1 and not row[0].strip() and len(names) > 1):
            continue  # an empty line
        if len(row) != len(names):
            told = f"row {line} has {len(row)} cells, the first line {len(names)}"
            raise DataError(f"{path}: {told} (divided by {divider!r}). Correct it.")
        places.append(f"row {line}")
        for column, word in zip(words, row, strict=True):
            column.append(word_or_none(word))
        if len(places) % 10_000 == 0 and len(places) * cells * BYTES_A_CELL + size > most:
            raise DataError(f"{path}: its first {len(places)} rows fill the memory that is free. Take fewer rows.")
    if not places:
        raise DataError(f"{path} has columns but no rows. Add some.")
    columns = tuple(Column(name, words=column) for name, column in zip(names, words, strict=True))
    return Table(path, columns, places)


def _rows(path: Path, file: TextIO, divider: str) -> Iterator[tuple[int, list[str]]]:
    """Each row and the number of its last line."""
    reader = csv.reader(file, delimiter=divider, strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}: row {reader.line_num} can't be read ({error}). Correct it.") from None
        yield reader.line_num, row


def _check_names(path: Path, names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path} has {len(names)} columns, more than {MAX_COLUMNS}. Store them as arrays in an .npz file.")
    if len(names) > 1 and all(_is_number(name) for name in names):
        raise DataError(f"{path}: the first line holds numbers alone. Add a first line with the columns' names.")
    for number, name in enumerate(names, start=1):
        if names.index(name) < number - 1:
            raise DataError(f"{path}: column {number} is named '{name}' like column {names.index(name) + 1}. Rename it.")
        # A saved index of rows has no name, and is told as what it is.
        if not name and number > 1:
            raise DataError(f"{path}: column {number} has no name. Name it in the first line.")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
