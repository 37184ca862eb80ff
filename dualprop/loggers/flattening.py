"""Metrics and hyperparameters by flat names, as logging tools want them.

train_loss                         train/loss
alignment[0].angle of layer "1"    alignment/layer 1/angle
inference.residual                 inference/residual
drives, unsettled_steps            rule/drives, rule/unsettled_steps
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_PARTS = ("train", "validation", "test")


def metrics(plain: Mapping[str, Any]) -> dict[str, float]:
    """Of a line of metrics.jsonl, or of a result; what is no number is left out."""
    return {name: number for key, value in plain.items() if key != "epoch" for name, number in _numbers(_named(key), value)}


def scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The test scores of a result, and the epoch that was tested."""
    kept = {key: value for key, value in result.items() if key.startswith("test_") and value is not None}
    return {**metrics(kept), "best_epoch": float(result["best_epoch"])}


def hyperparameters(plain: Mapping[str, Any], prefix: str = "") -> dict[str, float | str | bool]:
    """Of a recipe; lists as words, and what is empty left out."""
    flat: dict[str, float | str | bool] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            flat |= hyperparameters(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str) and value != "":
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, list | tuple) and value:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value))
    return flat


def _named(key: str) -> str:
    part, _, rest = key.partition("_")
    if part in _PARTS and rest:
        return f"{part}/{rest}"
    return key if key in ("alignment", "weight_alignment", "inference", "learning_rate") else f"rule/{key}"


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        yield name, math.nan
    elif isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "layer":
                yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value, start=1):
            layer = inner.get("layer", number) if isinstance(inner, Mapping) else number
            yield from _numbers(f"{name}/layer {layer}", inner)
