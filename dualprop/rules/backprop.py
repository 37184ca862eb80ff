"""Back-propagation (BP) by autograd: the twin that every other rule is held against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.rules.base import AbstractRule
from dualprop.rules.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Backprop(AbstractRule[Tensor]):
    """The exact gradient of the mean loss. A step costs L drives, L gradients and L-1 feedbacks."""

    loss: AbstractLoss = CrossEntropy()

    precision = "any"
    reads_layers = False

    def inference(self, problem: Problem) -> Tensor:
        """The mean loss of the forward pass."""
        return problem.mean_loss(problem.network.forward)

    def gradients_at(self, problem: Problem, settled: Tensor) -> dict[str, Tensor]:
        """By the chain rule."""
        return problem.gradients_of(settled)
