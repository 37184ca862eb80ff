"""Loss and accuracy of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualprop.data import Examples, batches
from dualprop.losses import AbstractLoss
from dualprop.training.execution import Execution


@dataclass(frozen=True)
class Score:
    """Mean loss per example, and top-1 and top-5 accuracy in [0, 1] (of fewer than five classes,
    all are in the top five)."""

    loss: float
    accuracy: float
    top5_accuracy: float


def evaluate(
    model: nn.Module,
    examples: Examples,
    loss: AbstractLoss,
    execution: Execution,
    batch_size: int = 1000,
    predict: Callable[[Tensor], Tensor] | None = None,
) -> Score:
    """The score of the model's prediction on all examples, or of what `predict` makes of x; the
    model's mode is put back."""
    was_training = model.training
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=examples.device)
    with torch.no_grad(), execution.computing():
        for x, y in batches(examples, batch_size, dtype=execution.inputs, channels_last=execution.channels_last):
            logits = (predict or model)(x)
            total[0] += loss.value(logits, y).sum()
            total[1] += (logits.argmax(1) == y).sum()
            total[2] += (logits.topk(min(5, logits.shape[1]), 1).indices == y.unsqueeze(1)).sum()
    model.train(was_training)
    return Score(*(total / len(examples)).tolist())
