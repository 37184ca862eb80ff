"""Every mistake is told in one line with the remedy, exits with 2, and damages nothing."""

import errno
import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop.errors import UnsupportedModuleError

COMMAND = Path(sys.executable).with_name("dualprop")

EXACT = ("--rule.output-nudge", "exact", "--rule.loss", "squared_error")

MISTAKES = {
    "an unknown command": (("trian",), "unknown command 'trian'. Did you mean 'train'?"),
    "an unknown recipe": (("train", "mnist-mpl"), "unknown recipe 'mnist-mpl'. Did you mean 'mnist-mlp'?"),
    "an unknown recipe of a comparison": (("compare", "digit-mlp"), "Did you mean 'digits-mlp'?"),
    "an unknown rule": (("train", "--rule", "dual_propagatoin"), "Did you mean 'dual_propagation'?"),
    "an unknown rule of a comparison": (("compare", "--rules", "backprop,backpop"), "unknown rule 'backpop'"),
    "an empty rule": (("compare", "--rules", "backprop,"), "unknown rule ''"),
    "a rule named twice": (("compare", "--rules", "backprop,backprop"), "names a rule twice"),
    "a rule without its name": (("train", "--rule"), "--rule needs a value"),
    "the twin of the twin": (("train", "--rule", "backprop", "--twin"), "this rule is back-propagation already"),
    "an unknown option": (("train", "--epoch", "3"), "unknown option '--epoch'. Did you mean '--epochs'?"),
    "a misspelt field": (("train", "--rule.betta", "0.1"), "Did you mean '--rule.beta'?"),
    "a misspelt field with a value": (("train", "--optimizer.learning_rte=0.1"), "Did you mean '--optimizer.learning-rate'?"),
    "an option of another rule": (("train", "--rule", "backprop", "--rule.beta", "1"), "unknown option '--rule.beta'"),
    "an option of another command": (("train", "--rules", "backprop"), "unknown option '--rules'"),
    "a stray word": (("train", "digits-mlp", "extra"), "extra"),
    "a word for a number": (("train", "--epochs", "ten"), "ten"),
    "a fraction for a count": (("train", "--epochs", "2.5"), "2.5"),
    "no value": (("train", "--epochs"), "epochs"),
    "a word for beta": (("train", "--rule.beta", "much"), "much"),
    "alpha above 1": (("train", "--rule.alpha", "1.5"), "alpha must be in [0, 1], got 1.5."),
    "alpha below 0": (("train", "--rule.alpha", "-0.5"), "alpha must be in [0, 1], got -0.5."),
    "alpha that is no number": (("train", "--rule.alpha", "nan"), "alpha must be in [0, 1]"),
    "beta of 0": (("train", "--rule.beta", "0"), "beta must be positive and finite, got 0"),
    "beta below 0": (("train", "--rule.beta", "-1"), "beta must be positive and finite"),
    "beta without end": (("train", "--rule.beta", "inf"), "beta must be positive and finite"),
    "beta of too many layers": (("train", "--rule.beta", "1", "2"), "beta lists 2 values, but it is of 3 layers"),
    "an exact nudge outside its domain": (("train", *EXACT, "--rule.beta", "2"), "needs (1-alpha)·beta < 1, got 1."),
    "an exact nudge outside its domain, transposed": (
        ("train", *EXACT, "--rule.coupling", "transposed", "--rule.alpha", "1"),
        "needs alpha·beta < 1, got 1.",
    ),
    "an exact cross-entropy nudge outside its domain": (
        ("train", "--rule.output-nudge", "exact", "--rule.alpha", "0", "--rule.beta", "2"),
        "needs (1-alpha)·beta < 2, got 2.",
    ),
    "a misspelt schedule": (("train", "--rule.schedule", "botom_up(4)"), "Did you mean 'bottom_up'?"),
    "a schedule of nothing": (("train", "--rule.schedule", "bottom_up(0)"), "at least 1, got 0"),
    "a schedule that is none": (("train", "--rule.schedule", "up(2"), "neither a name with a count"),
    "a schedule with a layer too many": (("train", "--rule.schedule", "9,1"), "names layer 9"),
    "an unknown loss": (("train", "--rule.loss", "hinge"), "hinge"),
    "an unknown coupling": (("train", "--rule.coupling", "transpose"), "transpose"),
    "damping of too many layers": (("train", "--rule.damping", "1", "1", "1"), "damping lists 3 values"),
    "a fused engine with a schedule": (("train", "--rule.engine", "fused", "--rule.schedule", "up_down(2)"), "engine='fused'"),
    "an unknown optimizer": (("train", "--optimizer.name", "lion"), "lion"),
    "a learning rate of 0": (("train", "--optimizer.learning-rate", "0"), "learning_rate must be positive and finite, got 0"),
    "no epochs": (("train", "--epochs", "0"), "epochs must be at least 1, got 0"),
    "no seeds": (("train", "--seeds", "0"), "seeds must be at least 1, got 0"),
    "a seed twice": (("train", "--seed-list", "1", "1"), "seed_list must hold different seeds"),
    "a batch larger than the data": (("train", "--batch-size", "5000"), "fewer than a batch of 5000. Lower batch_size."),
    "an unknown data set": (("train", "--dataset", "minst"), "Did you mean 'mnist'?"),
    "a missing file": (("train", "--dataset", "missing.npz"), "missing.npz does not exist"),
    "a missing data folder": (("train", "mnist-mlp", "--data", "nowhere"), "the data folder nowhere does not exist"),
    "a device that is not there": (("train", "--device", "cuda:77"), "Try --device cpu"),
    "a device that is none": (("compare", "--device", "quantum"), "Try --device cpu"),
    "a dtype that is none": (("train", "--dtype", "float16"), "float16"),
    "resuming what is not there": (("train", "--resume", "nowhere"), "it is no run folder"),
    "resuming a comparison that is not there": (("compare", "--resume", "nowhere"), "it is no run folder"),
    "a report of what is not there": (("report", "nowhere"), "it is no run folder"),
    "a report with an option": (("report", "--fast"), "report takes folders, and --figure"),
    "a list of nothing known": (("list", "rule"), "Did you mean 'rules'?"),
    "a list of two things": (("list", "rules", "recipes"), "unexpected 'recipes'"),
    "an output folder below a file": (("train", "--out", "note.txt/run"), "note.txt"),
    "an output folder that is a device": (("train", "--out", "/dev/null/run"), "/dev/null/run"),
    "an output folder where none may be made": (("train", "--out", "/proc/run"), "/proc/run"),
    "a comparison where none may be made": (("compare", "--out", "/proc/run"), "/proc/run"),
    "an output folder that is a file": (("train", "--out", "note.txt"), "note.txt is a file. Choose another folder"),
    "an output folder that is there": (("train", "--out", "kept"), "kept exists already and is no run: it holds 'mine.txt'"),
    "a comparison's folder that is there": (("compare", "--out", "kept"), "kept exists already"),
    "resuming a folder of other things": (("train", "--resume", "kept"), "kept holds no recipe.json"),
    "resuming a file": (("train", "--resume", "note.txt"), "it is no run folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake, refused, folder):
    """A traceback tells a user that the program is broken; silence, that it understood."""
    (folder / "note.txt").write_text("mine")
    (folder / "kept").mkdir()
    (folder / "kept" / "mine.txt").write_text("mine")
    arguments, remedy = MISTAKES[mistake]
    assert remedy in refused(*arguments)


X, Y = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[7] = value
    return array


BAD_ARRAYS = {
    "NaN": ({"x_train": changed(X, np.nan), "y_train": Y}, "holds NaN, inf"),
    "infinity": ({"x_train": changed(X, np.inf), "y_train": Y}, "holds NaN, inf"),
    "NaN in the test part": ({"x_train": X, "y_train": Y, "x_test": changed(X, np.nan), "y_test": Y}, "x_test holds NaN"),
    "a negative label": ({"x_train": X, "y_train": changed(Y, -1)}, "holds the label -1"),
    "labels from 1": ({"x_train": X, "y_train": Y + 1}, "number the classes from 0"),
    "a label too large": ({"x_train": X, "y_train": changed(Y, 1000)}, "the label 1000 but only"),
    "a label that training does not see": ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "y_test holds"),
    "one-hot labels": ({"x_train": X, "y_train": np.eye(3)[Y]}, "expected (60,)"),
    "other lengths": ({"x_train": X, "y_train": Y[:-1]}, "60 examples but y_train 59"),
    "one dimension": ({"x_train": X[:, 0], "y_train": Y}, "has shape (60,)"),
    "five dimensions": ({"x_train": X[:, :, None, None, None], "y_train": Y}, "has shape (60, 5, 1, 1, 1)"),
    "another width in the test part": ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "make them equal"),
    "no labels": ({"x_train": X}, "has no array y_train"),
    "texts": ({"x_train": X.astype(str), "y_train": Y}, "Store it as uint8 or float32"),
    "objects": ({"x_train": X.astype(object), "y_train": Y}, "pickle"),
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
def test_a_fault_in_the_users_own_data_is_told_in_one_line(fault, refused, folder):
    """Trained on, NaN would be found after an epoch at best, and a wrong label never."""
    arrays, reason = BAD_ARRAYS[fault]
    np.savez(folder / "mine.npz", **arrays)
    told = refused("train", "--dataset", "mine.npz", "--batch-size", "10", "--out", "run")
    assert reason in told
    assert "mine.npz" in told


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_truncated_file_of_the_user_is_told_in_one_line(share, refused, folder):
    """A copy that was broken off."""
    path = folder / "mine.npz"
    np.savez(path, x_train=X, y_train=Y)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "mine.npz is truncated or no .npz file" in refused("train", "--dataset", "mine.npz", "--out", "run")


@pytest.mark.parametrize("fault", ["a truncated gzip", "a wrong checksum", "a wrong checksum of a raw file", "an empty file"])
def test_a_damaged_file_of_mnist_is_told_in_one_line(fault, refused, folder):
    """Never trained on, never replaced: it is the user's."""
    name = "train-images-idx3-ubyte"
    content = os.urandom(2000)
    (folder / "data/mnist").mkdir(parents=True)
    stored = {
        "a truncated gzip": (f"{name}.gz", gzip.compress(content)[:-100]),
        "a wrong checksum": (f"{name}.gz", gzip.compress(content)),
        "a wrong checksum of a raw file": (name, content),
        "an empty file": (name, b""),
    }
    file, stored_content = stored[fault]
    (folder / "data/mnist" / file).write_bytes(stored_content)
    told = refused("train", "mnist-mlp", "--data", "data", "--out", "run")
    assert f"data/mnist/{file}" in told
    assert ("truncated or damaged gzip" if fault == "a truncated gzip" else "SHA-256") in told
    assert "Replace it" in told


@pytest.fixture
def run(dualprop, folder, short) -> Path:
    """A finished run of one seed whose result is taken away, so that resuming reads its
    checkpoint."""
    assert dualprop("train", *short, "--seeds", "1", "--no-align", "--out", "run").code == 0
    (folder / "run/seed-0/result.json").unlink()
    return folder / "run"


@pytest.mark.parametrize(
    "options",
    [("--batch-size", "9"), ("--rule.beta", "0.5"), ("--out", "other"), ("--seeds", "2"), ("--twin",), ("--rule", "backprop")],
)
def test_resuming_with_other_options_is_refused(options, run, refused):
    """Ignored, the user would believe that they were used."""
    assert "--resume keeps the recipe and the options of its folder" in refused("train", "--resume", "run", *options)


def test_resuming_a_comparison_with_other_options_is_refused(refused, run):
    """As for a run."""
    assert "--resume keeps the recipe and the options of its folder" in refused(
        "compare", "--resume", "run", "--rules", "backprop"
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("damage", ["a byte", "half", "empty", "text"])
def test_a_corrupt_checkpoint_is_told_in_one_line(name, damage, run, refused):
    """With its path and what to do; and it is not removed, as it may be all that is left."""
    path = run / f"seed-0/{name}.safetensors"
    content = path.read_bytes()
    middle = len(content) - 400
    damaged = {
        "a byte": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "half": content[: middle // 2],
        "empty": b"",
        "text": b"lorem ipsum " * 99,
    }
    path.write_bytes(damaged[damage])
    told = refused("train", "--resume", "run")
    assert f"run/seed-0/{name}.safetensors" in told
    assert "Restore it from a copy" in told


def test_a_checkpoint_of_another_run_is_told_in_one_line(run, refused, dualprop, short, folder):
    """Copied by mistake."""
    dualprop("train", *short, "--rule.beta", "0.5", "--seeds", "1", "--no-align", "--out", "other")
    (run / "seed-0/last.safetensors").write_bytes((folder / "other/seed-0/last.safetensors").read_bytes())
    assert "belongs to another recipe or seed" in refused("train", "--resume", "run")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("command", ["train", "report"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: text.replace('"beta": 1.0', '"beta": -1.0'),
        lambda text: text.replace('"beta"', '"betta"'),
        lambda text: text.replace('"epochs": 1', '"epochs": "many"'),
        lambda text: text.replace('"dual_propagation"', '"duel_propagation"'),
        lambda text: text.replace('"recipe"', '"recipes"'),
    ],
)
def test_a_damaged_recipe_is_told_in_one_line(command, change, run, refused):
    """Edited by hand, or cut by a broken copy."""
    path = run / "recipe.json"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    told = refused(*(("train", "--resume", "run") if command == "train" else ("report", "run")))
    assert "recipe" in told


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"rules": {}}', '{"rules": {"backprop": {}}, "seeds": [0], "costs": true}']
)
def test_a_damaged_comparison_is_told_in_one_line(content, refused, folder):
    """As for a recipe."""
    (folder / "cmp").mkdir()
    (folder / "cmp/comparison.json").write_text(content)
    assert refused("compare", "--resume", "cmp")
    assert refused("report", "cmp")


def edited(run: Path, **changes) -> None:
    path = run / "recipe.json"
    plain = json.loads(path.read_text())
    plain["recipe"] |= changes
    path.write_text(json.dumps(plain))


def test_a_recipe_edited_after_training_began_is_refused_by_its_checkpoint(run, refused):
    """Half a run at one learning rate and half at another, under one recipe."""
    edited(run, batch_size=32)
    assert "belongs to another recipe or seed" in refused("train", "--resume", "run")


def test_a_full_disk_leaves_what_was_written_whole_and_the_run_can_be_resumed(dualprop, folder, monkeypatch):
    """The disk fills in mid-training, at a checkpoint: the last one must survive, and the run end
    as if it had not."""
    options = ("--epochs", "3", "--batch-size", "64", "--num-threads", "1", "--seeds", "1", "--no-align")
    assert dualprop("train", *options, "--out", "straight").code == 0
    from dualprop.training import learner

    evaluate, epochs = learner.evaluate, []

    def filling(*arguments, **settings):
        epochs.append(1)
        if len(epochs) == 3:  # after the second epoch
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        return evaluate(*arguments, **settings)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(learner, "evaluate", filling)
    try:
        answer = dualprop("train", *options, "--out", "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.undo()
        monkeypatch.chdir(folder)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert os.strerror(errno.EFBIG) in answer.err
    assert "What was written before is whole" in answer.err
    assert not list((folder / "full").rglob("*.writing"))
    assert dualprop("train", "--resume", "full").code == 0
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "result.json"):
        assert (folder / "full/seed-0" / name).read_bytes() == (folder / "straight/seed-0" / name).read_bytes(), name


def test_a_disk_that_is_really_full_is_told_in_one_line(folder, short):
    """A file system smaller than a checkpoint, where one may be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting needs privileges that are not there")
    try:
        result = subprocess.run(
            [COMMAND, "train", *short, "--seeds", "1", "--out", disk / "run"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 2
        assert result.stderr.startswith("dualprop: error: No space left on device")
        assert result.stderr.count("\n") == 1
        assert not list(disk.rglob("*.writing"))
        json.loads((disk / "run/recipe.json").read_text())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_mistake_reaches_the_shell_as_it_reaches_the_function(folder):
    """Through the installed command: the code, the line, and nothing else."""
    result = subprocess.run([COMMAND, "train", "--rule.alpha", "1.5"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("dualprop: error: ")
    assert "alpha must be in [0, 1], got 1.5." in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x).relu()


UNSPLITTABLE = {
    "a module with a forward of its own": Residual(),
    "a residual block within": nn.Sequential(nn.Linear(4, 4), Residual(), nn.Linear(4, 2)),
    "dropout": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)),
    "batch norm": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
    "an activation without a potential": nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("case", UNSPLITTABLE)
def test_why_a_model_can_not_be_split_is_told_in_one_line(case):
    """Split wrongly it would be trained by a rule that is not the rule. It is run."""
    network = dp.Network.from_module(UNSPLITTABLE[case])
    assert network.is_recorded
    assert "\n" not in network.obstacle
    assert any(remedy in network.obstacle for remedy in ("Remove", "use", "Use", "Write", "Replace", "needs"))


def test_a_model_of_nothing_is_refused_in_one_line():
    with pytest.raises(UnsupportedModuleError, match=r"no trainable parameter\. Set requires_grad=True") as caught:
        dp.Network.from_module(nn.Sequential())
    assert "\n" not in str(caught.value)
