"""A resume is of the same thing, or says that it isn't: data, code and machine are compared with
those of the checkpoint, and a run's files with each other."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import dualprop
from dualprop import training
from dualprop.errors import CheckpointError, RunError
from dualprop.kernels import native
from dualprop.rules import Backprop, DualPropagation
from dualprop.training import Reporter, checkpoint, conditions, environment, runs
from dualprop.training.checkpoint import Checkpoint

PAGE = (Path(__file__).parents[2] / "docs/runs.md").read_text()
OTHER = {"threads": 97, "instruction_sets": ["avx2", "other"], "variables": {"MKL_CBWR": "COMPATIBLE"}}
ELSEWHERE = ("data", "execution")


class Stopper(Reporter):
    """Stops the process's run in an epoch, as Ctrl-C does, and hears what is told."""

    def __init__(self, at_step=None):
        self.at_step, self.told = at_step, []

    def changed(self, what):
        self.told.append(what)

    def step_done(self, done, *_):
        if done == self.at_step:
            raise KeyboardInterrupt


@pytest.fixture
def data(tmp_path):
    """data(seed): the same file with numbers drawn by that seed."""

    def write(seed: int) -> str:
        random = np.random.default_rng(seed)
        y = random.integers(0, 3, 400)
        np.savez(tmp_path / "m.npz", x_train=(random.normal(size=(400, 6)) + y[:, None]).astype("f4"), y_train=y)
        return str(tmp_path / "m.npz")

    return write


@pytest.fixture
def stopped(tmp_path, recipe):
    """stopped(at_step=30, seeds=(0,), **changes): a run that was stopped there, after its last
    checkpoint, two steps an epoch's fifth."""

    def make(at_step: int = 30, seeds=(0,), name="stopped", **changes) -> training.Run:
        made = recipe(**{"epochs": 3, "checkpoint_every": 4, "align": False} | changes)
        run = training.create(tmp_path / name, made, seeds)
        with pytest.raises(KeyboardInterrupt):
            training.train(run, reporter=Stopper(at_step))
        return run

    return make


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def outcome(run: training.Run) -> dict[str, bytes]:
    """What training made of a run, but for times and what it ran on."""
    names = ("metrics.jsonl", "best.safetensors", "last.safetensors", "result.json")
    return {path.name: path.read_bytes() for path in run.folder.rglob("*") if path.name in names}


