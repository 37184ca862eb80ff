"""What is typed after training: predict, evaluate, export, --from, --resume with --epochs, and
report of several."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

PAGE = Path(__file__).parents[2] / "docs/after-training.md"


def test_the_lines_of_the_page_run(folder, capsys):
    """One after the other, as they are read."""
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)


@pytest.fixture
def run(dualprop, short, folder):
    """A finished run of two seeds, "run"."""
    assert dualprop("train", *short, "--model.widths", "8", "--no-align", "--seeds", "2", "--out", "run").code == 0
    np.save(folder / "x.npy", load_digits().images[:3])
    return folder / "run"


def test_predictions_are_alone_on_standard_output(dualprop, run, folder):
    """Another program reads them; what is to be known goes beside."""
    answer = dualprop("predict", "run", "x.npy")
    assert (answer.code, answer.err) == (0, "")
    rows = list(csv.reader(io.StringIO(answer.out)))
    assert rows[0][:4] == ["file", "place", "prediction", "p(0)"]
    assert len(rows) == 4
    np.save(folder / "x.npy", load_digits().images[:3] / 16)
    answer = dualprop("predict", "run", "x.npy", "--format", "jsonl")
    assert [json.loads(line)["place"] for line in answer.out.splitlines()] == ["0", "1", "2"]
    assert answer.err.startswith("dualprop: note: x.npy: the inputs have numbers from 0 to 1, and training had 0 to 16")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("predict", "run"), "needs the files to predict"),
        (("predict", "run", "absent.png"), "absent.png can't be read (No such file or directory)"),
        (("predict", "absent", "x.npy"), "absent holds no recipe.json, so it is no run folder"),
        (("predict", "run", "x.npy", "--seed", "7"), "run has no seed 7; it has 0, 1"),
        (("predict", "run", "x.npy", "--sed", "1"), "unknown option '--sed'. Did you mean '--seed'?"),
        (("evaluate", "run", "--part", "tets"), "part"),
        (("evaluate",), "run"),
        (("export", "run", "--format", "pickle"), "format"),
        (("train", "--from", "absent"), "absent holds no recipe.json"),
        (("train", "digits-mlp", "--from", "run"), "don't fit the model of digits-mlp: they lack 5.weight"),
        (("train", "--resume", "run", "--epochs", "0"), "epochs must be at least 1"),
        (("train", "--resume", "run", "--epochs", "many"), "epochs must be a whole number from 1 on, got 'many'"),
        (("report", "run", "run"), "a folder is given twice"),
        (("report", "run", "--figure", "x.png"), "--figure FILE.png is of several runs side by side"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_in_a_line(refused, run, words, told):
    assert told in refused(*words)


def test_evaluate_shows_confusions_and_where_the_pictures_lie(dualprop, run):
    answer = dualprop("evaluate", "run", "--seed", "1", "--mistakes", "2")
    assert (answer.code, answer.err) == (0, "")
    for words in ("digits, test part, seed 1", "precision (%)", "taken for (columns)", "balanced accuracy"):
        assert words in answer.out
    for name in ("confusion_matrix-seed-1-test.png", "worst_mistakes-seed-1-test.png"):
        assert f"picture: run/figures/{name}" in answer.out
        assert (run / "figures" / name).is_file()


def test_export_says_what_was_written_and_how_it_is_read(dualprop, run):
    answer = dualprop("export", "run", "--format", "torchscript")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[0] == "model: run/model.pt"
    assert "differ from the model's by" in answer.out
    assert "torch.jit.load('run/model.pt')(x)" in answer.out
    assert dualprop("export", "run", "--format", "safetensors").code == 0


def test_train_from_a_run_takes_its_recipe_and_weights(dualprop, run, folder):
    answer = dualprop("train", "--from", "run", "--rule", "backprop", "--seeds", "1", "--out", "on")
    assert (answer.code, answer.err) == (0, "")
    recipe = json.loads((folder / "on/recipe.json").read_text())["recipe"]
    assert (recipe["rule"]["name"], recipe["model"]["widths"], recipe["start_from"]) == ("backprop", [8], str(run))
    assert "it started from the weights of" in answer.out


def test_resume_with_epochs_goes_on_and_says_so(dualprop, run):
    answer = dualprop("train", "--resume", "run", "--epochs", "2")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("begun for 1 epochs and extended to 2 after epoch 1") >= 2
    # Typed again after a kill, it must go on, and not extend once more.
    assert dualprop("train", "--resume", "run", "--epochs", "2").code == 0
    assert json.loads((run / "recipe.json").read_text())["epochs_before"] == [1]


def test_several_runs_are_reported_side_by_side(dualprop, run, short, folder):
    dualprop("compare", *short, "--no-align", "--seeds", "1", "--no-costs", "--out", "cmp")
    answer = dualprop("report", "run", "cmp", "--figure", "both.png")
    assert (answer.code, answer.err) == (0, "")
    assert "3 runs on digits" in answer.out
    for label in (" run ", " cmp/backprop ", " cmp/dual_propagation "):
        assert label in answer.out
    assert "model.widths: run [8], cmp/backprop [256, 256], cmp/dual_propagation [256, 256]" in answer.out
    assert answer.out.count("picture: ") == 1
    assert (folder / "both.png").is_file()
