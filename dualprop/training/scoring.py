"""Scores of predictions, by the kind of task; each is gathered batch by batch.

    classification   accuracy, top-5 accuracy, and balanced accuracy: the mean over classes of the
                     share of each that is right
    regression       R² = 1 - Σ(y - p)² / Σ(y - ȳ)², and the mean absolute error in the target's
                     unit; of several targets the mean over them
    multilabel       F1 = 2 tp / (2 tp + fp + fn) of all labels together, those with p ≥ ½ taken;
                     and mAP, the mean over labels of their average precision

N batch, K outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dualprop.data import Task


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean loss per example, and what its task has of: accuracies, F1 and mAP in [0, 1] (of fewer
    than five classes, all are in the top five), R² at most 1, the mean absolute error."""

    loss: float
    accuracy: float | None = None
    top5_accuracy: float | None = None
    balanced_accuracy: float | None = None
    r2: float | None = None
    mae: float | None = None
    f1: float | None = None
    mean_average_precision: float | None = None

    def named(self, part: str) -> dict[str, float]:
        """Those that there are, as "validation_loss" and so on."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {f"{part}_{name}": value for name, value in values.items() if value is not None}


class AbstractTally(ABC):
    """What is counted of a part's predictions."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.device = task, device

    @abstractmethod
    def add(self, outputs: Tensor, y: Tensor) -> None:
        """Count a batch's."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Of all that was counted. Waits for the device."""


class ClassTally(AbstractTally):
    """Of classes: how many of each there are and are right."""

    def __init__(self, task: Task, device: torch.device) -> None:
        super().__init__(task, device)
        self.counts = torch.zeros(3, task.num_outputs, dtype=torch.int64, device=device)

    def add(self, outputs: Tensor, y: Tensor) -> None:
        top = outputs.topk(min(5, outputs.shape[1]), 1).indices == y.unsqueeze(1)
        for row, counted in zip(self.counts, (torch.ones_like(y), outputs.argmax(1) == y, top.any(1)), strict=True):
            row.scatter_add_(0, y, counted.to(torch.int64))

    def scores(self) -> dict[str, float]:
        of_each, right, top = self.counts.to(torch.float64).cpu()
        number = float(of_each.sum())
        there = of_each > 0
        return {
            "accuracy": float(right.sum()) / number,
            "top5_accuracy": float(top.sum()) / number,
            "balanced_accuracy": float((right[there] / of_each[there]).mean()),
        }


class NumberTally(AbstractTally):
    """Of numbers, which are standardised by the training part: sums that R² is made of."""

    def __init__(self, task: Task, device: torch.device) -> None:
        super().__init__(task, device)
        self.sums = torch.zeros(4, task.num_outputs, dtype=torch.float64, device=device)
        self.number = 0

    def add(self, outputs: Tensor, y: Tensor) -> None:
        wide, error = y.double(), y.double() - outputs.double()
        self.sums += torch.stack([wide.sum(0), wide.square().sum(0), error.square().sum(0), error.abs().sum(0)])
        self.number += len(y)

    def scores(self) -> dict[str, float]:
        of_y, squares, errors, absolute = self.sums.cpu()
        around_mean = squares - of_y.square() / self.number
        # Of a part in which a target is constant R² is not defined; 0 stands for it, as nothing is
        # explained.
        r2 = torch.where(around_mean > 1e-12 * squares, 1 - errors / around_mean.clamp_min(1e-300), 0.0)
        unit = torch.tensor(self.task.std, dtype=torch.float64)
        return {"r2": float(r2.mean()), "mae": float((absolute / self.number * unit).mean())}


class LabelTally(AbstractTally):
    """Of labels: all outputs, which average precision orders."""

    def __init__(self, task: Task, device: torch.device) -> None:
        super().__init__(task, device)
        self.outputs: list[Tensor] = []
        self.y: list[Tensor] = []

    def add(self, outputs: Tensor, y: Tensor) -> None:
        self.outputs.append(outputs.float().cpu())
        self.y.append(y.cpu())

    def scores(self) -> dict[str, float]:
        outputs, y = torch.cat(self.outputs), torch.cat(self.y) > 0.5
        taken = outputs >= 0
        right = int((taken & y).sum())
        wrong = int((taken != y).sum())
        scores = {"f1": 2 * right / (2 * right + wrong) if right or wrong else 1.0}
        if bool(outputs.isfinite().all()) and bool(y.any()):
            scores["mean_average_precision"] = _mean_average_precision(outputs.numpy(), y.numpy())
        return scores


def _mean_average_precision(outputs: np.ndarray, y: np.ndarray) -> float:
    """Over the labels that any example has."""
    from sklearn.metrics import average_precision_score

    labels = [k for k in range(y.shape[1]) if y[:, k].any()]
    return float(np.mean([average_precision_score(y[:, k], outputs[:, k]) for k in labels]))


def tally(task: Task, device: torch.device) -> AbstractTally:
    """An empty one for this task."""
    match task.kind:
        case "classification":
            return ClassTally(task, device)
        case "regression":
            return NumberTally(task, device)
    return LabelTally(task, device)
