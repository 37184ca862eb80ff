"""The table of settling: DP⊤ by L bottom-up passes, as the papers run it, and by one sweep down.

At α ∈ {0, 1} its mean is the forward pass, so errors alone move: pass p brings them to layer
L+1-p, and what one downward sweep leaves is the fixed point already. (At other α the means move
too, and L passes bring them nearer to theirs.) The same gradients, at what cost? Work is in
back-propagation steps: drives, feedbacks and gradients by 3L - 1, the number of those of a
back-propagation step. With nothing reused, L passes take

    (L + L (2L - 1) + L) / (3L - 1)

a prediction, in each pass a drive per layer and a feedback per hidden layer, and the gradients:
11.2 for L = 16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dualprop import schedules
from dualprop.bench import contenders, models, timing
from dualprop.bench.contenders import Contender
from dualprop.bench.options import BenchOptions, Group, Keep, Measure, parse_alphas
from dualprop.bench.showing import new_table, say
from dualprop.bench.timing import Timing
from dualprop.network import Network
from dualprop.rules import DualPropagation
from dualprop.training import execution
from dualprop.training.recipe import Recipe

# Of the machine epsilon: what the order of a sum may change.
ROUNDINGS = 100
SWEEP = "one downward sweep"
READS = {"models", "alphas", "seconds"}
LEGEND = (
    "difference: of the gradients, the largest by the largest entry of its parameter (✓ rounding, ≠ more). sweep, passes: work "
    "in back-propagation steps, by count; no reuse: the passes' if nothing were kept for the next. time: the passes' by the "
    "sweep's; noise: the sweep's own, taken again."
)


@dataclass(frozen=True)
class Settling:
    """One network at one α.

    Attributes:
        passes: L, of the bottom-up schedule.
        difference: of the gradients by passes from those by one sweep, the largest over parameters
            of max |·| by max |·|.
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


def prepare(options: BenchOptions) -> Measure:
    """Check the options that this table reads: models, alphas, rounds, seconds, batch size, …"""
    names = models.parse_models(options.models)
    alphas = parse_alphas(options.alphas or "0,1")

    def measure(keep: Keep) -> Iterator[Group]:
        groups: list[Group] = []
        for name in names:
            base, shape = models.recipe_by(options, name), models.MODELS[name].input_shape
            for alpha in alphas:
                seconds = options.seconds / len(alphas)
                settling = compare(base, alpha, shape, models.NUM_CLASSES, options.rounds, seconds)
                groups.append({"model": name, **asdict(settling)})
                keep(groups)
                yield groups[-1]

    return measure


def show_group(group: Group, results: dict[str, Any], console: Console) -> None:
    """Nothing is shown of one alone."""


def show_end(results: dict[str, Any], console: Console) -> None:
    """One table of all."""
    title = f"DP⊤ by L bottom-up passes against one downward sweep, batch {results['options']['batch_size']}"
    headings = ("α", "L", "difference", "sweep", "passes", "no reuse", "time", "quartiles", "noise")
    table = new_table(title, "model", headings)
    for group in results["groups"]:
        table.add_row(*_cells(group))
    console.print(table)
    say(console, LEGEND)


def _cells(group: Group) -> list[str]:
    timing = group["timing"]
    return [
        group["model"],
        f"{group['alpha']:g}",
        str(group["passes"]),
        f"{group['difference']:.1e} {'✓' if group['is_rounding'] else '≠'}",
        f"{group['sweep']:.2f}",
        f"{group['by_passes']:.2f}",
        f"{group['without_reuse']:.2f}",
        f"{timing['ratio']:.3f}",
        f"{timing['lower_quartile']:.2f}–{timing['upper_quartile']:.2f}",
        f"{group['noise']['ratio']:.3f}",
    ]


def compare(
    base: Recipe, alpha: float, input_shape: tuple[int, ...], num_classes: int, rounds: int, seconds: float
) -> Settling:
    """Both schedules on the same weights and batch, then interleaved as training steps."""
    depth, how = base.known_depth, execution.resolve(base)
    gradients: dict[str, dict[str, Tensor]] = {}
    work: dict[str, float] = {}
    steps = {}
    for name, schedule in ((SWEEP, schedules.alternating_sweeps(1)), ("passes", schedules.bottom_up(depth))):
        # Explicit in both: the engine "auto" knows the claim, and takes the same sweep for either.
        rule = DualPropagation(loss=base.rule.loss, coupling="transposed", alpha=alpha, schedule=schedule, engine="explicit")
        contender = Contender(name, dataclasses.replace(base, rule=rule))
        model, x, y = contender.problem(input_shape, num_classes, seed=0)
        with how.computing():
            outcome = rule.gradients(Network.from_module(model), x, y)
        gradients[name] = outcome.gradients
        work[name] = sum(contenders.counts([outcome]).values()) / (3 * depth - 1)
        steps[name] = contender.step(input_shape, num_classes)
        if name == SWEEP:
            steps["again"] = contender.step(input_shape, num_classes)
    timings = timing.interleaved(steps, rounds, seconds=seconds, baseline=SWEEP)
    one, many = gradients[SWEEP], gradients["passes"]
    difference = max(relative_difference(many[name], one[name]) for name in one)
    epsilon = torch.finfo(next(iter(one.values())).dtype).eps
    return Settling(
        alpha=alpha,
        passes=depth,
        difference=difference,
        is_rounding=difference <= ROUNDINGS * epsilon,
        sweep=work[SWEEP],
        by_passes=work["passes"],
        without_reuse=(2 * depth + depth * (2 * depth - 1)) / (3 * depth - 1),
        timing=timings["passes"],
        noise=timings["again"],
    )


def relative_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| by max |b|; 0 where both are zero."""
    largest, apart = float(b.abs().max()), float((a - b).abs().max())
    return apart / largest if largest else (float("inf") if apart else 0.0)
