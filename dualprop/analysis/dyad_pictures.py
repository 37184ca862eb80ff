"""Pictures of an inference: its steps side by side (.png), or one after the other (.gif)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualprop.analysis import captions
from dualprop.analysis.captions import Scale
from dualprop.analysis.drawing import COLOURS, new_figure, save
from dualprop.analysis.inference import Inference
from dualprop.training import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLUS, MINUS, MEAN, PALE = COLOURS[0], COLOURS[5], "#222222", "#c8ccd0"
# Of a unit's box, in units of the distance between neighbours.
HALF_WIDTH, HALF_HEIGHT = 0.43, 0.2
SECONDS, LAST_SECONDS = 2.2, 5.0


def draw(inference: Inference, path: Path) -> Path:
    """Replace `path` as a whole by the picture that its ending names; returns it."""
    if path.suffix.lower() == ".png":
        return save(sheet(inference), path)
    content = io.BytesIO()
    first, *others = (_image(one_frame(inference, number)) for number in range(len(inference.frames) + 1))
    milliseconds = [int(1000 * SECONDS)] * len(others) + [int(1000 * LAST_SECONDS)]
    first.save(content, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    files.write(path, content.getbuffer())
    return path


def sheet(inference: Inference) -> Figure:
    """All frames, row by row."""
    count = len(inference.frames) + 1
    columns = 2 if count <= 6 else 3
    width, height = _size(inference)
    rows = math.ceil(count / columns)
    figure, axes = new_figure(rows, columns, (width * columns, height * rows))
    panels: Sequence[Axes] = list(axes.flat)
    for number, panel in enumerate(panels):
        if number < count:
            _draw_frame(panel, inference, number)
        else:
            panel.set_axis_off()
    if count < len(panels):
        _draw_legend(panels[count])
    return figure


def one_frame(inference: Inference, number: int) -> Figure:
    """A frame alone; the one after the last step tells what is learned."""
    figure, axes = new_figure(1, 1, _size(inference))
    _draw_frame(axes, inference, number)
    return figure


def draw_network(axes: Axes, inference: Inference, number: int) -> None:
    """The network's states after a step, and which way the step's signals run; after the last step,
    what each weight learns."""
    is_learning = number == len(inference.frames)
    frame = inference.frames[number - is_learning]
    scale, widths = Scale.of(inference), inference.options.widths
    for k in range(1, len(widths)):
        # The free pass goes up everywhere; a step hears from above alone, or from the loss.
        hears = k - 1 in frame.layers and frame.pulls[k - 1] is not None
        colour, width = (MINUS, 1.4) if hears else (MEAN, 1.0) if number == 0 else (PALE, 0.8)
        if is_learning:
            colour, width = PLUS, 1.4
        strengths = (inference.gradient(k) if is_learning else inference.weight(k)).abs()
        for i in range(widths[k]):
            for j in range(widths[k - 1]):
                below, above = _place(widths, k - 1, j), _place(widths, k, i)
                axes.plot(
                    (below[0], above[0]), (below[1] + HALF_HEIGHT, above[1] - HALF_HEIGHT), color=colour, lw=width,
                    alpha=float(0.1 + 0.9 * strengths[i, j] / (strengths.max() or 1)), zorder=1, solid_capstyle="round",
                )  # fmt: skip
    for k, units in enumerate(widths):
        for unit in range(units):
            is_active = k in frame.layers and not is_learning
            _draw_unit(axes, _place(widths, k, unit), scale, scale.states(frame, k, unit), is_active, is_input=k == 0)
        name = "input" if k == 0 else "output" if k == inference.depth else f"layer {k}"
        axes.text(-max(widths) / 2 - 0.1, _place(widths, k, 0)[1], name, ha="right", va="center", fontsize=8, color="#555555")
    axes.set_xlim(-max(widths) / 2 - 0.75, max(widths) / 2 + 0.1)
    axes.set_ylim(-0.3, len(widths) - 0.7)
    axes.set_axis_off()


def _draw_frame(axes: Axes, inference: Inference, number: int) -> None:
    last = len(inference.frames) - 1
    draw_network(axes, inference, number)
    if number <= last:
        told = [captions.title(inference, number), captions.equation(inference, number)]
    else:
        told = captions.learned(inference)
    magnified = Scale.of(inference).magnified
    if magnified > 1 and number <= last:
        told[-1] += f"    (partings drawn {magnified}× as wide)"
    axes.set_title(told[0], fontsize=9.5, loc="left", color=MEAN, fontweight="bold")
    axes.text(0.0, -0.01, "\n".join(told[1:]), transform=axes.transAxes, fontsize=8.5, va="top", color="#333333")


def _draw_legend(axes: Axes) -> None:
    lines = (
        ("^", PLUS, "s⁺, the state that is nudged downhill"),
        ("v", MINUS, "s⁻, the state that is nudged uphill"),
        ("|", MEAN, "their mean s̄, which goes up"),
        ("_", MEAN, "their difference δ = s⁺ - s⁻, which comes down"),
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for number, (marker, colour, text) in enumerate(lines):
        height = 0.7 - 0.12 * number
        axes.plot(0.16, height, marker=marker, ms=9, mew=2, color=colour, ls="none")
        axes.text(0.22, height, text, fontsize=10, va="center", color="#333333")


def _draw_unit(
    axes: Axes, place: tuple[float, float], scale: Scale, states: tuple[float, float, float], is_active: bool, is_input: bool
) -> None:
    """A box with an axis, and on it s⁻, s̄ and s⁺; the input has one state."""
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    edge, width = (MINUS, 1.6) if is_active else ("#9aa0a6", 0.9)
    corner = (x - HALF_WIDTH, y - HALF_HEIGHT)
    box = FancyBboxPatch(
        corner,
        2 * HALF_WIDTH,
        2 * HALF_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.1",
        fc="white",
        ec=edge,
        lw=width,
        zorder=2,
    )
    axes.add_patch(box)
    reach = 0.9 * HALF_WIDTH
    minus, mean, plus = (x + reach * state / scale.limit for state in states)
    low, high = y - 0.45 * HALF_HEIGHT, y + 0.4 * HALF_HEIGHT
    axes.plot((x - reach, x + reach), (low, low), color=PALE, lw=0.8, zorder=3)
    axes.plot((x, x), (low - 0.02, low + 0.02), color="#9aa0a6", lw=0.8, zorder=3)
    if is_input:
        axes.plot(mean, low, marker="|", ms=9, mew=1.8, color=MEAN, zorder=5)
        axes.text(x, high, f"{states[1]:+.2f}", fontsize=6.5, ha="center", va="center", color="#333333", zorder=4)
        return
    axes.plot((minus, plus), (low, low), color=MEAN, lw=2, alpha=0.35, zorder=4)
    axes.plot(mean, low, marker="|", ms=9, mew=1.4, color=MEAN, zorder=5)
    axes.plot(minus, low, marker="v", ms=5.5, color=MINUS, zorder=6, alpha=0.9)
    axes.plot(plus, low, marker="^", ms=5.5, color=PLUS, zorder=7, alpha=0.9)
    delta = (states[2] - states[0]) / scale.magnified
    told = f"s̄ {states[1]:+.2f}  δ {f'{delta:+.2g}' if delta else '0'}"
    axes.text(x, high, told, fontsize=6.5, ha="center", va="center", color="#333333", zorder=4)


def _place(widths: Sequence[int], k: int, unit: int) -> tuple[float, float]:
    return unit - (widths[k] - 1) / 2, float(k)


def _size(inference: Inference) -> tuple[float, float]:
    """Of one frame, in inches."""
    widths = inference.options.widths
    return max(5.6, 1.25 * (max(widths) + 0.8)), 0.95 * len(widths) + 0.9


def _image(figure: Figure) -> Any:
    """The figure as an image of few colours."""
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
