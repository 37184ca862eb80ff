"""How a rule's gradients compare with back-propagation's, layer by layer, on one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualprop.network import Network
from dualprop.network.running import unnoticed
from dualprop.rules import AbstractRule


@dataclass(frozen=True)
class LayerAlignment:
    """Cosine, norm ratio ‖rule‖ / ‖BP‖ and angle in degrees of one layer's gradient.

    All its parameters are read as one vector.
    """

    layer: str
    cosine: float
    norm_ratio: float

    @property
    def angle(self) -> float:
        # min and max would turn the nan of a zero gradient into perfect alignment.
        return math.nan if math.isnan(self.cosine) else math.degrees(math.acos(max(-1.0, min(1.0, self.cosine))))


def alignment(
    network: Network,
    rule: AbstractRule,
    x: Tensor,
    y: Tensor,
    state: Any = None,
    generator: torch.Generator | None = None,
    updates: int = 1,
) -> list[LayerAlignment]:
    """One entry per layer with parameters, from input to output.

    A zero gradient has cosine and norm ratio nan.

    If a rule makes several `updates` on a batch, it is the mean of their gradients, all at the
    present weights, each from the states of the one before. The first update of incremental
    predictive coding alone has not reached the lower layers.

    Back-propagation means the true gradient, `rule.exact_gradients`. It goes through the forward
    weights, also where the network has feedback weights. If the rule predicts by an equilibrium, it
    is that equilibrium's.
    """
    outcome = rule.gradients(network, x, y, state=state, generator=generator)
    total = dict(outcome.gradients)
    for _ in range(updates - 1):
        outcome = rule.gradients(network, x, y, state=outcome.state if rule.keeps_state else None, generator=generator)
        total = {name: total[name] + gradient for name, gradient in outcome.gradients.items()}
    exact, layers = rule.exact_gradients(network, x, y), network.layers
    if network.is_recorded:
        with unnoticed(network.module, x):
            layers = network.on(x).layers
    return [
        _compare(layer.name, [total[n] / updates for n in names], [exact[n] for n in names])
        for layer in layers
        if (names := [name for name in layer.parameters if name in exact])
    ]


def angle_between(found: list[Tensor], exact: list[Tensor]) -> float:
    """The angle between two gradients in degrees; nan where one is zero.

    Each is several tensors, read as one vector.
    """
    return _compare("", found, exact).angle


def _compare(layer: str, gradient: list[Tensor], exact: list[Tensor]) -> LayerAlignment:
    # Wide sums: in float32 a cosine of 1 - 1e-7 would already be noise.
    a = torch.cat([t.flatten() for t in gradient]).double()
    b = torch.cat([t.flatten() for t in exact]).double()
    norm_a, norm_b = float(a.norm()), float(b.norm())
    if norm_a == 0 or norm_b == 0:
        return LayerAlignment(layer, math.nan, math.nan)
    return LayerAlignment(layer, float(a @ b) / (norm_a * norm_b), norm_a / norm_b)
