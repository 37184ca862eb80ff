"""`dualprop train`: one recipe by one rule, or with --twin beside back-propagation."""

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
class TrainOptions(experiments.TrainOptions):
    __doc__ = experiments.TrainOptions.__doc__

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(metadata={"flat": True})
    log: str = ""


def main(arguments: Sequence[str]) -> None:
    """Parse, train, show."""
    console, arguments = OutputConsole(), args.in_full(arguments)
    watch = ConsoleWatch(console)
    arguments = args.join_option(arguments, "--log")
    if (resumed := args.take_resume(arguments, "train")) is not None:
        report = experiments.resume(
            resumed.folder, resumed.data, watch, resumed.allow_changed, epochs=resumed.epochs, log=resumed.log
        )
        tables.show_trained(report, console)
        return
    rule, rest = args.take_option(arguments, "--rule")
    recipe, rest = args.take_recipe(rest, experiments.DEFAULT_RECIPE)
    recipe = recipe.with_rule(rule) if rule else recipe
    recipe, rest = args.take_epochs(recipe, rest)
    options = args.parse(TrainOptions, TrainOptions(recipe), rest, "train")
    tables.show_trained(experiments.run_training(options, watch), console)
