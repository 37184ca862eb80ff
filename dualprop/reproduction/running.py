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

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualprop.analysis.keywords import by_keyword
from dualprop.reproduction import costs, options, selftest, writing
from dualprop.reproduction import plan as planning
from dualprop.reproduction.costs import Cost
from dualprop.reproduction.failing import Failure, Failures
from dualprop.reproduction.jobs import Jobs
from dualprop.reproduction.options import ReproduceOptions, Setting
from dualprop.reproduction.plan import Job, Plan
from dualprop.reproduction.tasks import RUNTIME
from dualprop.reproduction.watching import Clock, Deadline, OutOfTime, Watch
from dualprop.training import files, folders, runs

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
        setting = options.resumed(chosen, chosen.resume)
        with folders.held(chosen.resume, "used"):
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
        folders.remove_leftovers(folder)
        files.remove(folder / costs.SCRATCH)
        self.jobs, self.failures = Jobs(folder, setting), Failures(folder, watch.failed)
        # What this process does not try (again), and why; what it has measured, and their data.
        self.refused = dict(self.jobs.missing)
        self.measured, self.loaded = set[str](), costs.Loaded(chosen.data)

    def run(self) -> Reproduction:
        self.watch.started(self.folder)
        self._mend()
        try:
            self._self_test()
            self._measure(self.clock() + MEASURING * self.budget)
            plan = self._plan()
            self.watch.planned(plan)
            until = 0.0
            while True:
                while plan.steps:
                    self._do(plan.steps[0].job, whole=True)
                    plan = self._plan()
                # Of what is measured nothing fits. What is of less worth may be shorter.
                until = until or self.clock() + self.left / 2
                if not self._measure(min(until, self.clock() + MEASURING * self.left)):
                    break
                plan = self._plan()
                if plan.steps:
                    self.watch.planned(plan)
            self._fill(plan)
        finally:
            results = self._write()
        self._draw()
        return Reproduction(self.folder, self._plan(), tuple(self.failures.by_label.values()), results)

    @property
    def left(self) -> float:
        """Seconds until all must be written."""
        return self.deadline - self.reserve - self.clock()

    def _mend(self) -> None:
        """Have finished runs hold their summary, which a kill may have left unwritten."""
        for label in self.jobs.figures:
            with self._noting(label):
                run = self.jobs.begun(label)
                if run is not None and run.results():
                    runs.train(run, self.chosen.data, seeds=())

    def _self_test(self) -> None:
        if any(item.task == "self-test" for item in self.setting.table.values()):
            until = self.clock() + min(LONGEST_SELF_TEST, TESTING * self.budget)
            selftest.run(self.folder / selftest.FILE, self.setting, self.failures, self.watch, self.clock, until)
            self._write()

    def _measure(self, until: float) -> bool:
        """Measure what the runs take that are not known yet, those of most worth first; none is
        begun after `until`. Whether there was one."""
        is_known, loaded = True, self.loaded
        for label in self.jobs.by_worth():
            recipe, cost, jobs = self.jobs.recipes[label], self.jobs.costs[label], self.jobs.of(label)
            # One step was enough when there was less time.
            is_rough = cost is not None and cost.of == "one step" and cost.seconds(recipe.epochs) <= self.left
            is_over = all(self.jobs.is_done(job) or job in self.refused for job in jobs)
            if (cost is not None and not is_rough) or is_over or label in self.measured:
                continue
            if self.jobs.is_far(label, self.left):
                continue
            if self.clock() >= until:
                break
            self.measured.add(label)
            is_known = False
            if recipe.dataset in loaded.refused:
                self._refuse(label, f"the data of {recipe.dataset} can't be had")
                continue
            with self._noting(label):
                found = self.measure(recipe, loaded, self.folder, self.left, len(jobs[0].seeds))
                self.jobs.costs[label] = found
                self.watch.measured(jobs[0], found, recipe.epochs)
        self.loaded.last = None  # a run loads its own
        return not is_known

    def _plan(self) -> Plan:
        """The plan for the time that is left, which is written down."""
        tables = self.jobs.tables()
        jobs = list(dict.fromkeys(job for table in tables for job in table.jobs()))
        done = {job for job in jobs if self.jobs.is_done(job)}
        begun = [job for job in jobs if job not in done and self.jobs.epochs_done(job)]
        seconds = {job: self.jobs.seconds(job) for job in jobs if job not in done}
        budget = max(0.0, (1 - MARGIN) * self.left)
        plan = planning.plan(tables, seconds, budget, begun=begun, done=done, refused=self.refused)
        files.write_json(self.folder / "plan.json", plan.to_plain())
        return plan

    def _do(self, job: Job, *, whole: bool) -> None:
        """Run the job to its end; or until the time is over, or it is known not to be `whole` by
        then."""
        with self._noting(job.label):
            try:
                if job.label == RUNTIME:
                    self.jobs.runtime.measure(self.clock, self.deadline - self.reserve)
                else:
                    self._train(job, whole)
                self.failures.remove(job.label)
            except OutOfTime:
                self.refused[job] = "takes longer than the time that is left"
        self._write()

    def _train(self, job: Job, whole: bool) -> None:
        recipe, cost, run = self.jobs.recipe(job), self.jobs.costs[job.label], self.jobs.run(job.label)
        assert cost is not None
        with self.watch.training(job, recipe) as inner:
            until = self.deadline - self.reserve - cost.finish
            reporter = Deadline(inner, self.clock, until, cost, recipe.epochs, whole=whole)
            how = {"seeds": job.seeds, "allow_changed": self.chosen.allow_changed}
            try:
                runs.train(run, self.chosen.data, reporter, **how)  # type: ignore[arg-type]
            finally:
                if len(reporter.taken) > 1:
                    self.jobs.costs[job.label] = cost.seen(reporter.epoch)

    def _fill(self, plan: Plan) -> None:
        """What is left of the time goes into the first job of which an epoch fits, a begun one
        before others: a resume goes on from there."""
        if math.isinf(self.left):
            return
        for job in sorted((each.job for each in plan.left), key=lambda job: -self.jobs.epochs_done(job)):
            cost = self.jobs.costs[job.label]
            if cost is None or job.label in self.failures.by_label:
                continue
            # One step is a rough guess.
            epoch = cost.epoch * (1.5 if cost.of == "one step" else 1)
            if cost.setup + epoch <= self.left:
                seeds = f"seed{'s' if len(job.seeds) > 1 else ''} {', '.join(map(str, job.seeds))}"
                self.watch.said(f"the time that is left goes into {job.label}, {seeds}, which --resume goes on with")
                self._do(job, whole=False)
                return

    @contextlib.contextmanager
    def _noting(self, label: str) -> Iterator[None]:
        """Record a failure of this label, whose other jobs would fail alike."""
        with self.failures.noting(label):
            try:
                yield
            except Exception as error:
                self._refuse(label, f"failed: {type(error).__name__}")
                raise

    def _refuse(self, label: str, reason: str) -> None:
        self.refused |= dict.fromkeys(self.jobs.of(label), reason)

    def _write(self) -> dict[str, Any]:
        return writing.write(self.jobs, list(self.failures.by_label.values()))

    def _draw(self) -> None:
        """The pictures that there is time for."""
        slowest = 0.0
        for name in dict.fromkeys(figure.recipe for figure in self.jobs.figures.values()):
            began = self.clock()
            if began + slowest > self.deadline:
                self.watch.said("no time is left for all pictures: --resume draws the others")
                return
            with self.failures.noting(label := f"pictures of {name}"):
                writing.draw(self.jobs, name)
                self.failures.remove(label)
            slowest = max(slowest, self.clock() - began)
