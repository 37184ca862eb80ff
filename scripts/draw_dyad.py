"""The pictures of the README and the docs: what a dyad is, and one inference step by step.

    python scripts/draw_dyad.py          writes docs/pictures/dyad.png, inference.png, inference.gif

The dyad drawn is real: unit 2 of layer 2 of the network that `dualprop show` draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dualprop import analysis
from dualprop.analysis import drawing, dyad_pictures
from dualprop.analysis.dyad_pictures import MEAN, MINUS, PLUS

PICTURES = Path(__file__).parents[1] / "docs/pictures"
LAYER, UNIT = 2, 2


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    inference = analysis.show()
    drawing.save(dyad(inference), PICTURES / "dyad.png")
    for name in ("inference.png", "inference.gif"):
        dyad_pictures.draw(inference, PICTURES / name)


def dyad(inference: analysis.Inference) -> Any:
    """Left, the neuron and what goes through it; right, its two states on its activation."""
    figure, (scheme, curve) = drawing.new_figure(1, 2, (9.6, 3.5), width_ratios=(1.15, 1))
    _draw_scheme(scheme)
    frame = next(frame for frame in inference.frames if LAYER in frame.layers)
    a, pull = frame.drives[LAYER][UNIT].item(), frame.pulls[LAYER][UNIT].item()
    plus, minus = (states[LAYER][UNIT].item() for states in (frame.dyads.plus, frame.dyads.minus))
    _draw_curve(curve, a, pull, plus, minus)
    return figure


def _draw_scheme(axes: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.set_xlim(0, 10)
    axes.set_ylim(0, 7)
    axes.set_axis_off()
    box = FancyBboxPatch((1.3, 2.5), 7.4, 2.0, boxstyle="round,pad=0,rounding_size=0.5", fc="#f4f6f8", ec="#5f6368", lw=1.5)
    axes.add_patch(box)
    axes.text(5, 4.1, "one neuron, two states", ha="center", va="center", fontsize=9.5, color="#5f6368")
    for x, colour, text in ((3.1, PLUS, "s⁺ = f(a + ½Δ)"), (6.9, MINUS, "s⁻ = f(a - ½Δ)")):
        axes.text(x, 3.2, text, ha="center", va="center", fontsize=12.5, color=colour, fontweight="bold")
    up = {"arrowstyle": "-|>", "lw": 2.4, "color": MEAN, "mutation_scale": 16}
    down = {"arrowstyle": "-|>", "lw": 2.4, "color": "#b3541e", "mutation_scale": 16}
    for low, high in ((0.55, 2.4), (4.6, 6.45)):
        axes.annotate("", (3.1, high), (3.1, low), arrowprops=up)
        axes.annotate("", (6.9, low), (6.9, high), arrowprops=down)
    told = (
        (3.35, 5.5, "mean  s̄ = ½(s⁺ + s⁻)", "left", MEAN), (7.15, 5.5, "Δ = Wᵀ δ above", "left", "#b3541e"),
        (3.35, 1.5, "a = W s̄ + b", "left", MEAN), (7.15, 1.5, "difference\nδ = s⁺ - s⁻", "left", "#b3541e"),
    )  # fmt: skip
    for x, y, text, side, colour in told:
        axes.text(x, y, text, ha=side, va="center", fontsize=10, color=colour)
    for y, text in ((6.8, "layer above"), (0.2, "layer below")):
        axes.text(5, y, text, ha="center", va="center", fontsize=9, color="#5f6368")


def _draw_curve(axes: Any, a: float, pull: float, plus: float, minus: float) -> None:
    grid = np.array([-0.6, 0.0, a + abs(pull) / 2 + 0.45])
    axes.plot(grid, np.maximum(grid, 0), color="#9aa0a6", lw=2, zorder=1)
    mean = (plus + minus) / 2
    edge = grid[0]
    for place, state, colour, marker, name in (
        (a + pull / 2, plus, PLUS, "^", "s⁺"), (a, mean, MEAN, "o", "s̄"), (a - pull / 2, minus, MINUS, "v", "s⁻")
    ):  # fmt: skip
        axes.plot((place, place, edge), (0, state, state), color=colour, lw=1, ls=(0, (3, 2)), zorder=2)
        axes.plot(place, state, marker=marker, ms=9, color=colour, zorder=3)
        axes.annotate(
            f"{name} = {state:.2f}", (edge, state), xytext=(4, 3), textcoords="offset points", fontsize=10, color=colour
        )
    axes.annotate(
        "", (a + pull / 2, -0.06), (a - pull / 2, -0.06), arrowprops={"arrowstyle": "<->", "color": "#b3541e", "lw": 1.8},
    )  # fmt: skip
    axes.text(a, -0.1, f"Δ = {pull:+.2f}", ha="center", va="top", fontsize=10, color="#b3541e")
    axes.text(grid[-1], grid[-1], "f, ReLU ", ha="right", va="center", fontsize=10, color="#5f6368")
    axes.set_title(f"drive a = {a:.2f}, difference δ = {plus - minus:+.2f}", fontsize=10.5, loc="left", color=MEAN)
    axes.set_ylim(-0.24, grid[-1] + 0.05)
    axes.set_xlim(edge, grid[-1] + 0.02)
    axes.set_yticks([])
    axes.set_xticks([0, a])
    axes.set_xticklabels(["0", "a"])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
