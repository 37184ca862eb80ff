"""Comparison folders: several recipes trained from the same seeds, in one folder.

COMPARISON/comparison.json   recipes by label, seeds, and whether costs are measured
COMPARISON/LABEL/            a run folder each, see `runs`
COMPARISON/costs.json        what a step of each takes, by label, and of a plain PyTorch loop
COMPARISON/results.json      test accuracies, differences, costs
COMPARISON/figures/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dualprop.errors import SettingError
from dualprop.training import documents, files, folders, recipe, runs
from dualprop.training.documents import Misfit
from dualprop.training.recipe import Recipe
from dualprop.training.records import ComparisonFile, Cost, by_name
from dualprop.training.runs import Run

_DESCRIPTION = "comparison.json"
_NOT_LABELS = (_DESCRIPTION, "costs.json", "results.json", "figures")
# The plain PyTorch loop, which steps are compared with in costs.json, and the same again.
YARDSTICKS = ("plain PyTorch loop", "plain PyTorch loop, again")


@dataclass(frozen=True)
class Comparison:
    """A comparison folder. Labels are names of rules or variants, and of the run folders."""

    folder: Path
    recipes: dict[str, Recipe]
    seeds: tuple[int, ...]
    measures_costs: bool

    def __post_init__(self) -> None:
        for label in self.recipes:
            folders.check_name(label)
            if label in _NOT_LABELS:
                raise SettingError(f"no rule can be labelled '{label}': the comparison has a file or folder of that name.")

    @property
    def runs(self) -> dict[str, Run]:
        """By label; some may not have begun. Raises RunError as `begun` does."""
        return {
            label: self.begun(label) or Run(self.folder / label, recipe, self.seeds) for label, recipe in self.recipes.items()
        }

    def begun(self, label: str) -> Run | None:
        """The run of that label, None where it has not begun.

        Raises RunError where its folder holds another recipe's run, or is a link.
        """
        return runs.existing(folders.inside(self.folder, label), self.recipes[label], self.seeds)

    @property
    def costs_path(self) -> Path:
        return self.folder / "costs.json"

    def costs(self) -> dict[str, Cost] | None:
        """What a step of each recipe takes, by label; None where it was not measured."""
        if not files.exists(self.costs_path):
            return None
        return documents.read(self.costs_path, self._costs, "Restore it, or remove it to have it made again.")

    def _costs(self, plain: Any) -> dict[str, Cost]:
        costs: dict[str, Cost] = by_name(plain, Cost, "")
        for label in (*self.recipes, *YARDSTICKS):
            if label not in costs:
                raise Misfit(f"it lacks {label!r}")
            for name in ("count_ratio", "memory") if label in self.recipes else ():
                if getattr(costs[label], name) is None:
                    raise Misfit(f"{documents.field(label)} lacks '{name}'")
        return costs


def is_comparison(folder: Path) -> bool:
    """Whether the folder holds a comparison and not a single run."""
    return files.exists(folder / _DESCRIPTION)


def create(folder: Path, recipes: dict[str, Recipe], seeds: tuple[int, ...], measures_costs: bool = True) -> Comparison:
    """A new comparison folder.

    Raises RunError where it exists already or another process has it, and SettingError for a label
    that is no plain name; nothing is touched.
    """
    comparison = Comparison(folder, recipes, seeds, measures_costs)
    rules = {label: recipe.to_plain() for label, recipe in recipes.items()}
    with folders.claimed(folder):
        files.write_json(folder / _DESCRIPTION, {"rules": rules, "seeds": list(seeds), "costs": measures_costs})
    return comparison


def load(folder: Path) -> Comparison:
    """An existing comparison folder. Raises RunError where its description is damaged."""
    path = folder / _DESCRIPTION
    return documents.read(path, partial(_from_plain, folder), "Restore it, or compare anew.")


def _from_plain(folder: Path, plain: Any) -> Comparison:
    file = ComparisonFile.from_plain(plain)
    recipes = {label: recipe.read(values, f"rules.{documents.field(label)}") for label, values in file.rules.items()}
    return Comparison(folder, recipes, runs.different(file.seeds), file.costs)
