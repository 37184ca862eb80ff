"""Comparison folders: several recipes trained from the same seeds, in one folder.

COMPARISON/comparison.json   recipes by label, seeds, and whether costs are measured
COMPARISON/LABEL/            a run folder each, see `runs`
COMPARISON/costs.json        what a step of each takes, by label, and of a plain PyTorch loop
COMPARISON/results.json      test accuracies, differences, costs
COMPARISON/figures/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualprop.errors import RunError
from dualprop.training import files, runs
from dualprop.training.recipe import Recipe
from dualprop.training.runs import Run

_DESCRIPTION = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """A comparison folder. Labels are names of rules or variants, and of the run folders."""

    folder: Path
    recipes: dict[str, Recipe]
    seeds: tuple[int, ...]
    measures_costs: bool

    @property
    def runs(self) -> dict[str, Run]:
        """By label; some may not have begun."""
        return {label: Run(self.folder / label, recipe, self.seeds) for label, recipe in self.recipes.items()}

    @property
    def costs_path(self) -> Path:
        return self.folder / "costs.json"

    def costs(self) -> dict[str, Any] | None:
        """What a step of each recipe takes, by label; None where it was not measured."""
        return files.read_json(self.costs_path) if self.costs_path.exists() else None


def is_comparison(folder: Path) -> bool:
    """Whether the folder holds a comparison and not a single run."""
    return (folder / _DESCRIPTION).is_file()


def create(folder: Path, recipes: dict[str, Recipe], seeds: tuple[int, ...], measures_costs: bool = True) -> Comparison:
    """A new comparison folder. Raises RunError where it exists already; nothing is touched."""
    files.claim(folder)
    rules = {label: recipe.to_plain() for label, recipe in recipes.items()}
    files.write_json(folder / _DESCRIPTION, {"rules": rules, "seeds": list(seeds), "costs": measures_costs})
    return Comparison(folder, recipes, seeds, measures_costs)


def load(folder: Path) -> Comparison:
    """An existing comparison folder. Raises RunError where its description is damaged."""
    path = folder / _DESCRIPTION
    try:
        plain = json.loads(path.read_text())
        recipes = {name: Recipe.from_plain(recipe) for name, recipe in plain["rules"].items()}
        if not recipes:
            raise ValueError("it names no rule")
        return Comparison(folder, recipes, runs.seeds_from(plain["seeds"]), bool(plain["costs"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}. Restore it, or compare anew.") from error
