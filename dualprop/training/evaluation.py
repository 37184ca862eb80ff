"""Loss and scores of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dualprop.data import Examples, Task, batches
from dualprop.data.augmentation import pad
from dualprop.losses import AbstractLoss
from dualprop.training import scoring
from dualprop.training.execution import Execution
from dualprop.training.scoring import Score


def evaluate(
    model: nn.Module,
    examples: Examples,
    loss: AbstractLoss,
    execution: Execution,
    task: Task,
    batch_size: int = 1000,
    predict: Callable[[Tensor], Tensor] | None = None,
    views: str = "none",
) -> Score:
    """The score of the model's prediction on all examples, or of what `predict` makes of x, over
    the `views` of each; the model's mode is put back."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=examples.device)
    tally = scoring.tally(task, examples.device)
    with torch.no_grad(), execution.computing():
        for x, y in batches(examples, batch_size, dtype=execution.inputs, channels_last=execution.channels_last):
            logits = over_views(predict or model, x, views)
            total += loss.value(logits, y).sum()
            tally.add(logits, y)
    model.train(was_training)
    return Score(loss=float(total / len(examples)), **tally.scores())


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
