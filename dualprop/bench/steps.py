"""The table of steps: time, memory and speed of a step by every rule, alpha, precision and engine.

One model in one precision is a group: its contenders run in turns, each divided by the plain loop
among them. In the figure a dot is the median ratio and its bar the quartiles; grey is the noise of
the plain loop against itself; an engine has one colour and marker, safe for colour-blind readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dualprop import kernels
from dualprop.analysis import drawing
from dualprop.bench import contenders, models, rows, verdicts
from dualprop.bench.options import BenchOptions, Group, Keep, Measure, parse_alphas, parse_precisions
from dualprop.bench.showing import new_table, number, say, say_refused
from dualprop.bench.timing import PLAIN, PLAIN_AGAIN
from dualprop.errors import SettingError
from dualprop.recipes import variants
from dualprop.training import execution, runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READS = {"models", "rules", "alphas", "engines", "precisions", "seconds", "memory", "ceilings"}
MARKS = {"met": "✓", "within the noise": "≈", "missed": "✗", "undecided": "?"}
# On narrower consoles some columns are left to the file.
WIDE, LEFT_OUT = 108, ("quartiles", "of matmul", "MB", "resident")
GREY, INK = "#b8b8b8", "#333333"
MARKERS = "osD^vP"
# Ratios further apart than this are drawn on a logarithmic axis.
WIDEST_LINEAR = 2.5


@dataclass(frozen=True)
class Plan:
    """What is measured of every model in every precision; see `BenchOptions`."""

    options: BenchOptions
    rules: contenders.Rules
    alphas: Sequence[float]
    engines: Sequence[str]


def prepare(options: BenchOptions) -> Measure:
    """Check the options that this table reads: all of them. See `tables`."""
    names = models.parse_models(options.models)
    precisions = parse_precisions(options.precisions)
    # Rules that are named are measured as the trainer would run them, unless engines are named too.
    engines = options.engines or (
        "" if options.rules else contenders.DEFAULT_ENGINES + (",captured" if options.device == "cuda" else "")
    )
    rules = variants.parse(options.rules) if options.rules else ["bp", *contenders.SYMBOLS]
    plan = Plan(
        options,
        rules={name: variants.named(name).apply for name in rules},
        alphas=parse_alphas(options.alphas) if options.alphas else [],
        engines=contenders.parse_engines(engines) if engines else [],
    )

    def measure(keep: Keep) -> Iterator[Group]:
        groups: list[Group] = []
        for name, precision in product(names, precisions):
            group: Group = {"model": name, "precision": precision, "batch_size": options.batch_size}
            groups.append(group)
            fill(group, plan, lambda: keep(groups))
            yield group

    return measure


def fill(group: Group, plan: Plan, keep: Callable[[], None]) -> None:
    """Measure `group`, a "model" and a "precision", and call `keep` after each slow part.

    It then holds "rows" (see `rows`), "flops" of a back-propagation step, "ceilings", "noise" of
    the ratios, "verdicts", the "memory_format" of images, the "kernel" that is chosen here where
    none is named, and "refused": what can't run here, and why.
    """
    options = plan.options
    subject = models.MODELS[group["model"]]
    shape, num_classes = subject.input_shape, models.NUM_CLASSES
    try:
        base = models.recipe_by(options, group["model"], group["precision"])
        how = execution.resolve(base)
        if base.dtype == "bfloat16" and not execution.has_bfloat16(options.device):
            raise SettingError(how.remarks[0])
    except SettingError as error:
        group["refused"] = {f"everything in {group['precision']}": str(error)}
        keep()
        return
    runs.prepare(base)
    group |= {"memory_format": "channels_last" if how.channels_last else "contiguous", "kernel": kernels.chosen(options.device)}
    entries, refused = contenders.contenders(base, plan.rules, plan.alphas, plan.engines)
    able, failed = rows.ready([*contenders.yardsticks(base), *entries], shape, num_classes)
    group["rows"] = rows.timed(able, options.rounds, options.seconds)
    entries = [entry.contender for entry in able]
    del able  # weights and optimizer states of all
    group["refused"] = refused | failed
    keep()
    rows.add_speeds(group, base, shape, num_classes, options.ceilings)
    keep()
    if options.memory:
        rows.add_memory(group["rows"], entries, shape, num_classes)
    group["noise"] = {"time": verdicts.noise_of_time(group["rows"]), "memory": verdicts.noise_of_memory(group["rows"])}
    group["verdicts"] = [asdict(verdict) | {"result": verdict.result} for verdict in verdicts.judge(group["rows"])]
    keep()


def show_group(group: Group, results: dict[str, Any], console: Console) -> None:
    """A group's table, with what its columns mean, the verdicts, and what can't run here."""
    if "rows" in group:
        console.print(_table(group, is_wide=console.width >= WIDE))
        say(console, *_explanations(group), *_told_verdicts(group))
    say_refused(console, group["refused"])


def show_end(results: dict[str, Any], console: Console) -> None:
    """Nothing stands below all groups."""


def _table(group: Group, is_wide: bool) -> Table:
    setting = f"batch {group['batch_size']}, {group['precision']}, {group['memory_format'].replace('_', ' ')}"
    title = f"{group['model']}, {setting}, {group['rows'][0]['rounds']} rounds"
    fastest = [row["label"] for row in verdicts.best(group["rows"]).values()]
    cells = [_cells(row, is_best=row["label"] in fastest) for row in group["rows"]]
    headings = [name for name in cells[0] if is_wide or name not in LEFT_OUT]
    table = new_table(title, "step", headings)
    for row, values in zip(group["rows"], cells, strict=True):
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


def _explanations(group: Group) -> Iterator[str]:
    yield (
        "count, time, mem: by those of a plain PyTorch loop's back-propagation step; ★ the best engine of a rule; elementwise "
        f"work by the {group['kernel']} kernel where none is named."
    )
    if "memory" in group["rows"][0]:
        yield "mem: tensors of the steps at their peak, exact; resident: what the process grew by, as the system sees it."
    if reached := group.get("ceilings"):
        kinds = ", ".join(f"{kind} {speed:.0f}" for kind, speed in reached["kinds"].items())
        yield (
            f"ceilings in GFLOP/s: matmul {reached['matmul']:.0f} ({reached['matmul_side']}²); model {reached['model']:.0f}, "
            f"its own operations alone, in their best memory format ({kinds}). A step: {group['flops'] / 1e9:.2f} GFLOP."
        )


def _told_verdicts(group: Group) -> Iterator[str]:
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


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the groups so far into `path`, replaced as a whole; nothing where there is none."""
    groups = [group for group in results["groups"] if group.get("rows")]
    if not groups:
        return
    environment = results["environment"]
    heights = [len(group["rows"]) for group in groups]
    size = 10.5, 0.6 + sum(0.26 * each + 0.85 for each in heights)
    figure, panels = drawing.new_figure(len(groups), 2, size, heights, width_ratios=(5, 3))
    styles = _styles(groups)
    for (time_axes, memory_axes), group in zip(np.atleast_2d(np.asarray(panels, dtype=object)), groups, strict=True):
        _times(time_axes, group, styles)
        _memories(memory_axes, group, styles)
    where = environment.get("accelerator") or f"{environment['processor']}, {environment['threads']} threads"
    figure.suptitle(f"A training step by that of a plain PyTorch loop: {where}, torch {environment['torch']}", fontsize=11)
    drawing.save(figure, path)


