"""How many digits of DP's gradients survive in float32 and under bfloat16 autocast, for which β: a
table in Markdown.

    python scripts/precision.py [--steps 150]

A network 64-256-256-256-10 is trained by back-propagation on digits; then each case's gradients on
one batch of 100 are compared with those of the same rule in float64 at the same weights: ‖g - g₆₄‖
/ ‖g₆₄‖, the worst parameter's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import dualprop as dp
from dualprop import data, neurons

BETAS = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-6)


def trained(activation: str, x: Tensor, y: Tensor, steps: int) -> nn.Sequential:
    """The network after some steps of Adam on batches of 100."""
    torch.manual_seed(0)
    widths = (64, 256, 256, 256)
    hidden = [[nn.Linear(a, b), neurons.module(activation)] for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*(module for pair in hidden for module in pair), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        rows = torch.randint(len(x), (100,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def error(model: nn.Module, rule: dp.DualPropagation | dp.Backprop, x: Tensor, y: Tensor, half: bool) -> float:
    """The worst parameter's relative error against float64."""
    network = dp.Network.from_module(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = rule.gradients(network, x, y).gradients
    wide = dp.Network.from_module(copy.deepcopy(model).double())
    exact = rule.gradients(wide, x.double(), y).gradients
    return max(float((found[name].double() - g).norm() / g.norm()) for name, g in exact.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="of training before the comparison")
    steps = parser.parse_args(arguments).steps
    splits = data.load("digits")
    x, y = splits.train.batch(torch.arange(len(splits.train)))
    x, batch, labels = x.flatten(1), x.flatten(1)[:100], y[:100]
    print("| | " + " | ".join(f"β = {beta:g}" for beta in BETAS) + " |")
    print("|" + "---|" * (1 + len(BETAS)))
    for activation in ("relu", "tanh"):
        model = trained(activation, x, y, steps)
        for half, precision in ((False, "float32"), (True, "bfloat16 autocast")):
            for engine in ("explicit", "fused"):
                for kernel in ("native", "eager") if activation == "relu" else ("eager",):
                    rules = [dp.DualPropagation(beta=beta, engine=engine) for beta in BETAS]
                    with dp.kernels.using(kernel):
                        cells = [f"{error(model, rule, batch, labels, half):.0e}" for rule in rules]
                    print(f"| {activation}, {precision}, {engine}, {kernel} | " + " | ".join(cells) + " |")
            print(f"| {activation}, {precision}, back-propagation | {error(model, dp.Backprop(), batch, labels, half):.0e} |")


if __name__ == "__main__":
    main()
