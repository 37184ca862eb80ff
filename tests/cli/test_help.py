"""Help, version and lists: what a stranger types first."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dualprop import cli, neurons, rules, schedules
from dualprop.recipes import RECIPES

COMMAND = Path(sys.executable).with_name("dualprop")


def test_the_help_names_every_command(dualprop):
    """A command that is not shown there does not exist for a user."""
    for words in ((), ("--help",), ("-h",), ("help",)):
        answer = dualprop(*words)
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith("usage: dualprop COMMAND")
        for command in cli.COMMANDS:
            assert f"  {command} " in answer.out


@pytest.mark.parametrize("word", ["--help", "--version", "trian"])
def test_the_first_word_is_answered_without_importing_anything_slow(word):
    """PyTorch takes seconds to import: help must answer in under half a second, and so do without
    it."""
    code = (
        "import json, sys\nfrom dualprop.cli import main\n"
        f"try:\n    main([{word!r}])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({'torch', 'tyro', 'rich', 'numpy', 'sklearn', 'matplotlib'} & sys.modules.keys())))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_the_installed_command_answers():
    """The entry point itself, as it is typed."""
    result = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"dualprop {version('dualprop')}\n"
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["train", "compare", "report", "predict", "evaluate", "export", "list"])
def test_every_command_shows_its_options(command, dualprop):
    """Help that fails is found by the person who needs it."""
    for word in ("--help", "-h"):
        answer = dualprop(command, word)
        assert (answer.code, answer.err) == (0, "")
        assert "usage: dualprop" in answer.out
        assert command in answer.out


def test_the_options_of_training_are_explained(dualprop):
    """Each field of a recipe is an option with its sentence from the docstring, and its default."""
    out = dualprop("train", "--help").out
    for option in ("--rule.beta", "--rule.schedule", "--rule.loss", "--optimizer.learning-rate", "--epochs", "--twin"):
        assert option in out
    assert "nudging strength" in out
    assert "alternating_sweeps(1)" in out


def test_help_shows_the_options_of_the_chosen_recipe_and_rule(dualprop):
    """The defaults shown must be those that would be used."""
    assert "3e-05" in dualprop("train", "mnist-mlp", "--help").out
    assert "--rule.beta" not in dualprop("train", "--rule", "backprop", "--help").out


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("rules", list(rules.RULES)),
        ("recipes", list(RECIPES)),
        ("datasets", ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet32", "PATH"]),
        ("models", ["mlp", "conv"]),
        ("neurons", neurons.names()),
    ],
)
def test_lists_show_each_name_with_a_line(kind, names, dualprop):
    """An option's value that can't be found out is not usable."""
    answer = dualprop("list", kind)
    assert (answer.code, answer.err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line and line[0] != " "}
    assert set(names) <= lines.keys()
    assert all(len(lines[name]) >= 3 for name in names), "a name without an explanation"


def test_schedules_are_named_where_one_is_misspelt(refused):
    """They have no list of their own."""
    told = refused("train", "--rule.schedule", "zigzag(2)")
    assert all(name in told for name in schedules.names())