def _styles(groups: list[Group]) -> dict[str, tuple[str, str]]:
    """Engine → colour and marker; rules without engines are as the first."""
    engines = list(dict.fromkeys(row["engine"] for group in groups for row in group["rows"] if row["engine"])) or [""]
    number = len(engines)
    cycle = math.ceil(number / len(drawing.COLOURS)), math.ceil(number / len(MARKERS))
    styles = dict(zip(engines, zip(drawing.COLOURS * cycle[0], MARKERS * cycle[1], strict=False), strict=False))
    return {"": (INK, "o"), **styles} if "" not in styles else styles


def _times(axes: Axes, group: Group, styles: dict[str, tuple[str, str]]) -> None:
    fastest = {row["label"] for row in verdicts.best(group["rows"]).values()}
    floor = verdicts.noise_of_time(group["rows"])
    axes.axvspan(1 - floor, 1 + floor, color=GREY, alpha=0.45, lw=0)
    for height, row in enumerate(group["rows"]):
        colour, marker = styles[row["engine"]] if row["label"] not in (PLAIN, PLAIN_AGAIN) else (GREY, "o")
        lower, upper = row["ratio"] - row["lower_quartile"], row["upper_quartile"] - row["ratio"]
        axes.errorbar(row["ratio"], height, xerr=[[lower], [upper]], color=colour, marker=marker, ms=6, lw=2, capsize=0)
        _annotate(axes, row["upper_quartile"], height, f"{row['ratio']:.3f}", is_bold=row["label"] in fastest)
    largest = max(row["upper_quartile"] for row in group["rows"])
    _finish(axes, len(group["rows"]), largest, [verdicts.BEST_TIME, verdicts.EXPLICIT_TIME] if fastest else [])
    axes.set_yticklabels([row["label"] for row in group["rows"]])
    axes.set_xlabel("time of a step: median and quartiles; grey: noise; bold: a rule's best engine", fontsize=9)
    title = f"{group['model']}, batch {group['batch_size']}, {group['precision']}, {group['rows'][0]['rounds']} rounds"
    axes.set_title(title, fontsize=10, loc="left")


