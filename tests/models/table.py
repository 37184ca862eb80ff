"""The tables of docs/your-own-model.md, computed: what each engine and rule makes of each model.

    python tests/models/table.py          writes both tables into the page

A cell of an architecture is "right" where the gradient of every parameter has a cosine of at least
0.9999 with autograd's, and its norm to a per cent, at a small β in float64. A refusal is told in
its own words.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from architecture import Architecture
from architectures import ARCHITECTURES
from engines import argument, autograd, by_rule, disagreement, fused, network_of
from torch import Tensor, nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.errors import DualpropError

PAGE = Path(__file__).parents[2] / "docs/your-own-model.md"
BETA, COSINE, RATIO = 1e-5, 0.9999, 0.01
COLUMNS = ("fused", "DP", "DP⊤", "EP", "PC")


def _rules(layers: int) -> dict[str, dp.AbstractRule]:
    """The explicit rules by their column. PC with fixed predictions needs a step for each layer."""
    return {
        "DP": dp.DualPropagation(engine="explicit", beta=BETA),
        "DP⊤": dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=BETA),
        "EP": dp.EquilibriumPropagation(beta=BETA),
        "PC": dp.PredictiveCoding(beta=BETA, predictions="fixed", steps=max(layers, 1), step_size=1.0, momentum=0.0),
    }


def read(architecture: Architecture) -> tuple[str, int, str]:
    """How a network reads it, its number of layers, and the functions left to exact derivatives."""
    network = network_of(architecture, architecture.model())
    layers = network.on(argument(architecture.batch()[0]))
    report = getattr(network, "report", None)
    left = sorted({f"`{name}`" for name, _ in report.left}) if report else []
    return "running" if network.is_recorded else "modules", layers.depth, ", ".join(left)


def verdict(architecture: Architecture, column: str, layers: int) -> str:
    """Right, or by how much wrong, or why refused."""
    batch = architecture.batch()
    try:
        if column == "fused":
            step = fused(architecture, batch, BETA)
        else:
            rule = _rules(layers)[column]
            step = by_rule(architecture, batch, lambda _, loss: _with_loss(rule, loss))
    except DualpropError as error:
        return f"refused: {error}".replace("|", "\\|")
    wrong = disagreement(step.gradients, autograd(architecture, batch).gradients, COSINE, RATIO)
    return f"wrong: {wrong[0]}" if wrong else "right"


def _with_loss(rule: dp.AbstractRule, loss: Any) -> dp.AbstractRule:
    settings = {name: getattr(rule, name) for name in rule.__dataclass_fields__ if name in vars(rule)}
    return type(rule)(**settings | {"loss": loss})


@cache
def architecture_row(name: str) -> str:
    """The row of one architecture."""
    architecture = ARCHITECTURES[name]
    how, layers, left = read(architecture)
    cells = [verdict(architecture, column, layers) for column in COLUMNS]
    return _row(f"`{name}`", how, layers, left or "–", *cells)


def architectures_table() -> list[str]:
    head = _head("architecture", "read by", "layers", "left to exact derivatives", *COLUMNS)
    return [*head, *(architecture_row(name) for name in ARCHITECTURES)]


class Residual(nn.Module):
    """Any module will do: a skip, BatchNorm, dropout, activations as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.norm = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = h + torch.tanh(self.norm(self.second(F.dropout(h, 0.1, self.training))))
        return self.third(h)


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


RULES: dict[str, dp.AbstractRule] = {
    "`DualPropagation()`": dp.DualPropagation(engine="explicit"),
    '`…(coupling="transposed", alpha=0)`': dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0),
    '`…(engine="fused")`': dp.DualPropagation(engine="fused"),
    '`…(schedule="alternating_sweeps(3)")`': dp.DualPropagation(engine="explicit", schedule="alternating_sweeps(3)"),
    "`…(damping=1.0)`": dp.DualPropagation(engine="explicit", damping=1.0),
    '`…(damping="spectral")`': dp.DualPropagation(engine="explicit", damping="spectral"),
    "`EquilibriumPropagation()`, centered": dp.EquilibriumPropagation(),
    '`…(estimator="forward")`': dp.EquilibriumPropagation(estimator="forward"),
    '`…(jacobians="free")`': dp.EquilibriumPropagation(jacobians="free"),
    '`…(energy="hopfield")`': dp.EquilibriumPropagation(energy="hopfield", relaxation="blocks(odd_even(60))"),
    "`PredictiveCoding()`, 20 steps": dp.PredictiveCoding(),
    '`…(predictions="fixed")`': dp.PredictiveCoding(predictions="fixed"),
    '`…(learn="arrival")`': dp.PredictiveCoding(learn="arrival", step_size=1.0, momentum=0.0),
    "`Lifted()`": dp.Lifted(),
    "`ContrastiveHebbian()`": dp.ContrastiveHebbian(),
    "`TargetPropagation()`": dp.TargetPropagation(),
    "`DirectFeedbackAlignment()`": dp.DirectFeedbackAlignment(),
    "`Backprop()`": dp.Backprop(),
}


def passes(rule: dp.AbstractRule, build: Callable[[], nn.Module]) -> tuple[str, str, str]:
    """Passes up, passes down, and "", or why the rule refuses the model."""
    torch.manual_seed(0)
    model = build().double().train()
    network, x, y = dp.Network.from_module(model), torch.randn(6, 5).double(), torch.arange(6) % 3
    try:
        out = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(0))
    except DualpropError as error:
        return "–", "–", str(error)
    whole, counts = network.counts_of_backprop(x), out.diagnostics
    up, down = (math.ceil(counts[kind] / whole[kind]) for kind in ("drives", "feedbacks"))
    return f"{up}", f"{down}", ""


@cache
def rules_table() -> list[str]:
    lines = _head("rule", "a chain: up", "down", "any model: up", "down", "why not")
    for name, rule in RULES.items():
        up, down, refused = passes(rule, chain)
        assert not refused, f"{name} refuses a chain: {refused}"
        any_up, any_down, why = passes(rule, Residual)
        lines.append(_row(name, up, down, any_up, any_down, why.partition(", but")[0] or "–"))
    return lines


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


TABLES: dict[str, Callable[[], list[str]]] = {"rules": rules_table, "architectures": architectures_table}


def on_page(name: str) -> list[str]:
    """The table as it stands on the page."""
    return _parts(name)[1].strip().splitlines()


def _parts(name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->\n"
    before, rest = PAGE.read_text().split(begin)
    table, after = rest.split(end)
    return before + begin, table, end + after


def write() -> None:
    for name, table in TABLES.items():
        before, _, after = _parts(name)
        PAGE.write_text(before + "\n".join(["", *table(), "", ""]) + after)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(write())
