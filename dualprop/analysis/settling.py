"""DP⊤ at α ∈ {0, 1} by L bottom-up passes, as the papers run it, and by one downward sweep: the same gradients, at what cost?

Its mean is the forward pass, so errors alone move: pass p brings them to layer L+1-p, and what one downward sweep leaves is the
fixed point already. (At other α the means move too, and L passes bring them nearer to theirs.) Work in back-propagation steps:
drives, feedbacks and gradients by 3L - 1, the number of those of a back-propagation step. With nothing reused, L passes take

    (L + L (2L - 1) + L) / (3L - 1)

a prediction, in each pass a drive per layer and a feedback per hidden layer, and the gradients: 11.2 for L = 16.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from dualprop import schedules
from dualprop.analysis import cost
from dualprop.analysis.cost import Contender, Timing
from dualprop.network import Network
from dualprop.rules import DualPropagation
from dualprop.training import execution
from dualprop.training.recipe import Recipe

# Of the machine epsilon: what the order of a sum may change.
ROUNDINGS = 100
SWEEP = "one downward sweep"


@dataclass(frozen=True)
class Settling:
    """One network at one α.

    Attributes:
        passes: L, of the bottom-up schedule.
        difference: of the gradients by passes from those by one sweep, the largest over parameters of max |·| by max |·|.
        is_rounding: whether that is at most ROUNDINGS machine epsilons.
        sweep, by_passes, without_reuse: work in back-propagation steps, by count.
        timing: of the passes, its ratio to the one sweep of the same round.
        noise: of a second sweep, the same.
    """

    alpha: float
    passes: int
    difference: float
    is_rounding: bool
    sweep: float
    by_passes: float
    without_reuse: float
    timing: Timing
    noise: Timing


def compare(
    base: Recipe, alpha: float, input_shape: tuple[int, ...], num_classes: int, rounds: int, seconds: float
) -> Settling:
    """Both schedules on the same weights and batch, then interleaved as training steps."""
    depth, how = base.model.depth, execution.resolve(base)
    found: dict[str, tuple[dict[str, Tensor], float]] = {}
    steps = {}
    for name, schedule in ((SWEEP, schedules.alternating_sweeps(1)), ("passes", schedules.bottom_up(depth))):
        # Explicit in both: the engine "auto" knows the claim, and takes the same sweep for either.
        rule = DualPropagation(loss=base.rule.loss, coupling="transposed", alpha=alpha, schedule=schedule, engine="explicit")
        contender = Contender(name, dataclasses.replace(base, rule=rule))
        model, x, y = contender.problem(input_shape, num_classes, seed=0)
        with how.computing():
            outcome = rule.gradients(Network.from_module(model), x, y)
        found[name] = outcome.gradients, sum(cost.counts([outcome]).values()) / (3 * depth - 1)
        steps[name] = contender.step(input_shape, num_classes)
        if name == SWEEP:
            steps["again"] = contender.step(input_shape, num_classes)
    timings = cost.interleaved(steps, rounds, seconds=seconds, baseline=SWEEP)
    (one, sweep), (many, by_passes) = found[SWEEP], found["passes"]
    difference = max(relative_difference(many[name], one[name]) for name in one)
    epsilon = torch.finfo(next(iter(one.values())).dtype).eps
    return Settling(
        alpha=alpha,
        passes=depth,
        difference=difference,
        is_rounding=difference <= ROUNDINGS * epsilon,
        sweep=sweep,
        by_passes=by_passes,
        without_reuse=(2 * depth + depth * (2 * depth - 1)) / (3 * depth - 1),
        timing=timings["passes"],
        noise=timings["again"],
    )


def relative_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| by max |b|; 0 where both are zero."""
    largest, apart = float(b.abs().max()), float((a - b).abs().max())
    return apart / largest if largest else (float("inf") if apart else 0.0)
