"""Weights & Biases: one run a seed, in groups; offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualprop.loggers.base import AbstractLogger, LoggedSeed
from dualprop.training import documents, files
from dualprop.training.records import Logged


class WandB(AbstractLogger):
    """logs/wandb/: runs that `wandb sync` uploads. The project is the recipe's name, the group the
    run folder, the job type the rule. WANDB_MODE, WANDB_PROJECT and the like are heeded.

    After a resume the same run goes on under the same id. How many epochs it has is kept beside it.
    """

    package, extra = "wandb", "wandb"

    def __init__(self) -> None:
        self._runs: dict[str, Any] = {}

    def begin(self, seed: LoggedSeed) -> int:
        import wandb

        folder = seed.folder / "wandb"
        files.make_folder(folder)
        self._runs[seed.identity] = wandb.init(
            id=_id(seed),
            resume="allow",
            reinit="create_new",
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(seed.folder),
            project=os.environ.get("WANDB_PROJECT", seed.experiment),
            group=seed.group,
            job_type=seed.label,
            name=seed.name,
            config=dict(seed.hyperparameters),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        path = self._kept(seed)
        kept = documents.read(path, Logged.from_plain, "Remove it.").epochs if files.exists(path) else 0
        return max(kept, int(self._runs[seed.identity].step))

    def epoch(self, seed: LoggedSeed, number: int, metrics: Mapping[str, float]) -> None:
        self._runs[seed.identity].log({**metrics, "epoch": number}, step=number)
        files.write_json(self._kept(seed), Logged(epochs=number + 1).to_plain())

    def end(self, seed: LoggedSeed, scores: Mapping[str, float]) -> None:
        self._runs[seed.identity].summary.update(dict(scores))

    def close(self, seed: LoggedSeed) -> None:
        if (run := self._runs.pop(seed.identity, None)) is not None:
            run.finish()

    def where(self, folder: Path) -> str:
        is_offline = os.environ.get("WANDB_MODE", "offline") == "offline"
        return f"wandb sync {folder / 'wandb'}/offline-run-*" if is_offline else "https://wandb.ai"

    def _kept(self, seed: LoggedSeed) -> Path:
        return seed.folder / "wandb" / f"{_id(seed)}.json"


def _id(seed: LoggedSeed) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", seed.identity)
