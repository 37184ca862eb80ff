"""What a training run records of its rule after each epoch, on one batch at the present weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dualprop.analysis.alignment import alignment
from dualprop.network import Network
from dualprop.rules import AbstractRule


def of_rule(network: Network, rule: AbstractRule, x: Tensor, y: Tensor, state: Any, seed: int) -> dict[str, Any]:
    """ "alignment": cosine, norm ratio and angle to back-propagation per layer; and the rule's own statistics.

    `seed` draws what the rule draws, the same each time.
    """

    def generator() -> torch.Generator | None:
        return torch.Generator().manual_seed(seed) if rule.needs_generator else None

    aligned = alignment(network, rule, x, y, state, generator())
    return {
        "alignment": [{**asdict(layer), "angle": layer.angle} for layer in aligned],
        **rule.statistics(network, x, y, state=state, generator=generator()),
    }
