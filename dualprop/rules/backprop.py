"""Back-propagation (BP), the twin that every other rule is held against: autograd through the same network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualprop import losses
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_targets


@dataclass(frozen=True, kw_only=True)
class Backprop(AbstractRule):
    """The exact gradient of the mean loss. Costs one drive and one gradient a layer and L-1 feedbacks."""

    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", losses.from_name(self.loss))

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """The gradients of the mean loss. `state` and `generator` are not used."""
        y = check_batch(x, y)
        check_output(network, self.loss)
        parameters = network.parameters
        with torch.enable_grad():
            logits = network.forward(x)
            check_targets(y, logits)
            loss = self.loss.value(logits, y).mean()
            # A parameter that no output depends on gets a zero, as every rule gives it.
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return Outcome(
            gradients=dict(zip(parameters, found, strict=True)),
            loss=loss.detach(),
            logits=logits.detach(),
            diagnostics=dict(network.counts_of_backprop),
        )
