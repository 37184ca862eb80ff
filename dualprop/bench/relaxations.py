"""The table of relaxations: equilibrium propagation by several, on the same weights and batch.

What does each cost, and how good is its gradient? Predictive coding networks: pairs of error
sweeps against K even/odd iterations, the published scheme, whose state after many is the yardstick;
and against back-propagation. Hopfield networks: fixed numbers of iterations against stopping by
residual; the yardstick is the implicit gradient at a free equilibrium. Work is in back-propagation
steps, by count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from dualprop.bench import contenders, models, timing
from dualprop.bench.contenders import Contender
from dualprop.bench.options import BenchOptions, Group, Keep, Measure, parse_betas
from dualprop.bench.rows import largest_angle
from dualprop.bench.showing import new_table, say
from dualprop.bench.timing import Timing
from dualprop.errors import SettingError
from dualprop.losses import SquaredError
from dualprop.network import Network
from dualprop.rules import Backprop, EquilibriumPropagation, Outcome
from dualprop.training import execution, runs, weights
from dualprop.training.recipe import Recipe

READS = {"models", "betas", "run", "data", "seconds"}
LEGEND = (
    "count, time: by those of a back-propagation step (Hopfield: of one through the forward pass). angle: the largest over "
    "layers, in degrees, to the gradient at the most settled state (Hopfield: to the implicit gradient there); to exact: to "
    "back-propagation (Hopfield: the implicit gradient). residual: what the last pass moved, by the displacement; ! unsettled. "
    "pairs: of error sweeps; even/odd × K: iterations of block updates. Hopfield: free and nudged iterations, or to a residual."
)
# Iterations after which the papers' states are as settled as they will be.
SETTLED = 60
PUBLISHED = (5, 10)
PREDICTIVE: dict[str, dict[str, Any]] = {
    "1 pair": {},
    "2 pairs": {"relaxation": "error_sweeps(2)"},
    "1 pair, random sign": {"estimator": "random_sign"},
    **{f"even/odd × {n}": {"relaxation": f"blocks(even_odd({n}))"} for n in (*PUBLISHED, SETTLED)},
}
_LONG = {"free_schedule": "odd_even(250)", "relaxation": "blocks(odd_even(60))"}
HOPFIELD: dict[str, dict[str, Any]] = {
    "250 and 60": _LONG,
    "60 and 15": {"free_schedule": "odd_even(60)", "relaxation": "blocks(odd_even(15))"},
    **{f"to {tolerance:g}": {**_LONG, "tolerance": tolerance} for tolerance in (1e-3, 1e-2, 1e-1)},
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


@dataclass(frozen=True)
class _Subject:
    """What is measured: its plain step's recipe, and what makes model, inputs and targets anew."""

    name: str
    base: Recipe
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    is_hopfield: bool


def prepare(options: BenchOptions) -> Measure:
    """Check the options that this table reads: models or run, betas, rounds, seconds, …"""
    betas = parse_betas(options.betas or "0.02,0.05")
    if options.run is not None:
        subjects = [_of_run(options, options.run)]
    else:
        subjects = [_of_model(options, name) for name in models.parse_models(options.models)]

    def measure(keep: Keep) -> Iterator[Group]:
        groups: list[Group] = []
        for subject in subjects:
            for beta in betas:
                rows, again = compare(
                    subject.base, beta, subject.is_hopfield, subject.problem, options.rounds, options.seconds / len(betas)
                )
                groups.append(
                    {"model": subject.name, "beta": beta, "rows": [asdict(row) for row in rows], "noise": asdict(again)}
                )
                keep(groups)
                yield groups[-1]

    return measure


def show_group(group: Group, results: dict[str, Any], console: Console) -> None:
    """One network at one β."""
    setting = f"β = {group['beta']:g}, batch {results['options']['batch_size']}"
    title = f"{group['model']}, {setting}; the plain loop again: {group['noise']['ratio']:.3f}"
    table = new_table(title, "relaxation", ("count", "time", "passes", "angle", "to exact", "residual"))
    for row in group["rows"]:
        table.add_row(*_cells(row))
    console.print(table)


def show_end(results: dict[str, Any], console: Console) -> None:
    """What the columns mean."""
    say(console, LEGEND)


def _cells(row: dict[str, Any]) -> list[str]:
    timing = row["timing"]
    return [
        row["label"] + ("" if row["is_settled"] else " !"),
        f"{row['work']:.2f}",
        "" if timing is None else f"{timing['ratio']:.2f}",
        str(row["passes"]),
        _degrees(row["angle"]),
        _degrees(row["angle_to_exact"]),
        "" if row["residual"] is None else f"{row['residual']:.2g}",
    ]


