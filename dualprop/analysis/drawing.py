"""What pictures have in common: figures without a display, colours, axes of epochs, titles that
fit, files that are replaced as a whole."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualprop.training import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# One fixed colour per rule, safe for colour-blind readers.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.")  # so that curves which coincide can all be seen


def new_figure(
    rows: int,
    columns: int,
    size: tuple[float, float],
    height_ratios: Sequence[float] | None = None,
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes."""
    # Figures are made without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, height_ratios=height_ratios, width_ratios=width_ratios)


def put_title(figure: Figure, title: str) -> None:
    """Above the whole figure, on as many lines as its width takes."""
    figure.suptitle(textwrap.fill(title, max(20, int(11 * figure.get_figwidth()))), fontsize=12)


def finish(axes: Axes, quantity: str, title: str, width: int = 70) -> None:
    """Name the axes of epochs and of a quantity, on a logarithmic scale where it goes far, and put
    a title above, on lines of at most so many letters."""
    axes.set_xlabel("epoch")
    axes.set_ylabel(quantity)
    axes.set_title(textwrap.fill(title, width), fontsize=10, loc="left")
    tick_epochs(axes)
    shown = [v for line in axes.lines for v in np.asarray(line.get_ydata(), dtype=float) if math.isfinite(v) and v > 0]
    if shown and max(shown) / min(shown) > 5:
        axes.set_yscale("log")
        write_plainly(axes.yaxis)
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def tick_epochs(axes: Axes) -> None:
    """An epoch has no halves."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def write_plainly(axis: Axis) -> None:
    """Write 1, 2, 5, 10, … along a logarithmic axis, not powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> Path:
    """Replace `path` as a whole by the figure as PNG; returns it."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of a label's letters that the font lacks; boxes stand for them.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing")
        figure.savefig(content, format="png")
    files.write(path, content.getbuffer())
    return path
