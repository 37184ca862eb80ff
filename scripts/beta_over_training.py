"""Does β that changes over training help dual propagation? Three small nets, three seeds; LOG.md.

    DUALPROP_DATA=… python scripts/beta_over_training.py --out beta.json

Each net is trained by BP, by DP (α = ½) at β = 1 and 0.1, at a β that goes from one to the other
geometrically, step by step, and at the one that "auto" chooses. SGD with momentum along a cosine.
CIFAR-10's images are shrunk to 8×8, so that a run is seconds. The same seed draws the same weights
and the same batches for all. Before training, on the first batch: the largest share of a layer's
units that cross a kink, and the largest angle of a layer's gradient to BP's. A run is kept as it
ends, so that the script goes on where it was stopped."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import dualprop as dp
from dualprop import data, models
from dualprop.alignment import alignment
from dualprop.data import Splits
from dualprop.training import environment, files

# By net: architecture, data, training examples, peak rate.
NETS: dict[str, tuple[models.Architecture, str, int, float]] = {
    "MLP 64-64×5-10": (models.MLP((64,) * 5), "digits", 0, 0.05),
    "MLP 784-64×4-10": (models.MLP((64,) * 4), "fashion-mnist", 1200, 0.05),
    "VGG 8-16-32-32": (models.VGG((8, 16, 32, 32), (2, 3), (), pool="before", init="uniform"), "cifar10", 1200, 0.05),
}
BATCH, EPOCHS, NUM_TEST = 50, 6, 2000
# The first and the last β; None for BP. "auto" is chosen on the first batch.
COURSES: dict[str, tuple[float, float] | None] = {
    "BP": None, "1": (1.0, 1.0), "0.1": (0.1, 0.1), "1 to 0.1": (1.0, 0.1), "0.1 to 1": (0.1, 1.0), "auto": (0.0, 0.0),
}  # fmt: skip


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["net"], row["seed"], row["beta"]) for row in rows}
    root = Path(os.environ["DUALPROP_DATA"])
    loaded = {net: data.load(dataset, root=root, train_examples=number) for net, (_, dataset, number, _) in NETS.items()}
    # Seed by seed: what is there after any time is a table.
    for seed, net, course in itertools.product(range(options.seeds), NETS, COURSES):
        if (net, seed, course) not in done:
            rows.append(trained(net, loaded[net], course, seed))
            print(rows[-1], flush=True)
            files.write_json(options.out, {"environment": environment.describe("cpu"), "rows": rows})
    for line in table(rows):
        print(line)


def trained(net: str, splits: Splits, course: str, seed: int) -> dict[str, Any]:
    """The row of one run."""
    architecture, _, _, peak = NETS[net]
    torch.manual_seed(seed)
    x, y = splits.train.batch(torch.arange(BATCH), torch.float32)
    model = architecture.build(tuple(shown(x).shape[1:]), splits.num_classes).to(memory_format=torch.channels_last)
    network = dp.Network.from_module(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, weight_decay=5e-4)
    num_steps = EPOCHS * (len(splits.train) // BATCH)
    ends = COURSES[course]
    if course == "auto":
        chosen = dp.choose_beta(dp.DualPropagation(beta="auto"), network, shown(x), y).beta
        assert isinstance(chosen, float)
        ends = chosen, chosen
    first = rule(ends, 0.0)
    crossing = first.statistics(network, shown(x), y).get("kink_crossing", [0.0])
    angles = [layer.angle for layer in alignment(network, first, shown(x), y)]
    order, step, last_loss = torch.Generator().manual_seed(seed), 0, math.nan
    for _ in range(EPOCHS):
        for x, y in data.batches(splits.train, BATCH, dtype=torch.float32, generator=order, drop_last=True):
            optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / num_steps)) / 2
            optimizer.zero_grad()
            last_loss = float(rule(ends, step / (num_steps - 1)).backward(network, shown(x), y).loss)
            optimizer.step()
            step += 1
    with torch.no_grad():
        x, y = splits.test.batch(torch.arange(min(NUM_TEST, len(splits.test))), torch.float32)
        logits = torch.cat([model(shown(part)) for part in x.split(500)])
    accuracy = float((logits.argmax(1) == y).double().mean())
    return {"net": net, "seed": seed, "beta": course, "ends": ends, "accuracy": accuracy, "last_loss": last_loss,
            "crossing": max(crossing[:-1], default=0.0), "angle": max(angles)}  # fmt: skip


def shown(x: Tensor) -> Tensor:
    """The batch as the net sees it."""
    return nn.functional.avg_pool2d(x, 4).to(memory_format=torch.channels_last) if x.shape[1] == 3 else x


def rule(ends: tuple[float, float] | None, share: float) -> dp.rules.AbstractRule:
    """The rule after this share of the training."""
    if ends is None:
        return dp.Backprop()
    return dp.DualPropagation(alpha=0.5, beta=ends[0] ** (1 - share) * ends[1] ** share)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Test accuracy in percent, mean ± std; crossing and angle before training."""
    lines = []
    for net, course in itertools.product(NETS, COURSES):
        own = [row for row in rows if (row["net"], row["beta"]) == (net, course)]
        if len(own) > 1:
            scores = [100 * row["accuracy"] for row in own]
            before = f"{100 * mean(row['crossing'] for row in own):.1f} | {mean(row['angle'] for row in own):.1f}"
            lines.append(f"| {net} | {course} | {mean(scores):.1f} ± {stdev(scores):.1f} | {before} |")
    return lines


if __name__ == "__main__":
    main()
