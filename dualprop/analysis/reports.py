"""What finished runs amount to: their results beside each other, and their figures."""

from __future__ import annotations

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


def drawn(folder: Path, by_label: dict[str, Run], costs: dict[str, Cost] | None = None) -> Report:
    """The report of these runs, whose figures go into `folder`/figures."""
    return Report(by_label, costs, plots.draw(list(by_label.items()), folder / "figures", costs))
