"""Rows of a table: contenders that run here, timed in turns, with their counts, speed and memory.

Each row is a dictionary of plain values, and is divided by the plain loop's, which stands first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dualprop.alignment import angle_between
from dualprop.bench import ceilings, contenders, flops, memory, timing
from dualprop.bench.contenders import Contender
from dualprop.errors import DualpropError
from dualprop.network import Network
from dualprop.training import capture, execution
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class Ready:
    """A contender that runs here. A few of its steps were run, so what is made lazily is there.

    Attributes:
        contender: what it is.
        step: runs the next step.
        counts: drives, feedbacks and gradients of the last step; empty where it is no rule's.
        work_of_backprop: what those of a back-propagation step add up to.
    """

    contender: Contender
    step: Callable[[], object]
    counts: dict[str, int]
    work_of_backprop: int


def ready(entries: Sequence[Contender], shape: tuple[int, ...], num_classes: int) -> tuple[list[Ready], dict[str, str]]:
    """The contenders that run here, and by label why others don't. The plain loop must."""
    able: list[Ready] = []
    refused: dict[str, str] = {}
    for entry in entries:
        try:
            step = entry.step(shape, num_classes)
            for _ in range(1 + capture.WARMUP if execution.resolve(entry.recipe).captured else 1):
                step()
            outcomes = step()
        # Compilers and devices fail in many ways, of which a benchmark says which, and goes on.
        except Exception as error:
            if entry.how == "plain":
                raise
            refused[entry.label] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        work = contenders.work_of_backprop(entry.recipe, shape, num_classes)
        able.append(Ready(entry, step, contenders.counts(outcomes) if isinstance(outcomes, list) else {}, work))
    return able, refused


def timed(entries: Sequence[Ready], rounds: int, seconds: float = math.inf) -> list[dict[str, Any]]:
    """A row per contender, the plain loop first: label, rule, engine, timing, counts of a rule."""
    timings = timing.interleaved({entry.contender.label: entry.step for entry in entries}, rounds, seconds=seconds)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        contender = entry.contender
        row: dict[str, Any] = {
            "label": contender.label,
            "rule": contender.rule,
            "engine": contender.engine,
            "is_one_sweep": contender.is_one_sweep,
        }
        row |= asdict(timings[contender.label])
        if entry.counts:
            row |= {**entry.counts, "count_ratio": sum(entry.counts.values()) / entry.work_of_backprop}
        rows.append(row)
    return rows


def add_speeds(group: dict[str, Any], base: Recipe, shape: tuple[int, ...], num_classes: int, with_ceilings: bool) -> None:
    """Achieved GFLOP/s into each row: the FLOPs of one back-propagation step by the row's time.

    They are the same for all, whatever a rule computes in its place. With ceilings each row also
    gets its shares of the model's and of the matrix product's.
    """
    group["flops"] = flops.of_step(base, shape, num_classes)
    for row in group["rows"]:
        row["gflops"] = group["flops"] / row["milliseconds"] / 1e6
    if not with_ceilings:
        return
    reached = ceilings.measure(flops.operations(base, shape, num_classes), execution.resolve(base).inputs, base.device)
    group["ceilings"] = asdict(reached)
    for row in group["rows"]:
        row |= {"of_model_ceiling": row["gflops"] / reached.model, "of_matmul": row["gflops"] / reached.matmul}


def add_memory(
    rows: list[dict[str, Any]],
    entries: Sequence[Contender],
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 5,
    remedy: str = "Leave it out with --no-memory.",
) -> None:
    """Peak memory into the rows of these contenders, and its ratios to the plain loop's, the first.

    A ratio is of the steps' tensors, another of what the process grew by; None where the plain
    loop's is too little to measure.
    """
    by_label = {row["label"]: row for row in rows}
    for entry in entries:
        row = by_label[entry.label]
        try:
            row["memory"] = memory.measure(entry, shape, num_classes, num_steps).to_plain()
        except DualpropError as error:
            raise DualpropError(f"{error} {remedy}") from error
        for ratio, kind in (("memory_ratio", "tensors"), ("resident_ratio", "by_steps")):
            plain = rows[0]["memory"][kind]
            row[ratio] = row["memory"][kind] / plain if plain else None


def costs(
    recipes: Mapping[str, Recipe], shape: tuple[int, ...], num_classes: int, rounds: int = 40, seconds: float = 60
) -> dict[str, Any]:
    """Rows of these recipes' steps by label, with memory, beside those of a plain PyTorch loop.

    Raises DualpropError where one of them can't be measured here.
    """
    entries = contenders.yardsticks(next(iter(recipes.values())))
    entries += [Contender(label, recipe) for label, recipe in recipes.items()]
    able, refused = ready(entries, shape, num_classes)
    for label, reason in refused.items():
        raise DualpropError(f"a step of '{label}' can't be measured: {reason.rstrip('.')}.")
    rows = timed(able, rounds, seconds)
    del able  # weights and optimizer states of all
    add_memory(rows, [entry for entry in entries if entry.label != timing.PLAIN_AGAIN], shape, num_classes, remedy="")
    return {row["label"]: row for row in rows}


def largest_angle(network: Network, gradients: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Over layers with parameters, in degrees, each as one vector; nan where a gradient is zero."""
    angles = [
        angle_between([gradients[n] for n in layer.parameters], [exact[n] for n in layer.parameters])
        for layer in network.layers
        if layer.parameters
    ]
    return math.nan if any(math.isnan(angle) for angle in angles) else max(angles)
