"""`dualprop evaluate`: what a run's model gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from dualprop.bench.showing import new_table, say
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.trained import evaluating
from dualprop.trained.scores import Evaluation

# More classes than these don't fit beside each other.
BESIDE = 12
CONFUSIONS, MISTAKES = 10, 10


@dataclass(frozen=True)
class EvaluateOptions(evaluating.EvaluateOptions):
    __doc__ = evaluating.EvaluateOptions.__doc__

    run: tyro.conf.Positional[Path]


def main(arguments: Sequence[str]) -> None:
    """Parse, evaluate, show."""
    options = args.parse(EvaluateOptions, EvaluateOptions(tyro.MISSING), arguments, "evaluate")
    show(evaluating.run_evaluation(options), options.out, OutputConsole())


def show(evaluation: Evaluation, out: Path | None, console: Console) -> None:
    """The tables, and where the pictures lie."""
    number = int(evaluation.confusion.sum())
    about = f"{evaluation.title}, {evaluation.part} part, seed {evaluation.seed}"
    table = new_table(f"{about}: {100 * evaluation.accuracy:.2f} % of {number} right", "class", _HEADINGS)
    for each in evaluation.classes:
        table.add_row(each.name, *map(_percent, (each.precision, each.recall, each.f1)), str(each.number))
    console.print(table)
    names = [each.name for each in evaluation.classes]
    if len(names) <= BESIDE:
        table = new_table("is (rows), taken for (columns)", "is", names)
        for name, row in zip(names, evaluation.confusion, strict=True):
            table.add_row(name, *(str(count) if count else "·" for count in row))
        console.print(table)
    else:
        for count, truth, said in list(evaluation.confusions())[:CONFUSIONS]:
            say(console, f"{count} of {truth} were taken for {said}")
    say(console, f"balanced accuracy, the mean recall: {100 * evaluation.balanced_accuracy:.2f} %")
    for mistake in evaluation.mistakes[:MISTAKES]:
        say(console, f"{evaluation.part} {mistake.index}: {mistake.truth} taken for {mistake.said} (by {mistake.margin:.3f})")
    for path in evaluation.figures:
        say(console, f"picture: {path}")
    if out is not None:
        say(console, f"numbers: {out}")


_HEADINGS = ("precision (%)", "recall (%)", "F1 (%)", "examples")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
