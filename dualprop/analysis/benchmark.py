"""The standing benchmark: which models and contenders `dualprop bench` measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dualprop.analysis import cost
from dualprop.analysis.cost import Contender
from dualprop.models import MLP, ConvNet
from dualprop.rules import Backprop, DualPropagation
from dualprop.training.recipe import Optimizer, Recipe

# Name → architecture and the shape of one example.
MODELS: dict[str, tuple[MLP | ConvNet, tuple[int, ...]]] = {
    "mlp": (MLP(widths=(1000, 1000, 1000)), (784,)),
    "conv": (ConvNet(channels=(32, 64, 128), pool="before"), (3, 32, 32)),
    "conv-after": (ConvNet(channels=(32, 64, 128), pool="after"), (3, 32, 32)),
    "conv-stride": (ConvNet(channels=(32, 64, 128), pool="stride"), (3, 32, 32)),
}
NUM_CLASSES = 10


def recipe(model: str, batch_size: int, device: str, num_threads: int) -> Recipe:
    """The step that is measured: cross-entropy, fused Adam."""
    return Recipe(
        name=f"bench-{model}",
        dataset="random numbers",
        model=MODELS[model][0],
        rule=Backprop(),
        optimizer=Optimizer(name="adam", learning_rate=1e-4),
        batch_size=batch_size,
        epochs=1,
        device=device,
        num_threads=num_threads,
    )


def yardsticks(base: Recipe) -> list[Contender]:
    """The plain loop, and the same again, whose ratio to the first is the noise."""
    return [Contender(cost.PLAIN, base, "plain"), Contender(cost.PLAIN_AGAIN, base, "plain")]


def engines(base: Recipe, compiled: bool) -> list[Contender]:
    """The yardsticks, then DP and DP⊤ by the trainer's step, then dualized models in the plain loop."""

    def by(label: str, how: str = "rule", kernel: str = "eager", **settings: Any) -> Contender:
        rule = DualPropagation(kernel="compiled" if kernel == "compiled" and how == "rule" else "auto", **settings)
        return Contender(label, dataclasses.replace(base, rule=rule), how, kernel == "compiled")

    found = [
        *yardsticks(base),
        Contender("Backprop", base),
        by("DP α=½ explicit"),
        by("DP⊤ α=0 explicit", coupling="transposed", alpha=0.0),
        by("DP⊤ α=1 explicit", coupling="transposed", alpha=1.0),
        by("DP α=½ fused", "dualized"),
        by("DP⊤ α=0 fused", "dualized", coupling="transposed", alpha=0.0),
    ]
    if compiled:
        found += [
            by("DP α=½ explicit, compiled", kernel="compiled"),
            by("DP⊤ α=0 explicit, compiled", kernel="compiled", coupling="transposed", alpha=0.0),
            by("DP α=½ fused, compiled", "dualized", "compiled"),
        ]
    return found


def measure(
    entries: Sequence[Contender], shape: tuple[int, ...], num_classes: int, rounds: int, with_memory: bool
) -> list[dict[str, Any]]:
    """One row per contender, the first being the plain loop: label, timing, counted operations of a rule, and memory with
    its ratio to the plain loop's (None where that is too little to measure)."""
    timings = cost.interleaved({entry.label: entry.step(shape, num_classes) for entry in entries}, rounds)
    rows: list[dict[str, Any]] = [{"label": entry.label, **asdict(timings[entry.label])} for entry in entries]
    for entry, row in zip(entries, rows, strict=True):
        if entry.how == "rule":
            row |= entry.counts(shape, num_classes)
            row["count_ratio"] = sum(row[kind] for kind in cost.COUNTS) / (3 * entry.recipe.model.depth - 1)
    if with_memory:
        for entry, row in zip(entries, rows, strict=True):
            if entry.label != cost.PLAIN_AGAIN:
                row["memory"] = asdict(cost.memory(entry, shape, num_classes))
                plain = rows[0]["memory"]["by_steps"]
                row["memory_ratio"] = row["memory"]["by_steps"] / plain if plain else None
    return rows
