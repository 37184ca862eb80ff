"""One training step: inference and update, as often per batch as the recipe says."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualprop.models import OwnModel
from dualprop.network import Network
from dualprop.network.running import unnoticed
from dualprop.rules import Outcome
from dualprop.training.recipe import Recipe


@contextlib.contextmanager
def drawing(recipe: Recipe, seed: int, number: int) -> Iterator[None]:
    """Inside, a model of the user's own draws (dropout, say) what that step of that seed draws,
    however often the run is resumed."""
    if not isinstance(recipe.model, OwnModel):
        yield
        return
    with unnoticed(None, torch.empty(0, device=recipe.device)):
        drawn = seed + 2**32 * number
        torch.manual_seed(drawn)
        random.seed(drawn)
        np.random.seed((seed + number) % 2**32)  # noqa: NPY002 - its global generator is what a model may draw from
        yield


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
