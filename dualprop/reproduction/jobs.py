"""The jobs of a folder: which there are, which are done, and what is left of each."""

from __future__ import annotations

from pathlib import Path

from dualprop.reproduction import costs
from dualprop.reproduction.items import Figure, Item
from dualprop.reproduction.options import Setting
from dualprop.reproduction.plan import Job, Table, Wish
from dualprop.reproduction.tasks import RUNTIME, RuntimeTable
from dualprop.training import environment, execution, files, folders, runs
from dualprop.training.recipe import Recipe
from dualprop.training.runs import Run

RUNS = "runs"
# So many times the time that is left is far too long also for a rule that is faster than its twin.
FAR = 3


class Jobs:
    """Those of a setting, in its folder.

    Attributes:
        figures: what can be trained, by label.
        stacked: the labels whose seeds step together, as one job.
        missing: jobs whose recipe is not there yet, and the reason in words.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.setting = folder, setting
        self.figures, self.seeds = setting.figures(), setting.seeds_by_label()
        self.recipes = {label: setting.recipe(figure) for label, figure in self.figures.items()}
        self.stacked = {
            label for label, recipe in self.recipes.items() if execution.resolve(recipe, len(self.seeds[label])).num_stacked
        }
        self.environment = environment.describe(setting.device)
        self.costs = costs.Costs(folder, setting.device)
        self.runtime = RuntimeTable(folder / "runtime.json", setting.device)
        self.missing = {
            Job(figure.label): f"there is no recipe '{figure.recipe}' yet"
            for item in setting.table.values()
            for figure in item.figures
            if not figure.is_there
        }

    def tables(self) -> list[Table]:
        """What a plan is made of: all items but the self-test, which is before any plan."""
        return [
            Table(name, item.worth, tuple(self._wish(item, figure) for figure in item.figures) or (Wish((Job(RUNTIME),)),))
            for name, item in self.setting.table.items()
            if item.task != "self-test"
        ]

    def _wish(self, item: Item, figure: Figure) -> Wish:
        if not figure.is_there:
            return Wish((Job(figure.label),))
        jobs, twins = (
            () if each is None else tuple(self._job(each.label, seed) for seed in self.setting.seeds_of(item, each))
            for each in (figure, figure.twin)
        )
        return Wish(jobs, twins)

    def _job(self, label: str, seed: int) -> Job:
        """The one that trains this seed."""
        return Job(label, self.seeds[label] if label in self.stacked else (seed,))

    def by_worth(self) -> list[str]:
        """The labels, those of the worthiest items first."""
        worth = {
            each.label: item.worth
            for item in sorted(self.setting.table.values(), key=lambda item: item.worth)
            for figure in item.figures
            for each in (figure, figure.twin)
            if each is not None
        }
        return sorted(self.figures, key=lambda label: -worth[label])

    def of(self, label: str) -> list[Job]:
        """All jobs of a label."""
        if label not in self.seeds:
            return [Job(label)]
        return list(dict.fromkeys(self._job(label, seed) for seed in self.seeds[label]))

    def recipe(self, job: Job) -> Recipe:
        return self.recipes[job.label]

    def run(self, label: str) -> Run:
        """The label's run folder, made where it is not there."""
        return self.begun(label) or runs.create(self._folder(label), self.recipes[label], self.seeds[label])

    def begun(self, label: str) -> Run | None:
        """The label's run folder, None where it is not there. Raises RunError where it is of other
        settings."""
        return runs.existing(self._folder(label), self.recipes[label], self.seeds[label]) if label in self.figures else None

    def _folder(self, label: str) -> Path:
        return folders.inside(self.folder / RUNS, label)

    def is_done(self, job: Job) -> bool:
        """Whether its results are there."""
        if job.label == RUNTIME:
            return self.runtime.is_done
        run = self.begun(job.label)
        return run is not None and not _unfinished(run, job)

    def epochs_done(self, job: Job) -> int:
        """0 of a job without a checkpoint after an epoch. Of seeds that step together, those of the
        one furthest behind."""
        run = self.begun(job.label)
        return 0 if run is None else min(len(run.metrics(seed)[1:]) for seed in _unfinished(run, job) or job.seeds)

    def seconds(self, job: Job) -> float | None:
        """What is left of the job takes, None where that is not known."""
        if job.label == RUNTIME:
            return self.runtime.seconds
        cost = self.costs[job.label]
        return None if cost is None else cost.seconds(self.recipe(job).epochs - self.epochs_done(job))

    def is_far(self, label: str, left: float) -> bool:
        """Whether its twin, on the same network, is known to take far longer than this time."""
        twin = None if label not in self.figures else self.figures[label].twin
        cost = None if twin is None else self.costs[twin.label]
        return cost is not None and cost.seconds(self.recipes[label].epochs) > FAR * left


def _unfinished(run: Run, job: Job) -> list[int]:
    return [seed for seed in job.seeds if not files.exists(run.seed_folder(seed) / "result.json")]
