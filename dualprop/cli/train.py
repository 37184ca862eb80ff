"""`dualprop train`: one recipe by one rule, or with --twin beside back-propagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe: dualprop train [RECIPE] [--rule NAME] [options].

    Attributes:
        out: the new run folder; by default one in runs/ named after recipe and time.
        resume: continue this run folder where it stopped; no other option but --data goes with it.
        data: folder of the data sets; by default $DUALPROP_DATA, then the download cache.
        seeds: how many seeds to train in turn; by default all of the recipe's.
        budget: the recipe's short form: fewer epochs (--budget-epochs), warm-up and cosine compressed with them.
        twin: train the back-propagation twin beside it, from the same seeds.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(metadata={"flat": True})
    out: Path | None = None
    resume: Path | None = None
    data: Path | None = None
    seeds: int | None = None
    budget: bool = False
    twin: bool = False


def main(arguments: Sequence[str]) -> None:
    """Parse and train."""
    from dualprop.cli import running

    console = OutputConsole()
    if (resumed := args.take_resume(arguments, "train")) is not None:
        running.resume(*resumed, console)
        return
    rule, rest = args.take_option(arguments, "--rule")
    recipe, rest = args.take_recipe(rest, "digits-mlp")
    recipe = recipe.with_rule(rule) if rule else recipe
    options = args.parse(TrainOptions, TrainOptions(recipe), rest, "train")
    recipe = args.resolve_dataset(options.recipe)
    recipe = recipe.compressed() if options.budget else recipe
    names = [recipe.rule_name]
    if options.twin:
        if recipe.rule_name == "backprop":
            raise SettingError("--twin adds the back-propagation twin, and this rule is back-propagation already.")
        names.append("backprop")
    recipes = {name: recipe.with_rule(name) for name in names}
    running.start(recipes, recipe.seeds(options.seeds), options.out, options.data, console, single=not options.twin)
