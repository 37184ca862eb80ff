"""Weights & Biases offline and MLflow with a store in a file, each read back by its own package.
`make test-frameworks` installs them."""

import json

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


def history(folder):
    """Of all offline runs in their order: (run's id, group, the rows of their history)."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    ids, rows, config = [], [], {}
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
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
