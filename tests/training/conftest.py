"""What the tests of training share: recipes so small that a run takes a fraction of a second."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualprop import training
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.rules import Backprop
from dualprop.training import Optimizer, Recipe

TINY = Recipe(
    name="tiny",
    dataset="digits",
    model=MLP(widths=(8,)),
    rule=Backprop(loss=CrossEntropy()),
    optimizer=Optimizer(learning_rate=1e-2),
    batch_size=64,
    epochs=2,
    num_threads=1,
)


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """recipe(**changes): a recipe on digits that trains in a fraction of a second; `optimizer` may
    be a dictionary."""

    def make(**changes: Any) -> Recipe:
        if isinstance(changes.get("optimizer"), dict):
            changes["optimizer"] = Optimizer(**changes["optimizer"])
        return dataclasses.replace(TINY, **changes)

    return make


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., training.Run]:
    """train(recipe, seeds=(0,), name="run"): a finished run in a new folder."""

    def run_it(recipe: Recipe, seeds: tuple[int, ...] = (0,), name: str = "run", reporter: Any = None) -> training.Run:
        run = training.create(tmp_path / name, recipe, seeds)
        training.train(run, reporter=reporter)
        return run

    return run_it
