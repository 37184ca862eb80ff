"""The self-test of a device: every rule by every way of computing it, and what it costs.

In float64, on an MLP and a small convolutional net, a few training steps of each variant end in the
same weights: on this device as on the CPU, captured as a CUDA graph as not, by PyTorch's kernel as
by the chosen one; and where they are the same mathematics, by the explicit engine as by the fused
one. Then steps of larger networks are timed beside back-propagation's, in every precision that the
device has. A check that fails is recorded, and the next goes on; what is done is not done again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop.bench import contenders, tables
from dualprop.bench.options import BenchOptions
from dualprop.bench.timing import PLAIN
from dualprop.models import MLP, Architecture, ConvNet
from dualprop.recipes import variants
from dualprop.reproduction.failing import Failure, Failures
from dualprop.reproduction.options import Setting
from dualprop.reproduction.watching import Clock, Watch
from dualprop.rules import DualPropagation
from dualprop.training import documents, execution, files, runs
from dualprop.training.recipe import Optimizer, Recipe
from dualprop.training.records import Ratio, Record, by_name

FILE = "self-test.json"
# float64 rounds otherwise on another device, and steps let it grow.
ROUNDING = 1e-7
STEPS, BATCH_SIZE = 6, 8
NETWORKS: dict[str, tuple[Architecture, tuple[int, ...]]] = {
    "mlp": (MLP(widths=(12, 10), activation="sigmoid"), (6,)),
    "conv": (ConvNet(channels=(4, 5), activation="sigmoid", pool="before"), (2, 8, 8)),
}
CLASSES = 4
# By the device's kind: what is timed. On CPUs a little, so that it takes seconds.
TIMED = {
    "cuda": {"models": "mlp,vgg16,vgg5", "precisions": "float32,tf32,bfloat16", "seconds": 2.0, "rounds": 30,
             "engines": "explicit-eager,fused-eager,fused-compiled,captured"},
    "cpu": {"models": "mlp", "precisions": "float32", "seconds": 1.0, "rounds": 5, "engines": "explicit,fused"},
}  # fmt: skip


class Check(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a check came to: the largest relative difference of weights, or ratios to
    back-propagation by label; or why it failed."""

    result: Literal["holds", "fails", "measured"]
    difference: float | None = None
    ratios: dict[str, Ratio] | None = None
    error: str = ""


def run(path: Path, setting: Setting, failures: Failures, watch: Watch, clock: Clock, until: float) -> None:
    """Make the checks that were not made or failed, as long as there is time, and write each down
    as it is made."""
    done = read(path)
    checks = dict(_checks(setting))
    missing = [name for name in checks if name not in done or done[name].result == "fails"]
    for number, name in enumerate(missing):
        if clock() > until:
            watch.said(f"self-test: no time for {len(missing) - number} of {len(checks)} checks")
            break
        label = f"self-test: {name}"
        with failures.noting(label):
            # Until it has come to its end, it is one that fails.
            done[name] = Check(result="fails", error="it ended in an exception or was cut off")
            done[name] = checks[name]()
            if done[name].result == "fails":
                failures.add(Failure(label=label, error=done[name].error, traceback=""))
            else:
                failures.remove(label)
        files.write_json(path, {each: check.to_plain() for each, check in done.items()})
    num_failed = sum(check.result == "fails" for check in done.values())
    watch.said(f"self-test: {len(done) - num_failed} of {len(checks)} checks hold, {num_failed} fail")


def read(path: Path) -> dict[str, Check]:
    """The checks made so far, by name."""
    return documents.read(path, lambda plain: by_name(plain, Check, ""), f"Remove {path}.") if files.exists(path) else {}


