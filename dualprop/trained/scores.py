"""What an evaluation comes to, as plain values. K classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ClassScore:
    """Of one class: of those predicted as it, the share that is (precision; None where none was),
    of those that are, the share that is predicted as it (recall; None where there are none), their
    harmonic mean, and how many there are."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    number: int


@dataclass(frozen=True)
class Mistake:
    """An example by its number in its part of the data, what it is, what it was taken for, and how
    much the output for that exceeds the one that is right: in probability where the model gives
    it."""

    index: int
    truth: str
    said: str
    margin: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Of a model on one part of its data.

    Attributes:
        run, seed, part: what was evaluated.
        title: the data's.
        accuracy: the share of examples that are right.
        balanced_accuracy: the mean of the classes' recalls.
        confusion: how many examples of each class (rows) were taken for each (columns), (K, K).
        classes: the scores of each.
        mistakes: the worst first.
        num_mistakes: all of them.
        figures: the pictures that were drawn.
    """

    run: Path
    seed: int
    part: str
    title: str
    accuracy: float
    balanced_accuracy: float
    confusion: np.ndarray
    classes: list[ClassScore]
    mistakes: list[Mistake]
    num_mistakes: int
    figures: list[Path]

    def to_plain(self) -> dict[str, Any]:
        """All but the pictures, as JSON has it."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "figures"}
        lists = {name: [dataclasses.asdict(each) for each in plain[name]] for name in ("classes", "mistakes")}
        return {**plain, **lists, "run": str(self.run), "confusion": self.confusion.tolist()}

    def confusions(self) -> Iterator[tuple[int, str, str]]:
        """How many of a class were taken for another; the most first."""
        names = [each.name for each in self.classes]
        pairs = [(int(self.confusion[i, j]), names[i], names[j]) for i, j in np.argwhere(self.confusion) if i != j]
        yield from sorted(pairs, key=lambda pair: -pair[0])
