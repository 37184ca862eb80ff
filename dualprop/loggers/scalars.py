"""TensorBoard: event files of scalars, one folder a seed, with hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualprop.loggers.base import AbstractLogger, LoggedSeed


class TensorBoard(AbstractLogger):
    """logs/tensorboard/seed-0/: every metric as a scalar, its step the epoch.

    After a resume a further event file goes on in the same folder. What the files there hold is
    read by TensorBoard's own reader first, metric by metric, and not written again.
    """

    package, extra = "tensorboard", "tensorboard"

    def __init__(self) -> None:
        self._writers: dict[Path, Any] = {}
        # Of each folder and metric, the last epoch that is there.
        self._last: dict[Path, dict[str, int]] = {}

    def begin(self, seed: LoggedSeed) -> int:
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder(seed)
        last = self._last[folder] = _read(folder)
        self._writers[folder] = SummaryWriter(str(folder))
        # The last epoch may be there in part.
        return max(last.values(), default=0)

    def epoch(self, seed: LoggedSeed, number: int, metrics: Mapping[str, float]) -> None:
        folder = self._folder(seed)
        writer, last = self._writers[folder], self._last[folder]
        for name, value in metrics.items():
            if number > last.get(name, -1):
                writer.add_scalar(name, value, number)
        writer.flush()

    def end(self, seed: LoggedSeed, scores: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        folder = self._folder(seed)
        writer, last = self._writers[folder], self._last[folder]
        # As `add_hparams` has it, which would open a folder of its own.
        for summary in hparams(dict(seed.hyperparameters), dict(scores)):
            writer.file_writer.add_summary(summary)
        step = int(scores["best_epoch"])
        for name, value in scores.items():
            if last.get(name) != step:
                writer.add_scalar(name, value, step)
        writer.flush()

    def close(self, seed: LoggedSeed) -> None:
        folder = self._folder(seed)
        self._last.pop(folder, None)
        if (writer := self._writers.pop(folder, None)) is not None:
            writer.close()

    def where(self, folder: Path) -> str:
        return f"tensorboard --logdir {folder / 'tensorboard'}"

    def _folder(self, seed: LoggedSeed) -> Path:
        return seed.folder / "tensorboard" / seed.path


def _read(folder: Path) -> dict[str, int]:
    """The last step of each scalar that is logged there."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 1}, purge_orphaned_data=False)
    events.Reload()
    # Of many it keeps the last.
    return {name: events.Scalars(name)[-1].step for name in events.Tags()["scalars"]}
