"""The columns of a table, whatever file it came from: numbers or words, with gaps.

A column of text is one of numbers where each word in it is a number. Every error names the file,
the row and the column. N rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualprop.errors import DataError, closest

# What stands in a table where there is no value.
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "#n/a", "<na>"})
# Other words are noise among numbers where these are at least so large a part.
MOSTLY = 0.5
# Beyond, a column of words is a text or a name and not a category.
MAX_CATEGORIES = 200
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


@dataclass(frozen=True, eq=False)
class Column:
    """`numbers` (N,) float64, nan where there is none, or `words`, None where there is none."""

    name: str
    numbers: np.ndarray | None = None
    words: list[str | None] | None = None

    @property
    def missing(self) -> np.ndarray:
        """Where there is no value, (N,) bool."""
        if self.numbers is not None:
            return np.isnan(self.numbers)
        assert self.words is not None
        return np.array([word is None for word in self.words], dtype=bool)

    def as_words(self) -> Column:
        """The column with its numbers as words: 3, and not 3.0."""
        if self.words is not None:
            return self
        assert self.numbers is not None
        return Column(self.name, words=[None if np.isnan(n) else f"{n:.15g}" for n in self.numbers])

    def rows(self, kept: np.ndarray) -> Column:
        """The rows of these numbers."""
        if self.numbers is not None:
            return Column(self.name, numbers=self.numbers[kept])
        assert self.words is not None
        return Column(self.name, words=[self.words[i] for i in kept.tolist()])


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file, in its order. `places` tells a row's place as its reader sees it, "row 17"
    say; `remarks` are what was noticed."""

    path: Path
    columns: tuple[Column, ...]
    places: Sequence[str]
    remarks: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def column(self, name: str, why: str) -> Column:
        """Raises DataError where there is none of that name, which `why` asks for."""
        for column in self.columns:
            if column.name == name:
                return column
        shown = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
        raise DataError(f"{self.path} has no column '{name}', which {why}.{closest(name, self.names)} It has {shown}.")

    def rows(self, kept: np.ndarray) -> Table:
        """The rows of these numbers."""
        columns = tuple(column.rows(kept) for column in self.columns)
        return Table(self.path, columns, [self.places[i] for i in kept.tolist()], self.remarks)

    def error(self, row: int, column: str, what: str) -> DataError:
        """One that names the place."""
        return DataError(f"{self.path}: {self.places[row]}, column '{column}': {what}")


def of_text(table: Table, is_category: Sequence[str] = ()) -> Table:
    """The table with columns of text made numbers, where they are, but for some. Raises DataError
    for a word among numbers."""
    columns = tuple(column if column.name in is_category else _as_numbers(table, column) for column in table.columns)
    return Table(table.path, columns, table.places, table.remarks)


def _as_numbers(table: Table, column: Column) -> Column:
    if column.words is None:
        return column
    numbers, odd = np.full(len(column.words), np.nan), []
    for row, word in enumerate(column.words):
        if word is None:
            continue
        number = _number(word)
        if number is None:
            odd.append(row)
        else:
            numbers[row] = number
    num_values = int((~column.missing).sum())
    if num_values and len(odd) <= (1 - MOSTLY) * num_values and len(odd) < num_values:
        if odd:
            word = column.words[odd[0]]
            what = f"{word!r:.40} is no number, as {num_values - len(odd)} of {num_values} values are. Correct it, or give"
            raise table.error(odd[0], column.name, f"{what} --reading.categories {column.name}.")
        # float32 holds what is trained on.
        for row in np.flatnonzero(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max)).tolist():
            raise table.error(row, column.name, f"{column.words[row]!r:.40} is beyond what float32 holds. Correct it.")
        return Column(column.name, numbers=numbers)
    commas = [row for row in odd if _DECIMAL_COMMA.fullmatch(column.words[row] or "")]
    if commas and len(commas) == num_values:
        word = column.words[commas[0]]
        raise table.error(commas[0], column.name, f"{word!r:.40} has a decimal comma. Write the numbers with a point.")
    return column if num_values else Column(column.name, numbers=numbers)


def _number(word: str) -> float | None:
    # Python takes 1_000 for a thousand, and digits of every script.
    if "_" in word or not word.isascii():
        return None
    try:
        return float(word)
    except ValueError:
        return None


def word_or_none(word: str) -> str | None:
    """The word without spaces around it; None where it says that there is no value."""
    word = word.strip()
    return None if word.lower() in MISSING else word


@dataclass(frozen=True)
class Feature:
    """What a column gives to the input: its number, or a 1 at the place of its word among `words`
    and else 0. A category that is missing is 0 everywhere."""

    column: str
    words: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of its numbers."""
        return tuple(f"{self.column}={word}" for word in self.words) or (self.column,)

    def encode(self, table: Table) -> np.ndarray:
        """Of every row (N, its numbers), nan where a number is missing. Raises DataError for a word
        that it doesn't know, and for words where numbers are expected."""
        column = table.column(self.column, "the inputs have")
        if not self.words:
            if column.numbers is None:
                row = next((i for i, word in enumerate(column.words or []) if word is not None), 0)
                raise table.error(row, self.column, "a number is expected. Correct it.")
            return column.numbers.astype(np.float32)[:, None]
        places = {word: i for i, word in enumerate(self.words)}
        encoded = np.zeros((len(table.places), len(self.words)), np.float32)
        for row, word in enumerate(column.as_words().words or []):
            if word is None:
                continue
            if word not in places:
                known = ", ".join(self.words[:10])
                raise table.error(row, self.column, f"{word!r:.40} is none of the categories known, {known}. Correct it.")
            encoded[row, places[word]] = 1
        return encoded


def feature_of(table: Table, column: Column) -> Feature:
    """How a column becomes input. Raises DataError for words too many to be categories."""
    if column.numbers is not None:
        return Feature(column.name)
    words = sorted({word for word in column.words or [] if word is not None})
    if len(words) > MAX_CATEGORIES:
        raise DataError(
            f"{table.path}: column '{column.name}' holds {len(words)} different words, {words[0]!r:.30} say, more than "
            f"{MAX_CATEGORIES} categories. Leave it out by --reading.ignore {column.name}, or make numbers of it."
        )
    return Feature(column.name, tuple(words))
