"""One training step: inference and update, as often per batch as the recipe says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualprop.network import Network
from dualprop.rules import Outcome
from dualprop.training.recipe import Recipe


def training_step(
    recipe: Recipe,
    network: Network,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    state: Any,
    generator: torch.Generator | None,
) -> tuple[list[Outcome], Any]:
    """The outcome of each update on this batch, and the rule's state for the next batch.

    The state is None where the rule keeps none. Where it keeps states, each update but the first
    starts from those of the one before (MS-DP).
    """
    state = recipe.rule.at_new_batch(state) if recipe.reset_states else state
    outcomes: list[Outcome] = []
    for _ in range(recipe.updates_per_batch):
        optimizer.zero_grad()
        outcomes.append(recipe.rule.backward(network, x, y, state=state, generator=generator))
        optimizer.step()
        state = outcomes[-1].state if recipe.rule.keeps_state else None
    return outcomes, recipe.rule.at_new_batch(state) if recipe.reset_states else state
