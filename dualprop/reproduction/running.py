"""Running items within a time: measure, plan, train, write, and go on where it stopped.

FOLDER/reproduction.json   items, device, dtype, epochs, seeds: what a resume keeps
FOLDER/costs.json          what runs take on this machine, by label
FOLDER/plan.json           the plan as it stands: steps, and what is left and why
FOLDER/runs/LABEL/         a run folder for each figure, see `training.runs`
FOLDER/self-test.json, FOLDER/runtime.json
FOLDER/failures.json       what failed, with tracebacks
FOLDER/results.json, FOLDER/results.md, FOLDER/figures/
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dualprop.analysis.keywords import by_keyword
from dualprop.memory import first_line
from dualprop.reproduction import costs, options, selftest, writing
from dualprop.reproduction import plan as planning
from dualprop.reproduction.costs import Cost, Costs
from dualprop.reproduction.items import Figure
from dualprop.reproduction.options import ReproduceOptions, Setting
from dualprop.reproduction.plan import Job, Plan, Table, Wish
from dualprop.reproduction.tasks import RUNTIME, RuntimeTable
from dualprop.reproduction.watching import Clock, Deadline, Failure, OutOfTime, Watch
from dualprop.training import documents, files, folders, runs
from dualprop.training.records import by_name
from dualprop.training.runs import Run

# Of the time: what measuring may take at most, and the self-test; and what is kept for writing.
MEASURING, TESTING, WRITING = 0.15, 0.25, 0.04
# Of the time that is left, what a plan leaves for runs that take longer than expected.
MARGIN = 0.05
LONGEST_SELF_TEST, LONGEST_WRITING = 120.0, 10.0

Measure = Callable[..., Cost]


@dataclass(frozen=True)
class Reproduction:
    """What came out: the folder, the plan as it ended, failures, and `results` as results.json
    holds them."""

    folder: Path
    plan: Plan
    failures: tuple[Failure, ...]
    results: dict[str, Any]

    @property
    def is_well(self) -> bool:
        """Whether nothing failed and no run diverged."""
        return not self.failures and not writing.diverged(self.results)


@by_keyword(ReproduceOptions)
def reproduce(options: ReproduceOptions) -> Reproduction:
    """Run the papers' tables and figures within a time, or all of them without one.

    The arguments are the fields of `ReproduceOptions`. A failure of one item is recorded, and the
    next goes on. Raises RunError and SettingError, with the remedy, before anything is run.
    """
    return run(options)


def run(
    chosen: ReproduceOptions, watch: Watch | None = None, *, clock: Clock = time.monotonic, measure: Measure = costs.measure
) -> Reproduction:
    """What `reproduce` does by options that are there already, told to `watch`.

    `clock` is in seconds; `measure` finds what a run takes, as `costs.measure` does.
    """
    deadline = math.inf if chosen.minutes is None else clock() + 60 * chosen.minutes
    watch = watch or Watch()
    if chosen.resume is not None:
        with folders.held(chosen.resume, "used"):
            setting = options.resumed(chosen, chosen.resume)
            return _Running(chosen.resume, setting, chosen, watch, clock, measure, deadline).run()
    setting = options.begun(chosen)
    folder = chosen.out or folders.make_new(Path("runs"), f"reproduce-{time.strftime('%Y%m%d-%H%M%S')}")
    with folders.claimed(folder):
        files.write_json(folder / options.FILE, setting.to_plain())
        return _Running(folder, setting, chosen, watch, clock, measure, deadline).run()


class _Running:
    def __init__(
        self, folder: Path, setting: Setting, chosen: ReproduceOptions, watch: Watch, clock: Clock, measure: Measure,
        deadline: float,
    ) -> None:  # fmt: skip
        self.folder, self.setting, self.chosen, self.watch = folder, setting, chosen, watch
        self.clock, self.measure, self.deadline = clock, measure, deadline
        self.budget = deadline - clock()
        self.reserve = min(LONGEST_WRITING, WRITING * self.budget)
        self.figures, self.seeds = setting.figures(), setting.seeds_by_label()
        folders.remove_leftovers(folder)
        files.remove(folder / costs.SCRATCH)
        self.costs = Costs(folder, setting.device)
        self.runtime = RuntimeTable(folder / "runtime.json", setting.device)
        self.failures = _read_failures(folder / writing.FAILURES)
        # Of this process: what is not to be tried again, and why.
        self.refused: dict[Job, str] = {}
        self.told: Plan | None = None

    def run(self) -> Reproduction:
        self.watch.started(self.folder)
        try:
            self._self_test()
            self._measure()
            plan = self._plan()
            self.watch.planned(plan)
            while plan.steps:
                self._do(plan.steps[0].job, whole=True)
                plan = self._plan()
            self._fill(plan)
        finally:
            self.results = self._write()
        self._draw()
        return Reproduction(self.folder, self._plan(), tuple(self.failures.values()), self.results)

    @property
    def left(self) -> float:
        """Seconds until all must be written."""
        return self.deadline - self.reserve - self.clock()

    def _self_test(self) -> None:
        names = [name for name, item in self.setting.table.items() if item.task == "self-test"]
        for name in names:
            until = self.clock() + min(LONGEST_SELF_TEST, TESTING * self.budget)
            failed = selftest.run(self.folder / selftest.FILE, self.setting, self.watch, self.clock, until)
            for label in [label for label, each in self.failures.items() if each.item == name]:
                del self.failures[label]
            for failure in failed:
                self._note(failure)
            self._write()

    def _measure(self) -> None:
        """What the runs take that are not known yet, those of most worth first."""
        until, loaded = self.clock() + MEASURING * self.budget, costs.Loaded(self.chosen.data)
        worth = {figure.label: item.worth for item in reversed(self.setting.table.values()) for figure in item.figures}
        for label in sorted(self.figures, key=lambda label: -worth.get(label, 0.0)):
            if self.clock() >= until:
                return
            recipe, cost = self.setting.recipe(self.figures[label]), self.costs[label]
            is_rough = cost is not None and cost.of == "one step" and cost.seconds(recipe.epochs) <= self.left
            if (cost is not None and not is_rough) or all(self._is_done(job) for job in self._jobs(label)):
                continue
            if recipe.dataset in loaded.refused:
                self.refused |= dict.fromkeys(self._jobs(label), f"the data of {recipe.dataset} can't be had")
                continue
            with _Noting(self, label):
                found = self.measure(recipe, loaded, self.folder, self.left)
                self.costs[label] = found
                self.watch.measured(label, found, recipe.epochs)

    def _plan(self) -> Plan:
        """The plan for the time that is left, which is written down."""
        tables = [
            Table(name, item.worth, tuple(self._wish(name, figure) for figure in item.figures) or (Wish((Job(RUNTIME),)),))
            for name, item in self.setting.table.items()
            if item.task != "self-test"
        ]
        jobs = list(dict.fromkeys(job for table in tables for job in table.jobs()))
        done = {job for job in jobs if self._is_done(job)}
        begun = [job for job in jobs if job not in done and self._epochs_done(job)]
        seconds = {job: self._seconds(job) for job in jobs if job not in done}
        plan = planning.plan(tables, seconds, max(0.0, (1 - MARGIN) * self.left), begun=begun, done=done, refused=self.refused)
        files.write_json(self.folder / "plan.json", plan.to_plain())
        return plan

    def _wish(self, name: str, figure: Figure) -> Wish:
        if not figure.is_there:
            job = Job(figure.label)
            self.refused[job] = f"there is no recipe '{figure.recipe}' yet"
            return Wish((job,))
        item, twin = self.setting.table[name], figure.twin
        return Wish(
            tuple(Job(figure.label, seed) for seed in self.setting.seeds_of(item, figure)),
            () if twin is None else tuple(Job(twin.label, seed) for seed in self.setting.seeds_of(item, twin)),
        )

    def _jobs(self, label: str) -> list[Job]:
        return [Job(label, seed) for seed in self.seeds[label]]

    def _run_of(self, job: Job) -> Run | None:
        recipe = self.setting.recipe(self.figures[job.label])
        return runs.existing(folders.inside(self.folder / writing.RUNS, job.label), recipe, self.seeds[job.label])

    def _is_done(self, job: Job) -> bool:
        if job.label == RUNTIME:
            return self.runtime.is_done
        run = self._run_of(job) if job.label in self.figures else None
        return run is not None and files.exists(run.seed_folder(job.seed) / "result.json")

    def _epochs_done(self, job: Job) -> int:
        """0 of a job that has no checkpoint after an epoch."""
        run = self._run_of(job) if job.label in self.figures else None
        return len(run.metrics(job.seed)[1:]) if run is not None else 0

    def _seconds(self, job: Job) -> float | None:
        """Of what is left of the job."""
        if job.label == RUNTIME:
            return self.runtime.seconds
        cost = self.costs[job.label] if job.label in self.figures else None
        if cost is None:
            return None
        return cost.seconds(self.setting.recipe(self.figures[job.label]).epochs - self._epochs_done(job))

    def _do(self, job: Job, *, whole: bool) -> None:
        """Run the job, to its end or until the time is over."""
        with _Noting(self, job.label):
            try:
                if job.label == RUNTIME:
                    self.runtime.measure(self.clock, self.deadline - self.reserve)
                else:
                    self._train(job, whole)
                self.failures.pop(job.label, None)
            except OutOfTime:
                self.refused[job] = "takes longer than the time that is left; --resume goes on with it"
        self._write()

    def _train(self, job: Job, whole: bool) -> None:
        recipe, cost = self.setting.recipe(self.figures[job.label]), self.costs[job.label]
        assert cost is not None
        path = folders.inside(self.folder / writing.RUNS, job.label)
        run = self._run_of(job) or runs.create(path, recipe, self.seeds[job.label])
        with self.watch.training(job, recipe) as inner:
            until = self.deadline - self.reserve - cost.finish
            reporter = Deadline(inner, self.clock, until, cost, recipe.epochs, whole=whole)
            try:
                how = {"seeds": [job.seed], "allow_changed": self.chosen.allow_changed}
                runs.train(run, self.chosen.data, reporter, **how)  # type: ignore[arg-type]
            finally:
                if len(reporter.taken) > 1:
                    self.costs[job.label] = cost.seen(reporter.epoch)

    def _fill(self, plan: Plan) -> None:
        """What is left of the time goes into the first job of which an epoch fits, a begun one
        before others: a resume goes on from there."""
        left = [each.job for each in plan.left if each.job.label in self.figures and self.costs[each.job.label] is not None]
        for job in sorted(left, key=lambda job: -self._epochs_done(job)):
            cost = self.costs[job.label]
            failed = job.label in self.failures and job in self.refused
            if math.isinf(self.left) or failed or cost is None:
                continue
            # One step tells the least that an epoch takes.
            epoch = cost.epoch * (1.5 if cost.of == "one step" else 1)
            if cost.setup + epoch <= self.left:
                self.watch.said(f"the time that is left goes into {job.label}, seed {job.seed}, which --resume goes on with")
                self._do(job, whole=False)
                return

    def note(self, failure: Failure) -> None:
        """Record a failure of this label, whose other jobs would fail alike."""
        for job in self._jobs(failure.label) if failure.label in self.figures else [Job(failure.label)]:
            self.refused[job] = f"failed: {failure.error}"
        self._note(failure)

    def _note(self, failure: Failure) -> None:
        self.failures[failure.label] = failure
        self.watch.failed(failure)
        files.write_json(self.folder / writing.FAILURES, {label: each.to_plain() for label, each in self.failures.items()})

    def _write(self) -> dict[str, Any]:
        files.write_json(self.folder / writing.FAILURES, {label: each.to_plain() for label, each in self.failures.items()})
        return writing.write(self.folder, self.setting, list(self.failures.values()))

    def _draw(self) -> None:
        """The pictures that there is time for."""
        slowest = 0.0
        for recipe in dict.fromkeys(figure.recipe for figure in self.figures.values()):
            began = self.clock()
            if began + slowest > self.deadline:
                self.watch.said("no time is left for all pictures: --resume draws the others")
                return
            with _Noting(self, label := f"pictures of {recipe}"):
                writing.draw(self.folder, self.setting, recipe)
                self.failures.pop(label, None)
            slowest = max(slowest, self.clock() - began)


class _Noting:
    """Records an exception of a label as its failure, and lets what ends the process through."""

    def __init__(self, running: _Running, label: str) -> None:
        self.running, self.label = running, label

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        told = " ".join(first_line(error).split()) or type(error).__name__
        trace = "".join(traceback.format_exception(error))
        names = [name for name, item in self.running.setting.table.items() if self.label in [f.label for f in item.figures]]
        failure = Failure(item=", ".join(names), label=self.label, error=f"{type(error).__name__}: {told}", traceback=trace)
        self.running.note(failure)
        # What the failed step held on the device is not to fail the next.
        del error
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


def _read_failures(path: Path) -> dict[str, Failure]:
    if not files.exists(path):
        return {}
    return documents.read(path, lambda plain: by_name(plain, Failure, ""), f"Remove {path}.")
