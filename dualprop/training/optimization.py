"""The optimizer of a recipe and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dualprop.errors import SettingError
from dualprop.training.recipe import Optimizer

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def build(settings: Optimizer, model: nn.Module, capturable: bool = False) -> torch.optim.Optimizer:
    """The PyTorch optimizer, in its fused form: one kernel for all parameters. One that is
    `capturable` holds its learning rate in a tensor on their device, where a captured step reads
    it.

    Raises SettingError where the layer factors are not one for each module with parameters of its
    own.
    """
    device = next(model.parameters()).device

    def rate_of(factor: float) -> float | torch.Tensor:
        rate = settings.learning_rate * factor
        # A CPU has float64 for it, so that a captured step is the one that is not to the last bit.
        dtype = torch.float64 if device.type == "cpu" else None
        return torch.tensor(rate, device=device, dtype=dtype) if capturable else rate

    rate = rate_of(1.0)
    parameters: list[Any] = list(model.parameters())
    if settings.layer_factors or settings.norm_factor != 1:
        parameters = [
            {
                "params": list(module.parameters(recurse=False)),
                "lr": rate_of(factor * norm_factor),
                "factor": factor * norm_factor,
                "weight_decay": settings.weight_decay / norm_factor,
            }
            for module, factor, norm_factor in _factors(settings, model)
        ]
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=settings.momentum, nesterov=settings.nesterov,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(
        parameters, lr=rate, weight_decay=settings.weight_decay, fused=True, capturable=capturable and device.type != "cpu"
    )


def _factors(settings: Optimizer, model: nn.Module) -> Iterator[tuple[nn.Module, float, float]]:
    """Each module with parameters of its own, its layer's factor, and that of normalisations."""
    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    factors = settings.layer_factors or (1.0,) * len(layers)
    if len(layers) != len(factors):
        raise SettingError(
            f"layer_factors lists {len(factors)} factors, but the model has {len(layers)} modules with "
            "parameters. Give one each."
        )
    for layer, factor in zip(layers, factors, strict=True):
        yield layer, factor, settings.norm_factor if isinstance(layer, _NORMS) else 1.0


def learning_rate(settings: Optimizer, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step 0, 1, …: linear warm-up from `warmup_from`, then constant, or a half cosine
    that ends with the run or before it and stays where it ended."""
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    peak = settings.learning_rate
    if step < warmup_steps:
        return settings.warmup_from + (peak - settings.warmup_from) * step / warmup_steps
    if not settings.cosine:
        return peak
    last_step = round((settings.cosine_epochs or epochs) * steps_per_epoch)
    progress = min(1.0, (step - warmup_steps) / max(1, last_step - warmup_steps))
    return settings.final_learning_rate + (peak - settings.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this rate, times its factor."""
    for group in optimizer.param_groups:
        group_rate = rate * group.get("factor", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(group_rate)
        else:
            group["lr"] = group_rate