def refused(run: training.Run, error: type[Exception] = RunError) -> str:
    """The line that a resume is refused in; nothing is touched."""
    before = snapshot(run.folder)
    with pytest.raises(error) as caught:
        training.train(training.load(run.folder))
    assert snapshot(run.folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_data_that_changed_are_refused_by_their_file_and_the_same_data_are_not(stopped, data, recipe, train):
    """Half on one data set and half on another: the curves look fine."""
    path = data(0)
    run = stopped(at_step=12, dataset=path)
    data(1)
    told = refused(run)
    assert path in told
    assert "the data changed from" in told
    assert "--allow-changed" in told
    data(0)
    training.train(training.load(run.folder))
    assert outcome(run) == outcome(train(run.recipe))


def test_data_that_changed_are_trained_on_where_that_is_allowed_and_the_result_says_so(stopped, data):
    """Nobody must take such a result for one of either data set."""
    path = data(0)
    run = stopped(at_step=12, dataset=path)
    data(1)
    watcher = Stopper()
    training.train(training.load(run.folder), reporter=watcher, allow_changed=True)
    (result,) = run.results()
    (remark,) = result.remarks
    assert [remark] == [f"from epoch 3, step 1 on: {told}" for told in watcher.told]
    assert path in remark
    starts = json.loads((run.folder / "environment.json").read_text())["starts"]
    assert [(start["seed"], start["epoch"], start["step"]) for start in starts] == [(0, 0, 0), (0, 2, 0)]
    assert [len(start["changed"]) for start in starts] == [0, 1]


def test_the_data_of_a_further_seed_are_compared_too(stopped, data, monkeypatch):
    """Each seed's data are loaded anew: replaced between two, the mean would be over both."""
    path = data(0)
    made = stopped(at_step=1, dataset=path, seeds=(0, 1)).recipe
    run = training.create(Path(path).parent / "run", made, (0, 1))

    class Replacing(Reporter):
        def seed_finished(self, result):
            data(1)

    with pytest.raises(RunError, match="the data changed"):
        training.train(run, reporter=Replacing())
    assert [result.seed for result in run.results()] == [0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [name for name in conditions.TABLE if name not in ELSEWHERE])
def test_a_condition_that_changed_is_refused_or_told(name, stopped, monkeypatch):
    """A resume on another machine rounds differently: the result is nobody's."""
    run = stopped()
    describe, other = environment.describe, OTHER.get(name, "other")
    monkeypatch.setattr(environment, "describe", lambda device="cpu": describe(device) | {name: other})
    words = conditions.TABLE[name].words
    is_recorded = name not in ("accelerator", "cuda", "kernel")
    if conditions.TABLE[name].is_binding:
        told = refused(run)
        assert (f"{words} changed from" if is_recorded else f"not recorded when it was begun: {words}") in told
    watcher = Stopper()
    training.train(training.load(run.folder), reporter=watcher, allow_changed=conditions.TABLE[name].is_binding)
    assert len(watcher.told) == 1
    assert words in watcher.told[0]
    assert len(run.results()[0].remarks) == conditions.TABLE[name].is_binding


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_a_variable_that_steers_arithmetic_is_recorded_by_either_of_its_names(name, monkeypatch):
    """oneDNN reads its older names too: BF16 would round all products of the rest of a run."""
    before = environment.describe()
    monkeypatch.setenv(name, "BF16")
    (change,) = conditions.changes(before, environment.describe())
    assert change.is_binding
    assert f"{name}=BF16" in str(change)


def test_a_resume_by_another_kernel_is_refused(stopped):
    """It is no part of the recipe's digest, and computes other bits."""
    run = stopped(rule=DualPropagation(), kernel="eager")
    path = run.folder / "recipe.json"
    path.write_text(path.read_text().replace('"kernel": "eager"', '"kernel": "native"'))
    assert re.search("the execution changed from .*eager kernel.* to .*native kernel", refused(run))


def test_a_resume_by_another_build_of_the_native_kernel_is_refused(stopped, monkeypatch):
    """gcc -ffast-math orders its sums anew."""
    run = stopped(rule=DualPropagation(), kernel="native")
    now = native.build()
    monkeypatch.setattr(native, "build", lambda: f"{now} -ffast-math")
    assert "the build of the native kernel changed from" in refused(run)


def test_the_page_lists_every_condition_and_what_becomes_of_it():
    """Who plans two weeks on two machines reads it before."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE, re.MULTILINE))
    assert rows == {name: "refused" if each.is_binding else "told" for name, each in conditions.TABLE.items()}


def test_unchanged_conditions_leave_the_same_bytes_and_a_start_for_each(stopped, train):
    """A resume that is the uninterrupted run must not be marked."""
    run = stopped()
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=Stopper(50))
    training.train(run)
    before = snapshot(run.folder)
    training.train(run)  # nothing is left to do
    assert snapshot(run.folder) == before
    assert outcome(run) == outcome(train(run.recipe))
    starts = json.loads((run.folder / "environment.json").read_text())["starts"]
    assert [(start["epoch"], start["step"], start["changed"]) for start in starts] == [(0, 0, []), (1, 8, []), (2, 8, [])]


def test_without_its_environment_a_run_goes_on_from_a_checkpoint_and_not_with_a_further_seed(recipe, train):
    """What was deleted can't be compared; a checkpoint holds its own."""
    run = train(recipe(epochs=1, align=False), seeds=(0, 1))
    (run.folder / "environment.json").unlink()
    (run.seed_folder(1) / "result.json").unlink()
    training.train(run)
    (run.folder / "environment.json").unlink()
    shutil.rmtree(run.seed_folder(1))
    assert "what it was begun under is not known, as environment.json is missing" in refused(run)


@pytest.mark.parametrize("content", ["[]", "{", '{"starts": 3}', '{"starts": [3]}'])
def test_a_damaged_environment_is_refused_by_its_path(content, stopped):
    """Taken for none, it would be written over."""
    run = stopped()
    (run.folder / "environment.json").write_text(content)
    assert str(run.folder / "environment.json") in refused(run)


def test_the_digest_is_of_the_content_and_not_of_the_file(tmp_path):
    """Compressed anew, the data are the same; with one label changed they aren't."""
    random = np.random.default_rng(0)
    arrays = {"x_train": random.integers(0, 255, (40, 4, 4), dtype=np.uint8), "y_train": random.integers(0, 3, 40)}

    def digest(save, **changes) -> str:
        save(tmp_path / "m.npz", **arrays | changes)
        return dualprop.data.load(str(tmp_path / "m.npz")).digest

    first = digest(np.savez)
    assert digest(np.savez_compressed) == digest(np.savez, y_train=arrays["y_train"].astype("u1")) == first
    assert dualprop.data.load(str(tmp_path / "m.npz"), seed=3).digest == first
    for name in arrays:
        changed = arrays[name].copy()
        changed.flat[7] ^= 1
        assert digest(np.savez, **{name: changed}) != first, name


def test_code_that_computes_counts_and_code_that_shows_does_not(tmp_path, monkeypatch):
    """A typo mended in a table must not stop a run of two weeks; one in a rule must."""
    package = tmp_path / "dualprop"
    for name in ("__init__.py", "rules/lifted.py", "cli/tables.py", "kernels/dyadic.c"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("1")
    monkeypatch.setattr(dualprop, "__file__", str(package / "__init__.py"))
    first = environment.code.__wrapped__()
    (package / "cli/tables.py").write_text("2")
    assert environment.code.__wrapped__() == first
    for name in ("rules/lifted.py", "kernels/dyadic.c"):
        (package / name).write_text("2")
        assert environment.code.__wrapped__() != first, name
        (package / name).write_text("1")


def rewritten(path: Path, run: training.Run, **about) -> None:
    """The checkpoint with other plain values."""
    belongs_to = f"{run.recipe.digest()} seed 0"
    saved = checkpoint.read(path, belongs_to)
    checkpoint.write(path, Checkpoint(saved.tensors, saved.about | about), belongs_to)


def as_earlier_versions_left_it(run: training.Run, monkeypatch) -> None:
    """Format 1: neither kinds nor conditions, and one start without where it began."""
    belongs_to, news = (
        f"{run.recipe.digest()} seed 0",
        ("kind", "conditions", "metrics_digest", "loss_scale", "remarks", "doubt"),
    )
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    for name, alien in (("last", news), ("best", (*news, "validation_accuracy", "validation_loss"))):
        path = run.seed_folder(0) / f"{name}.safetensors"
        saved = checkpoint.read(path, belongs_to)
        about = {key: value for key, value in saved.about.items() if key not in alien}
        checkpoint.write(path, Checkpoint(saved.tensors, about), belongs_to)
    monkeypatch.undo()
    path = run.folder / "environment.json"
    (start,) = json.loads(path.read_text())["starts"]
    for name in ("data", "code", "products", "variables", "seed", "epoch", "step", "changed"):
        del start[name]
    path.write_text(json.dumps(start))


def test_a_run_of_an_earlier_version_is_refused_by_what_it_did_not_record_and_resumes_if_allowed(stopped, train, monkeypatch):
    """Two weeks must not be lost by an update."""
    run = stopped()
    as_earlier_versions_left_it(run, monkeypatch)
    assert "not recorded when it was begun: the data, dualprop's code" in refused(run)
    training.train(training.load(run.folder), allow_changed=True)
    straight = train(run.recipe)
    assert outcome(run)["metrics.jsonl"] == outcome(straight)["metrics.jsonl"]
    assert [remark.split(":")[0] for remark in run.results()[0].remarks] == ["from epoch 2, step 9 on"]
    best = [safetensors.torch.load_file(each.seed_folder(0) / "best.safetensors") for each in (run, straight)]
    assert all(tensor.equal(best[1][name]) for name, tensor in best[0].items())


# What the line says; which file of which moment, and the file of today that it is copied over.
MOMENTS = {
    "best for last": ("is a best one, copied over the last one", "late/best.safetensors", "last.safetensors"),
    "last for best": ("is a last one, copied over the best one", "late/last.safetensors", "best.safetensors"),
    "an older last": ("is of epoch 1, and metrics.jsonl goes on after it", "early/last.safetensors", "last.safetensors"),
    "an older best": ("is of epoch 0, and the best epoch was", "early/best.safetensors", "best.safetensors"),
    "older metrics": ("is shorter than its checkpoint says", "early/metrics.jsonl", "metrics.jsonl"),
    "edited metrics": ("are not of one run, or one was edited", "edited/metrics.jsonl", "metrics.jsonl"),
}


@pytest.mark.parametrize("case", MOMENTS)
def test_files_of_another_moment_of_the_same_run_are_refused(case, stopped, tmp_path):
    """A backup put back in part: trained on, its metrics and weights would be of two pasts."""
    run = stopped(at_step=15, epochs=5)
    early = shutil.copytree(run.seed_folder(0), tmp_path / "early")
    if case == "an older last":
        with pytest.raises(KeyboardInterrupt):
            training.train(run, reporter=Stopper(25))
        shutil.copytree(run.seed_folder(0), early, dirs_exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=Stopper(95))
    late = shutil.copytree(run.seed_folder(0), tmp_path / "late")
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited/metrics.jsonl").write_text((late / "metrics.jsonl").read_text().replace('loss": 2.', 'loss": 1.', 1))
    told, source, target = MOMENTS[case]
    shutil.copy(tmp_path / source, run.seed_folder(0) / target)
    error = RunError if case == "older metrics" else CheckpointError
    line = refused(run, error)
    assert re.search(told, line)
    assert str(run.seed_folder(0)) in line


def test_an_older_checkpoint_that_is_allowed_ends_as_if_left_alone(stopped, train, tmp_path):
    """The epochs after it are the same again."""
    run = stopped(at_step=25, epochs=5)
    early = shutil.copy(run.seed_folder(0) / "last.safetensors", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=Stopper(95))
    shutil.copy(early, run.seed_folder(0))
    training.train(run, allow_changed=True)
    assert outcome(run) == outcome(train(run.recipe))


def test_the_rules_of_a_comparison_begin_under_the_same_conditions(recipe, train, tmp_path, data):
    """Each is a run of its own: the second's data would be compared with nothing."""
    made = recipe(dataset=data(0), epochs=1, align=False)
    first = train(made, name="first")
    second = training.create(tmp_path / "second", dataclasses.replace(made, rule=DualPropagation()), (0,))
    data(1)
    with pytest.raises(RunError, match="the data changed"):
        training.train(second, beside=[first])
    training.train(second, beside=[first], allow_changed=True)
    assert "the data changed" in second.results()[0].remarks[0]
    third = training.create(tmp_path / "third", dataclasses.replace(made, rule=Backprop()), (0,))
    training.train(third, beside=[second])
    assert third.results()[0].remarks == ()


def test_finished_seeds_need_no_data(recipe, train, data):
    """A figure is drawn again long after the data were moved."""
    run = train(recipe(dataset=data(0), epochs=1, align=False))
    Path(run.recipe.dataset).unlink()
    assert training.train(run) == json.loads((run.folder / "results.json").read_text())
    assert runs.load(run.folder) == run
