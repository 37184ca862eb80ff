"""One CSV file a seed: a line an epoch, a column a metric, and one of test scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualprop.loggers.base import AbstractLogger, LoggedSeed
from dualprop.training import files


class CSV(AbstractLogger):
    """logs/csv/seed-0.csv, and seed-0.test.csv when it is tested.

    A file is written anew when training begins or goes on, and when an epoch has a metric that none
    before had; else a line is added.
    """

    def __init__(self) -> None:
        self._columns: dict[Path, list[str]] = {}
        self._rows: dict[Path, list[Mapping[str, float]]] = {}

    def begin(self, seed: LoggedSeed) -> int:
        path = self._path(seed)
        files.make_folder(path.parent)
        self._columns[path], self._rows[path] = ["epoch"], []
        return 0

    def epoch(self, seed: LoggedSeed, number: int, metrics: Mapping[str, float]) -> None:
        path, row = self._path(seed), {"epoch": number, **metrics}
        columns, rows = self._columns[path], self._rows[path]
        rows.append(row)
        new = [name for name in row if name not in columns]
        columns += new
        if new:
            files.write(path, _table(columns, rows).encode())
        else:
            files.append(path, _line([row.get(name, "") for name in columns]))

    def end(self, seed: LoggedSeed, scores: Mapping[str, float]) -> None:
        files.write(self._path(seed).with_suffix(".test.csv"), _table(list(scores), [scores]).encode())

    def close(self, seed: LoggedSeed) -> None:
        self._columns.pop(self._path(seed), None)
        self._rows.pop(self._path(seed), None)

    def where(self, folder: Path) -> str:
        return str(folder / "csv")

    def _path(self, seed: LoggedSeed) -> Path:
        return seed.folder / "csv" / f"{seed.path}.csv"


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    return "".join(_line(values) + "\n" for values in [columns, *([row.get(name, "") for name in columns] for row in rows)])


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
