"""`dualprop reproduce`: the papers' tables and figures, as many as a time allows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from dualprop.bench.showing import new_table, say
from dualprop.cli import arguments as args
from dualprop.cli import listing
from dualprop.cli.console import OutputConsole
from dualprop.cli.progress import ConsoleReporter
from dualprop.cli.tables import DIVERGED
from dualprop.reproduction import options, running, writing
from dualprop.reproduction.costs import Cost
from dualprop.reproduction.failing import Failure
from dualprop.reproduction.plan import Job, Left, Plan, Step
from dualprop.reproduction.running import Reproduction
from dualprop.reproduction.watching import Watch
from dualprop.training import Reporter
from dualprop.training.recipe import Recipe

# On narrower consoles some columns are left to the file.
# Of the runs that are left for one reason, so many are named.
MOST_TOLD = 6
WIDE, LEFT_OUT = 140, ("setting", "beside BP", "angle (°)")


@dataclass(frozen=True)
class ReproduceOptions(options.ReproduceOptions):
    __doc__ = options.ReproduceOptions.__doc__

    items: tyro.conf.Positional[tuple[str, ...]] = ()


def main(arguments: Sequence[str]) -> None:
    """Parse, run, show."""
    lists, rest = args.take_switch(arguments, "--list")
    if lists:
        listing.main(["items", *rest])
        return
    chosen = args.parse(ReproduceOptions, ReproduceOptions(), rest, "reproduce")
    console = OutputConsole()
    show(running.run(chosen, ConsoleWatch(console)), console)


class ConsoleWatch(Watch):
    """Says what is measured, the plan, and each run as it goes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def started(self, folder: Path) -> None:
        say(self.console, f"reproducing → {folder}")

    def said(self, line: str) -> None:
        say(self.console, line)

    def measured(self, job: Job, cost: Cost, epochs: int) -> None:
        about = "about " if cost.of == "one step" else ""
        seeds = "a seed" if len(job.seeds) == 1 else f"for {len(job.seeds)} seeds together"
        say(self.console, f"measured: {job.label} takes {about}{_duration(cost.seconds(epochs))} {seeds}")

    def planned(self, plan: Plan) -> None:
        show_plan(plan, self.console)

    def failed(self, failure: Failure) -> None:
        say(self.console, f"failed: {failure.label}: {failure.error}", style="yellow")

    def training(self, job: Job, recipe: Recipe) -> AbstractContextManager[Reporter]:
        return contextlib.closing(ConsoleReporter(self.console, job.label, recipe.batch_size, recipe.epochs))


def show_plan(plan: Plan, console: Console) -> None:
    """What is run in which order, by figure; and what is left and why."""
    table = new_table("the plan", "run", ["item", "seeds", "time"])
    for label, item, seeds, seconds in _grouped([(each.job, each.table, each.seconds) for each in plan.steps]):
        table.add_row(label, item, seeds, _duration(seconds))
    if plan.steps:
        console.print(table)
    within = "" if plan.budget == float("inf") else f" of {_duration(plan.budget)}"
    say(console, f"planned: {_num_runs(plan.steps)} runs in {_duration(plan.seconds)}{within}; left: {_num_runs(plan.left)}")
    by_reason: dict[str, list[tuple[Job, str, float]]] = {}
    for each in plan.left:
        by_reason.setdefault(each.reason, []).append((each.job, each.table, each.seconds or 0.0))
    for reason, left in by_reason.items():
        told = [f"{label}{f' ({_duration(seconds)})' if seconds else ''}" for label, _, _, seconds in _grouped(left)]
        others = f" and {len(told) - MOST_TOLD} more, see plan.json" if len(told) > MOST_TOLD else ""
        say(console, f"– {reason}: {', '.join(told[:MOST_TOLD])}{others}")


def _num_runs(jobs: Sequence[Step | Left]) -> int:
    return sum(len(each.job.seeds) for each in jobs)


def _grouped(jobs: list[tuple[Job, str, float]]) -> list[tuple[str, str, str, float]]:
    """By label, in the order of the first job of each: its item, seeds and seconds."""
    by_label: dict[str, tuple[str, list[int], float]] = {}
    for job, item, seconds in jobs:
        first, seeds, sum_so_far = by_label.get(job.label, (item, [], 0.0))
        by_label[job.label] = first, [*seeds, len(job.seeds)], sum_so_far + seconds
    return [
        (label, item, f"{sum(seeds)}{' together' if max(seeds) > 1 else ''}", seconds)
        for label, (item, seeds, seconds) in by_label.items()
    ]


def show(reproduced: Reproduction, console: Console) -> None:
    """The tables of what was trained, and where all of it lies. Exits with `DIVERGED` where an item
    failed or a run diverged."""
    for name, item in reproduced.results["items"].items():
        rows = [row for row in item.get("rows", ()) if row["num_seeds"]]
        if not rows:
            continue
        shown = [name for name in writing.HEADINGS if console.width >= WIDE or name not in LEFT_OUT]
        table = new_table(f"{name}: {item['done']} of {item['wanted']} runs", "figure", shown)
        for row in rows:
            figure, *others = writing.cells(row)
            table.add_row(figure, *(cell for heading, cell in zip(writing.HEADINGS, others, strict=True) if heading in shown))
        console.print(table)
        deviations = dict.fromkeys(deviation for row in rows for deviation in row["deviations"])
        if deviations:
            say(console, f"not the published setting: {', '.join(deviations)}", style="yellow")
    if reproduced.plan.left:
        say(console, f"{_num_runs(reproduced.plan.left)} runs are left: go on with --resume {reproduced.folder}")
    say(console, f"tables: {reproduced.folder / 'results.md'}")
    if not reproduced.is_well:
        raise SystemExit(DIVERGED)


def _duration(seconds: float) -> str:
    """ "12 s", "3.4 min", "5.1 h"."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:,.3g} h"
