"""Comparison folders: several recipes trained from the same seeds, in one folder.

COMPARISON/comparison.json   recipes by label, seeds, and whether costs are measured
COMPARISON/LABEL/            a run folder each, see `runs`
COMPARISON/costs.json        what a step of each takes, by label, and of a plain PyTorch loop
COMPARISON/results.json      test accuracies, differences, costs
COMPARISON/figures/
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dualprop.errors import RunError, SettingError
from dualprop.training import documents, files, folders, recipe, runs
from dualprop.training.documents import Misfit
from dualprop.training.recipe import Recipe
from dualprop.training.records import ComparisonFile, Cost, by_name
from dualprop.training.runs import Run

_DESCRIPTION = "comparison.json"
_NOT_LABELS = (_DESCRIPTION, "costs.json", "results.json", "figures", "logs", "logs.json")
# The plain PyTorch loop, which steps are compared with in costs.json, and the same again.
YARDSTICKS = ("plain PyTorch loop", "plain PyTorch loop, again")


@dataclass(frozen=True)
class Comparison:
    """A comparison folder. Labels are names of rules or variants, and of the run folders."""

    folder: Path
    recipes: dict[str, Recipe]
    seeds: tuple[int, ...]
    measures_costs: bool
    epochs_before: tuple[int, ...] = ()

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
        return runs.existing(folders.inside(self.folder, label), self.recipes[label], self.seeds, self.epochs_before)

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
    with folders.claimed(folder):
        _write(comparison)
    return comparison


def extended(comparison: Comparison, epochs: int) -> Comparison:
    """The comparison over so many epochs, more than before. Its runs are extended when their turn
    comes, see `runs.extended`. Raises RunError and SettingError as that does, before anything is
    written."""
    lengths = {recipe.epochs for recipe in comparison.recipes.values()}
    if lengths == {epochs}:
        return comparison
    if len(lengths) > 1 or epochs < min(lengths):
        shown = ", ".join(map(str, sorted(lengths)))
        raise SettingError(f"{comparison.folder} is of {shown} epochs, and --epochs extends it. Give more than these.")
    for label in comparison.recipes:
        if (run := comparison.begun(label)) is not None and not run.is_current:
            raise RunError(f"{run.folder} is of an earlier version, whose recipe was another. Compare anew.")
    recipes = {label: replace(recipe, epochs=epochs) for label, recipe in comparison.recipes.items()}
    longer = replace(comparison, recipes=recipes, epochs_before=(*comparison.epochs_before, *lengths))
    _write(longer)
    return longer


def _write(comparison: Comparison) -> None:
    rules = {label: recipe.to_plain() for label, recipe in comparison.recipes.items()}
    plain = {"rules": rules, "seeds": list(comparison.seeds), "costs": comparison.measures_costs}
    before = {"epochs_before": list(comparison.epochs_before)} if comparison.epochs_before else {}
    files.write_json(comparison.folder / _DESCRIPTION, plain | before)


def load(folder: Path) -> Comparison:
    """An existing comparison folder. Raises RunError where its description is damaged."""
    path = folder / _DESCRIPTION
    return documents.read(path, partial(_from_plain, folder), "Restore it, or compare anew.")


def _from_plain(folder: Path, plain: Any) -> Comparison:
    file = ComparisonFile.from_plain(plain)
    recipes = {label: recipe.read(values, f"rules.{documents.field(label)}") for label, values in file.rules.items()}
    return Comparison(folder, recipes, runs.different(file.seeds), file.costs, file.epochs_before)