def _degrees(angle: float | None) -> str:
    """An angle that is none is nan, and None once it was written to a file."""
    return "nan°" if angle is None else f"{angle:.2f}°"


def _of_model(options: BenchOptions, name: str) -> _Subject:
    base = models.recipe_by(options, name)
    # The one model of a Hopfield network's activations, with the papers' loss.
    is_hopfield = getattr(base.model, "activation", "") == "hard_sigmoid"
    base = dataclasses.replace(base, rule=Backprop(loss=SquaredError())) if is_hopfield else base
    contender, shape = Contender(name, base), models.MODELS[name].input_shape
    return _Subject(name, base, lambda: contender.problem(shape, models.NUM_CLASSES, seed=0), is_hopfield)


def _of_run(options: BenchOptions, folder: Path) -> _Subject:
    """A run's network, the best weights of its first seed, and training examples as they are."""
    run = runs.load(folder)
    recipe, seed = run.recipe, run.seeds[0]
    if recipe.feedback != "exact":
        raise SettingError(f"{folder} has feedback weights, and equilibrium propagation knows none. Give another --run.")
    base = dataclasses.replace(
        recipe, rule=Backprop(loss=recipe.rule.loss), optimizer=models.RESTING, batch_size=options.batch_size,
        updates_per_batch=1, reset_states=False, device=options.device, num_threads=options.threads,
        channels_last=options.channels_last, capture="off",  # type: ignore[arg-type]
    )  # fmt: skip
    splits = runs.load_data(base, seed, options.data)
    how = execution.resolve(base)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[: options.batch_size]
    x, y = splits.train.batch(order, how.inputs, channels_last=how.channels_last)

    def problem() -> tuple[nn.Module, Tensor, Tensor]:
        model = weights.initial_model(base, seed, splits)
        weights.restore_best(model, recipe, seed, run.seed_folder(seed))
        return model, x, y

    problem()  # a damaged checkpoint is told before anything is measured
    is_hopfield = isinstance(recipe.rule, EquilibriumPropagation) and str(recipe.rule.energy) == "hopfield"
    return _Subject(recipe.name, base, problem, is_hopfield)


def compare(
    base: Recipe,
    beta: float,
    is_hopfield: bool,
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]],
    rounds: int,
    seconds: float,
) -> tuple[list[Row], Timing]:
    """A row for each relaxation, timed in turns with a plain loop; and the plain loop, taken again.

    `problem` makes the model, inputs (N, …) and targets (N,) anew at each call, the same each time:
    every contender trains a model of its own. A Hopfield network's nudge is exact where the loss
    has an exact one at any strength, squared error.
    """
    loss = base.rule.loss
    common: dict[str, Any] = {"beta": beta, "loss": loss}
    if is_hopfield:
        common |= {"energy": "hopfield", "output_nudge": "exact" if isinstance(loss, SquaredError) else "linearized"}
    settings = HOPFIELD if is_hopfield else PREDICTIVE
    entries = {
        label: Contender(label, dataclasses.replace(base, rule=EquilibriumPropagation(**common, **changes)))
        for label, changes in settings.items()
    }
    model, x, y = problem()
    network, generator = Network.from_module(model), contenders.generator()
    outcomes: dict[str, Outcome] = {
        label: entry.recipe.rule.gradients(network, x, y, generator=generator) for label, entry in entries.items()
    }
    yardstick = f"even/odd × {SETTLED}"
    settled = next(iter(entries.values())).recipe.rule
    exact = settled.exact_gradients(network, x, y)
    reference = exact if is_hopfield else outcomes[yardstick].gradients
    steps = {entry.label: entry for entry in contenders.yardsticks(base)}
    steps |= {label: entry for label, entry in entries.items() if label not in UNTIMED}
    timings = timing.interleaved({label: entry.step_on(*problem()) for label, entry in steps.items()}, rounds, seconds=seconds)
    whole = sum(network.counts_of_backprop().values())
    rows = [
        Row(
            beta=beta,
            label=label,
            work=sum(contenders.counts([outcome]).values()) / whole,
            passes=int(outcome.diagnostics["passes"]),
            angle=largest_angle(network, outcome.gradients, reference),
            angle_to_exact=largest_angle(network, outcome.gradients, exact),
            residual=outcome.diagnostics.get("residual"),
            is_settled=outcome.status.ok,
            timing=timings.get(label),
        )
        for label, outcome in outcomes.items()
    ]
    return rows, timings[timing.PLAIN_AGAIN]
