"""`dualprop bench --table settling`: DP⊤ by L bottom-up passes and by one downward sweep, gradients and cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop.analysis import benchmark, settling
from dualprop.analysis.settling import Settling
from dualprop.cli.bench import BenchOptions, Keep

LEGEND = (
    "difference: of the gradients, the largest by the largest entry of its parameter (✓ rounding, ≠ more). sweep, passes: work "
    "in back-propagation steps, by count; no reuse: the passes' if nothing were kept for the next. time: the passes' by the "
    "sweep's; noise: the sweep's own, taken again."
)

READS = {"models", "alphas", "seconds"}


def prepare(options: BenchOptions) -> Callable[[Console, Keep], None]:
    """Check the options that this table reads: models, alphas, rounds, seconds, batch size, threads, device."""
    names = benchmark.parse_models(options.models)
    alphas = benchmark.parse_alphas(options.alphas or "0,1")

    def run(console: Console, keep: Keep) -> None:
        groups: list[dict[str, Any]] = []
        table = _table(options.batch_size)
        for name in names:
            base = benchmark.recipe(
                name, options.batch_size, options.device, options.threads, channels_last=options.channels_last
            )
            shape = benchmark.MODELS[name].input_shape
            for alpha in alphas:
                found = settling.compare(
                    base, alpha, shape, benchmark.NUM_CLASSES, options.rounds, options.seconds / len(alphas)
                )
                groups.append({"model": name, **asdict(found)})
                table.add_row(*_cells(name, found))
                keep(groups)
        console.print(table)
        console.print(LEGEND, highlight=False, soft_wrap=True)

    return run


def _table(batch_size: int) -> Table:
    title = f"DP⊤ by L bottom-up passes against one downward sweep, batch {batch_size}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for heading in ("α", "L", "difference", "sweep", "passes", "no reuse", "time", "quartiles", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(name: str, found: Settling) -> list[str]:
    return [
        name,
        f"{found.alpha:g}",
        str(found.passes),
        f"{found.difference:.1e} {'✓' if found.is_rounding else '≠'}",
        f"{found.sweep:.2f}",
        f"{found.by_passes:.2f}",
        f"{found.without_reuse:.2f}",
        f"{found.timing.ratio:.3f}",
        f"{found.timing.lower_quartile:.2f}–{found.timing.upper_quartile:.2f}",
        f"{found.noise.ratio:.3f}",
    ]
