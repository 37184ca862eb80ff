"""`dualprop compare`: several rules, or variants of one, on one recipe, from the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import tyro

from dualprop.bench import experiments
from dualprop.bench.showing import say
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
    for line in _not_of_all(recipe, options):
        say(console, line, style="yellow")
    tables.show_trained(experiments.run_comparison(options, watch), console)


def _not_of_all(before: Recipe, options: CompareOptions) -> Iterator[str]:
    """Of which compared rules a setting of the recipe's rule is, where others have their own."""
    assert isinstance(options.recipe, Recipe)
    asked, own = options.recipe.rule, before.rule
    names = [each.name for each in fields(asked) if getattr(asked, each.name) != getattr(own, each.name, None)]
    compared = experiments.compared(options) if names else {}
    for name in names:
        value = getattr(asked, name)
        values = {label: getattr(recipe.rule, name) for label, recipe in compared.items() if hasattr(recipe.rule, name)}
        kept = {label: each for label, each in values.items() if each != value and name not in options.settings.get(label, {})}
        if kept:
            taken = ", ".join(label for label, each in values.items() if each == value) or "none of these"
            others = ", ".join(f"{label} keeps {each}" for label, each in kept.items())
            option = name.replace("_", "-")
            yield f"--rule.{option} {value} is of {taken}; {others}. --{next(iter(kept))}.{option} is of that one."
