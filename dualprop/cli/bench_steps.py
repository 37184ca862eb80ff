"""`dualprop bench --table steps`: time, memory and speed of a step by every rule, alpha, precision and engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop.analysis import benchmark, steps, verdicts
from dualprop.analysis.steps import Plan
from dualprop.cli.bench import BenchOptions, Keep, number
from dualprop.recipes import variants

MARKS = {"met": "✓", "within the noise": "≈", "missed": "✗", "undecided": "?"}
# On narrower consoles some columns are left to the file.
WIDE, LEFT_OUT = 108, ("quartiles", "of matmul", "MB", "resident")

READS = {"models", "rules", "alphas", "engines", "precisions", "seconds", "memory", "ceilings"}


def prepare(options: BenchOptions) -> Callable[[Console, Keep], None]:
    """Check the options that this table reads: all of them."""
    names = benchmark.parse_models(options.models)
    chosen = benchmark.parse_precisions(options.precisions)
    # Rules that are named are measured as the trainer would run them, unless engines are named too.
    engines = options.engines or ("" if options.rules else benchmark.DEFAULT_ENGINES)
    rules = variants.parse(options.rules) if options.rules else ["bp", *benchmark.SYMBOLS]
    plan = Plan(
        rules={name: variants.named(name).apply for name in rules},
        alphas=benchmark.parse_alphas(options.alphas) if options.alphas else [],
        engines=benchmark.parse_engines(engines) if engines else [],
        rounds=options.rounds,
        seconds=options.seconds,
        batch_size=options.batch_size,
        num_threads=options.threads,
        device=options.device,
        channels_last=options.channels_last,
        with_ceilings=options.ceilings,
        with_memory=options.memory,
    )

    def run(console: Console, keep: Keep) -> None:
        groups: list[dict[str, Any]] = []
        for name, precision in product(names, chosen):
            group: dict[str, Any] = {"model": name, "precision": precision, "batch_size": options.batch_size}
            groups.append(group)
            steps.fill(group, plan, lambda: keep(groups))
            _show(group, console)

    return run


def draw(results: dict[str, Any], path: Path) -> None:
    """The figure of what is measured so far."""
    from dualprop.analysis import bench_figure

    bench_figure.draw(results, path)


def _show(group: dict[str, Any], console: Console) -> None:
    by_reason: dict[str, list[str]] = {}
    for label, reason in group["refused"].items():
        by_reason.setdefault(reason, []).append(label)
    lines = [f"– can't run here: {', '.join(labels)}: {reason}" for reason, labels in by_reason.items()]
    if "rows" in group:
        console.print(_steps(group, is_wide=console.width >= WIDE))
        lines = [*_explanations(group), *_verdicts(group), *lines]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _steps(group: dict[str, Any], is_wide: bool) -> Table:
    rows = group["rows"]
    setting = f"batch {group['batch_size']}, {group['precision']}, {group['memory_format'].replace('_', ' ')}"
    title = f"{group['model']}, {setting}, {rows[0]['rounds']} rounds"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("step", no_wrap=True)
    fastest = [row["label"] for row in verdicts.best(rows).values()]
    cells = [_cells(row, is_best=row["label"] in fastest) for row in rows]
    headings = [name for name in cells[0] if is_wide or name not in LEFT_OUT]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, values in zip(rows, cells, strict=True):
        table.add_row(row["label"], *(values[heading] for heading in headings))
    return table


def _cells(row: dict[str, Any], is_best: bool) -> dict[str, str]:
    memory = row.get("memory", {})
    return {
        "count": number(row, "count_ratio", ".2f"),
        "time": f"{row['ratio']:.3f}{'★' if is_best else ' '}",
        "quartiles": f"{row['lower_quartile']:.2f}–{row['upper_quartile']:.2f}",
        "ms": f"{row['milliseconds']:.4g}",
        "GFLOP/s": f"{row['gflops']:.3g}",
        "of model": number(row, "of_model_ceiling", ".0%"),
        "of matmul": number(row, "of_matmul", ".0%"),
        "MB": number(memory, "tensors", ".0f"),
        "mem": number(row, "memory_ratio", ".2f"),
        "resident": number(row, "resident_ratio", ".2f"),
    }


def _explanations(group: dict[str, Any]) -> Iterator[str]:
    yield (
        "count, time, mem: by those of a plain PyTorch loop's back-propagation step; ★ the best engine of a rule; elementwise "
        f"work by the {group['kernel']} kernel where none is named."
    )
    if "memory" in group["rows"][0]:
        yield "mem: tensors of the steps at their peak, exact; resident: what the process grew by, as the system sees it."
    if found := group.get("ceilings"):
        kinds = ", ".join(f"{kind} {speed:.0f}" for kind, speed in found["kinds"].items())
        yield (
            f"ceilings in GFLOP/s: matmul {found['matmul']:.0f} ({found['matmul_side']}²); model {found['model']:.0f}, its own "
            f"operations alone, in their best memory format ({kinds}). A step: {group['flops'] / 1e9:.2f} GFLOP."
        )


def _verdicts(group: dict[str, Any]) -> Iterator[str]:
    """A line per rule."""
    by_rule: dict[str, list[str]] = {}
    for each in group["verdicts"]:
        told = f"{each['what']} {MARKS[each['result']]} {each['measured']:.3f} ≤ {each['target']:.2f}"
        by_rule.setdefault(each["rule"], []).append(f"{told} ({each['engine']})" if "engine" in each["what"] else told)
    if by_rule:
        noise = ", ".join(f"{kind} {floor:.3f}" for kind, floor in group["noise"].items())
        yield f"against the targets ({', '.join(f'{mark} {result}' for result, mark in MARKS.items())}; noise floor: {noise}):"
    for rule, told_of_it in by_rule.items():
        yield f"  {rule}: {', '.join(told_of_it)}"
