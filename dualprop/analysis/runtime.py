"""What an epoch of CIFAR-10 takes by each method on a network of its own, as Høier et al. (2023)
compare them.

Every network is also trained by its twin, a plain loop of back-propagation, and each method's step is timed in turns with that
loop's. Seconds per epoch are those of a step times 50,000 by the batch size, which is the same for all. Gradients are compared
on the batch of random numbers that is timed, at the initial weights; of a rule that keeps a state, feedback maps say, with the
one that the timed steps have left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualprop.analysis import benchmark, cost, steps
from dualprop.analysis.cost import Contender
from dualprop.analysis.relaxations import largest_angle
from dualprop.network import Network
from dualprop.rules import Backprop
from dualprop.training.recipe import Recipe

EXAMPLES = 50_000


@dataclass(frozen=True)
class Plan:
    """What is measured of every network; see `dualprop bench --help`."""

    rounds: int
    seconds: float
    with_memory: bool


def measure(
    twin: Recipe, methods: Mapping[str, Recipe], shape: tuple[int, ...], num_classes: int, plan: Plan
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for the plain loop of `twin`, one for the same again, and one for each method's recipe of the same network; and of
    the methods that can't run here, why not.

    A row is that of `steps.timed` with "seconds_per_epoch"; with "angle" and "angle_to_backprop" of a method (degrees, the
    largest over layers: to the gradient of what the rule predicts by, and to back-propagation's through the forward pass) and
    "by_equilibrium", whether those are two; and with memory as `steps.add_memory` has it.
    """
    entries = [Contender(label, recipe, rule=label) for label, recipe in methods.items()]
    able, refused = steps.ready([*benchmark.yardsticks(twin), *entries], shape, num_classes)
    rows = steps.timed(able, plan.rounds, plan.seconds)
    for row, entry in zip(rows, able, strict=True):
        row["seconds_per_epoch"] = row["milliseconds"] / 1e3 * EXAMPLES / entry.contender.recipe.batch_size
        if entry.contender.how == "rule":
            row["by_equilibrium"] = entry.contender.recipe.rule.predicts_by_equilibrium
            row |= _angles(entry, shape, num_classes)
    entries = [entry.contender for entry in able]
    del able  # weights and states of all
    if plan.with_memory:
        steps.add_memory(rows, entries, shape, num_classes, num_steps=1)
    return rows, refused


def _angles(entry: steps.Ready, shape: tuple[int, ...], num_classes: int) -> dict[str, float | None]:
    """The largest over layers, None where a gradient is zero."""
    rule, outcomes = entry.contender.recipe.rule, entry.step()
    assert isinstance(outcomes, list)
    model, x, y = entry.contender.problem(shape, num_classes, seed=0)
    network = Network.from_module(model)
    state = outcomes[-1].state if rule.keeps_state else None
    if entry.contender.recipe.reset_states:
        state = rule.at_new_batch(state)
    found = rule.gradients(network, x, y, state=state, generator=cost.generator()).gradients
    wanted = {
        "angle": rule.exact_gradients(network, x, y),
        "angle_to_backprop": Backprop(loss=rule.loss).exact_gradients(network, x, y),
    }
    angles = {name: largest_angle(network, found, exact) for name, exact in wanted.items()}
    return {name: None if math.isnan(angle) else angle for name, angle in angles.items()}


def told_seconds(seconds: float) -> str:
    """Three digits of it at least, "3.51" and "1,204"."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
