"""Equilibrium propagation by several relaxations on the same weights and batch: what each costs, and how good its gradient is.

Predictive coding networks: pairs of error sweeps against K even/odd iterations, the published scheme, whose state after many is
the yardstick; and against back-propagation. Hopfield networks: fixed numbers of iterations against stopping by residual; the
yardstick is the implicit gradient at a free equilibrium. Work in back-propagation steps, by count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dualprop.alignment import angle_between
from dualprop.analysis import cost
from dualprop.analysis.cost import Contender, Timing
from dualprop.losses import SquaredError
from dualprop.network import Network
from dualprop.rules import EquilibriumPropagation, Outcome
from dualprop.training.recipe import Recipe

# Iterations after which the papers' states are as settled as they will be.
SETTLED = 60
PUBLISHED = (5, 10)
PREDICTIVE: dict[str, dict[str, Any]] = {
    "1 pair": {},
    "2 pairs": {"pairs": 2},
    "1 pair, random sign": {"estimator": "random_sign"},
    **{f"even/odd × {n}": {"relaxation": "blocks", "schedule": f"even_odd({n})"} for n in (*PUBLISHED, SETTLED)},
}
_FREE, _NUDGED = "odd_even(250)", "odd_even(60)"
HOPFIELD: dict[str, dict[str, Any]] = {
    "250 and 60": {"free_schedule": _FREE, "schedule": _NUDGED},
    "60 and 15": {"free_schedule": "odd_even(60)", "schedule": "odd_even(15)"},
    **{
        f"to {tolerance:g}": {"free_schedule": _FREE, "schedule": _NUDGED, "tolerance": tolerance}
        for tolerance in (1e-3, 1e-2, 1e-1)
    },
}
# What is not timed with the others: a step of it takes a minute.
UNTIMED = (f"even/odd × {SETTLED}", "250 and 60")


@dataclass(frozen=True)
class Row:
    """One relaxation at one β.

    Attributes:
        work: drives, feedbacks and gradients, by those of a back-propagation step.
        passes: of all phases together.
        angle: to the yardstick's gradient, degrees; the largest over layers.
        angle_to_exact: to what the rule estimates, `rule.exact_gradients`.
        residual: what the last pass moved, by the displacement; None where it was not measured.
        is_settled: whether the status says so.
        timing: its ratio to a plain back-propagation step; None where it was not timed.
    """

    beta: float
    label: str
    work: float
    passes: int
    angle: float
    angle_to_exact: float
    residual: float | None
    is_settled: bool
    timing: Timing | None = None


def compare(
    base: Recipe,
    beta: float,
    is_hopfield: bool,
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]],
    rounds: int,
    seconds: float,
) -> tuple[list[Row], Timing]:
    """A row for each relaxation, timed in turns with a plain loop; and the plain loop, taken again.

    `problem` makes the model, inputs (N, …) and targets (N,) anew at each call, the same each time: every contender trains its
    own. A Hopfield network's nudge is exact where the loss has an exact one at any strength, squared error.
    """
    loss = base.rule.loss
    common: dict[str, Any] = {"beta": beta, "loss": loss}
    if is_hopfield:
        common |= {"energy": "hopfield", "output_nudge": "exact" if isinstance(loss, SquaredError) else "linearized"}
    settings = HOPFIELD if is_hopfield else PREDICTIVE
    contenders = {
        label: Contender(label, dataclasses.replace(base, rule=EquilibriumPropagation(**common, **own)))
        for label, own in settings.items()
    }
    model, x, y = problem()
    network, generator = Network.from_module(model), cost.generator()
    found: dict[str, Outcome] = {
        label: contender.recipe.rule.gradients(network, x, y, generator=generator) for label, contender in contenders.items()
    }
    yardstick = f"even/odd × {SETTLED}"
    settled = next(iter(contenders.values())).recipe.rule
    exact = settled.exact_gradients(network, x, y)
    reference = exact if is_hopfield else found[yardstick].gradients
    steps = {
        cost.PLAIN: Contender(cost.PLAIN, base, how="plain"),
        cost.PLAIN_AGAIN: Contender(cost.PLAIN_AGAIN, base, how="plain"),
    }
    steps |= {label: contender for label, contender in contenders.items() if label not in UNTIMED}
    timings = cost.interleaved(
        {label: contender.step_on(*problem()) for label, contender in steps.items()}, rounds, seconds=seconds
    )
    whole = sum(network.counts_of_backprop.values())
    rows = [
        Row(
            beta=beta,
            label=label,
            work=sum(cost.counts([outcome]).values()) / whole,
            passes=int(outcome.diagnostics["passes"]),
            angle=largest_angle(network, outcome.gradients, reference),
            angle_to_exact=largest_angle(network, outcome.gradients, exact),
            residual=outcome.diagnostics.get("residual"),
            is_settled=outcome.status.ok,
            timing=timings.get(label),
        )
        for label, outcome in found.items()
    ]
    return rows, timings[cost.PLAIN_AGAIN]


def largest_angle(network: Network, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Over the layers with parameters, in degrees, each layer's as one vector; nan where a gradient is zero."""
    angles = [
        angle_between([found[n] for n in layer.parameters], [wanted[n] for n in layer.parameters])
        for layer in network.layers
        if layer.parameters
    ]
    return math.nan if any(math.isnan(angle) for angle in angles) else max(angles)
