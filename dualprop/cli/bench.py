"""`dualprop bench`: what a training step costs, against a plain PyTorch loop in the same process. One table a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError, closest

# Name → the module that makes the table. Its `READS` names the options that it reads beside EVERY table's. Its
# `prepare(options)` checks them and returns run(console, keep), which measures and shows, and gives `keep` what it has so far
# after every group. A module that draws has `draw(results, path)` too.
TABLES: dict[str, str] = {
    "steps": "dualprop.cli.bench_steps",
    "settling": "dualprop.cli.bench_settling",
    "relaxations": "dualprop.cli.bench_relaxations",
    "loader": "dualprop.cli.bench_loader",
    "runtime": "dualprop.cli.bench_runtime",
}
EVERY = {"table", "rounds", "batch_size", "threads", "device", "channels_last", "out", "figure"}
Keep = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class BenchOptions:
    """Measure training steps of dual propagation by its engines, or of --rules, as ratios to a plain PyTorch loop.

    In each round every contender takes one step, in random order; a ratio is the median over the rounds of its time by the
    plain loop's in the same round. The plain loop runs a second time among them: its ratio is the noise. How to read the
    tables: docs/benchmarks.md.

    Attributes:
        table: "steps": time, memory and speed of every contender; "settling": transposed DP by L bottom-up passes and by one
            downward sweep, gradients and cost; "relaxations": equilibrium propagation by error sweeps, by even/odd iterations
            and to a residual, gradients and cost; "loader": how fast batches of images are made; "runtime": seconds per epoch
            of CIFAR-10 by each method on the network of its own recipe, beside back-propagation there.
        models: names with commas between, of: mlp (784-1000-1000-1000-10); conv (3×3 convolutions 32-64-128, max-pool before
            ReLU), conv-after (max-pool after ReLU), conv-stride (no pool, stride 2); vgg16 (max-pool after ReLU),
            vgg16-before, vgg5 (before), vgg5-after, vgg10 (before), vgg10-after, vgg10-skip; hopfield (convolutions
            128-256-512-512, hard sigmoid); images are 3×32×32.
        rules: names with commas between (`dualprop list variants`), or "all"; by default dp and dp-transposed, by every engine
            (runtime: those that have a recipe there, by default all).
        alphas: numbers with commas between, for every rule that has an alpha; by default each has its own (settling: 0 and 1).
        betas: numbers with commas between, of the table of relaxations.
        run: a run folder, whose network, best weights so far and training examples the table of relaxations takes instead of
            --models, initial weights and noise; of its first seed.
        data: folder of that run's data set; by default $DUALPROP_DATA, then the download cache.
        engines: names with commas between, of: explicit and fused (by the trainer's step), dualized (`dp.dualize` in the plain
            loop), dualized-keeping (which keeps the states that it else computes again), explicit-captured and fused-captured
            (as a CUDA graph), and each of the first three with -native (C), -compiled (inductor, which takes half a minute
            at first) or -eager, the kernel of elementwise work; "captured", "native", … for all that end so. By default
            explicit, fused, dualized and captured, the kernel being what suits the device.
        precisions: names with commas between, of: float32, tf32, bfloat16.
        channels_last: the memory format of images: "on", "off", or "auto", which suits the device.
        rounds: how many at most.
        seconds: of timing for each model and precision; at least five rounds are taken, however long.
        batch_size: examples per step.
        threads: of the CPU; 0 leaves PyTorch's choice.
        device: "cpu", "cuda", or another PyTorch device.
        memory: also measure peak memory, each contender in a fresh process.
        ceilings: also measure what the machine reaches in a large matrix product and in the model's own operations alone.
        out: also write the numbers, with the environment, to this JSON file, and a figure beside it.
        figure: where the figure goes instead, a PNG file.
    """

    table: str = "steps"
    models: str = "mlp,conv,conv-stride"
    rules: str = ""
    alphas: str = ""
    betas: str = ""
    run: Path | None = None
    data: Path | None = None
    engines: str = ""
    precisions: str = "float32"
    channels_last: str = "auto"
    rounds: int = 100
    seconds: float = 20
    batch_size: int = 100
    threads: int = 0
    device: str = "cpu"
    memory: bool = True
    ceilings: bool = True
    out: Path | None = None
    figure: Path | None = None


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, show. What is measured when it is interrupted is in the files already."""
    options = args.parse(BenchOptions, BenchOptions(), arguments, "bench")
    table = _check(options)
    from dualprop.analysis import benchmark
    from dualprop.training import environment, files, runs

    run = table.prepare(options)
    console = OutputConsole()
    first = benchmark.parse_models(options.models)[0]
    runs.prepare(
        benchmark.recipe(first, options.batch_size, options.device, options.threads, channels_last=options.channels_last)
    )
    # Where the numbers were written says nothing of them, and much of whose machine it was.
    told = (EVERY | table.READS) - {"out", "figure", "run", "data"}
    plain = {name: value for name, value in asdict(options).items() if name in told}
    if options.run is not None:
        plain["models"] = f"run {options.run.name}"
    results: dict[str, Any] = {"environment": environment.describe(options.device), "options": plain, "groups": []}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    results["environment"]["load_before"] = load
    _say_environment(results["environment"], console)
    figure = options.figure or (options.out.with_suffix(".png") if options.out and hasattr(table, "draw") else None)

    def keep(groups: list[dict[str, Any]]) -> None:
        results["groups"] = groups
        if options.out is not None:
            files.write_json(options.out, results)
        if figure is not None:
            table.draw(results, figure)

    run(console, keep)


