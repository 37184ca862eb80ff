"""Going on from what was trained: from a run's weights by any rule, and for more epochs than it was
begun for."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from dualprop import training
from dualprop.bench import experiments
from dualprop.errors import CheckpointError, RunError, SettingError
from dualprop.models import MLP
from dualprop.rules import RULES, DualPropagation
from dualprop.training import comparisons, inheriting, runs, weights


def model_of(run, seed=0, name="best"):
    """The weights in a run's checkpoint."""
    tensors = safetensors.torch.load_file(run.seed_folder(seed) / f"{name}.safetensors")
    return {key: tensor for key, tensor in tensors.items() if key.startswith("model.")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("averaging", [0.0, 10.0])
@pytest.mark.parametrize("rule", ["backprop", "dual_propagation", "predictive_coding", "target_propagation"])
def test_training_starts_from_the_best_weights_of_a_run_by_any_rule(recipe, train, rule, averaging):
    """Before the first step the validation score is that of the weights that it starts from."""
    before = train(recipe(), name="before")
    after = recipe(rule=RULES[rule](loss=recipe().rule.loss), averaging=averaging, align=False)
    run = train(after.starting_from(str(before.folder)), name="after")
    first, best = run.metrics(0)[0], before.results()[0]
    assert first.validation_accuracy == best.validation_accuracy
    assert (
        run.results()[0].remarks[0] == f"it started from the weights of {before.folder}/seed-0, of its epoch {best.best_epoch}"
    )
    assert not same(model_of(run, name="last"), model_of(before))


def test_what_starts_from_other_weights_is_another_run(recipe):
    """Its checkpoints must not pass for those of a run that drew its weights; and a recipe that
    draws them is the one that it was before there was a choice."""
    plain = recipe()
    assert plain.starting_from("/a").digest() not in (plain.digest(), plain.starting_from("/b").digest())
    values = plain.to_plain()
    assert values["start_from"] == ""
    del values["start_from"]
    assert training.Recipe.from_plain(values).digest() == plain.digest()


def test_weights_that_do_not_fit_are_refused_by_name(recipe, train, tmp_path):
    before = train(recipe(), name="before")
    other = recipe(model=MLP(widths=(9,))).starting_from(str(before.folder))
    splits = runs.load_data(other, 0)
    with pytest.raises(SettingError, match=r"1\.bias is \(8,\) there and \(9,\) here"):
        runs.check_start(other, splits, (0,))
    with pytest.raises(SettingError, match=r"they lack 5\.weight"):
        runs.check_start(recipe(model=MLP(widths=(8, 10))).starting_from(str(before.folder)), splits, (0,))
    with pytest.raises(RunError, match="holds no weights to start from"):
        runs.check_start(recipe().starting_from(str(tmp_path)), splits, (0,))
    best = weights.best_path(before.seed_folder(0))
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="can't be read"):
        runs.check_start(recipe().starting_from(str(before.folder)), splits, (0,))


def test_each_seed_starts_from_its_own_weights_or_all_from_the_only_ones(recipe, train):
    """Of another seed's weights, whose training part held some of the validation part, that is
    said."""
    several = train(recipe(epochs=1), seeds=(0, 1), name="several")
    assert inheriting.folder_of(several.folder, 1) == several.folder / "seed-1"
    with pytest.raises(RunError, match=r"no weights of seed 2 to start from.*--from .*seed-0"):
        inheriting.folder_of(several.folder, 2)
    one = several.folder / "seed-1"
    assert inheriting.folder_of(one, 2) == one
    run = train(recipe(epochs=1).starting_from(str(one)), seeds=(1, 2), name="after")
    own, other = run.results()
    assert len(own.remarks) == 1
    assert "the validation accuracy is too high then" in other.remarks[1]


CONSTANT = {"learning_rate": 1e-2}


@pytest.mark.parametrize("stack", ["off", "on"])
def test_a_run_that_is_extended_ends_as_one_that_was_begun_for_as_long(recipe, train, stack):
    """At a constant learning rate nothing else depends on the number of epochs: the same bits."""
    made = recipe(rule=DualPropagation(loss=recipe().rule.loss), optimizer=CONSTANT, stack_seeds=stack)
    long = train(dataclasses.replace(made, epochs=4), seeds=(0, 1), name="long")
    short = train(made, seeds=(0, 1), name="short")
    run = runs.extended(runs.extended(short, 3), 4)
    training.train(run)
    for seed in (0, 1):
        for name in ("best", "last"):
            assert same(model_of(run, seed, name), model_of(long, seed, name))
        assert (run.seed_folder(seed) / "metrics.jsonl").read_bytes() == (long.seed_folder(seed) / "metrics.jsonl").read_bytes()
    assert [result.test_accuracy for result in runs.load(run.folder).results()] == [r.test_accuracy for r in long.results()]
    assert run.results()[0].remarks == ("begun for 2 epochs and extended to 4 after epoch 2",)


def test_between_its_extension_and_its_end_a_run_is_not_finished(recipe, train):
    """Its result is of the shorter run, and would be shown as the longer one's."""
    run = runs.extended(train(recipe()), 3)
    assert run.results() == runs.load(run.folder).results() == []
    assert len(runs.load(run.folder).metrics(0)) == 3
    assert runs.load(run.folder).best(0).about["kind"] == "best"


def test_what_an_extension_changes_of_the_learning_rate_is_told(recipe, train):
    """A cosine that had ended rises again: no such run was ever begun."""

    class Told(training.Reporter):
        lines: list[str] = []  # noqa: RUF012

        def changed(self, what):
            self.lines.append(what)

    run = runs.extended(train(recipe(optimizer={"learning_rate": 1e-2, "cosine": True})), 4)
    training.train(run, reporter=Told())
    said = "begun for 2 epochs and extended to 4 after epoch 2, and its learning rate goes on at 0.005 in place of 0"
    assert Told.lines == [f"seed 0: {said}"]
    assert run.results()[0].remarks == (said,)


def test_a_run_is_only_extended(recipe, train):
    run = train(recipe())
    before = (run.folder / "recipe.json").read_bytes()
    with pytest.raises(SettingError, match="is of 2 epochs, and --epochs extends it"):
        runs.extended(run, 1)
    assert runs.extended(run, 2) == run
    plain = json.loads(before)
    del plain["recipe"]["views"]
    (run.folder / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match="of an earlier version"):
        runs.extended(runs.load(run.folder), 3)


def test_a_comparison_is_extended_as_a_whole(recipe, tmp_path):
    """A kill between its rules leaves some that are longer than others."""
    made = {name: recipe(epochs=1, align=False).with_rule(name) for name in ("backprop", "dual_propagation")}
    experiments.start(made, (0,), tmp_path / "cmp", measures_costs=False)
    extended = comparisons.extended(comparisons.load(tmp_path / "cmp"), 2)
    assert comparisons.load(tmp_path / "cmp") == extended
    runs.extended(extended.runs["backprop"], 2)
    assert {label: run.recipe.epochs for label, run in comparisons.load(tmp_path / "cmp").runs.items()} == {
        "backprop": 2, "dual_propagation": 1,
    }  # fmt: skip
    report = experiments.resume(tmp_path / "cmp")
    assert {label: [result.epochs for result in run.results()] for label, run in report.runs.items()} == {
        "backprop": [2], "dual_propagation": [2],
    }  # fmt: skip
    with pytest.raises(RunError, match="one of several that are compared"):
        experiments.resume(tmp_path / "cmp/backprop", epochs=3)
