"""A run of seconds, with any log."""

import dataclasses

import pytest
from logged import EPOCHS

from dualprop import bench, recipes
from dualprop.analysis import reports
from dualprop.models import MLP


@pytest.fixture
def recipe():
    return dataclasses.replace(
        recipes.from_name("digits-mlp"), model=MLP((6,)), epochs=EPOCHS, train_examples=100, batch_size=50, align=False
    )


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """They take longer than the training."""
    monkeypatch.setattr(reports, "drawn", lambda folder, runs, costs=None: reports.Report(runs, costs, []))


@pytest.fixture
def train(recipe, tmp_path):
    """Train it in a folder with these logs, or go on with it, and return the folder."""

    def run(log, name="run", seeds=1, **changes):
        folder = tmp_path / name
        if folder.exists():
            bench.resume(folder, log=log, **changes)
        else:
            bench.train(dataclasses.replace(recipe, **changes), seeds=seeds, out=folder, log=log)
        return folder

    return run