def _checks(setting: Setting) -> Iterator[tuple[str, Callable[[], Check]]]:
    """By name, in the order in which they are made."""
    for network in NETWORKS:
        for variant in variants.VARIANTS:
            yield f"{variant}, {network}", partial(_agrees, network, variant, setting.device)
    kind = TIMED.get(torch.device(setting.device).type, TIMED["cpu"])
    for model in str(kind["models"]).split(","):
        for precision in str(kind["precisions"]).split(","):
            name = f"time of {model}, {precision}"
            yield name, partial(_ratios, model, precision, setting, kind)


def _agrees(network: str, variant: str, device: str) -> Check:
    """Whether every way of computing the variant ends in the weights that the plainest has."""
    architecture, shape = NETWORKS[network]
    base = Recipe(
        name="self-test", dataset="random numbers", model=architecture, rule=DualPropagation(), batch_size=BATCH_SIZE,
        optimizer=Optimizer(name="sgd", learning_rate=0.05, momentum=0.9), dtype="float64", align=False, capture="off",
        kernel="eager",
    )  # fmt: skip
    plainest = variants.named(variant).apply(base)
    runs.prepare(plainest)
    weights = _weights(plainest, shape)
    differences = {name: _difference(weights, _weights(recipe, shape)) for name, recipe in _ways(plainest, device).items()}
    worst = max(differences, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name])
    if differences[worst] <= ROUNDING:
        return Check(result="holds", difference=differences[worst])
    return Check(result="fails", difference=differences[worst], error=f"{worst} differs by {differences[worst]:.1e}")


def _ways(plainest: Recipe, device: str) -> dict[str, Recipe]:
    """The other ways of computing the recipe, by what is other."""
    ways = {"the chosen kernel": dataclasses.replace(plainest, kernel="auto")}
    rule = plainest.rule
    # The fused engine computes DP⊤ at α ∈ {0, 1} exactly, other settings to the second order of β.
    if isinstance(rule, DualPropagation) and rule.coupling == "transposed" and rule.engine == "auto":
        for engine in ("explicit", "fused"):
            ways[f"the {engine} engine"] = dataclasses.replace(plainest, rule=dataclasses.replace(rule, engine=engine))
    if torch.device(device).type != "cpu":
        there = dataclasses.replace(plainest, device=device)
        ways |= {f"{name} on {device}": dataclasses.replace(way, device=device) for name, way in ways.items()}
        ways[device] = there
        if torch.device(device).type == "cuda" and not rule.capture_obstacle:
            ways["the captured step"] = dataclasses.replace(there, capture="on")
    return ways


def _weights(recipe: Recipe, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """After a few steps on batches that are the same for every device."""
    how, draws = execution.resolve(recipe), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = how.place(recipe.build(shape, CLASSES))
    step = contenders.trainer_step(model, recipe)
    for _ in range(STEPS):
        x = torch.randn(recipe.batch_size, *shape, generator=draws, dtype=torch.float64)
        y = torch.randint(CLASSES, (recipe.batch_size,), generator=draws)
        step(x.to(recipe.device), y.to(recipe.device))
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def _difference(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest over parameters, by their norm; nan where one is."""
    each = [float((others[name] - weight).norm() / weight.norm().clamp(min=1e-12)) for name, weight in weights.items()]
    return math.nan if any(map(math.isnan, each)) else max(each)


def _ratios(model: str, precision: str, setting: Setting, kind: dict[str, Any]) -> Check:
    """A step's time by that of a plain PyTorch loop, by every engine."""
    results = tables.run(
        BenchOptions(
            models=model, precisions=precision, rules="bp,dp,dp-transposed", engines=kind["engines"], rounds=kind["rounds"],
            seconds=kind["seconds"], device=setting.device, threads=setting.threads, memory=False, ceilings=False,
        )
    )  # fmt: skip
    (group,) = results["groups"]
    ratios = {row["label"]: row["ratio"] for row in group.get("rows", ()) if row["label"] != PLAIN}
    return Check(
        result="measured" if ratios and not group["refused"] else "fails",
        ratios=ratios or None,
        error="; ".join(f"{label}: {reason}" for label, reason in group["refused"].items()),
    )
