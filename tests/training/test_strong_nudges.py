"""A run whose nudge takes many units across kinks says so, once; beta="auto" is kept in the run."""

import json

import pytest

from dualprop import training
from dualprop.bench import experiments
from dualprop.errors import SettingError
from dualprop.models import MLP
from dualprop.neurons import crossing
from dualprop.rules import DualPropagation
from dualprop.training import Reporter

# A third of a layer's units crosses at β = 1 before training (32 units on each of 5 layers).
DEEP = MLP(widths=(32,) * 5)


class Told(Reporter):
    def __init__(self):
        self.lines = []

    def changed(self, what):
        self.lines.append(what)


@pytest.mark.parametrize("changes", [{}, {"align": False}, {"stack_seeds": "on"}, {"capture": "on"}])
def test_a_strong_nudge_is_told_once_for_a_run_of_two_seeds(recipe, train, changes):
    told = Told()
    run = train(recipe(model=DEEP, rule=DualPropagation(), epochs=1, **changes), seeds=(0, 1), reporter=told)
    assert len(told.lines) == 1
    assert "units cross a kink" in told.lines[0]
    assert "lower beta from 1" in told.lines[0]
    assert run.metrics(0)[0].advice == told.lines[0]
    assert max(run.metrics(0)[0].inference.get("kink_crossing", [1.0])) > crossing.LARGE_SHARE


def test_a_weak_nudge_is_silent(recipe, train):
    told = Told()
    train(recipe(model=DEEP, rule=DualPropagation(beta=0.01), epochs=1), reporter=told)
    train(recipe(rule=DualPropagation(), epochs=1), name="shallow", reporter=told)
    assert told.lines == []


def test_what_auto_chose_is_the_run_and_its_end_that_of_the_number_by_hand(recipe, tmp_path):
    """recipe.json holds the number and why; the run is that number's, by digest and bit for bit."""
    auto = recipe(model=DEEP, rule=DualPropagation(beta="auto"), epochs=1)
    run = experiments.start({"dp": auto}, (0,), tmp_path / "auto", is_comparison=False).runs["dual_propagation"]
    assert run.recipe.rule.beta in [factor for factor in crossing.FACTORS if factor < 1]
    assert run.recipe.chosen.startswith(f"beta={run.recipe.rule.beta:g} chosen: ")
    assert json.loads((tmp_path / "auto/recipe.json").read_text())["recipe"]["rule"]["beta"] == run.recipe.rule.beta
    by_hand = recipe(model=DEEP, rule=DualPropagation(beta=run.recipe.rule.beta), epochs=1)
    assert by_hand.digest() == run.recipe.digest()
    other = training.create(tmp_path / "hand", by_hand, (0,))
    training.train(other)
    chosen, given = ((each.folder / "seed-0/metrics.jsonl").read_text() for each in (run, other))
    assert chosen == given


def test_a_run_is_not_made_of_a_beta_that_is_open(recipe, tmp_path):
    with pytest.raises(SettingError, match="chosen on a first batch"):
        training.create(tmp_path / "run", recipe(rule=DualPropagation(beta="auto")), (0,))
    assert not (tmp_path / "run").exists()
