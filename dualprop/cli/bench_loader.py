"""`dualprop bench --table loader`: how fast batches are made, beside the training step that takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop.analysis import benchmark, loading
from dualprop.cli.bench import BenchOptions, Keep
from dualprop.errors import SettingError

READS = {"models"}


def prepare(options: BenchOptions) -> Callable[[Console, Keep], None]:
    """Check the options that this table reads: models, of which it takes the first that reads images of the loader's shape,
    rounds, batch size, threads, device."""
    names = benchmark.parse_models(options.models)
    name = next((name for name in names if benchmark.MODELS[name].input_shape == loading.SHAPE), None)
    if name is None:
        raise SettingError(f"none of the models {options.models} reads images, which the loader makes. Try --models conv.")

    def run(console: Console, keep: Keep) -> None:
        base = benchmark.recipe(name, options.batch_size, options.device, options.threads, "float32", options.channels_last)
        plain = benchmark.yardsticks(base)[0].step(loading.SHAPE, benchmark.NUM_CLASSES)
        rows = loading.measure(batch_size=options.batch_size, rounds=options.rounds, device=options.device, step=plain)
        keep([{"model": name, "rows": rows}])
        console.print(_table(name, options, rows))

    return run


def _table(name: str, options: BenchOptions, rows: list[dict[str, Any]]) -> Table:
    title = f"batches of {options.batch_size} images, {options.rounds} of each, beside a plain step of {name}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False)
    table.add_column("images", no_wrap=True)
    for heading in ("ms a batch", "examples/s", "batches a step"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = f"{row['milliseconds']:.3g}", f"{row['examples_per_second']:,.0f}", f"{row['times_the_step']:.1f}"
        table.add_row(row["label"], *cells)
    return table
