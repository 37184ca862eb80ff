"""Own data from the command line: shown, trained on, compared, and every mistake told in a line."""

import json
from pathlib import Path

import numpy as np
import pytest

RANDOM = np.random.default_rng(0)


def iris_like(folder: Path, name: str = "flowers.csv") -> str:
    """Three kinds that two numbers tell apart."""
    rows = ["width,length,kind"]
    for i in range(90):
        width, length = RANDOM.normal(size=2) * 0.3 + (i % 3, 2 * (i % 3))
        rows.append(f"{width},{length},{('rose', 'lily', 'iris')[i % 3]}")
    (folder / name).write_text("\n".join(rows) + "\n")
    return name


TARGET = ("--reading.target", "kind")


def test_describe_shows_what_would_be_read_and_writes_nothing(dualprop, folder):
    path = iris_like(folder)
    answer = dualprop("data", "describe", path, *TARGET)
    assert (answer.code, answer.err) == (0, "")
    assert "data: flowers, 67 training, 8 validation and 15 test examples, 2 numbers each" in answer.out
    rows = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line.split()}
    assert [rows[name] for name in ("iris", "lily", "rose")] == sorted(rows[name] for name in ("iris", "lily", "rose"))
    assert sum(int(rows[name][0]) for name in ("iris", "lily", "rose")) == 67
    assert all(rows[name][2] == "5" for name in ("iris", "lily", "rose"))
    assert "width" in rows
    assert "validation: 8 examples" in answer.out
    assert sorted(each.name for each in folder.iterdir()) == ["flowers.csv"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("describe",), "which data is to be described is not said"),
        (("show", "x.csv"), "data knows 'describe', not 'show'"),
        (("describe", "none.csv"), "none.csv does not exist"),
        (("describe", "flowers.csv"), "which column is predicted is not said"),
        (("describe", "flowers.csv", "--reading.target", "kinds"), "Did you mean 'kind'?"),
        (("describe", "flowers.csv", "--reading.targt", "kind"), "Did you mean '--reading.target'?"),
        (("describe", "digits", *TARGET), "reading is of own data"),
        (("describe", "flowers"), "unknown data set 'flowers'"),
    ],
)
def test_what_cannot_be_described_is_one_line(dualprop, folder, arguments, complaint):
    iris_like(folder)
    answer = dualprop("data", *arguments)
    assert answer.code == 2
    assert complaint in answer.err
    assert answer.err.count("\n") == 1


def test_two_rules_are_compared_on_a_table_and_titled_by_it(dualprop, folder):
    """The first evening: a CSV, one command, a table and pictures."""
    path = iris_like(folder)
    how = (*TARGET, "--dataset", path, "--epochs", "6", "--batch-size", "16", "--seeds", "2", "--no-costs", "--out", "run")
    answer = dualprop("compare", *how)
    assert (answer.code, answer.err) == (0, "")
    assert "flowers-mlp, seeds 0, 1, 6 epochs" in answer.out
    assert "are too few to choose an epoch by" in answer.out
    written = json.loads((folder / "run" / "backprop" / "recipe.json").read_text())["recipe"]
    assert written["dataset"] == str(folder / path)
    assert written["name"] == "flowers-mlp"
    again = dualprop("report", "run")
    assert again.code == 0
    assert "flowers-mlp" in again.out


def test_a_number_is_predicted_and_shown_as_such(dualprop, folder):
    path = iris_like(folder)
    how = ("--dataset", path, "--reading.target", "length", "--epochs", "4", "--batch-size", "16", "--seeds", "1")
    answer = dualprop("train", *how, "--twin", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    assert "loss: squared error, as cross entropy does not read such targets" in answer.out
    assert "test R² (%)" in answer.out
    assert "MAE" in answer.out
    assert "test R² " in answer.out


def test_rare_classes_are_told_and_shown_in_balance(dualprop, folder):
    rows = ["a,b,target", *(f"{i / 9},{(i * 7) % 5},{'rare' if i % 10 == 0 else 'common'}" for i in range(90))]
    (folder / "own.csv").write_text("\n".join(rows) + "\n")
    how = ("--dataset", "own.csv", "--epochs", "2", "--batch-size", "16", "--seeds", "1", "--class-weights", "balanced")
    answer = dualprop("train", *how, "--out", "run")
    assert answer.code == 0
    assert "times the examples of the smallest" in answer.out
    assert "balanced (%)" in answer.out


def test_a_resume_compares_the_data_and_refuses_another(dualprop, folder):
    """A cell corrected between two starts would leave half of the run on other data."""
    path = iris_like(folder)
    how = (*TARGET, "--dataset", path, "--epochs", "3", "--batch-size", "16", "--seeds", "1", "--out", "run")
    assert dualprop("train", *how).code == 0
    (folder / "run" / "seed-0" / "result.json").unlink()
    again = dualprop("train", "--resume", "run")
    assert again.code == 0
    (folder / "run" / "seed-0" / "result.json").unlink()
    text = (folder / path).read_text()
    (folder / path).write_text(text.replace("rose", "lily", 1))
    refused = dualprop("train", "--resume", "run")
    assert refused.code == 2
    assert "would not end as it was begun" in refused.err
    (folder / path).unlink()
    gone = dualprop("train", "--resume", "run")
    assert gone.code == 2
    assert "does not exist" in gone.err


def test_few_epochs_take_their_share_of_a_warm_up(dualprop, folder, short):
    """`--epochs 2` of a recipe that warms up over ten was refused."""
    answer = dualprop(
        "train", "digits-mlp", *short, "--optimizer.warmup-epochs", "0.5", "--epochs", "2", "--seeds", "1", "--out", "run"
    )
    assert answer.code == 0
    refused = dualprop("train", "digits-mlp", "--epochs", "none")
    assert refused.code == 2
    assert "epochs must be a whole number" in refused.err
    from dualprop import recipes
    from dualprop.cli import arguments

    made, rest = arguments.take_epochs(recipes.from_name("cifar10-vgg16"), ["--epochs", "2", "--seeds", "1"])
    assert made.epochs == 2
    assert made.optimizer.warmup_epochs < 1
    assert rest == ["--seeds", "1"]


def test_a_folder_of_a_built_in_data_sets_name_is_told(dualprop, folder):
    """One's own `digits/` would be taken for the one that is read."""
    (folder / "digits").mkdir()
    assert "what lies here is ./digits" in dualprop("data", "describe", "digits").out
    (folder / "digits").rmdir()
    assert "what lies here" not in dualprop("data", "describe", "digits").out
