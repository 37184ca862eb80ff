"""`dualprop data describe PATH`: what own data would be read as; nothing is trained or written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from dualprop.bench.showing import say
from dualprop.cli import arguments as args
from dualprop.cli import data_told
from dualprop.cli.console import OutputConsole
from dualprop.data import Reading, Splits
from dualprop.errors import SettingError

USAGE = "usage: dualprop data describe PATH [--reading.target NAME …]"
# More inputs or classes than these are not shown one by one.
MOST = 40


@dataclass(frozen=True)
class DescribeOptions:
    """Show what own data would be read as: dualprop data describe PATH [options].

    Attributes:
        reading: how it is read; the same options are of `train` and `compare`.
        validation_fraction: of the training part.
        seed: that draws the validation part.
    """

    reading: Reading = Reading()
    validation_fraction: float = 0.1
    seed: int = 0


def main(arguments: Sequence[str]) -> None:
    """Parse, read, show."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] != "describe":
        raise SettingError(f"data knows 'describe', not '{arguments[0]}'. {USAGE}")
    if len(arguments) < 2:
        raise SettingError(f"which data is to be described is not said. {USAGE}")
    path, rest = (arguments[1], arguments[2:]) if not arguments[1].startswith("-") else ("", arguments[1:])
    options = args.parse(DescribeOptions, DescribeOptions(), rest, "data describe")
    if not path:
        raise SettingError(f"which data is to be described is not said. {USAGE}")
    from dualprop import data

    splits = data.load(path, reading=options.reading, validation_fraction=options.validation_fraction, seed=options.seed)
    console = OutputConsole()
    say(console, *data_told.of_one_name(path), style="yellow")
    show(splits, console)


def show(splits: Splits, console: OutputConsole) -> None:
    """The parts, the inputs and the outputs."""
    say(console, *data_told.lines(splits))
    if splits.inputs is not None and splits.inputs.source == "table":
        console.print(_inputs(splits))
    console.print(_outputs(splits))
    say(console, *data_told.remarks(splits, selects_best=True), style="yellow")
    say(console, f"digest: {splits.digest}, which a run keeps and a resume compares")


def _inputs(splits: Splits) -> Table:
    """Each input with its mean and deviation over the training part."""
    table = Table(box=None, pad_edge=False)
    for name in ("input", "mean", "std"):
        table.add_column(name, justify="left" if name == "input" else "right")
    assert splits.inputs is not None
    names = splits.inputs.names
    mean, std = splits.train.mean.tolist(), splits.train.std.tolist()
    for row in list(zip(names, mean, std, strict=True))[:MOST]:
        table.add_row(row[0], *(f"{value:.4g}" for value in row[1:]))
    if len(names) > MOST:
        table.add_row(f"… and {len(names) - MOST} more", "", "")
    return table


def _outputs(splits: Splits) -> Table:
    """Each class or label with how often it is there, or each target's mean and deviation."""
    table, task = Table(box=None, pad_edge=False), splits.task
    headings: tuple[str, ...]
    rows: Iterable[tuple[object, ...]]
    if task.kind == "regression":
        headings, rows = ("target", "mean", "std"), zip(task.names, task.mean, task.std, strict=True)
    else:
        what = "class" if task.kind == "classification" else "label"
        parts = (splits.train, splits.validation, splits.test)
        counts = [_counts(part.y, task.num_outputs) for part in parts]
        headings, rows = (what, "training", "validation", "test"), zip(task.names, *counts, strict=True)
    for name in headings:
        table.add_column(name, justify="left" if name == headings[0] else "right")
    for row in list(rows)[:MOST]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    if task.num_outputs > MOST:
        table.add_row(f"… and {task.num_outputs - MOST} more", *[""] * (len(headings) - 1))
    return table


def _counts(y: object, num_outputs: int) -> list[int]:
    import torch

    assert isinstance(y, torch.Tensor)
    counts: list[int] = (torch.bincount(y, minlength=num_outputs) if y.dim() == 1 else y.sum(0).long()).tolist()
    return counts
