"""`dualprop bench`: time and memory of a training step, against a plain PyTorch loop in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError, closest


@dataclass(frozen=True)
class BenchOptions:
    """Measure a training step of DP's engines, or of --rules, as ratios to a plain PyTorch loop.

    In each round every contender takes one step, in random order; a ratio is the median over the rounds of its time by the
    plain loop's in the same round. The plain loop runs a second time among them: its ratio is the noise.

    Attributes:
        models: names with commas between, of: mlp (784-1000-1000-1000-10), conv (3×3 convolutions 32-64-128 on 3×32×32,
            max-pool before ReLU), conv-after (max-pool after ReLU), conv-stride (no pool, stride 2).
        rules: variants in place of the engines: names with commas between (`dualprop list variants`), or "all".
        rounds: how many.
        batch_size: examples per step.
        threads: of the CPU; 0 leaves PyTorch's choice.
        device: "cpu", "cuda", or another PyTorch device.
        compiled: of the engines, also measure with the elementwise kernel compiled by inductor (takes half a minute at first).
        memory: also measure peak memory, each contender in a fresh process.
        out: also write the numbers, with the environment, to this JSON file.
    """

    models: str = "mlp,conv,conv-stride"
    rules: str = ""
    rounds: int = 100
    batch_size: int = 100
    threads: int = 0
    device: str = "cpu"
    compiled: bool = True
    memory: bool = True
    out: Path | None = None


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, show."""
    options = args.parse(BenchOptions, BenchOptions(), arguments, "bench")
    for name, least in (("rounds", 1), ("batch_size", 1), ("threads", 0)):
        if getattr(options, name) < least:
            raise SettingError(f"{name} must be at least {least}, got {getattr(options, name)}.")
    from dualprop.analysis import benchmark
    from dualprop.recipes import variants
    from dualprop.training import environment, files, runs

    names = options.models.split(",")
    for name in names:
        if name not in benchmark.MODELS:
            known = ", ".join(benchmark.MODELS)
            raise SettingError(f"unknown model '{name}'.{closest(name, list(benchmark.MODELS))} Known: {known}.")
    if options.out is not None and not options.out.parent.is_dir():
        raise SettingError(f"the folder of {options.out} does not exist. Make it, or choose another --out.")
    chosen = variants.parse(options.rules) if options.rules else []
    console = OutputConsole()
    results: dict[str, Any] = {}
    for name in names:
        recipe = benchmark.recipe(name, options.batch_size, options.device, options.threads)
        runs.prepare(recipe)
        if not results:
            results = {
                "environment": environment.describe(options.device),
                "options": {**asdict(options), "out": None},
                "models": {},
            }
            _say_environment(results["environment"], console)
        entries = benchmark.engines(recipe, options.compiled)
        if chosen:
            entries = benchmark.yardsticks(recipe)
            entries += [benchmark.Contender(label, variants.VARIANTS[label].apply(recipe)) for label in chosen]
        rows = benchmark.measure(entries, benchmark.MODELS[name][1], benchmark.NUM_CLASSES, options.rounds, options.memory)
        results["models"][name] = rows
        console.print(_table(f"{name}, batch {options.batch_size}, float32; count and time by those of a BP step", rows))
        if options.out is not None:
            files.write_json(options.out, results)


def _say_environment(environment: dict[str, Any], console: Console) -> None:
    console.print(
        f"torch {environment['torch']}, {environment['processor']}, {environment['threads']} threads, "
        f"{environment.get('accelerator', 'no accelerator')}; subnormals flushed, fused optimizer",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False)
    table.add_column("step", no_wrap=True)
    for heading in ("count", "time", "quartiles", "ms", "MB", "mem"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        memory = row.get("memory")
        relative = row.get("memory_ratio")
        cells = [f"{memory['by_steps']:.0f}" if memory else "", f"{relative:.2f}" if relative is not None else ""]
        quartiles = f"{row['lower_quartile']:.2f}–{row['upper_quartile']:.2f}"
        count = f"{row['count_ratio']:.2f}" if "count_ratio" in row else ""
        table.add_row(row["label"], count, f"{row['ratio']:.3f}", quartiles, f"{row['milliseconds']:.2f}", *cells)
    return table
