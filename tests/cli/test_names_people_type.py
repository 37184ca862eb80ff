"""Options by the names that people type, a model chosen on the command line, settings of one of
several rules."""

import json

import pytest

OWN = """
from torch import nn

def build(input_shape, num_classes):
    number = 1
    for side in input_shape:
        number *= side
    return nn.Sequential(nn.Flatten(), nn.Linear(number, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, num_classes))

def number(input_shape, num_classes):
    return 3

def failing(input_shape, num_classes):
    return input_shape[9]
"""


def written(folder, name="recipe.json"):
    return json.loads((folder / name).read_text())


def test_short_names_are_those_of_the_recipe(dualprop, folder, short):
    options = ("--lr", "0.02", "--momentum=0.8", "--optimizer", "sgd", "--widths", "8", "--beta", "0.3")
    answer = dualprop("train", *short, *options, "--seeds", "1", "--no-align", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    recipe = written(folder / "run")["recipe"]
    optimizer = recipe["optimizer"]
    assert (optimizer["learning_rate"], optimizer["momentum"], optimizer["name"]) == (0.02, 0.8, "sgd")
    assert (recipe["model"]["widths"], recipe["rule"]["beta"]) == ([8], 0.3)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("train", "--rule", "dp"), "Did you mean 'dual_propagation'?"),
        (("train", "--variant", "dp"), "Did you mean '--rule'?"),
        (("compare", "--variant", "dp"), "Did you mean '--variants'?"),
        (("compare", "--rule", "lifted"), "Did you mean '--rules'?"),
        (("train", "--seed", "3"), "Did you mean '--seeds'?"),
        (("train", "--model", "vgg17"), "Did you mean 'vgg16'?"),
        (("train", "--model", "none.py:build"), "none.py, which is to make the model, can't be read"),
        (("train", "--model", "own.py"), "path.py:build"),
        (("train", "--model", "own.py:buid"), "has no function 'buid'"),
        (("train", "--model", "own.py:number"), "returns a int. Return a torch.nn.Module"),
        (("train", "--model", "own.py:failing"), "IndexError"),
        (("train", "--rule", "predictive_coding", "--rule.beta", "auto"), "'auto' is of rules whose nudges may cross kinks"),
        (("compare", "--variants", "bp,dp", "--ep.beta", "0.1"), "no 'ep' is compared"),
        (("compare", "--variants", "bp,dp", "--dp.beto", "0.1"), "of dp: unknown option '--beto'. Did you mean '--beta'?"),
        (("compare", "--variants", "bp,dp", "--dp.beta", "-1"), "beta must be positive and finite, got -1"),
    ],
)
def test_a_wrong_name_is_told_in_one_line_with_what_is_meant(arguments, remedy, refused, folder):
    (folder / "own.py").write_text(OWN)
    assert remedy in refused(*arguments)


def test_a_setting_goes_to_one_of_several_rules(dualprop, folder, short):
    answer = dualprop("compare", *short, "--variants", "bp,dp,ep", "--dp.beta", "0.1", "--ep.beta", "auto", "--seeds", "1",
                      "--no-costs", "--no-align", "--out", "run")  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    rules = {label: recipe["rule"] for label, recipe in written(folder / "run", "comparison.json")["rules"].items()}
    assert rules["dp"]["beta"] == 0.1
    assert rules["ep"]["beta"] == 0.02
    assert "ep: beta=0.02 chosen" in answer.out
    assert "dp: beta" not in answer.out


def test_a_setting_that_not_all_compared_rules_take_over_is_told(dualprop, folder, short):
    """β = 0.1 for one and 0.02 for another would be published as a comparison at 0.1."""
    how = ("--variants", "bp,dp,ep", "--beta", "0.1", "--seeds", "1", "--no-costs", "--no-align", "--model.widths", "8")
    answer = dualprop("compare", *short, *how, "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    assert "--rule.beta 0.1 is of dp; ep keeps 0.02. --ep.beta is of that one." in answer.out
    rules = {label: recipe["rule"] for label, recipe in written(folder / "run", "comparison.json")["rules"].items()}
    assert (rules["dp"]["beta"], rules["ep"]["beta"]) == (0.1, 0.02)


def test_a_model_of_ones_own_trains_resumes_and_is_not_exchanged(dualprop, refused, folder, short):
    """Its dropout draws the same after a resume; an edited file is refused, also by what reads the
    run's weights."""
    (folder / "own.py").write_text(OWN)
    options = ("--model", "own.py:build", "--seeds", "1", "--no-align", "--optimizer.no-cosine")
    assert dualprop("train", *short, *options, "--epochs", "2", "--out", "whole").code == 0
    assert written(folder / "whole")["recipe"]["name"] == "digits-own"
    assert dualprop("train", *short, *options, "--out", "run").code == 0
    assert dualprop("train", "--resume", "run", "--epochs", "2").code == 0
    whole, resumed = ((folder / name / "seed-0/metrics.jsonl").read_text() for name in ("whole", "run"))
    assert whole == resumed
    (folder / "own.py").write_text(OWN.replace("0.5", "0.1"))
    answer = dualprop("train", "--resume", "run", "--epochs", "3")
    assert answer.code == 2
    assert "edited since. Restore it, or train anew" in answer.err
    assert "edited since" in refused("evaluate", "run")
