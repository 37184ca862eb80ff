"""A reporter that logs: it tells another what it is told, and loggers of every epoch that is kept.

A logger that fails is told of, once, and left out from then on. Training goes on: nothing of it
follows from a log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dualprop.loggers import flattening, names
from dualprop.loggers.base import AbstractLogger, LoggedSeed
from dualprop.training import Reporter, Run, documents
from dualprop.training.records import Result


class Logs:
    """The loggers of a run folder, or of a comparison's.

    Raises SettingError as `names.parse`, when they are given; and no more until training.
    """

    def __init__(self, given: str | AbstractLogger | Sequence[str | AbstractLogger], is_comparison: bool) -> None:
        self.loggers, self.is_comparison = names.parse(given), is_comparison

    def lines(self, folder: Path) -> list[str]:
        """Where each logs to, in words."""
        return [f"log: {where}" for each in self.loggers if (where := each.where(folder / "logs"))]

    @contextlib.contextmanager
    def of(self, run: Run, label: str, folder: Path, reporter: Reporter) -> Iterator[Reporter]:
        """The reporter, or one that also logs this run of the folder."""
        if not self.loggers:
            yield reporter
            return
        logging = LoggingReporter(self, run, label, folder, reporter)
        try:
            yield logging
        finally:
            logging.close()


class LoggingReporter(Reporter):
    """Logs the seeds of one run, each from its first epoch that its log does not have."""

    def __init__(self, logs: Logs, run: Run, label: str, folder: Path, reporter: Reporter) -> None:
        self.loggers, self.run, self.reporter = logs.loggers, run, reporter
        identity = names.keep(folder, logs.loggers)
        hyperparameters = flattening.hyperparameters(run.recipe.to_plain())
        self.seeds = {
            seed: LoggedSeed(
                folder=folder / "logs",
                experiment=run.recipe.name,
                group=folder.resolve().name,
                label=label,
                seed=seed,
                is_compared=logs.is_comparison,
                hyperparameters=hyperparameters,
                identity=f"{identity}-{label}-{seed}",
            )
            for seed in run.seeds
        }
        # How many epochs each has of each seed that is open.
        self.opened: list[tuple[AbstractLogger, int]] = []

    def changed(self, what: str) -> None:
        self.reporter.changed(what)

    def log_failed(self, what: str) -> None:
        self.reporter.log_failed(what)

    def seed_started(self, seed: int, num_steps: int, done: int) -> None:
        self.reporter.seed_started(seed, num_steps, done)

    def step_done(self, done: int, num_examples: int, loss: Tensor, num_correct: Tensor) -> None:
        self.reporter.step_done(done, num_examples, loss, num_correct)

    def epoch_done(self, metrics: dict[str, Any]) -> None:
        self.reporter.epoch_done(metrics)

    def epoch_kept(self, seed: int, metrics: dict[str, Any]) -> None:
        flat = flattening.metrics(metrics)
        for logger in list(self.loggers):
            if self._is_new(logger, seed):
                continue  # the file of metrics has this epoch too
            self._try(logger, partial(logger.epoch, self.seeds[seed], metrics["epoch"], flat))
        self.reporter.epoch_kept(seed, metrics)

    def seed_finished(self, result: Result) -> None:
        scores = flattening.scores(result.to_plain())
        for logger in list(self.loggers):
            self._is_new(logger, result.seed)
            self._try(logger, partial(logger.end, self.seeds[result.seed], scores))
            self._close(logger, result.seed)
        self.reporter.seed_finished(result)

    def close(self) -> None:
        """Let go of the seeds that are not over."""
        for logger, seed in list(self.opened):
            self._close(logger, seed)

    def _is_new(self, logger: AbstractLogger, seed: int) -> bool:
        """Open a seed's log where it is not, and give it the epochs that it lacks."""
        if (logger, seed) in self.opened:
            return False
        self.opened.append((logger, seed))

        def begin() -> None:
            logged = self.seeds[seed]
            number = logger.begin(logged)
            for plain in self._history(seed)[number:]:
                logger.epoch(logged, plain["epoch"], flattening.metrics(plain))

        self._try(logger, begin)
        return True

    def _history(self, seed: int) -> list[dict[str, Any]]:
        self.run.metrics(seed)  # checked
        path = self.run.seed_folder(seed) / "metrics.jsonl"
        return documents.read_lines(path, lambda plain, where: dict(plain), "Restore it.")

    def _close(self, logger: AbstractLogger, seed: int) -> None:
        if (logger, seed) in self.opened:
            self.opened.remove((logger, seed))
            self._try(logger, partial(logger.close, self.seeds[seed]), is_last=True)

    def _try(self, logger: AbstractLogger, do: Callable[[], None], is_last: bool = False) -> None:
        if logger not in self.loggers and not is_last:
            return
        try:
            do()
        except Exception as error:
            if logger in self.loggers:
                self.loggers.remove(logger)
                told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self.log_failed(
                    f"the log by {logger.name} failed ({told}). Training goes on without it; --resume logs what it lacks."
                )
