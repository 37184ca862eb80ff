"""Counts of synapse evaluations: of a rule on small networks, of a recipe's step, in BP steps."""

from __future__ import annotations

import dataclasses
import unittest.mock
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from networks import batch, drawn, images, mlp
from torch import nn

import dualprop as dp
from dualprop import recipes
from dualprop.bench import contenders
from dualprop.models import MLP, VGG
from dualprop.network.synapses import Synapse
from dualprop.recipes.variants import VARIANTS
from dualprop.training.recipe import Recipe


class Counts(NamedTuple):
    """Drives, feedbacks and gradients of one call."""

    drives: int
    feedbacks: int
    gradients: int

    def __str__(self) -> str:
        return f"{self.drives}, {self.feedbacks}, {self.gradients}"


def of(rule: dp.AbstractRule, model: nn.Module, x: torch.Tensor, y: torch.Tensor, state: Any = None) -> Counts:
    """The counts of one call of the rule."""
    generator = torch.Generator().manual_seed(0)
    out = rule.gradients(dp.Network.from_module(model), x, y, state=state, generator=generator)
    return Counts(*(int(out.diagnostics[name]) for name in Counts._fields))


def on(rule: dp.AbstractRule, layers: int) -> Counts:
    """On a tanh MLP of so many layers, on which nothing stops moving to the last bit."""
    return of(rule, mlp("tanh", (5, *[6] * (layers - 1), 4)), *batch())


def steps(counts: Counts, layers: int) -> float:
    """By a BP step's: L drives, L-1 feedbacks, L gradients."""
    return sum(counts) / (3 * layers - 1)


def each(make: Callable[[int], dp.AbstractRule], *layers: int) -> list[float]:
    """In BP steps, for networks of so many layers."""
    return [steps(on(make(n), n), n) for n in layers]


def pooled(pool: Callable[[], nn.Module]) -> nn.Module:
    """Four layers; the second has the pool between convolution and activation. For `images`."""

    def make() -> nn.Module:
        below = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1), pool(), nn.Tanh()]
        return nn.Sequential(*below, nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))

    return drawn(make)


def dtp(iterations: int, layers: int) -> Counts:
    """Of DTP with so many iterations."""
    return on(dp.TargetPropagation(iterations=iterations), layers)


def incremental(learn: str) -> float:
    """BP steps of a batch of 20 updates of incremental PC, three layers. The weights stay."""
    rule = dp.PredictiveCoding(beta=1.0, steps=1, start="previous", learn=learn)  # type: ignore[arg-type]
    network, (x, y), state, total = dp.Network.from_module(mlp("tanh", (5, 6, 6, 4))), batch(), None, 0
    for _ in range(20):
        out = rule.gradients(network, x, y, state=state)
        state = out.state
        total += sum(int(out.diagnostics[name]) for name in Counts._fields)
    return total / 8


def narrow(recipe: Recipe) -> tuple[Recipe, tuple[int, ...]]:
    """The recipe on a network of its depth and a few units, and an input's shape: no count depends
    on widths."""
    model = recipe.model
    if isinstance(model, MLP):
        model = dataclasses.replace(model, widths=(6,) * len(model.widths))
    elif isinstance(model, VGG):
        model = dataclasses.replace(model, channels=(2,) * len(model.channels), dense=(4,) * len(model.dense))
    side = 2 ** len(model.pooled) if isinstance(model, VGG) else 32
    shape = (1, 28, 28) if recipe.dataset == "mnist" else (3, side, side)
    return dataclasses.replace(recipe, model=model, batch_size=2), shape


@cache
def of_variant(recipe_name: str, variant: str) -> float:
    """BP steps of a training step by the variant; if it keeps states, of the second."""
    recipe, shape = narrow(VARIANTS[variant].apply(recipes.from_name(recipe_name)))
    step = contenders.Contender(variant, recipe).step(shape, 10)
    if recipe.rule.keeps_state or recipe.rule.needs_generator:
        step()
    outcomes = step()
    assert isinstance(outcomes, list)
    return sum(contenders.counts(outcomes).values()) / contenders.work_of_backprop(recipe, shape, 10)


def drawn_orders(layers: int, draws: int = 20) -> list[float]:
    """BP steps of `r-dp-100`, whose order is drawn, by so many draws."""
    rule = dp.DualPropagation(schedule="random_order(100)", start="zeros")
    network, (x, y) = dp.Network.from_module(mlp("tanh", (5, *[6] * (layers - 1), 4))), batch()
    counted = []
    for seed in range(draws):
        found = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(seed)).diagnostics
        counted.append(sum(int(found[name]) for name in Counts._fields) / (3 * layers - 1))
    return counted


def passes_of(rule: dp.AbstractRule) -> tuple[int, int]:
    """Passes of a residual network with BatchNorm up and down, as docs/your-own-model.md counts."""
    torch.manual_seed(0)
    network = dp.Network.from_module(Residual().double().train())
    x, y = torch.randn(6, 5).double(), torch.arange(6) % 3
    out, whole = rule.gradients(network, x, y), network.counts_of_backprop(x)
    return tuple(int(out.diagnostics[n]) // whole[n] for n in ("drives", "feedbacks"))  # type: ignore[return-value]


class Residual(nn.Module):
    """Three layers, one skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        return self.third(h + torch.tanh(self.norm(self.second(h))))


def pool_counts(pool: Callable[[], nn.Module]) -> Counts:
    """DP at α = ½, one downward sweep, past a pool before an activation."""
    return of(dp.DualPropagation(engine="explicit"), pooled(pool), *images())


def with_feedback(L: int) -> Counts:
    """The same by every kind of weights and by both rules, or none."""
    found = {
        of(rule, dp.feedback.convert(mlp("tanh", (5, *[6] * (L - 1), 4)), kind), *batch())
        for kind in ("kolen_pollack", "random", "sign_symmetric")
        for rule in (dp.DualPropagation(engine="explicit"), dp.Backprop())
    }
    (counts,) = found
    return counts


def spectral_steps(rule: dp.AbstractRule, calls: int = 1) -> int:
    """Pairs of maps of a single example for each layer above the first, in the last call."""
    made: list[Synapse] = []
    state, whole, network = None, Synapse.linear_part, dp.Network.from_module(mlp("tanh", (5, 6, 6, 4)))

    def counted(synapse: Synapse, s: torch.Tensor) -> Any:
        assert len(s) == 1
        made.append(synapse)
        return whole(synapse, s)

    with unittest.mock.patch.object(Synapse, "linear_part", counted):
        for _ in range(calls):
            made.clear()
            state = rule.gradients(network, *batch(), state=state).state
    assert set(made) == {network.into(k).synapse for k in (2, 3)}
    return len(made) // 2
