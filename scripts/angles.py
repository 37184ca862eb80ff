"""The angle of DP⊤'s gradients to back-propagation's, per layer, over the first minibatches: Høier
& Zach (2024), figure 2.

    python scripts/angles.py OUT [--recipe cifar10-cnn] [--betas 0.01,1] [--alpha 0] [--batches 200]
    [--data DIR]

Each β trains the recipe's network from its first seed by DP⊤, and before every step compares the
gradients on the step's own minibatch with the exact ones at the same weights; the back-propagation
twin trains beside them. OUT/angles.json and OUT/angles.png hold what came out; over whole epochs,
`dualprop compare RECIPE --variants grid` draws the same (the paper's left column).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualprop import data, recipes
from dualprop.alignment import alignment
from dualprop.analysis.drawing import COLOURS, DASHES
from dualprop.network import Network
from dualprop.recipes import variants
from dualprop.rules import Backprop
from dualprop.training import environment, execution, files, optimization, runs, step
from dualprop.training.recipe import Recipe


def angles(recipe: Recipe, num_batches: int, data_root: Path | None) -> dict[str, Any]:
    """Degrees per minibatch and layer (none for back-propagation itself), the layers' names, and
    the loss per minibatch."""
    seed = recipe.seed_list[0]
    splits, how = runs.load_data(recipe, seed, data_root), execution.resolve(recipe)
    torch.manual_seed(seed)
    model = how.place(recipe.build(splits.input_shape, splits.num_classes))
    network, optimizer = Network.from_module(model), optimization.build(recipe.optimizer, model)
    steps_per_epoch = len(splits.train) // recipe.batch_size
    batches = data.batches(
        splits.train, recipe.batch_size, dtype=how.inputs, generator=torch.Generator().manual_seed(seed), drop_last=True,
        augmentation=recipe.augmentation, channels_last=how.channels_last,
    )  # fmt: skip
    found: list[list[float]] = []
    layers: list[str] = []
    losses: list[float] = []
    for number, (x, y) in zip(range(num_batches), batches, strict=False):
        if not isinstance(recipe.rule, Backprop):
            with how.computing():
                aligned = alignment(network, recipe.rule, x, y)
            layers = [layer.layer for layer in aligned]
            found.append([layer.angle for layer in aligned])
        rate = optimization.learning_rate(recipe.optimizer, number, steps_per_epoch, recipe.epochs)
        optimization.set_learning_rate(optimizer, rate)
        with how.computing():
            outcomes, _ = step.training_step(recipe, network, optimizer, x, y, None, None)
        losses.append(float(outcomes[0].loss))
    return {"layers": layers, "angles": found, "losses": losses}


def draw(found: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """A map of layers × minibatches for each β, in one colour scale; below, the losses beside the
    twin's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 1.2 + 2.4 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    maps = {beta: np.array(each["angles"]).T for beta, each in found.items() if each["angles"]}
    *rows, bottom = figure.subplots(len(maps) + 1, 1, sharex=True)
    top = max(float(np.nanmax(values)) for values in maps.values())
    for axes, (beta, values) in zip(rows, maps.items(), strict=True):
        image = axes.imshow(values, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
        axes.set_title(f"β = {beta}", loc="left", fontsize=10)
        axes.set_yticks(range(len(values)), [str(k) for k in range(1, len(values) + 1)], fontsize=8)
        axes.set_ylabel("layer")
        figure.colorbar(image, ax=axes, label="angle to BP (°)")
    for number, (beta, each) in enumerate(found.items()):
        label = f"DP⊤, β = {beta}" if each["angles"] else "back-propagation"
        bottom.plot(each["losses"], label=label, color=COLOURS[number], ls=DASHES[number], lw=1.6)
    bottom.set_ylabel("loss")
    bottom.set_xlabel("minibatch")
    bottom.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="cifar10-cnn")
    parser.add_argument("--betas", default="0.01,1")
    parser.add_argument("--alpha", type=float, default=0.0)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args(arguments)
    base = dataclasses.replace(recipes.from_name(options.recipe), num_threads=options.threads)
    runs.prepare(base)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"bp": angles(variants.named("bp").apply(base), options.batches, options.data)}
    for beta in options.betas.split(","):
        recipe = variants.named(f"dp-transposed-a{options.alpha:g}-b{beta}").apply(base)
        found[beta] = angles(recipe, options.batches, options.data)
        about = {"recipe": recipe.to_plain(), "environment": environment.describe(recipe.device), "betas": found}
        files.write_json(options.out / "angles.json", about)
        last = found[beta]["angles"][-1]
        print(
            f"β = {beta}: layer 1 {last[0]:.2f}°, output {last[-1]:.2f}° after {len(found[beta]['angles'])} minibatches",
            flush=True,
        )
    draw(found, f"{options.recipe}, DP⊤, α = {options.alpha:g}: angle to back-propagation", options.out / "angles.png")
    print(options.out / "angles.png")


if __name__ == "__main__":
    main()