def _memories(axes: Axes, group: Group, styles: dict[str, tuple[str, str]]) -> None:
    measured = [row for row in group["rows"] if row.get("memory_ratio")]
    if not measured:
        axes.set_axis_off()
        return
    for height, row in enumerate(group["rows"]):
        if row not in measured:
            continue
        colour, marker = styles[row["engine"]] if row["label"] not in (PLAIN, PLAIN_AGAIN) else (GREY, "o")
        if row.get("resident_ratio"):
            axes.plot(row["resident_ratio"], height, color=colour, marker="|", ms=11, mew=1.6, ls="none")
        axes.plot(row["memory_ratio"], height, color=colour, marker=marker, ms=6, ls="none")
        right = max(row["memory_ratio"], row.get("resident_ratio") or 0)
        _annotate(axes, right, height, f"{row['memory_ratio']:.2f}", is_bold=False)
    largest = max(max(row["memory_ratio"], row.get("resident_ratio") or 0) for row in measured)
    _finish(axes, len(group["rows"]), largest, [verdicts.BEST_MEMORY] if verdicts.best(group["rows"]) else [])
    axes.set_yticklabels([])
    axes.set_xlabel("memory: tensors at their peak; bar: the process", fontsize=9)


def _annotate(axes: Axes, x: float, y: float, text: str, is_bold: bool) -> None:
    axes.annotate(
        text, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
        fontweight="bold" if is_bold else "normal", bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.6},
    )  # fmt: skip


def _finish(axes: Axes, num_rows: int, largest: float, targets: list[float]) -> None:
    axes.axvline(1, color=INK, lw=1)
    for target in targets:
        axes.axvline(target, color=INK, lw=0.8, ls=(0, (1, 2)))
    axes.set_yticks(range(num_rows))
    axes.set_ylim(num_rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    left = min(0.9, axes.get_xlim()[0])
    if largest > WIDEST_LINEAR:
        axes.set_xscale("log")
        drawing.write_plainly(axes.xaxis)
        axes.set_xlim(max(left, 0.5), largest**1.25)
    else:
        # Room for the numbers on the right.
        axes.set_xlim(left, 1 + (max(largest, 1.15) - 1) * 1.3)
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
