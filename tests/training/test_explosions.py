"""A run that explodes is a divergence, also where its numbers stay finite; a run that learns is
none, whatever its loss."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dualprop import recipes, rules
from dualprop.losses import CrossEntropy, SquaredError
from dualprop.models import MLP
from dualprop.recipes import variants
from dualprop.rules import Outcome
from dualprop.training import Optimizer, divergence

RESULTS = Path(__file__).parents[2] / "results"
SMALL = dataclasses.replace(
    recipes.from_name("digits-mlp"), model=MLP((8,)), epochs=2, batch_size=64, align=False, num_threads=1
)
# It explodes every rule.
STEEP = Optimizer(name="adam", learning_rate=1e4)


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_at_a_rate_of_ten_thousand_ends_in_a_divergence_with_a_remedy(name, train):
    """At a loss of 1e9 a run came to its end without a word, and a table showed its accuracy."""
    run = train(dataclasses.replace(SMALL.with_rule(name), optimizer=STEEP))
    (result,) = run.results()
    assert result.stopped.startswith("diverged in epoch")
    assert "ower" in result.stopped, "it must name the remedy"
    assert result.best_epoch == 0
    assert result.epochs == len(run.metrics(0)) - 1


STAYS_FINITE = {
    "back-propagation at 100": ("backprop", {}, 100.0),
    "dual propagation at a nudge of 100": ("dual_propagation", {"beta": 100.0}, 0.5),
    "equilibrium propagation at a nudge of 100": ("equilibrium_propagation", {"beta": 100.0}, 0.5),
    "lifted at 100": ("lifted", {}, 100.0),
    "target propagation at 10 000": ("target_propagation", {}, 1e4),
}


@pytest.mark.parametrize("case", STAYS_FINITE)
def test_an_explosion_that_stays_finite_is_a_divergence(case, train):
    """The loss may come back while weights are at 1e21: a network that is dead, and says ok."""
    name, settings, rate = STAYS_FINITE[case]
    rule = dataclasses.replace(SMALL.with_rule(name).rule, **settings)
    run = train(dataclasses.replace(SMALL, rule=rule, optimizer=Optimizer(name="sgd", learning_rate=rate)))
    metrics = run.metrics(0)[1:]
    assert all(each.train_loss is not None and math.isfinite(each.train_loss) for each in metrics), "not this case"
    assert run.results()[0].stopped.startswith("diverged in epoch")


def test_kept_states_that_explode_are_a_divergence(train):
    """Lazy dual propagation's dyads grew to 1e24 at a loss of 8."""
    made = variants.named("l-dp").apply(SMALL)
    made = dataclasses.replace(
        made, rule=dataclasses.replace(made.rule, beta=100.0), optimizer=Optimizer(name="sgd", learning_rate=0.5)
    )
    assert train(made).results()[0].stopped.startswith("diverged in epoch")


def test_a_network_that_learns_at_a_loss_far_off_its_scale_goes_on_and_its_result_says_so(train):
    """Direct feedback alignment reaches 94 % of MNIST at a loss of 1e7: only the outputs' order
    counts."""
    made = variants.named("dfa").apply(recipes.from_name("mnist-feedback"))
    made = dataclasses.replace(made, dataset="digits", border=0, epochs=3, batch_size=20, num_threads=1, align=False)
    (result,) = train(made).results()
    assert (result.stopped, result.epochs) == ("", 3)
    assert result.test_accuracy > 0.7
    (remark,) = result.remarks
    assert "loss is" in remark
    assert "by guessing" in remark


def test_no_published_run_would_have_been_stopped():
    """What is in results/ must come out again."""
    seen = 0
    for path in RESULTS.rglob("metrics.jsonl"):
        first, *epochs = map(json.loads, path.read_text().splitlines())
        for epoch in epochs:
            if epoch.get("train_loss") is None or epoch["validation_loss"] is None:
                continue
            learns = epoch["validation_accuracy"] > 2 / 10
            for loss in (epoch["train_loss"], epoch["validation_loss"]):
                assert not divergence.of_loss("a", loss, first["validation_loss"], learns, ""), path
            seen += 1
    assert seen > 500


def test_the_scale_of_a_loss_is_that_of_guessing_or_of_the_first_weights():
    """Cross entropy of K equal outputs is ln K, half the squared distance of 0 to one class ½."""
    y = torch.tensor([0, 3, 2])
    assert divergence.loss_scale(CrossEntropy(), y, 10, 0.1) == pytest.approx(math.log(10), rel=1e-12)
    assert divergence.loss_scale(SquaredError(), y, 10, 0.1) == pytest.approx(0.5, rel=1e-12)
    assert divergence.loss_scale(SquaredError(), y, 10, 70.0) == 70
    assert (
        divergence.loss_scale(SquaredError(), y, 10, math.nan) == divergence.loss_scale(SquaredError(), y, 10, math.inf) == 0.5
    )


@pytest.mark.parametrize(
    ("loss", "learns", "is_divergence"),
    [(199, False, False), (201, False, True), (201, True, False), (1.9e12, True, False), (2.1e12, True, True),
     (math.nan, True, True), (math.inf, True, True)],
)  # fmt: skip
def test_a_loss_is_a_divergence_above_a_hundred_times_its_scale_unless_the_network_learns(loss, learns, is_divergence):
    """The page of runs says so."""
    assert bool(divergence.of_loss("training", loss, 2.0, learns, "Lower it.")) == is_divergence


def some_outcome(**changes) -> Outcome:
    return Outcome(**{"gradients": {"w": torch.ones(2)}, "loss": torch.tensor(1.0), "logits": torch.zeros(1, 2)} | changes)


@pytest.mark.parametrize("where", ["weight", "buffer", "state"])
@pytest.mark.parametrize("value", [1e30, math.nan, -math.inf])
def test_a_number_that_is_huge_or_none_is_a_divergence_wherever_it_stands(where, value):
    """Adam divides huge gradients away: the loss stays, and the weights are noise."""
    model, state = nn.BatchNorm1d(3), [torch.zeros(0), torch.ones(2), torch.arange(3)]
    assert divergence.of_numbers(some_outcome(), model, state) == ""
    with torch.no_grad():
        {"weight": model.weight, "buffer": model.running_mean, "state": state[1]}[where][1] = value
    told = divergence.of_numbers(some_outcome(), model, state)
    assert told.startswith("a state of the inference has reached" if where == "state" else "a weight has reached")
    assert "Lower the learning rate" in told


@pytest.mark.parametrize("value", [1e20, -1e20, math.nan, math.inf])
def test_a_status_is_not_ok_where_squares_overflow(value):
    """In a loop of one's own nobody else looks."""
    assert some_outcome().status.ok
    for changes in ({"loss": torch.tensor(value)}, {"gradients": {"w": torch.tensor([1.0, value])}}):
        status = some_outcome(**changes).status
        assert (status.ok, status.is_finite) == (False, False)
    wide = some_outcome(gradients={"w": torch.tensor([1e20, 1.0], dtype=torch.float64), "empty": torch.zeros(0)})
    assert wide.status.ok


def test_numbers_are_looked_at_every_fifty_steps_and_not_between(train, monkeypatch):
    """Each look waits for the device."""
    looks = []
    monkeypatch.setattr(divergence, "of_numbers", lambda *_: looks.append(1) or "")
    train(dataclasses.replace(SMALL, batch_size=8, epochs=1))
    assert len(looks) == 4  # after 50, 100, 150 and the last of 161 steps
