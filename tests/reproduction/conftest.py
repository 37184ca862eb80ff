"""What the tests of reproductions share: items of a recipe so small that a run takes a fraction
of a second, and a clock that steps alone move."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dualprop import recipes
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.reproduction import items, running, writing
from dualprop.reproduction.costs import Cost
from dualprop.reproduction.items import Figure, Item
from dualprop.reproduction.options import ReproduceOptions
from dualprop.reproduction.running import Reproduction
from dualprop.reproduction.watching import Watch
from dualprop.rules import DualPropagation
from dualprop.training import Optimizer, Recipe, Reporter

# 22 steps an epoch.
STEPS = 22
TINY = Recipe(
    name="tiny", cites="a paper", published=(("bp", "80.0 ± 0.5"), ("dp", "80.0 ± 0.5")), dataset="digits",
    model=MLP(widths=(6,)), rule=DualPropagation(loss=CrossEntropy()), optimizer=Optimizer(learning_rate=1e-2),
    batch_size=58, epochs=3, num_threads=1, seed_list=(3, 4),
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


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recipe]:
    """The table of items holds TABLE alone, and its recipe is there; no data but the digits'."""
    monkeypatch.setenv("DUALPROP_DATA", str(tmp_path / "no-data"))
    monkeypatch.setitem(recipes.RECIPES, "tiny", lambda: TINY)
    for name in list(items.ITEMS):
        monkeypatch.delitem(items.ITEMS, name)
    for name, item in TABLE.items():
        monkeypatch.setitem(items.ITEMS, name, item)
    yield TINY
    torch.set_flush_denormal(False)


def as_said(recipe: Recipe, *_: Any) -> Cost:
    """What the time of these tests comes to: a second a step, none for anything else."""
    return Cost(setup=0.0, epoch=float(STEPS), finish=0.0, of="a few steps")


@dataclasses.dataclass
class Reproducing:
    """reproducing(items, minutes=…): a reproduction by the time of these tests, in the same folder
    each time; `watch` is that of the last, `time` goes on."""

    folder: Path
    time: Time
    watch: Steps

    def __call__(self, *names: str, measure: Callable[..., Cost] = as_said, **options: Any) -> Reproduction:
        self.watch = Steps(self.time)
        where = {} if "resume" in options else {"out": self.folder}
        chosen = ReproduceOptions(items=names, **{**where, "device": "" if "resume" in options else "cpu", **options})
        return running.run(chosen, self.watch, clock=self.time, measure=measure)

    def resume(self, **options: Any) -> Reproduction:
        return self(resume=self.folder, **options)


@pytest.fixture
def pictures() -> bool:
    """Asked for by tests in which pictures are drawn, which takes longer than all else."""
    return True


@pytest.fixture
def reproducing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Reproducing:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(writing, "draw", lambda *_: [])
    time = Time()
    return Reproducing(tmp_path / "reproduced", time, Steps(time))
