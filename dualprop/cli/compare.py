"""`dualprop compare`: several rules, or variants of one, on one recipe, from the same seeds, in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dualprop import recipes as recipe_table
from dualprop import rules as rule_table
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError
from dualprop.recipes import variants
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class CompareOptions:
    """Compare rules on a recipe: dualprop compare [RECIPE] [--rules NAME,NAME | --variants NAME,NAME] [--seeds N] [options].

    Options --rule.… are the recipe's own rule's; other rules run at their defaults with the same loss, and variants change of
    them what defines the variant.

    Attributes:
        rules: names with commas between; by default back-propagation and the recipe's own rule.
        variants: names with commas between (`dualprop list variants`), "all", those that the recipe has "published"
            figures of, or its "grid" of α and β; in place of rules.
        budget: the recipe's short form: fewer epochs (--budget-epochs), warm-up and cosine compressed with them.
        seeds: how many seeds; by default all of the recipe's.
        out: the new folder; by default one in runs/ named after recipe and time.
        resume: continue this comparison where it stopped; no other option but --data goes with it.
        data: folder of the data sets; by default $DUALPROP_DATA, then the download cache.
        costs: measure time and memory per step after training.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(metadata={"flat": True})
    rules: str = ""
    variants: str = ""
    budget: bool = False
    seeds: int | None = None
    out: Path | None = None
    resume: Path | None = None
    data: Path | None = None
    costs: bool = True


def main(arguments: Sequence[str]) -> None:
    """Parse and compare."""
    from dualprop.cli import running

    console = OutputConsole()
    if (resumed := args.take_resume(arguments, "compare")) is not None:
        running.resume(*resumed, console)
        return
    recipe, rest = args.take_recipe(arguments, "digits-mlp")
    options = args.parse(CompareOptions, CompareOptions(recipe), rest, "compare")
    recipe = args.resolve_dataset(options.recipe)
    recipes = _variants(options, recipe) if options.variants else _rules(options, recipe)
    if options.budget:
        recipes = {label: each.compressed() for label, each in recipes.items()}
    if not _is_published(recipe):
        recipes = {label: dataclasses.replace(each, published=()) for label, each in recipes.items()}
    running.start(recipes, recipe.seeds(options.seeds), options.out, options.data, console, costs=options.costs)


def _is_published(recipe: Recipe) -> bool:
    """Whether the recipe still is, but for seeds, epochs and the like, the one that its published figures belong to."""
    original = recipe_table.from_name(recipe.name) if recipe.name in recipe_table.RECIPES else None
    defining = ("dataset", "model", "feedback", "rule", "optimizer", "batch_size", "updates_per_batch", "validation_fraction")
    return original is not None and all(getattr(recipe, name) == getattr(original, name) for name in defining)


def _variants(options: CompareOptions, recipe: Recipe) -> dict[str, Recipe]:
    if options.rules:
        raise SettingError("--rules and --variants exclude each other. Give one of them.")
    return {name: variants.named(name).apply(recipe) for name in variants.parse(options.variants, recipe)}


def _rules(options: CompareOptions, recipe: Recipe) -> dict[str, Recipe]:
    names = options.rules.split(",") if options.rules else ["backprop", recipe.rule_name]
    for name in names:
        rule_table.from_name(name)
    if len(set(names)) != len(names):
        raise SettingError(f"--rules names a rule twice: {options.rules}. Name each once.")
    return {name: recipe.with_rule(name) for name in names}
