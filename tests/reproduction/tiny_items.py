"""Items of a recipe so small that a run takes a fraction of a second, and a time that steps alone
let pass."""

import contextlib
from typing import Any

from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.reproduction.items import Figure, Item
from dualprop.reproduction.watching import Watch
from dualprop.rules import DualPropagation
from dualprop.training import Optimizer, Recipe, Reporter

# 22 steps an epoch.
STEPS = 22
TINY = Recipe(
    name="tiny", cites="a paper", published=(("bp", "80.0 ± 0.5"), ("dp", "80.0 ± 0.5")), dataset="digits",
    model=MLP(widths=(6,)), rule=DualPropagation(loss=CrossEntropy()), optimizer=Optimizer(learning_rate=1e-2),
    batch_size=58, epochs=3, num_threads=1, seed_list=(3, 4), stack_seeds="off",
)  # fmt: skip
TABLE = {
    "tiny": Item("a table", (Figure("tiny", "bp"), Figure("tiny", "dp"))),
    "waiting": Item("one that waits", (Figure("not-there-yet", "bp"),), worth=9),
}


class Time:
    """Seconds that pass with steps, and the watch that lets them pass; `planned` are the plans
    told, `said` all other lines."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Steps(Watch):
    """Moves the time by one second a step, and keeps what is told."""

    def __init__(self, time: Time) -> None:
        self.time, self.plans, self.said_lines, self.failures, self.trained = time, [], [], [], []

    def planned(self, plan: Any) -> None:
        self.plans.append(plan)

    def said(self, line: str) -> None:
        self.said_lines.append(line)

    def failed(self, failure: Any) -> None:
        self.failures.append(failure)

    def training(self, job: Any, recipe: Recipe) -> Any:
        self.trained.append(job)
        watch = self

        class OneASecond(Reporter):
            def step_done(self, *_: Any) -> None:
                watch.time.now += 1

        return contextlib.nullcontext(OneASecond())
