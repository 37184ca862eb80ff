"""What is told while items are reproduced, and what stops a run in time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from dualprop.reproduction.costs import Cost
from dualprop.reproduction.failing import Failure
from dualprop.reproduction.plan import Job, Plan
from dualprop.training import Reporter
from dualprop.training.recipe import Recipe
from dualprop.training.records import Result

Clock = Callable[[], float]


class Watch:
    """What is told while items are reproduced. This one is silent; the command line's prints."""

    def started(self, folder: Path) -> None: ...
    def said(self, line: str) -> None: ...
    def measured(self, job: Job, cost: Cost, epochs: int) -> None: ...
    def planned(self, plan: Plan) -> None: ...
    def failed(self, failure: Failure) -> None: ...

    def training(self, job: Job, recipe: Recipe) -> AbstractContextManager[Reporter]:
        """What is told while this job is trained."""
        return contextlib.nullcontext(Reporter())


class OutOfTime(Exception):
    """A run stops here: its checkpoint is written, and a resume goes on from it."""


class Deadline(Reporter):
    """Passes on what a run tells, and stops it where one more epoch would end too late.

    Attributes:
        epochs: what each epoch took, with all that ends it; the first, which may compile and
            capture, is left out where there are others.
    """

    def __init__(self, inner: Reporter, clock: Clock, deadline: float, cost: Cost, epochs: int, *, whole: bool) -> None:
        """`deadline` is when training must be over, the test not yet taken; `whole` stops the run
        as soon as it is known not to come to its end in time."""
        self.inner, self.clock, self.deadline, self.cost, self.num_epochs, self.whole = (
            inner, clock, deadline, cost, epochs, whole,
        )  # fmt: skip
        self.mark = clock()
        self.taken: list[float] = []

    @property
    def epoch(self) -> float:
        """What an epoch takes: the median of those seen, else what was measured."""
        return median(self.taken[1:] or self.taken) if self.taken else self.cost.epoch

    def changed(self, what: str) -> None:
        self.inner.changed(what)

    def seed_started(self, seed: int, num_steps: int, done: int) -> None:
        self.inner.seed_started(seed, num_steps, done)
        self.mark = self.clock()

    def step_done(self, done: int, num_examples: int, loss: Tensor, num_correct: Tensor) -> None:
        self.inner.step_done(done, num_examples, loss, num_correct)
        if self.clock() > self.deadline:
            raise OutOfTime

    def epoch_done(self, metrics: dict[str, Any]) -> None:
        self.inner.epoch_done(metrics)
        now = self.clock()
        if metrics["epoch"]:
            self.taken.append(now - self.mark)
        self.mark = now
        left = self.num_epochs - metrics["epoch"]
        if not left:
            return
        # The slowest seen is what one more may take; all that are left take the usual time each.
        needed = left * self.epoch if self.whole and len(self.taken) > 1 else max([*self.taken[1:], self.epoch])
        if now + needed > self.deadline:
            raise OutOfTime

    def seed_finished(self, result: Result) -> None:
        self.inner.seed_finished(result)
