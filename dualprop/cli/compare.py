"""`dualprop compare`: several rules, or variants of one, on one recipe, from the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from dualprop.bench import experiments
from dualprop.cli import arguments as args
from dualprop.cli import tables
from dualprop.cli.console import OutputConsole
from dualprop.cli.progress import ConsoleWatch
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class CompareOptions(experiments.CompareOptions):
    __doc__ = experiments.CompareOptions.__doc__

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(metadata={"flat": True})


def main(arguments: Sequence[str]) -> None:
    """Parse, compare, show."""
    console = OutputConsole()
    watch = ConsoleWatch(console)
    without_costs, others = args.take_switch(arguments, "--no-costs")
    if (resumed := args.take_resume(others, "compare")) is not None:
        report = experiments.resume(
            resumed.folder, resumed.data, watch, resumed.allow_changed, measures_costs=not without_costs, epochs=resumed.epochs
        )
        tables.show_trained(report, console)
        return
    recipe, rest = args.take_recipe(arguments, experiments.DEFAULT_RECIPE)
    recipe, rest = args.take_epochs(recipe, rest)
    options = args.parse(CompareOptions, CompareOptions(recipe), rest, "compare")
    tables.show_trained(experiments.run_comparison(options, watch), console)
