"""Weights & Biases offline and MLflow with a store in a file, each read back by its own package.
`make test-frameworks` installs them."""

import json
import struct

import pytest
from logged import EPOCHS, Stopped, expected, stopping

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Nothing of the user's is heeded, and no network is asked for."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_mlflow_has_one_run_a_seed_with_parameters_and_each_epoch_once(train):
    """The first try ends while epoch 1 is logged, when half of it is."""
    from mlflow import MlflowClient

    from dualprop.loggers import MLflow

    with pytest.raises(Stopped):
        train([stopping(MLflow, 1, half=True)], seeds=2)
    folder = train("mlflow")
    client = MlflowClient(f"sqlite:///{folder / 'logs/mlflow.db'}")
    experiment = client.get_experiment_by_name("digits-mlp")
    found = {run.data.tags["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["0", "1"]
    for seed, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"dual_propagation, seed {seed}"
        assert (run.data.params["rule.beta"], run.data.params["seed"]) == ("1.0", seed)
        assert run.data.tags["group"] == "run"
        told = {
            (name, each.step): each.value
            for name in run.data.metrics
            for each in client.get_metric_history(run.info.run_id, name)
        }
        assert sum(len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics) == len(told)
        assert {key: value for key, value in told.items() if not key[0].startswith(("test/", "best"))} == expected(
            folder / f"seed-{seed}"
        )
        assert 0 < run.data.metrics["test/accuracy"] < 1


def records(path):
    """Of an offline run's file: LevelDB's log format after a header of seven bytes. Blocks of 32
    KiB hold fragments (checksum, length, type) of records: 1 whole, 2 first, 3 middle, 4 last."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if left < 7 or kind == 0:
            at += left
            continue
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def history(folder):
    """Of all offline runs in their order: (run's id, group, name), the rows of their history, and
    their settings; by the package's own messages."""
    from wandb.proto import wandb_internal_pb2

    ids, rows, config = [], [], {}
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        for data in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.append((record.run.run_id, record.run.run_group, record.run.display_name))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                rows.append({(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item})
    return ids, rows, config


def test_weights_and_biases_goes_on_in_the_same_run_offline(train):
    """The first try ends before epoch 1 is logged."""
    from dualprop.loggers import WandB

    with pytest.raises(Stopped):
        train([stopping(WandB, 1, half=False)])
    folder = train("wandb")
    ids, rows, config = history(folder / "logs/wandb")
    assert len({each[0] for each in ids}) == 1
    assert {each[1:] for each in ids} == {("run", "dual_propagation, seed 0")}
    assert [int(row["epoch"]) for row in rows] == list(range(EPOCHS + 1))
    told = {
        (name, int(row["epoch"])): value for row in rows for name, value in row.items() if name[0] != "_" and name != "epoch"
    }
    assert told == expected(folder / "seed-0")
    assert config["rule.beta"] == 1.0
