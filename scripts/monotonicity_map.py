"""Maps where the layered objective of dual propagation breaks Proposition 4.1's monotonicity, over
weight gain and β.

    python scripts/monotonicity_map.py --out map.png --json map.json

J_{α,β} is L_α (dualprop.objectives.dyadic, squared error, exact nudges) where inference has come to
rest. Small random networks of four layers, weights gain·N(0, 1/n_in); inference is swept down and
up from the forward pass, or from random states, and slowed down where it does not settle. Per cell:
the share of inferences that did not settle, and of the pairs of neighbours that both did, the share
with J_{α',β} > J_{α,β} for α < α', and with β J_{α,β} > β' J_{α,β'} for β < β'.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dualprop as dp
from dualprop import objectives
from dualprop.training import environment, files

GAINS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BETAS = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
ALPHAS = tuple(i / 8 for i in range(9))
WIDTHS = (5, 8, 8, 8, 3)
NETWORKS, EXAMPLES = 5, 4
FEW = 20  # pairs: below it a cell shows counts instead of a percentage
ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU}
STARTS = ("forward", "random")
# The share of the way that a state goes towards its update, and for how many sweeps.
PACES = ((1.0, 60), (0.3, 250), (0.05, 1000))
SETTLED = 1e-9  # one more undamped sweep by the library's own rule moves no state further, relative to the largest


@dataclass(frozen=True)
class Found:
    """Of one gain, activation and start: J and whether inference settled, shapes (networks, α, β,
    examples)."""

    values: Tensor
    settled: Tensor


def random_models(gain: float, activation: str, generator: torch.Generator) -> list[nn.Sequential]:
    models = []
    for _ in range(NETWORKS):
        modules: list[nn.Module] = []
        for below, above in pairwise(WIDTHS):
            linear = nn.Linear(below, above).double()
            weight = torch.randn(above, below, generator=generator, dtype=torch.float64)
            linear.weight.data, linear.bias.data = gain * weight / below**0.5, torch.zeros(above, dtype=torch.float64)
            modules += [linear, ACTIVATIONS[activation]()]
        models.append(nn.Sequential(*modules[:-1]))
    return models


def settle(models: list[nn.Sequential], x: Tensor, y: Tensor, start: list[Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
    """s⁺ and s⁻ of all layers, for all networks, α and β at once: shapes (networks, α, β, examples,
    width)."""
    weights = [torch.stack([m[2 * k].weight.data for m in models])[:, None, None] for k in range(len(WIDTHS) - 1)]
    f = torch.tanh if isinstance(models[0][1], nn.Tanh) else torch.relu
    alpha = torch.tensor(ALPHAS, dtype=x.dtype)[:, None, None, None]
    beta = torch.tensor(BETAS, dtype=x.dtype)[:, None, None]
    depth, shape = len(weights), (len(models), len(ALPHAS), len(BETAS), len(x))
    target = nn.functional.one_hot(y, WIDTHS[-1]).to(x.dtype)

    def drive(k: int, plus: list[Tensor], minus: list[Tensor]) -> Tensor:
        return (alpha * plus[k - 1] + (1 - alpha) * minus[k - 1]) @ weights[k - 1].mT

    def updated(k: int, plus: list[Tensor], minus: list[Tensor]) -> tuple[Tensor, Tensor]:
        a = drive(k, plus, minus)
        if k == depth:
            up, down = alpha * beta, (alpha - 1) * beta
            return (a + up * target) / (1 + up), (a + down * target) / (1 + down)
        pull = (plus[k + 1] - minus[k + 1]) @ weights[k]
        return f(a + alpha * pull), f(a - (1 - alpha) * pull)

    begin = [x.expand(*shape, -1)]
    for k in range(1, depth + 1):
        a = begin[-1] @ weights[k - 1].mT
        begin.append(a if k == depth else f(a))
    if start is not None:
        begin[1:] = [s.expand(*shape, -1) for s in start]
    plus, minus = list(begin), list(begin)
    done = torch.zeros(shape, dtype=torch.bool)
    for pace, sweeps in PACES:
        plus = [torch.where(done[..., None], s, b) for s, b in zip(plus, begin, strict=True)]
        minus = [torch.where(done[..., None], s, b) for s, b in zip(minus, begin, strict=True)]
        for _ in range(sweeps):
            moved, size = torch.zeros(shape, dtype=x.dtype), torch.ones(shape, dtype=x.dtype)
            for k in (*range(depth, 0, -1), *range(2, depth)):
                for states, new in zip((plus, minus), updated(k, plus, minus), strict=True):
                    step = torch.where(done[..., None], 0, new - states[k])
                    moved, size = torch.maximum(moved, step.abs().amax(-1)), torch.maximum(size, new.abs().amax(-1))
                    states[k] = states[k] + pace * step
            done = done | (moved <= SETTLED * size / 100)
            if bool(done.all()):
                return plus, minus
    return plus, minus


def measure(gain: float, activation: str, start: str, seed: int) -> Found:
    generator = torch.Generator().manual_seed(seed)
    models = random_models(gain, activation, generator)
    x = torch.randn(EXAMPLES, WIDTHS[0], generator=generator, dtype=torch.float64)
    y = torch.randint(WIDTHS[-1], (EXAMPLES,), generator=generator)
    random = None
    if start == "random":
        # One start for every α and β of a network and example: states of the size of the
        # activation's range.
        drawn = [torch.randn(NETWORKS, 1, 1, EXAMPLES, w, generator=generator, dtype=torch.float64) for w in WIDTHS[1:]]
        random = [s if k == len(drawn) - 1 else (s.tanh() if activation == "tanh" else s.relu()) for k, s in enumerate(drawn)]
    plus, minus = settle(models, x, y, random)
    values, settled = (torch.zeros(plus[0].shape[:-1], dtype=kind) for kind in (torch.float64, torch.bool))
    for m, model in enumerate(models):
        network = dp.Network.from_module(model)
        for i, alpha in enumerate(ALPHAS):
            for j, beta in enumerate(BETAS):
                values[m, i, j], settled[m, i, j] = judge(
                    network, [s[m, i, j] for s in plus], [s[m, i, j] for s in minus], y, alpha, beta
                )
    return Found(values, settled)


def judge(
    network: dp.Network, plus: list[Tensor], minus: list[Tensor], y: Tensor, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """L_α per example, and whether the library's own rule would leave these dyads where they
    are."""
    means = tuple(alpha * p + (1 - alpha) * q for p, q in zip(plus, minus, strict=True))
    differences = tuple(p - q for p, q in zip(plus, minus, strict=True))
    dyads = dp.Dyads(means, (None, *differences[1:]), alpha)
    rule = dp.DualPropagation(alpha=alpha, beta=beta, loss="squared_error", output_nudge="exact", start="previous")
    after = rule.infer(network, means[0], y, state=dyads)
    moved, size = torch.zeros(len(y), dtype=torch.float64), torch.ones(len(y), dtype=torch.float64)
    for before, now in ((dyads.plus, after.plus), (dyads.minus, after.minus)):
        for old, new in zip(before, now, strict=True):
            moved, size = torch.maximum(moved, (new - old).abs().amax(1)), torch.maximum(size, new.abs().amax(1))
    with torch.no_grad():
        values = objectives.dyadic(network, dyads, y, "squared_error", beta)
    # Not a number is not settled.
    return values, (moved <= SETTLED * size) & values.isfinite()


def shares(found: Found) -> dict[str, list[Any]]:
    """Per β, or pair of neighbouring β's: the shares of PANELS, None where there is no pair, and
    the numbers of pairs."""
    j, settled = found.values, found.settled
    beta = torch.tensor(BETAS, dtype=j.dtype)[:, None]
    # What an inference within SETTLED of its end, and the rounding of E/β, leave uncertain.
    slack = 1e-7 * (1 + torch.where(settled, j.abs(), 0))
    both_alphas = settled[:, 1:] & settled[:, :-1]
    rises = j[:, 1:] > j[:, :-1] + slack[:, :-1]
    both_betas = settled[:, :, 1:] & settled[:, :, :-1]
    falls = (beta * j)[:, :, :-1] > (beta * j)[:, :, 1:] + slack[:, :, 1:]

    def per_beta(breaks: Tensor, of: Tensor) -> list[float | None]:
        true, total = (breaks & of).sum((0, 1, 3)).tolist(), of.sum((0, 1, 3)).tolist()
        return [b / t if t else None for b, t in zip(true, total, strict=True)]

    return {
        "unsettled": per_beta(~settled, torch.ones_like(settled)),
        "rises_with_alpha": per_beta(rises, both_alphas),
        "falls_with_beta": per_beta(falls, both_betas),
        "alpha_pairs": both_alphas.sum((0, 1, 3)).tolist(),
        "beta_pairs": both_betas.sum((0, 1, 3)).tolist(),
    }


# key: (title, key of the numbers of pairs, the share at which the scale ends)
PANELS = {
    "unsettled": ("inference did not settle", "", 1.0),
    "rises_with_alpha": ("J rises with α", "alpha_pairs", 0.1),
    "falls_with_beta": ("β·J falls with β", "beta_pairs", 0.1),
}


def draw(maps: dict[str, dict[str, list[list[Any]]]], path: Path) -> None:
    """A row per activation and start, a column per panel; gain upwards, β to the right, darker
    where more breaks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.1 * len(maps)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(maps), len(PANELS), squeeze=False)
    for column, (key, (title, counts, top)) in enumerate(PANELS.items()):
        image: Any = None
        for axes, (name, panels) in zip(rows[:, column], maps.items(), strict=True):
            cells = [[float("nan") if share is None else share for share in row] for row in panels[key]]
            axes.set_facecolor("#d9d9d9")
            image = axes.imshow(cells, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=top)
            for i, row in enumerate(cells):
                for j, share in enumerate(row):
                    pairs = panels[counts][i][j] if counts else FEW
                    few = f"{share * pairs if pairs else 0:.0f} of {pairs}"
                    text = few if pairs < FEW else f"{100 * share:.1f}" if share else "0"
                    axes.text(
                        j, i, text, ha="center", va="center", fontsize=8, color="white" if share > 0.6 * top else "#333333"
                    )
            steps = [f"{b:g}" for b in BETAS] if key != "falls_with_beta" else [f"{a:g} → {b:g}" for a, b in pairwise(BETAS)]
            axes.set_xticks(range(len(steps)), steps, fontsize=8)
            axes.set_yticks(range(len(GAINS)), [f"{g:g}" for g in GAINS], fontsize=8)
            axes.set_title(f"{name}: {title}", fontsize=10, loc="left")
            axes.set_ylabel("weight gain", fontsize=9)
            axes.set_xlabel("β", fontsize=9)
        label = "share of inferences" if key == "unsettled" else "share of settled pairs (counts where they are few)"
        bar = figure.colorbar(image, ax=list(rows[:, column]), label=label, location="bottom", fraction=0.02, pad=0.01)
        bar.ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the picture, PNG")
    parser.add_argument("--json", type=Path, help="the numbers")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began, maps = time.monotonic(), {}
    for activation in ACTIVATIONS:
        for start in STARTS:
            # The same networks and inputs for both starts.
            rows = [shares(measure(gain, activation, start, arguments.seed)) for gain in GAINS]
            name = f"{activation}, from {'the forward pass' if start == 'forward' else 'random states'}"
            maps[name] = {key: [row[key] for row in rows] for key in rows[0]}
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    draw(maps, arguments.out)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            "seed": arguments.seed, "gains": GAINS, "betas": BETAS, "alphas": ALPHAS, "widths": WIDTHS, "networks": NETWORKS,
            "examples": EXAMPLES, "paces": PACES, "settled": SETTLED, "loss": "squared_error, exact nudge",
        }  # fmt: skip
        files.write_json(arguments.json, {"settings": settings, "environment": environment.describe(), "maps": maps})


if __name__ == "__main__":
    main()
