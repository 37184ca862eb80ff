"""MLflow: one run a seed, in the experiment of the recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualprop.loggers.base import AbstractLogger, LoggedSeed
from dualprop.training import files

_TAG = "dualprop.identity"
# MLflow's limits on one request, and on the length of a parameter's value.
_PARAMS, _LONGEST = 100, 6000


class MLflow(AbstractLogger):
    """logs/mlflow.db, an SQLite store; or the store that MLFLOW_TRACKING_URI names.

    After a resume the run with this seed's tag goes on. What it has is asked of the store, metric
    by metric, and not written again.
    """

    package, extra = "mlflow", "mlflow"

    def __init__(self) -> None:
        self._clients: dict[str, tuple[Any, str, dict[str, int]]] = {}

    def begin(self, seed: LoggedSeed) -> int:
        from mlflow import MlflowClient

        files.make_folder(seed.folder)
        client = MlflowClient(_uri(seed.folder))
        known = client.get_experiment_by_name(seed.experiment)
        experiment = known.experiment_id if known else client.create_experiment(seed.experiment, _artifacts(seed.folder))
        runs = client.search_runs([experiment], f"tags.`{_TAG}` = '{seed.identity}'")
        run = runs[0] if runs else self._created(client, experiment, seed)
        client.update_run(run.info.run_id, status="RUNNING")
        last = {name: max(each.step for each in client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
        self._clients[seed.identity] = client, run.info.run_id, last
        # The last epoch may be there in part.
        return max(last.values(), default=0)

    def epoch(self, seed: LoggedSeed, number: int, metrics: Mapping[str, float]) -> None:
        client, run, last = self._clients[seed.identity]
        self._log(client, run, {name: value for name, value in metrics.items() if number > last.get(name, -1)}, number)

    def end(self, seed: LoggedSeed, scores: Mapping[str, float]) -> None:
        client, run, last = self._clients[seed.identity]
        step = int(scores["best_epoch"])
        self._log(client, run, {name: value for name, value in scores.items() if last.get(name) != step}, step)
        client.set_terminated(run, "FINISHED")

    def close(self, seed: LoggedSeed) -> None:
        client, run, _ = self._clients.pop(seed.identity, (None, "", {}))
        if client is not None and client.get_run(run).info.status == "RUNNING":
            client.set_terminated(run, "KILLED")

    def where(self, folder: Path) -> str:
        return f"mlflow ui --backend-store-uri {_uri(folder)}"

    def _created(self, client: Any, experiment: str, seed: LoggedSeed) -> Any:
        from mlflow.entities import Param

        tags = {_TAG: seed.identity, "group": seed.group, "label": seed.label, "seed": str(seed.seed)}
        run = client.create_run(experiment, run_name=seed.name, tags=tags)
        params = [Param(name, str(value)[:_LONGEST]) for name, value in {**seed.hyperparameters, "seed": seed.seed}.items()]
        for some in _parts(params, _PARAMS):
            client.log_batch(run.info.run_id, params=some)
        return run

    def _log(self, client: Any, run: str, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        # One request, which is there whole or not at all, up to a thousand metrics.
        for some in _parts([Metric(name, value, now, step) for name, value in metrics.items()], 1000):
            client.log_batch(run, metrics=some)


def _uri(folder: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def _artifacts(folder: Path) -> str | None:
    """Where artifacts would lie; by default they would in the present folder."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else (folder.resolve() / "mlflow").as_uri()


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    yield from (values[i : i + size] for i in range(0, len(values), size))
