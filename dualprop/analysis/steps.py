"""The table of steps: one model in one precision, its contenders interleaved, each divided by the plain loop among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dualprop import kernels
from dualprop.analysis import benchmark, ceilings, cost, flops, memory, verdicts
from dualprop.analysis.cost import Contender
from dualprop.errors import DualpropError, SettingError
from dualprop.training import capture, execution, runs
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What is measured of every model in every precision; see `dualprop bench --help`."""

    rules: benchmark.Rules
    alphas: Sequence[float]
    engines: Sequence[str]
    rounds: int
    seconds: float
    batch_size: int
    num_threads: int
    device: str
    channels_last: str
    with_ceilings: bool
    with_memory: bool


def fill(group: dict[str, Any], plan: Plan, keep: Callable[[], None]) -> None:
    """Measure `group`, which names a "model" and a "precision", and call `keep` after each slow part.

    It then holds "rows" (see `timed`, `add_speeds`, `add_memory`), "flops" of a back-propagation step, "ceilings", "noise" of
    the ratios, "verdicts", the "memory_format" of images, the "kernel" that is chosen here where none is named, and "refused":
    what can't run here, and why.
    """
    subject = benchmark.MODELS[group["model"]]
    shape, num_classes = subject.input_shape, benchmark.NUM_CLASSES
    try:
        base = benchmark.recipe(
            group["model"], plan.batch_size, plan.device, plan.num_threads, group["precision"], plan.channels_last
        )
        how = execution.resolve(base)
        if base.dtype == "bfloat16" and not execution.has_bfloat16(plan.device):
            raise SettingError(how.remarks[0])
    except SettingError as error:
        group["refused"] = {f"everything in {group['precision']}": str(error)}
        keep()
        return
    runs.prepare(base)
    group |= {"memory_format": "channels_last" if how.channels_last else "contiguous", "kernel": kernels.chosen(plan.device)}
    entries, refused = benchmark.contenders(base, plan.rules, plan.alphas, plan.engines)
    able, failed = ready([*benchmark.yardsticks(base), *entries], shape, num_classes)
    group["rows"] = timed(able, plan.rounds, plan.seconds)
    entries = [entry.contender for entry in able]
    del able  # weights and optimizer states of all
    group["refused"] = refused | failed
    keep()
    add_speeds(group, base, shape, num_classes, plan.with_ceilings)
    keep()
    if plan.with_memory:
        add_memory(group["rows"], entries, shape, num_classes)
    group["noise"] = {"time": verdicts.noise_of_time(group["rows"]), "memory": verdicts.noise_of_memory(group["rows"])}
    group["verdicts"] = [asdict(verdict) | {"result": verdict.result} for verdict in verdicts.judge(group["rows"])]
    keep()


@dataclass(frozen=True)
class Ready:
    """A contender that runs here: its step, of which some were taken, and the counts of the last where it is a rule's (by then
    a rule that keeps states has some, and a step that is captured is); and what those of a back-propagation step add up to."""

    contender: Contender
    step: Callable[[], object]
    counts: dict[str, int]
    work_of_backprop: int


def ready(entries: Sequence[Contender], shape: tuple[int, ...], num_classes: int) -> tuple[list[Ready], dict[str, str]]:
    """The contenders that run here, and of the others why not, by label. The plain loop must."""
    found: list[Ready] = []
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
        work = cost.work_of_backprop(entry.recipe, shape, num_classes)
        found.append(Ready(entry, step, cost.counts(outcomes) if isinstance(outcomes, list) else {}, work))
    return found, refused


def timed(entries: Sequence[Ready], rounds: int, seconds: float = math.inf) -> list[dict[str, Any]]:
    """One row per contender, the first being the plain loop: label, rule, engine, timing, and counted operations of a rule."""
    timings = cost.interleaved({entry.contender.label: entry.step for entry in entries}, rounds, seconds=seconds)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        own = entry.contender
        row = {"label": own.label, "rule": own.rule, "engine": own.engine, "is_one_sweep": own.is_one_sweep}
        row |= asdict(timings[own.label])
        if entry.counts:
            row |= {**entry.counts, "count_ratio": sum(entry.counts.values()) / entry.work_of_backprop}
        rows.append(row)
    return rows


def add_speeds(group: dict[str, Any], base: Recipe, shape: tuple[int, ...], num_classes: int, with_ceilings: bool) -> None:
    """Achieved GFLOP/s into each row: the FLOPs of one back-propagation step, whatever the rule computed in its place, by its
    time. With ceilings also its shares of the model's and of the matrix product's."""
    group["flops"] = flops.of_step(base, shape, num_classes)
    for row in group["rows"]:
        row["gflops"] = group["flops"] / row["milliseconds"] / 1e6
    if not with_ceilings:
        return
    found = ceilings.measure(flops.operations(base, shape, num_classes), execution.resolve(base).inputs, base.device)
    group["ceilings"] = asdict(found)
    for row in group["rows"]:
        row |= {"of_model_ceiling": row["gflops"] / found.model, "of_matmul": row["gflops"] / found.matmul}


def add_memory(
    rows: list[dict[str, Any]], entries: Sequence[Contender], shape: tuple[int, ...], num_classes: int, num_steps: int = 5
) -> None:
    """Peak memory into the rows of these contenders, the plain loop first, with its ratios to that one's (None where it is too
    little to measure): of the steps' tensors, and of what the process grew by."""
    by_label = {row["label"]: row for row in rows}
    for entry in entries:
        row = by_label[entry.label]
        row["memory"] = asdict(memory.measure(entry, shape, num_classes, num_steps))
        for ratio, kind in (("memory_ratio", "tensors"), ("resident_ratio", "by_steps")):
            plain = rows[0]["memory"][kind]
            row[ratio] = row["memory"][kind] / plain if plain else None


def measure(
    entries: Sequence[Contender], shape: tuple[int, ...], num_classes: int, rounds: int, seconds: float = math.inf
) -> list[dict[str, Any]]:
    """The rows of `timed` with memory, the plain loop's once. Raises DualpropError where a contender can't run here."""
    able, refused = ready(entries, shape, num_classes)
    for label, reason in refused.items():
        raise DualpropError(f"a step of '{label}' can't be measured: {reason}")
    rows = timed(able, rounds, seconds)
    del able
    add_memory(rows, [entry for entry in entries if entry.label != cost.PLAIN_AGAIN], shape, num_classes)
    return rows