def number(row: dict[str, Any], key: str, form: str) -> str:
    """A cell of a table: the row's number in this form, empty where it has none."""
    return "" if row.get(key) is None else format(row[key], form)


def _check(options: BenchOptions) -> Any:
    """The table's module. Raises SettingError."""
    for name, least in (("rounds", 1), ("batch_size", 1), ("threads", 0), ("seconds", 0)):
        if not getattr(options, name) >= least:
            raise SettingError(f"{name} must be at least {least}, got {getattr(options, name)}.")
    if options.table not in TABLES:
        known = ", ".join(TABLES)
        raise SettingError(f"unknown table '{options.table}'.{closest(options.table, list(TABLES))} Known: {known}.")
    for path, option in ((options.out, "--out"), (options.figure, "--figure")):
        if path is not None and not path.parent.is_dir():
            raise SettingError(f"the folder of {path} does not exist. Make it, or choose another {option}.")
    if options.run is not None and options.models != BenchOptions.models:
        raise SettingError(f"--run brings its own network, and --models names '{options.models}'. Leave one out.")
    if options.data is not None and options.run is None:
        raise SettingError("--data is of the data set of --run. Leave it out, or give --run.")
    if options.out is not None and options.out.suffix == ".png":
        raise SettingError(f"--out writes JSON, got {options.out}. Use --figure {options.out}, or name it .json.")
    table = import_module(TABLES[options.table])
    for each in fields(BenchOptions):
        # Leaving out what a table has not is no mistake.
        value = getattr(options, each.name)
        if each.name in EVERY | table.READS or value == each.default or value is False:
            continue
        option = f"--{each.name.replace('_', '-')}"
        raise SettingError(f"table '{options.table}' does not read {option}. Leave it out, or choose another --table.")
    if options.figure is not None and options.figure.suffix != ".png":
        raise SettingError(f"--figure writes PNG, got {options.figure}. Name it {options.figure.with_suffix('.png')}.")
    if options.figure is not None and not hasattr(table, "draw"):
        raise SettingError(f"table '{options.table}' has no figure. Leave --figure out.")
    return table


def _say_environment(environment: dict[str, Any], console: Console) -> None:
    console.print(
        f"torch {environment['torch']}, {environment['processor']} ({environment['instructions']}), "
        f"{environment['threads']} threads, {environment.get('accelerator', 'no accelerator')}; subnormals flushed, "
        "fused optimizer",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    load = environment["load_before"]
    if load is not None and load > environment["cores"] / 4:
        told = f"this machine is busy already (load {load:.1f} on {environment['cores']} cores): expect noise."
        console.print(told, highlight=False, soft_wrap=True, style="yellow")
