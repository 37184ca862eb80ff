"""`dualprop bench --table relaxations`: equilibrium propagation by several relaxations, cost and gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dualprop.analysis import benchmark, relaxations
from dualprop.analysis.cost import Contender
from dualprop.analysis.relaxations import Row
from dualprop.cli.bench import BenchOptions, Keep
from dualprop.errors import SettingError
from dualprop.losses import SquaredError
from dualprop.rules import Backprop, EquilibriumPropagation
from dualprop.training import execution, runs, trainer
from dualprop.training.recipe import Recipe

READS = {"models", "betas", "run", "data", "seconds"}

LEGEND = (
    "count, time: by those of a back-propagation step (Hopfield: of one through the forward pass). angle: the largest over "
    "layers, in degrees, to the gradient at the most settled state (Hopfield: to the implicit gradient there); to exact: to "
    "back-propagation (Hopfield: the implicit gradient). residual: what the last pass moved, by the displacement; ! unsettled. "
    "pairs: of error sweeps; even/odd × K: iterations of block updates. Hopfield: free and nudged iterations, or to a residual."
)


@dataclass(frozen=True)
class _Subject:
    """What is measured: its name, a recipe of its plain step, and a function that makes model, inputs and targets anew."""

    name: str
    base: Recipe
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]]
    is_hopfield: bool


def prepare(options: BenchOptions) -> Callable[[Console, Keep], None]:
    """Check the options that this table reads: models or run, betas, rounds, seconds, batch size, threads, device."""
    betas = benchmark.parse_betas(options.betas or "0.02,0.05")
    if options.run is not None:
        subjects = [_of_run(options, options.run)]
    else:
        subjects = [_of_model(options, name) for name in benchmark.parse_models(options.models)]

    def run(console: Console, keep: Keep) -> None:
        groups: list[dict[str, Any]] = []
        for subject in subjects:
            for beta in betas:
                rows, again = relaxations.compare(
                    subject.base, beta, subject.is_hopfield, subject.problem, options.rounds, options.seconds / len(betas)
                )
                groups.append(
                    {"model": subject.name, "beta": beta, "rows": [asdict(row) for row in rows], "noise": asdict(again)}
                )
                keep(groups)
                console.print(_table(subject.name, beta, options.batch_size, rows, again.ratio))
        console.print(LEGEND, highlight=False, soft_wrap=True)

    return run


def _of_model(options: BenchOptions, name: str) -> _Subject:
    base = benchmark.recipe(name, options.batch_size, options.device, options.threads, channels_last=options.channels_last)
    # The one model of a Hopfield network's activations, with the papers' loss.
    is_hopfield = getattr(base.model, "activation", "") == "hard_sigmoid"
    base = dataclasses.replace(base, rule=Backprop(loss=SquaredError())) if is_hopfield else base
    contender, shape = Contender(name, base), benchmark.MODELS[name].input_shape
    return _Subject(name, base, lambda: contender.problem(shape, benchmark.NUM_CLASSES, seed=0), is_hopfield)


def _of_run(options: BenchOptions, folder: Path) -> _Subject:
    """The run's network with the best weights of its first seed, and training examples without augmentation."""
    run = runs.load(folder)
    recipe, seed = run.recipe, run.seeds[0]
    if recipe.feedback != "exact":
        raise SettingError(f"{folder} has feedback weights, and equilibrium propagation knows none. Give another --run.")
    base = dataclasses.replace(
        recipe, rule=Backprop(loss=recipe.rule.loss), optimizer=benchmark.RESTING, batch_size=options.batch_size,
        updates_per_batch=1, reset_states=False, device=options.device, num_threads=options.threads,
        channels_last=options.channels_last, capture="off",  # type: ignore[arg-type]
    )  # fmt: skip
    splits = runs.load_data(base, seed, options.data)
    how = execution.resolve(base)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[: options.batch_size]
    x, y = splits.train.batch(order, how.inputs, channels_last=how.channels_last)

    def problem() -> tuple[nn.Module, Tensor, Tensor]:
        model = trainer.initial_model(base, seed, splits)
        trainer.restore_best(model, recipe, seed, run.seed_folder(seed))
        return model, x, y

    problem()  # a damaged checkpoint is told before anything is measured
    is_hopfield = isinstance(recipe.rule, EquilibriumPropagation) and str(recipe.rule.energy) == "hopfield"
    return _Subject(recipe.name, base, problem, is_hopfield)


def _table(name: str, beta: float, batch_size: int, rows: list[Row], noise: float) -> Table:
    title = f"{name}, β = {beta:g}, batch {batch_size}; the plain loop again: {noise:.3f}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("relaxation", no_wrap=True)
    for heading in ("count", "time", "passes", "angle", "to exact", "residual"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    timing = row.timing
    return [
        row.label + ("" if row.is_settled else " !"),
        f"{row.work:.2f}",
        "" if timing is None else f"{timing.ratio:.2f}",
        str(row.passes),
        f"{row.angle:.2f}°",
        f"{row.angle_to_exact:.2f}°",
        "" if row.residual is None else f"{row.residual:.2g}",
    ]
