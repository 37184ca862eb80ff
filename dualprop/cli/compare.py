"""`dualprop compare`: several rules, or variants of one, on one recipe, from the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

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
    settings: Annotated[Mapping[str, Mapping[str, Any]], tyro.conf.Suppress, tyro.conf.Fixed] = field(default_factory=dict)
    log: str = ""


def main(arguments: Sequence[str]) -> None:
    """Parse, compare, show."""
    console, arguments = OutputConsole(), args.in_full(arguments)
    watch = ConsoleWatch(console)
    arguments = args.join_option(arguments, "--log")
    without_costs, others = args.take_switch(arguments, "--no-costs")
    if (resumed := args.take_resume(others, "compare")) is not None:
        report = experiments.resume(
            resumed.folder,
            resumed.data,
            watch,
            resumed.allow_changed,
            measures_costs=not without_costs,
            epochs=resumed.epochs,
            log=resumed.log,
        )
        tables.show_trained(report, console)
        return
    recipe, rest = args.take_recipe(arguments, experiments.DEFAULT_RECIPE)
    recipe, rest = args.take_epochs(recipe, rest)
    taken, rest = args.take_settings(rest, CompareOptions(recipe))
    options = args.parse(CompareOptions, CompareOptions(recipe), rest, "compare")
    if taken:
        settings = args.settings_of(taken, experiments.compared(options), "compare")
        options = replace(options, settings=settings)
    tables.show_trained(experiments.run_comparison(options, watch), console)
