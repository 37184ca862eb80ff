"""What the tables have in common on the console."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table


def new_table(title: str, first: str | None, others: Iterable[str], is_tight: bool = True) -> Table:
    """A table without rows: its first column is of words, the others are of numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=is_tight)
    if first is not None:
        table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def say(console: Console, *lines: str, style: str | None = None) -> None:
    """Lines as they stand: neither broken, nor coloured, nor read as markup."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False, style=style)


def say_refused(console: Console, refused: dict[str, str]) -> None:
    """What can't run here; labels with one reason in one line."""
    by_reason: dict[str, list[str]] = {}
    for label, reason in refused.items():
        by_reason.setdefault(reason, []).append(label)
    say(console, *(f"– can't run here: {', '.join(labels)}: {reason}" for reason, labels in by_reason.items()))


def number(row: dict[str, Any], key: str, form: str) -> str:
    """A cell of a table: the row's number in this form, empty where it has none."""
    return "" if row.get(key) is None else format(row[key], form)
