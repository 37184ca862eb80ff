"""The figure of `dualprop bench --table runtime`: seconds per epoch of each method, its twin's and
the published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualprop.analysis import plots
from dualprop.analysis.cost import PLAIN, PLAIN_AGAIN
from dualprop.analysis.runtime import told_seconds

INK, GREY = "#333333", "#b8b8b8"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the groups measured so far into `path`, replaced as a whole; nothing where there is none."""
    found = [
        (row, group["rows"][0], group)
        for group in results["groups"]
        for row in group["rows"]
        if row["label"] not in (PLAIN, PLAIN_AGAIN)
    ]
    if not found:
        return
    figure, axes = plots.new_figure(1, 1, (10.5, 1.7 + 0.42 * len(found)))
    for height, (row, plain, _) in enumerate(found):
        seconds, twin = row["seconds_per_epoch"], plain["seconds_per_epoch"]
        axes.plot([twin, seconds], [height, height], color=GREY, lw=2, zorder=1)
        axes.plot(twin, height, color=GREY, marker="o", ms=8, ls="none", label="back-propagation, same network", zorder=2)
        axes.plot(seconds, height, color=plots.COLOURS[0], marker="o", ms=8, ls="none", label="the method, here", zorder=3)
        if row["published"] is not None:
            axes.plot(
                row["published"], height, color=plots.COLOURS[1], marker="D", ms=7, ls="none", zorder=3,
                label="the method as published, on other machines",
            )  # fmt: skip
        axes.annotate(
            f"{told_seconds(seconds)} s, {row['ratio']:.3g} × BP", (max(seconds, twin), height), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(found)))
    axes.set_yticklabels([f"{row['label']}  ({group['model']}, L = {group['layers']})" for row, _, group in found], fontsize=9)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** 0.25)
    axes.set_xlabel("seconds per epoch of CIFAR-10 (50,000 images)")
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    environment = results["environment"]
    threads = environment["threads"]
    where = environment.get("accelerator") or f"{environment['processor']}, {threads} thread{'s' if threads > 1 else ''}"
    batch = results["options"]["batch_size"]
    figure.suptitle(f"An epoch of CIFAR-10 by each method, batch {batch}: {where}, torch {environment['torch']}", fontsize=11)
    plots.save(figure, path)
