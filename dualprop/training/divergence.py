"""When a run has diverged: its numbers are not finite, or they are and have left their scale.

    loss > 100 × scale after an epoch, and no more than twice as many are right as by guessing
    loss > 10¹² × scale
    |any weight, buffer or kept state| > 10⁸

The loss is the training part's, its mean over the epoch so far, or the validation part's. The
scale is the larger of the validation loss before training and that of the prediction 0. A network
can learn at a loss far off its scale, since only the order of its outputs counts. Direct feedback
alignment does: 94 % on MNIST at a loss of 10⁷. Such a run goes on, and its result says so. At 10⁸ a
float32 no longer holds an update of 1.

All that is compared is in the checkpoint or made of it, so that a resume sees the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dualprop.losses import AbstractLoss
from dualprop.rules import Outcome

FAR, FARTHEST = 100.0, 1e12
LARGEST = 1e8


def loss_scale(loss: AbstractLoss, y: Tensor, num_classes: int, before_training: float) -> float:
    """The larger of the loss before training, where it is finite, and that of the prediction 0 of
    the classes `y` (N,)."""
    nothing = torch.zeros(len(y), num_classes, dtype=torch.float64, device=y.device)
    of_nothing = float(loss.value(nothing, y).mean())
    return max(of_nothing, before_training) if math.isfinite(before_training) else of_nothing


def off_scale(which: str, loss: float, scale: float) -> str:
    """What is wrong with the loss, the "training" one say; empty where it is on its scale."""
    if not math.isfinite(loss):
        return f"the {which} loss was not finite"
    return f"the {which} loss is {loss:.3g}, and was or would be {scale:.3g} by guessing" if loss > FAR * scale else ""


def of_loss(which: str, loss: float, scale: float, learns: bool, remedy: str) -> str:
    """Why this loss is a divergence, of a network that `learns` or does not; empty where it is
    none."""
    told = off_scale(which, loss, scale)
    # What is not a number is not below any.
    return f"{told}. {remedy}" if told and not (learns and loss <= FARTHEST * scale) else ""


def of_epoch(losses: Mapping[str, float], scale: float, learns: bool, remedy: str) -> tuple[str, str]:
    """Why an epoch's losses, by name, are a divergence, and what is wrong with them if not; empty
    where they are on their scale."""
    reasons = (of_loss(which, loss, scale, learns, remedy) for which, loss in losses.items())
    told = (off_scale(which, loss, scale) for which, loss in losses.items())
    return next(filter(None, reasons), ""), next(filter(None, told), "")


def of_numbers(outcome: Outcome, model: nn.Module, state: Iterable[Tensor]) -> str:
    """Why the numbers of a step, the model's and those of a rule's kept state are a divergence;
    empty where they are none. Waits for the device."""
    if not outcome.status.is_finite:
        return outcome.status.message
    for what, tensors in (("a weight", model.state_dict().values()), ("a state of the inference", state)):
        # What is not a number is not below any.
        if not (largest := _largest(tensors)) <= LARGEST:
            return f"{what} has reached {largest:.3g}. {outcome.remedy}"
    return ""


def _largest(tensors: Iterable[Tensor]) -> float:
    """The largest magnitude in the tensors of numbers; nan where one is not a number. Waits
    once."""
    numbers = [tensor for tensor in tensors if (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel()]
    return float(nn.utils.get_total_norm(numbers, math.inf)) if numbers else 0.0
