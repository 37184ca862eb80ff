"""What a training run records of its rule after each epoch, on one batch at the present weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dualprop import feedback
from dualprop.alignment import alignment
from dualprop.network import Network
from dualprop.rules import AbstractRule


def of_rule(
    network: Network, rule: AbstractRule, x: Tensor, y: Tensor, state: Any, seed: int, updates: int = 1
) -> dict[str, Any]:
    """What the rule does on this batch, as plain values.

    "alignment" holds cosine, norm ratio and angle to back-propagation per layer, of a batch's
    `updates` together; "weight_alignment" those of feedback and forward weights, where the model
    has the former; "inference" the rule's own statistics, where it infers states. `seed` draws what
    the rule draws, the same each time.
    """

    def generator() -> torch.Generator | None:
        return torch.Generator().manual_seed(seed) if rule.needs_generator else None

    assert network.module is not None
    inference = rule.statistics(network, x, y, state=state, generator=generator())
    gradients = alignment(network, rule, x, y, state, generator(), updates)
    weights = feedback.alignment(network.module)
    return {
        "alignment": [{**asdict(layer), "angle": layer.angle} for layer in gradients],
        **({"weight_alignment": [{**asdict(layer), "angle": layer.angle} for layer in weights]} if weights else {}),
        **({"inference": inference} if inference else {}),
    }
