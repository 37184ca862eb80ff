"""Loss and accuracy of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualprop.data import Examples, batches
from dualprop.data.augmentation import pad
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
    views: str = "none",
) -> Score:
    """The score of the model's prediction on all examples, or of what `predict` makes of x, over
    the `views` of each; the model's mode is put back."""
    was_training = model.training
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=examples.device)
    with torch.no_grad(), execution.computing():
        for x, y in batches(examples, batch_size, dtype=execution.inputs, channels_last=execution.channels_last):
            logits = over_views(predict or model, x, views)
            total[0] += loss.value(logits, y).sum()
            total[1] += (logits.argmax(1) == y).sum()
            total[2] += (logits.topk(min(5, logits.shape[1]), 1).indices == y.unsqueeze(1)).sum()
    model.train(was_training)
    return Score(*(total / len(examples)).tolist())


def over_views(predict: Callable[[Tensor], Tensor], x: Tensor, views: str) -> Tensor:
    """Logits (N, K) of images x (N, C, H, W): the mean over views, see `Recipe.views`."""
    if views == "none":
        return predict(x)
    logits = (predict(x) + predict(x.flip(-1))) / 2
    if views == "flips":
        return logits
    height, width = x.shape[-2:]
    around = pad(x, 1, "reflect")
    shifted = (around[..., :height, :width], around[..., 2:, 2:])
    return logits / 2 + sum(over_views(predict, each, "flips") for each in shifted) / 4
