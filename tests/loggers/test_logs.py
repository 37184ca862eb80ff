"""Logs read back by the tools that they are for: each epoch once, by its name and step, whatever
the run was interrupted by; and a run that is the same with a log, without one, or with one that
fails."""

import csv
import errno
import importlib.util

import pytest
from logged import EPOCHS, Stopped, expected, stopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualprop import bench, cli, loggers
from dualprop.errors import SettingError
from dualprop.loggers import flattening
from dualprop.training import checkpoint, files


def scalars(folder):
    """By TensorBoard's own reader: every event, in the order of the files."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def table(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (name, int(row["epoch"])): float(value)
        for row in rows
        for name, value in row.items()
        if name != "epoch" and value != ""
    }


def assert_each_epoch_once(folder, seed_folder):
    """TensorBoard keeps float32."""
    told = scalars(folder)
    written = {(name, step): value for name, each in told.items() for step, value in each}
    assert len(written) == sum(map(len, told.values()))
    metrics = expected(seed_folder)
    assert {key: value for key, value in written.items() if not key[0].startswith(("test/", "best"))} == pytest.approx(metrics)


def test_tensorboard_reads_every_metric_of_every_epoch_by_name(train):
    folder = train("tensorboard", seeds=2)
    for seed in (0, 1):
        assert_each_epoch_once(folder / f"logs/tensorboard/seed-{seed}", folder / f"seed-{seed}")
    told = scalars(folder / "logs/tensorboard/seed-0")
    assert [step for step, _ in told["validation/accuracy"]] == [0, 1, 2]
    assert [step for step, _ in told["train/loss"]] == [1, 2]
    events = EventAccumulator(str(folder / "logs/tensorboard/seed-0"))
    events.Reload()
    plugin = events.PluginTagToContent("hparams")
    # Hyperparameters for its own page: the recipe's settings by their paths.
    assert b"rule.beta" in plugin["_hparams_/session_start_info"]
    assert b"test/accuracy" in plugin["_hparams_/experiment"]


def test_a_csv_holds_the_metrics_to_the_last_digit(train):
    folder = train("csv")
    assert table(folder / "logs/csv/seed-0.csv") == expected(folder / "seed-0")
    with (folder / "logs/csv/seed-0.test.csv").open(newline="") as file:
        (scores,) = csv.DictReader(file)
    assert 0 < float(scores["test/accuracy"]) < 1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", [0, 1])
def test_a_run_that_was_killed_while_it_logged_goes_on_without_a_gap_and_without_doubles(train, at, half):
    """The checkpoint of the epoch is there, and its log is not, or in part."""
    with pytest.raises(Stopped):
        train([stopping(loggers.TensorBoard, at, half)])
    folder = train("tensorboard,csv")
    assert_each_epoch_once(folder / "logs/tensorboard/seed-0", folder / "seed-0")
    assert table(folder / "logs/csv/seed-0.csv") == expected(folder / "seed-0")


def test_a_resume_logs_as_the_run_was_begun_and_an_extension_goes_on_in_the_same_log(train):
    """The names lie in the folder; nobody has to repeat them."""
    folder = train("tensorboard,csv")
    train("", epochs=EPOCHS + 1)
    assert len({key[1] for key in expected(folder / "seed-0")}) == EPOCHS + 2
    assert_each_epoch_once(folder / "logs/tensorboard/seed-0", folder / "seed-0")
    assert table(folder / "logs/csv/seed-0.csv") == expected(folder / "seed-0")


def test_seeds_that_step_together_are_logged_each(train):
    """A reporter is told of one of them; a log wants all."""
    folder = train("tensorboard,csv", seeds=2, stack_seeds="on")
    for seed in (0, 1):
        assert_each_epoch_once(folder / f"logs/tensorboard/seed-{seed}", folder / f"seed-{seed}")
        assert table(folder / f"logs/csv/seed-{seed}.csv") == expected(folder / f"seed-{seed}")


def test_an_epoch_is_in_the_checkpoint_when_it_is_logged(train, tmp_path):
    """Else a kill in between has it trained again, after it was logged."""

    class Looking(loggers.AbstractLogger):
        def epoch(self, seed, number, metrics):
            saved = checkpoint.read(tmp_path / "run" / f"seed-{seed.seed}" / "last.safetensors", None, "last")
            told.append((number, saved.about["epoch"]))

    told = []
    train([Looking()])
    assert told == [(0, 0), (1, 1), (2, 2)]


class Failing(loggers.AbstractLogger):
    """The server is away."""

    def epoch(self, seed, number, metrics):
        raise ConnectionError("no route to host")


def test_a_log_that_fails_is_told_once_and_changes_nothing_of_the_run(train):
    plain = train([], name="plain")
    with pytest.warns(RuntimeWarning, match=r"the log by Failing failed \(ConnectionError: no route to host\)") as told:
        failed = train([Failing(), "csv"], name="failed")
    assert len(told) == 1
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors", "result.json"):
        assert (plain / "seed-0" / name).read_bytes() == (failed / "seed-0" / name).read_bytes(), name
    # The other goes on.
    assert table(failed / "logs/csv/seed-0.csv") == expected(failed / "seed-0")
    assert not (plain / "logs.json").exists()


def test_a_full_disk_ends_the_log_and_not_the_training(train, monkeypatch):
    append = files.append

    def full(path, line):
        if path.suffix == ".csv":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return append(path, line)

    monkeypatch.setattr(files, "append", full)
    with pytest.warns(RuntimeWarning, match="the log by CSV failed .*No space left on device"):
        folder = train("csv", epochs=3)
    assert (folder / "results.json").exists()
    monkeypatch.undo()
    train("")
    assert table(folder / "logs/csv/seed-0.csv") == expected(folder / "seed-0")


class Listing(loggers.AbstractLogger):
    """The least that a user writes."""

    def __init__(self):
        self.told = []

    def epoch(self, seed, number, metrics):
        self.told.append((seed.label, seed.seed, number))

    def end(self, seed, scores):
        self.told.append((seed.label, seed.seed, round(scores["test/accuracy"], 3)))


def test_a_logger_of_ones_own_is_told_of_each_epoch_in_order_and_of_the_test(recipe, tmp_path):
    """A comparison's rules are labels, of one group."""
    listing = Listing()
    report = bench.compare(
        recipe, rules="backprop,dual_propagation", seeds=1, costs=False, out=tmp_path / "both", log=["csv", listing]
    )
    told = [(label, 0, number) for label in ("backprop", "dual_propagation") for number in (0, 1, 2)]
    assert [each for each in listing.told if each[2] in (0, 1, 2)] == told
    assert len(listing.told) == len(told) + 2
    for label in report.runs:
        assert table(tmp_path / f"both/logs/csv/{label}/seed-0.csv") == expected(tmp_path / "both" / label / "seed-0")


