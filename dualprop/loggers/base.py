"""What a logger is: a class with up to four methods, told of a seed's epochs in their order.

    begin(seed)                     training begins or goes on; how many epochs the log has already
    epoch(seed, number, metrics)    an epoch is over, and in the checkpoint
    end(seed, scores)               the seed is tested
    close(seed)                     no more of it now, be it over or interrupted

An epoch is logged after the checkpoint that holds it. So a log never has an epoch that a resume
takes again; and one that lacks epochs, since the process was killed in between, is given them when
the run goes on. The first epoch, 0, is before training. Several seeds may be open at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class LoggedSeed:
    """One seed of one rule: what loggers call a run.

    Attributes:
        folder: where logs may lie, below the run folder.
        experiment: the recipe's name.
        group: the name of the run folder.
        label: of a comparison, the rule or variant; else the rule.
        seed: its number.
        is_compared: whether there are several labels.
        hyperparameters: of the recipe, by path, "rule.beta" say: numbers, words and truths.
        identity: of this seed of this run, the same however often it is resumed.
    """

    folder: Path
    experiment: str
    group: str
    label: str
    seed: int
    is_compared: bool
    hyperparameters: Mapping[str, float | str | bool]
    identity: str

    @property
    def path(self) -> Path:
        """Its own place in the logs: "dp/seed-0" of a comparison, else "seed-0"."""
        own = Path(f"seed-{self.seed}")
        return Path(self.label) / own if self.is_compared else own

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"


class AbstractLogger:
    """Logs the seeds of a run. All methods may be left out, and may raise: that is told, once, and
    training goes on without this logger.

    Attributes:
        package: what it needs, as Python imports it; empty for nothing. `extra` installs it.
    """

    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    def begin(self, seed: LoggedSeed) -> int:
        """How many epochs of the seed are logged already, counted from epoch 0: those that are not
        told again."""
        return 0

    def epoch(self, seed: LoggedSeed, number: int, metrics: Mapping[str, float]) -> None:
        """The metrics of an epoch by name, "train/loss" say; nan for what was not finite."""

    def end(self, seed: LoggedSeed, scores: Mapping[str, float]) -> None:
        """The seed's test scores by name, "test/accuracy" say. After a resume it may be told
        again."""

    def close(self, seed: LoggedSeed) -> None:
        """Let go of what is open."""

    def where(self, folder: Path) -> str:
        """In words, where the logs of a run are, or how they are looked at. Empty for nothing to
        say."""
        return ""

    @property
    def name(self) -> str:
        return type(self).__name__
