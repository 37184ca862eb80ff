"""Run folders: what is in them, which are refused, and that only one process trains in one; and the
user's own data."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dualprop import training
from dualprop.errors import DataError, RunError, SettingError
from dualprop.losses import SquaredError
from dualprop.models import ConvNet
from dualprop.rules import DualPropagation
from dualprop.training import Reporter, runs


def snapshot(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_finished_run_holds_all_that_the_documentation_names(recipe, train):
    """A run without its environment can't be reported; one without its recipe can't be resumed."""
    run = train(recipe(), seeds=(0, 7))
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    per_seed = ("best.safetensors", "last.safetensors", "metrics.jsonl", "timing.jsonl", "result.json")
    expected = {f"seed-{seed}/{name}" for seed in (0, 7) for name in per_seed}
    assert names - {".lock"} == expected | {"recipe.json", "environment.json", "results.json"}
    (environment,) = json.loads((run.folder / "environment.json").read_text())["starts"]
    assert {"dualprop", "commit", "python", "torch", "processor", "cores", "threads", "device"} <= environment.keys()
    assert training.load(run.folder) == run


def test_an_existing_folder_is_refused_and_left_as_it_is(recipe, train):
    """A run must never be overwritten by a mistyped name."""
    run = train(recipe(epochs=1))
    before = snapshot(run.folder)
    with pytest.raises(RunError, match=r"exists already\. Continue it with --resume .*, or choose another folder"):
        training.create(run.folder, recipe(), (0,))
    assert snapshot(run.folder) == before


def test_a_folder_without_a_recipe_is_no_run_folder(tmp_path):
    """Training there would put files among somebody's own."""
    with pytest.raises(RunError, match="so it is no run folder"):
        training.load(tmp_path)
    with pytest.raises(RunError, match="so it is no run folder"):
        training.load(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b'{"recipe": {}}', b'{"recipe": [], "seeds": [0]}', b"\xff\xfe", b'"recipe"'],
)
def test_a_damaged_recipe_file_is_refused_by_its_path(content, recipe, tmp_path):
    """One line, not a traceback; and never a default in the place of what can't be read."""
    run = training.create(tmp_path / "run", recipe(), (0,))
    path = run.folder / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged|does not fit this version") as caught:
        training.load(run.folder)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


HOLDER = """
import sys, time
from pathlib import Path
from dualprop import training
class Slow(training.Reporter):
    def seed_started(self, *_):
        print("training", flush=True)
        sys.stdin.read()
training.train(training.load(Path(sys.argv[1])), reporter=Slow())
"""


def test_two_processes_on_one_folder_are_refused(recipe, tmp_path):
    """Both would append to the same metrics and replace each other's checkpoints."""
    run = training.create(tmp_path / "run", recipe(epochs=1), (0,))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "training\n"
        before = snapshot(run.folder)
        with pytest.raises(RunError, match="is being trained by another process"):
            training.train(run)
        assert snapshot(run.folder) == before
        other.kill()
    # However the other ended, the folder is free again.
    assert training.train(run)["num_seeds"] == 1


def test_the_lock_is_released_when_training_fails(recipe, tmp_path):
    """A folder that stays locked after an error could not be resumed from the same session."""

    class Failing(Reporter):
        def epoch_done(self, metrics):
            raise KeyboardInterrupt

    run = training.create(tmp_path / "run", recipe(), (0,))
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=Failing())
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=Failing())


def test_the_users_own_file_is_trained_end_to_end(recipe, tmp_path):
    """Colour images with the channels last, and labels as they come, must be learned as well as the
    built-in sets."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 300)
    x = random.integers(0, 60, (300, 8, 8, 3), dtype=np.uint8)
    for label in range(3):
        x[y == label, :, :, label] += 120
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=x, y_train=y.astype(np.uint8))
    made = recipe(
        dataset=str(path), model=ConvNet(channels=(4,)), batch_size=20, epochs=3,
        rule=DualPropagation(loss=SquaredError(), coupling="transposed", alpha=0.0, beta=0.1),
    )  # fmt: skip
    run = training.create(tmp_path / "run", made, (0,))
    results = training.train(run)
    assert results["test_accuracy_mean"] > 0.95
    assert training.load(run.folder).recipe == made


def test_a_data_set_smaller_than_a_batch_is_refused(recipe, tmp_path):
    """An epoch of no steps would be a run of nothing, with results."""
    with pytest.raises(DataError, match=r"1294 training examples, fewer than a batch of 2000\. Lower batch_size"):
        runs.load_data(recipe(batch_size=2000), 0)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "xpu"])
def test_a_device_that_is_not_there_is_refused_in_one_line(device, recipe):
    """PyTorch's own message has twenty lines."""
    with pytest.raises(SettingError, match="Try --device cpu") as caught:
        runs.prepare(recipe(device=device))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_network_is_found_before_a_folder_is_made(recipe):
    """Two values of beta for three layers: found after the folder is made, the name would be
    taken."""
    made = recipe(rule=DualPropagation(beta=(0.1, 0.2, 0.3)))
    with pytest.raises(SettingError, match="beta lists 3 values, but it is of 2 layers"):
        runs.check_fit(made, runs.load_data(made, 0))


def test_a_finished_run_is_taken_as_it_is_and_another_recipes_is_refused(recipe, tmp_path):
    """A grid's cells are named by what varies: the rest would be another run's, under the new one's
    name."""
    made = recipe(epochs=1)
    first = runs.finished(tmp_path / "run", made, (0,))
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    again = runs.finished(tmp_path / "run", made, (0,))
    assert again.results() == first.results()
    assert all(path.read_bytes() == content for path, content in before.items())
    for other, seeds in ((recipe(epochs=2), (0,)), (made, (0, 1))):
        with pytest.raises(RunError, match="holds a run of other settings or seeds"):
            runs.finished(tmp_path / "run", other, seeds)
