"""`dualprop bench --table relaxations`: equilibrium propagation by several relaxations, cost and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop.analysis import benchmark, relaxations
from dualprop.analysis.relaxations import Row
from dualprop.cli.bench import BenchOptions, Keep

LEGEND = (
    "count, time: by those of a back-propagation step (Hopfield: of one through the forward pass). angle: the largest over "
    "layers, in degrees, to the gradient at the most settled state (Hopfield: to the implicit gradient there); to exact: to "
    "back-propagation (Hopfield: the implicit gradient). residual: what the last pass moved, by the displacement; ! unsettled. "
    "pairs: of error sweeps; even/odd × K: iterations of block updates. Hopfield: free and nudged iterations, or to a residual."
)


def prepare(options: BenchOptions) -> Callable[[Console, Keep], None]:
    """Check the options that this table reads: models, betas, rounds, seconds, batch size, threads, device."""
    names = benchmark.parse_models(options.models)
    betas = benchmark.parse_betas(options.betas or "0.02,0.05")

    def run(console: Console, keep: Keep) -> None:
        groups: list[dict[str, Any]] = []
        for name in names:
            base = benchmark.recipe(
                name, options.batch_size, options.device, options.threads, channels_last=options.channels_last
            )
            shape = benchmark.MODELS[name].input_shape
            for beta in betas:
                rows, again = relaxations.compare(
                    base, beta, shape, benchmark.NUM_CLASSES, options.rounds, options.seconds / len(betas)
                )
                groups.append({"model": name, "beta": beta, "rows": [asdict(row) for row in rows], "noise": asdict(again)})
                keep(groups)
                console.print(_table(name, beta, options.batch_size, rows, again.ratio))
        console.print(LEGEND, highlight=False, soft_wrap=True)

    return run


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
