"""A model's fields as options of the command line."""

import json

import pytest


def test_the_fields_of_the_model_are_options(dualprop, folder, short):
    """`--model.widths 16 12` stands in the documentation; refused, no other network can be trained
    from the command line."""
    options = ("--model.widths", "16", "12", "--model.activation", "tanh", "--model.init", "normal")
    options += ("--model.output", "softmax", "--rule.loss", "log_loss")
    answer = dualprop("train", *short, *options, "--seeds", "1", "--no-align", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    recipe = json.loads((folder / "run/recipe.json").read_text())["recipe"]
    assert recipe["model"] == {"name": "mlp", "widths": [16, 12], "activation": "tanh", "init": "normal", "output": "softmax"}


def test_the_fields_of_the_model_are_shown_in_the_help(dualprop):
    """And the usage does not end in words that can't be typed."""
    out = dualprop("train", "--help").out
    assert "--model.widths" in out
    assert "{model:mlp" not in out


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("train", "--model.widths", "8", "0"), "widths[1] must be at least 1"),
        (("train", "--model.activation", "rellu"), "Did you mean 'relu'?"),
        (("train", "--model.init", "xavier"), "init must be 'uniform' or 'normal'"),
    ],
)
def test_a_mistake_in_the_model_is_told_in_one_line(arguments, remedy, refused):
    """As for the rule's options."""
    assert remedy in refused(*arguments)
