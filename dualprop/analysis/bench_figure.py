"""The figure of `dualprop bench`: per model and precision, each contender's time and memory by those of the plain loop.

A dot is the median ratio and its bar the quartiles; grey is the noise of the plain loop against itself. One colour and marker
per engine, those of `analysis.plots`, safe for colour-blind readers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualprop.analysis import plots, verdicts
from dualprop.analysis.cost import PLAIN, PLAIN_AGAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, INK = "#b8b8b8", "#333333"
MARKERS = "osD^vP"
# Ratios further apart than this are drawn on a logarithmic axis.
WIDEST_LINEAR = 2.5


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the groups measured so far into `path`, replaced as a whole; nothing where there is none."""
    groups = [group for group in results["groups"] if group.get("rows")]
    if not groups:
        return
    environment = results["environment"]
    heights = [len(group["rows"]) for group in groups]
    size = 10.5, 0.6 + sum(0.26 * each + 0.85 for each in heights)
    figure, panels = plots.new_figure(len(groups), 2, size, heights, width_ratios=(5, 3))
    styles = _styles(groups)
    for (time_axes, memory_axes), group in zip(np.atleast_2d(np.asarray(panels, dtype=object)), groups, strict=True):
        _times(time_axes, group, styles)
        _memories(memory_axes, group, styles)
    where = environment.get("accelerator") or f"{environment['processor']}, {environment['threads']} threads"
    figure.suptitle(f"A training step by that of a plain PyTorch loop: {where}, torch {environment['torch']}", fontsize=11)
    plots.save(figure, path)


def _styles(groups: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Engine → colour and marker; rules without engines are as the first."""
    engines = list(dict.fromkeys(row["engine"] for group in groups for row in group["rows"] if row["engine"])) or [""]
    number = len(engines)
    cycle = math.ceil(number / len(plots.COLOURS)), math.ceil(number / len(MARKERS))
    styles = dict(zip(engines, zip(plots.COLOURS * cycle[0], MARKERS * cycle[1], strict=False), strict=False))
    return {"": (INK, "o"), **styles} if "" not in styles else styles


def _times(axes: Axes, group: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    rows = group["rows"]
    fastest = {row["label"] for row in verdicts.best(rows).values()}
    floor = verdicts.noise_of_time(rows)
    axes.axvspan(1 - floor, 1 + floor, color=GREY, alpha=0.45, lw=0)
    for height, row in enumerate(rows):
        colour, marker = styles[row["engine"]] if row["label"] not in (PLAIN, PLAIN_AGAIN) else (GREY, "o")
        lower, upper = row["ratio"] - row["lower_quartile"], row["upper_quartile"] - row["ratio"]
        axes.errorbar(row["ratio"], height, xerr=[[lower], [upper]], color=colour, marker=marker, ms=6, lw=2, capsize=0)
        _annotate(axes, row["upper_quartile"], height, f"{row['ratio']:.3f}", is_bold=row["label"] in fastest)
    most = [row["upper_quartile"] for row in rows]
    _finish(axes, rows, max(most), [verdicts.BEST_TIME, verdicts.EXPLICIT_TIME] if fastest else [])
    axes.set_yticklabels([row["label"] for row in rows])
    axes.set_xlabel("time of a step: median and quartiles; grey: noise; bold: a rule's best engine", fontsize=9)
    title = f"{group['model']}, batch {group['batch_size']}, {group['precision']}, {rows[0]['rounds']} rounds"
    axes.set_title(title, fontsize=10, loc="left")


def _memories(axes: Axes, group: dict[str, Any], styles: dict[str, tuple[str, str]]) -> None:
    rows = group["rows"]
    found = [row for row in rows if row.get("memory_ratio")]
    if not found:
        axes.set_axis_off()
        return
    for height, row in enumerate(rows):
        if row not in found:
            continue
        colour, marker = styles[row["engine"]] if row["label"] not in (PLAIN, PLAIN_AGAIN) else (GREY, "o")
        if row.get("resident_ratio"):
            axes.plot(row["resident_ratio"], height, color=colour, marker="|", ms=11, mew=1.6, ls="none")
        axes.plot(row["memory_ratio"], height, color=colour, marker=marker, ms=6, ls="none")
        right = max(row["memory_ratio"], row.get("resident_ratio") or 0)
        _annotate(axes, right, height, f"{row['memory_ratio']:.2f}", is_bold=False)
    largest = max(max(row["memory_ratio"], row.get("resident_ratio") or 0) for row in found)
    _finish(axes, rows, largest, [verdicts.BEST_MEMORY] if verdicts.best(rows) else [])
    axes.set_yticklabels([])
    axes.set_xlabel("memory: tensors at their peak; bar: the process", fontsize=9)


def _annotate(axes: Axes, x: float, y: float, text: str, is_bold: bool) -> None:
    axes.annotate(
        text, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
        fontweight="bold" if is_bold else "normal", bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.6},
    )  # fmt: skip


def _finish(axes: Axes, rows: list[dict[str, Any]], largest: float, targets: list[float]) -> None:
    axes.axvline(1, color=INK, lw=1)
    for target in targets:
        axes.axvline(target, color=INK, lw=0.8, ls=(0, (1, 2)))
    axes.set_yticks(range(len(rows)))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    left = min(0.9, axes.get_xlim()[0])
    if largest > WIDEST_LINEAR:
        axes.set_xscale("log")
        plots.write_plainly(axes.xaxis)
        axes.set_xlim(max(left, 0.5), largest**1.25)
    else:
        # Room for the numbers on the right.
        axes.set_xlim(left, 1 + (max(largest, 1.15) - 1) * 1.3)
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
