"""What finished runs amount to: their results beside each other, and their figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dualprop.analysis import differences, plots
from dualprop.errors import RunError
from dualprop.training import comparisons, runs
from dualprop.training.records import Cost
from dualprop.training.runs import Run


@dataclass(frozen=True)
class Report:
    """Runs of one recipe by several rules, or of one by its own.

    Attributes:
        runs: by label, a rule's or a variant's name.
        costs: what a step of each takes, by label; None where it was not measured.
        figures: the pictures that were drawn.
    """

    runs: dict[str, Run]
    costs: dict[str, Cost] | None
    figures: list[Path]

    @property
    def results(self) -> dict[str, Any]:
        """Plain values: test accuracies of "rules", "differences" to back-propagation, "costs"."""
        by_label = {label: run.results() for label, run in self.runs.items()}
        to_twin = differences.to_twin(by_label)
        return {
            "seeds": list(next(iter(self.runs.values())).seeds),
            "rules": {label: runs.summary(results) for label, results in by_label.items() if results},
            "differences": {label: {**asdict(each), "verdict": each.verdict} for label, each in to_twin.items()},
            "costs": None if self.costs is None else {label: cost.to_plain() for label, cost in self.costs.items()},
        }


def report(folder: Path) -> Report:
    """What a run or a comparison has come to, its figures drawn again; nothing is trained.

    Raises RunError where the folder is neither, or nothing in it was trained yet.
    """
    costs = None
    if comparisons.is_comparison(folder):
        comparison = comparisons.load(folder)
        by_label, costs = comparison.runs, comparison.costs()
    else:
        run = runs.load(folder)
        by_label = {run.recipe.rule_name: run}
    if not any(run.metrics(seed) for run in by_label.values() for seed in run.seeds):
        raise RunError(f"{folder} holds nothing that was trained yet. Train it with --resume {folder}.")
    return drawn(folder, by_label, costs)


def beside(given: Sequence[Path], out: Path | None = None) -> Report:
    """Several runs, and those of comparisons, side by side: their curves in one figure, `out`, by
    default side_by_side.png in the figures of the first folder. Labels are the folders' names.

    Raises RunError where a folder is neither, is given twice, or holds nothing that was trained.
    """
    by_label: dict[str, Run] = {}
    if len({folder.resolve() for folder in given}) < len(given):
        raise RunError("a folder is given twice. Give each folder once.")
    for folder in given:
        alone = {folder.absolute().name: runs.load(folder)} if not comparisons.is_comparison(folder) else {}
        inside = (
            {f"{folder.absolute().name}/{label}": run for label, run in comparisons.load(folder).runs.items()}
            if not alone
            else {}
        )
        for name, run in (alone | inside).items():
            # Folders of one name are told by the ones above them.
            label = name if name not in by_label else str(run.folder)
            if not any(run.metrics(seed) for seed in run.seeds):
                raise RunError(f"{run.folder} holds nothing that was trained yet. Train it with --resume {folder}.")
            by_label[label] = run
    return Report(by_label, None, [plots.draw_beside(list(by_label.items()), given[0], out)])


def settings_that_differ(labelled: dict[str, Run]) -> dict[str, dict[str, str]]:
    """Of each run the settings in which not all are alike, by their path in the recipe."""
    flat = {label: dict(_flat(run.recipe.to_plain())) for label, run in labelled.items()}
    names = [name for each in flat.values() for name in each if name not in _NO_SETTINGS]
    # What only some rules have is told by their names.
    shown = [name for name in dict.fromkeys(names) if len({each[name] for each in flat.values() if name in each}) > 1]
    return {label: {name: each.get(name, "–") for name in shown} for label, each in flat.items()}


# What a recipe is called, and not what it does.
_NO_SETTINGS = ("name", "cites", "published", "grid", "seed_list", "budget_epochs")


def _flat(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def drawn(folder: Path, by_label: dict[str, Run], costs: dict[str, Cost] | None = None) -> Report:
    """The report of these runs, whose figures go into `folder`/figures."""
    return Report(by_label, costs, plots.draw(list(by_label.items()), folder / "figures", costs))
