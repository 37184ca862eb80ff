"""Trains MNIST over a grid of α and β by DP, damped DP and DP⊤, and draws where inference and
learning break.

    python scripts/nudging_grid.py OUT [--epochs 2] [--seeds 1] [--data DIR]

Recipe mnist-nudging (784-512-512-10, squared error; Høier & Zach 2024, §6.1) with several passes of
inference, which is where DP away from α = ½ loses its footing: five rounds of sweeps for DP and DP⊤
and fifteen for damped DP, as in the authors' code. OUT holds a run folder per cell, which is
skipped if it is finished; grid.json and grid.png hold what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from dualprop import recipes, schedules
from dualprop.rules import Backprop, DualPropagation
from dualprop.training import environment, files, runs
from dualprop.training.recipe import Recipe

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BETAS = (0.1, 1.0, 10.0)
METHODS: dict[str, dict[str, Any]] = {
    "DP": {"coupling": "original", "schedule": schedules.alternating_sweeps(5)},
    "damped DP": {"coupling": "original", "schedule": schedules.alternating_sweeps(15), "damping": "spectral"},
    "DP⊤": {"coupling": "transposed", "schedule": schedules.alternating_sweeps(5)},
}
QUANTITIES = (
    ("accuracy", "test accuracy (%)", "{:.1f}"),
    ("angle_1", "angle to BP, layer 1 (°)", "{:.1f}"),
    ("angle_2", "angle to BP, layer 2 (°)", "{:.1f}"),
    ("angle_3", "angle to BP, layer 3 (°)", "{:.1f}"),
    ("residual", "residual of inference", "{:.0e}"),
)


def cell_recipe(base: Recipe, method: str, alpha: float, beta: float) -> Recipe:
    settings = METHODS[method]
    return dataclasses.replace(base, rule=DualPropagation(alpha=alpha, beta=beta, loss=base.rule.loss, **settings))


def measured(run: runs.Run) -> dict[str, Any]:
    """Means over the seeds, after the last epoch that was measured; an angle or a residual that is
    not finite is None."""
    results = run.results()
    last = [next(m for m in reversed(run.metrics(seed)) if m.alignment) for seed in run.seeds]
    found: dict[str, Any] = {
        "accuracy": 100 * mean(result.test_accuracy for result in results),
        "stopped": [result.stopped for result in results if result.stopped],
    }
    for k in range(3):
        found[f"angle_{k + 1}"] = _mean([m.alignment[k].angle for m in last])
    found["residual"] = _mean([m.inference["residual"] for m in last])
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return mean(known) if known else None


def draw(cells: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Rows are quantities, columns methods; in each map β runs to the right and α up."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 13.5), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(QUANTITIES), len(METHODS))
    for axes_of_row, (key, label, form) in zip(rows, QUANTITIES, strict=True):
        norm: Any = {"accuracy": Normalize(90, 98.5, clip=True), "residual": LogNorm(1e-6, 1, clip=True)}.get(
            key, Normalize(0, 90)
        )
        image: Any = None
        for axes, method in zip(axes_of_row, METHODS, strict=True):
            values = [[cells[name(method, alpha, beta)][key] for beta in BETAS] for alpha in ALPHAS]
            shown = np.array([[math.nan if v is None else max(v, 1e-6) for v in row] for row in values], dtype=float)
            colours = "Blues_r" if key == "accuracy" else "Blues"
            image = axes.imshow(shown, origin="lower", aspect="auto", cmap=colours, norm=norm)
            for row, of_row in enumerate(values):
                for column, value in enumerate(of_row):
                    depth = 0.0 if value is None else float(norm(max(value, 1e-6)))
                    dark = (1 - depth if key == "accuracy" else depth) > 0.55
                    text = "not finite" if value is None else "0" if key == "residual" and value < 1e-12 else form.format(value)
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#333333")
            axes.set_xticks(range(len(BETAS)), [f"{beta:g}" for beta in BETAS])
            axes.set_yticks(range(len(ALPHAS)), [f"{alpha:g}" for alpha in ALPHAS])
            axes.set_title(f"{method}: {label}", fontsize=9, loc="left")
            axes.set_xlabel("β" if key == QUANTITIES[-1][0] else "")
        axes_of_row[0].set_ylabel("α")
        figure.colorbar(image, ax=list(axes_of_row), fraction=0.04, pad=0.01)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def name(method: str, alpha: float, beta: float) -> str:
    plain = {"DP": "dp", "damped DP": "damped", "DP⊤": "transposed"}[method]
    return f"{plain}-alpha{alpha:g}-beta{beta:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = dataclasses.replace(recipes.from_name("mnist-nudging"), epochs=arguments.epochs, num_threads=arguments.threads)
    seeds = base.seeds(arguments.seeds)
    twin = runs.finished(
        arguments.out / "bp", dataclasses.replace(base, rule=Backprop(loss=base.rule.loss)), seeds, arguments.data
    )
    backprop = 100 * mean(result.test_accuracy for result in twin.results())
    cells: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        for alpha in ALPHAS:
            for beta in BETAS:
                label = name(method, alpha, beta)
                recipe = cell_recipe(base, method, alpha, beta)
                cells[label] = measured(runs.finished(arguments.out / label, recipe, seeds, arguments.data))
                print(
                    label,
                    {k: v if isinstance(v, list) or v is None else round(v, 6) for k, v in cells[label].items()},
                    flush=True,
                )
    result = {
        "environment": environment.describe("cpu"),
        "recipe": base.name,
        "epochs": arguments.epochs,
        "seeds": list(seeds),
        "backprop_accuracy": backprop,
        "cells": cells,
    }
    files.write_json(arguments.out / "grid.json", result)
    note = f"{_counted(len(seeds), 'seed')}, {_counted(arguments.epochs, 'epoch')}"
    draw(cells, f"MNIST, 784-512-512-10, {note}; back-propagation has {backprop:.1f} %", arguments.out / "grid.png")


if __name__ == "__main__":
    main()
