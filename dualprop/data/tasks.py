"""What is to be predicted: one class of several, numbers, or any of several labels; and what each
output stands for.

N examples, K outputs. Targets are (N,) int64 of classes, (N, K) float32 of numbers and of labels,
which are 0 or 1. Numbers are standardised as the training part has them: (y - mean) / std."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

TaskKind = Literal["classification", "regression", "multilabel"]

# The loss that a task is trained by unless its recipe has one that fits.
LOSS_OF: dict[TaskKind, str] = {
    "classification": "cross_entropy",
    "regression": "squared_error",
    "multilabel": "binary_cross_entropy",
}
# The score that an epoch is chosen by and rules are compared in: a share, 1 where all is right.
HEADLINE_OF: dict[TaskKind, str] = {"classification": "accuracy", "regression": "r2", "multilabel": "f1"}


@dataclass(frozen=True)
class Task:
    """A kind of prediction, and its outputs.

    Attributes:
        kind: of it.
        names: of the classes, the targets or the labels, one an output.
        mean, std: of targets that are numbers, over the training part, one a target; else empty.
        counts: how many training examples each class or label has; empty of numbers.
    """

    kind: TaskKind
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def num_outputs(self) -> int:
        return len(self.names)

    @property
    def headline(self) -> str:
        return HEADLINE_OF[self.kind]

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing among the classes; None where nothing is guessed among."""
        return 1 / len(self.names) if self.kind == "classification" else None

    @property
    def imbalance(self) -> float | None:
        """By how much the largest class outnumbers the smallest that has any example; None up to
        twice."""
        present = [count for count in self.counts if count > 0]
        if self.kind != "classification" or not present or max(present) <= 2 * min(present):
            return None
        return max(present) / min(present)

    def balanced_weights(self) -> tuple[float, ...]:
        """N / (K n_k) of each class k of n_k training examples, 0 of one without: of mean 1 over
        the training part where every class has some."""
        present = sum(count > 0 for count in self.counts)
        return tuple(sum(self.counts) / (present * count) if count else 0.0 for count in self.counts)

    def standardised(self, y: np.ndarray) -> np.ndarray:
        """Targets as training has them: int64 classes, float32 labels, or numbers of mean 0."""
        if self.kind == "classification":
            return y.astype(np.int64)
        return ((y - np.array(self.mean)) / np.array(self.std)).astype(np.float32) if self.mean else y.astype(np.float32)

    def __str__(self) -> str:
        shown = ", ".join(self.names[:12]) + (", …" if len(self.names) > 12 else "")
        what = {"classification": f"one of {len(self.names)} classes", "regression": "a number", "multilabel": "labels"}
        numbers = f"{len(self.names)} numbers" if self.kind == "regression" and len(self.names) > 1 else what[self.kind]
        return f"{numbers}: {shown}"


def numbered(num_classes: int) -> Task:
    """Classification by numbers, where no names are known."""
    return Task("classification", tuple(str(k) for k in range(num_classes)))


def fitted(task: Task, y_train: np.ndarray) -> Task:
    """The task with what it knows of the training part's targets: the counts of classes and labels,
    or mean and std of numbers. The std of a constant is given as 1."""
    if task.kind == "classification":
        counts = np.bincount(y_train, minlength=task.num_outputs)
        return Task(task.kind, task.names, counts=tuple(int(count) for count in counts))
    if task.kind == "multilabel":
        return Task(task.kind, task.names, counts=tuple(int(count) for count in y_train.sum(0)))
    wide = y_train.astype(np.float64)
    std = wide.std(0)
    return Task(task.kind, task.names, tuple(wide.mean(0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))
