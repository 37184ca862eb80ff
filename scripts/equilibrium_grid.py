"""Trains a predictive coding network by EP over a grid of iterations K and nudging strengths β:
where does the scheme break?

    python scripts/equilibrium_grid.py OUT [--recipe mnist-vgg5-ep-mse] [--channels 16 32 64 64 64]
    [--train-examples 5000]
        [--epochs 1] [--iterations 1,2,3,4,6,10] [--betas 2e-5,2e-4,0.002,0.02,0.1,0.5] [--seeds 1]
        [--data DIR]

Each cell trains the recipe's network by K even/odd iterations of block updates a phase, as
published (Kerjan, Høier & Scellier 2026: flat for K ≥ 4 and 2e-4 ≤ β ≤ 0.1, VGG5 on CIFAR-100); the
last row by one pair of error sweeps instead. OUT holds a run folder per cell, which is skipped if
it is finished; grid.json and grid.png hold what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from dualprop import recipes, schedules
from dualprop.models import VGG
from dualprop.rules import Backprop, EquilibriumPropagation
from dualprop.training import environment, files, runs
from dualprop.training.recipe import Recipe

PAIR = "pair"
QUANTITIES = (
    ("accuracy", "test accuracy (%)"),
    ("angle", "largest angle to back-propagation (°; – where a layer gets no gradient)"),
)


def name(row: str, beta: float) -> str:
    return f"{row if row == PAIR else f'k{row}'}-beta{beta:g}"


def cell_recipe(base: Recipe, row: str, beta: float) -> Recipe:
    """`row` is a number of iterations, or PAIR."""
    assert isinstance(base.rule, EquilibriumPropagation)
    settings: dict[str, Any] = {"beta": beta, "pairs": 1, "relaxation": "error_sweeps"}
    if row != PAIR:
        settings |= {"relaxation": "blocks", "schedule": schedules.even_odd(int(row))}
    return dataclasses.replace(base, rule=dataclasses.replace(base.rule, **settings))


def measured(run: runs.Run) -> dict[str, Any]:
    """Means over the seeds; the angle is of the last epoch measured, the largest over layers, None
    where a layer has none."""
    results = run.results()
    angles = []
    for seed in run.seeds:
        last = next(line for line in reversed(run.metrics(seed)) if line.alignment)
        angles.append(max((math.nan if layer.angle is None else layer.angle) for layer in last.alignment))
    return {
        "accuracy": 100 * mean(result.test_accuracy for result in results),
        "angle": None if any(math.isnan(angle) for angle in angles) else mean(angles),
        "stopped": [result.stopped for result in results if result.stopped],
    }


def draw(
    cells: dict[str, dict[str, Any]], rows: Sequence[str], betas: Sequence[float], backprop: float, title: str, path: Path
) -> None:
    """A map for each quantity; β runs to the right, K up, the pair of error sweeps at the top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.6 + 0.55 * len(rows)), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
        values = [[cells[name(row, beta)][key] for beta in betas] for row in rows]
        shown = np.array([[math.nan if value is None else value for value in of_row] for of_row in values], dtype=float)
        is_accuracy = key == "accuracy"
        norm = Normalize(backprop - 10, backprop + 0.5, clip=True) if is_accuracy else Normalize(0, 90, clip=True)
        image = axes.imshow(shown, origin="lower", aspect="auto", cmap="Blues_r" if is_accuracy else "Blues", norm=norm)
        for row, of_row in enumerate(values):
            for column, value in enumerate(of_row):
                depth = 0.0 if value is None else float(norm(value))
                is_dark = (1 - depth if is_accuracy else depth) > 0.55
                text = "–" if value is None else f"{value:.1f}"
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "#333333"
                )  # fmt: skip
        axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.set_yticks(range(len(rows)), ["1 pair of error sweeps" if row == PAIR else f"K = {row}" for row in rows])
        axes.set_xlabel("β")
        axes.set_title(label, fontsize=10, loc="left")
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.01)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="mnist-vgg5-ep-mse")
    parser.add_argument("--channels", type=int, nargs=5, default=[16, 32, 64, 64, 64])
    parser.add_argument("--train-examples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--iterations", default="1,2,3,4,6,10")
    parser.add_argument("--betas", default="2e-5,2e-4,0.002,0.02,0.1,0.5")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args(arguments)
    base = recipes.from_name(options.recipe)
    if not (isinstance(base.model, VGG) and isinstance(base.rule, EquilibriumPropagation)):
        parser.error(f"{options.recipe} trains no VGG by equilibrium propagation; take mnist-vgg5-ep, say")
    base = dataclasses.replace(
        base, model=dataclasses.replace(base.model, channels=tuple(options.channels)), epochs=options.epochs,
        train_examples=options.train_examples, num_threads=options.threads,
    )  # fmt: skip
    seeds, betas = base.seeds(options.seeds), [float(beta) for beta in options.betas.split(",")]
    rows = [*options.iterations.split(","), PAIR]
    options.out.mkdir(parents=True, exist_ok=True)
    twin = runs.finished(options.out / "bp", dataclasses.replace(base, rule=Backprop(loss=base.rule.loss)), seeds, options.data)
    backprop = 100 * mean(result.test_accuracy for result in twin.results())
    print(f"back-propagation: {backprop:.2f} %", flush=True)
    cells: dict[str, dict[str, Any]] = {}
    for row in reversed(rows):
        for beta in betas:
            label = name(row, beta)
            cells[label] = measured(runs.finished(options.out / label, cell_recipe(base, row, beta), seeds, options.data))
            print(label, cells[label], flush=True)
    about = {
        "environment": environment.describe("cpu"),
        "recipe": base.to_plain(),
        "seeds": list(seeds),
        "backprop_accuracy": backprop,
        "cells": cells,
    }
    files.write_json(options.out / "grid.json", about)
    note = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}, {options.epochs} epoch{'s' if options.epochs > 1 else ''}"
    shape = "-".join(str(width) for width in options.channels)
    title = f"{base.name} with channels {shape}, {options.train_examples} examples, {note}; back-propagation {backprop:.1f} %"
    draw(cells, rows, betas, backprop, title, options.out / "grid.png")
    print(options.out / "grid.png")


if __name__ == "__main__":
    main()
