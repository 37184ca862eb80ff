"""What the tests of reproductions share: the tiny items in place of the real ones, and a call."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_items import STEPS, TABLE, TINY, Steps, Time

from dualprop import recipes
from dualprop.reproduction import items, running, writing
from dualprop.reproduction.costs import Cost
from dualprop.reproduction.options import ReproduceOptions
from dualprop.reproduction.running import Reproduction
from dualprop.training import Recipe


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