def test_a_package_that_is_missing_is_named_before_anything_is_made(train, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(SettingError, match=r"wandb is not installed. Install it: pip install 'dualprop\[wandb\]'"):
        train("csv,wandb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("tensorbord", "unknown log 'tensorbord'. Did you mean 'tensorboard'?"),
        ("csv,csv", "log names a logger twice"),
        ([print], "log must be a name or a dp.loggers.AbstractLogger"),
    ],
)
def test_a_log_that_there_is_not_is_refused_by_name(log, told, train, tmp_path):
    with pytest.raises(SettingError) as error:
        train(log)
    assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_several_logs_and_says_where_they_are(tmp_path, capsys):
    words = ["train", "digits-mlp", "--epochs", "1", "--seeds", "1", "--model.widths", "6", "--no-align"]
    words += ["--train-examples", "100", "--batch-size", "50"]
    cli.main([*words, "--out", str(tmp_path / "run"), "--log", "csv", "--log", "tensorboard"])
    told = "".join(capsys.readouterr().out.split())
    for name in ("csv", "tensorboard"):
        assert f"{tmp_path}/run/logs/{name}" in told
        assert (tmp_path / "run/logs" / name).is_dir()
    (tmp_path / "run/logs/csv/seed-0.csv").unlink()
    cli.main(["train", "--resume", str(tmp_path / "run")])
    assert table(tmp_path / "run/logs/csv/seed-0.csv") == expected(tmp_path / "run/seed-0")


def test_names_are_those_that_tools_group_by():
    line = {"epoch": 3, "train_loss": None, "validation_r2": 0.5, "learning_rate": 0.1, "drives": 3, "unsettled": "words"}
    line |= {"alignment": [{"layer": "2", "angle": 1.5}], "inference": {"kink_crossing": [0.25, 0.0]}}
    told = flattening.metrics(line)
    assert told.pop("train/loss") != 0
    assert told == {
        "validation/r2": 0.5, "learning_rate": 0.1, "rule/drives": 3.0, "alignment/layer 2/angle": 1.5,
        "inference/kink_crossing/layer 1": 0.25, "inference/kink_crossing/layer 2": 0.0,
    }  # fmt: skip
