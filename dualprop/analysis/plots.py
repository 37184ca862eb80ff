"""Figures of runs: training curves, and the angle to back-propagation per layer and epoch.

Of more rules than there are colours, an overview of what each reached, what its step costs and
where its angles ended. Colours: one fixed colour per rule (blue, orange, …, safe for colour-blind
readers), and a single-hue scale for angles.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualprop.training import files, folders
from dualprop.training.records import WORDS, Cost
from dualprop.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.")  # so that curves which coincide can all be seen
# Degrees: a scale that ends below would colour rounding.
LEAST_SCALE = 1.0
# Near the largest float axes can't be divided. What is beyond is left out, as what is not finite.
LARGEST_SHOWN = 1e100
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def draw(runs: Sequence[tuple[str, Run]], folder: Path, costs: dict[str, Cost] | None = None) -> list[Path]:
    """Draw all figures of the labelled runs into `folder`, each replaced as a whole.

    Returns their paths. `costs` holds what a step of each label costs, as `bench.rows.costs` does.
    Raises RunError where another process is drawing there, or where the folder leads elsewhere.
    """
    folders.make_inside(folder.parent, folder.name)
    with folders.held(folder, "drawn"):
        folders.remove_leftovers(folder)
        return _drawn(runs, folder, costs)


def _drawn(runs: Sequence[tuple[str, Run]], folder: Path, costs: dict[str, Any] | None) -> list[Path]:
    paths = [save(training_curves(runs), folder / "training_curves.png")]
    aligned = [
        (label, run)
        for label, run in runs
        if run.recipe.rule_name != "backprop" and _per_layer(run, "alignment", "angle")[1].size
    ]
    if len(runs) > len(COLOURS):
        paths.append(save(overview(runs, costs), folder / "overview.png"))
    elif aligned:
        paths.append(save(angle_maps(aligned), folder / "angle_to_backprop.png"))
    with_feedback = [(label, run) for label, run in runs if _per_layer(run, "weight_alignment", "cosine")[1].size]
    if with_feedback:
        paths.append(save(weight_alignment_curves(with_feedback), folder / "weight_alignment.png"))
    return paths


def draw_beside(runs: Sequence[tuple[str, Run]], first: Path, out: Path | None) -> Path:
    """Draw the curves of runs that have nothing in common but the reader, into `out`, by default
    the figures of the `first` folder; returns where. Raises RunError as `draw` does."""
    names = list(dict.fromkeys(run.recipe.name for _, run in runs))
    figure = training_curves(runs, ", ".join(names[:3]) + (", …" if len(names) > 3 else ""))
    if out is not None:
        with folders.held_file(out):
            return save(figure, out)
    folder = folders.make_inside(first, "figures")
    with folders.held(folder, "drawn"):
        return save(figure, folder / "side_by_side.png")


def training_curves(runs: Sequence[tuple[str, Run]], title: str = "") -> Figure:
    """Validation error and training loss against epochs; mean and range over the seeds."""
    figure, (error_axes, loss_axes) = new_figure(1, 2, (10.5, 4.2))
    loss = runs[0][1].recipe.rule.loss
    for number, (label, run) in enumerate(runs):
        colour, dash, marker = _style(number)
        for axes, key, to_shown in (
            (error_axes, "validation_score", lambda v: 100 * (1 - v)),
            (loss_axes, "train_loss", lambda v: v),
        ):
            epochs, values = _series(run, key)
            # Of another loss the numbers don't compare.
            if not epochs.size or (axes is loss_axes and run.recipe.rule.loss != loss):
                continue
            shown = to_shown(values)
            # One point alone makes no line.
            point = "o" if epochs.size == 1 else marker
            axes.plot(epochs, _mean(shown), color=colour, ls=dash, lw=2, marker=point, label=_with_result(label, run))
            if len(shown) > 1:
                axes.fill_between(epochs, np.fmin.reduce(shown), np.fmax.reduce(shown), color=colour, alpha=0.18, lw=0)
    others = [label for label, run in runs if run.recipe.rule.loss != loss]
    left_out = f"; not of another loss: {', '.join(others)}" if others else ""
    recipe = runs[0][1].recipe
    quantity, told = ERRORS[_headline(runs)]
    _finish(error_axes, quantity, told)
    _finish(loss_axes, f"training loss ({loss.name.replace('_', ' ')})", f"Loss while training{left_out}")
    num_seeds = max(len(run.seeds) for _, run in runs)
    band = f", mean and range over {num_seeds} seeds" if num_seeds > 1 else ""
    figure.suptitle(f"{title or recipe.name}{band}", fontsize=12)
    if error_axes.lines and len(runs) > len(COLOURS):
        height = figure.get_figheight() + 0.24 * math.ceil(len(runs) / 3)
        figure.set_figheight(height)
        figure.legend(*error_axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    elif error_axes.lines:
        error_axes.legend(frameon=False, fontsize=9)
    return figure


# What is missing to a perfect score.
ERRORS = {
    "accuracy": ("validation error (%)", "Error on the validation part"),
    "r2": ("100 (1 - R²)", "Variance of the validation part left unexplained (%)"),
    "f1": ("100 (1 - F1)", "What is missing to F1 = 100 % on the validation part"),
}


def _headline(runs: Sequence[tuple[str, Run]]) -> str:
    """The name of the score that the runs are shown by."""
    return next((epoch.headline for _, run in runs for seed in run.seeds for epoch in run.metrics(seed)[:1]), "accuracy")


def _style(number: int) -> tuple[str, Any, str | None]:
    """Colour, dash and marker of a run, no two alike, so that curves which coincide are seen."""
    turn = number // (2 * len(COLOURS))
    return COLOURS[number % len(COLOURS)], DASHES[(number + turn) % len(DASHES)], (None, "o", "s", "v")[turn // 2 % 4]


def overview(runs: Sequence[tuple[str, Run]], costs: dict[str, Cost] | None) -> Figure:
    """A line per run: test accuracy, a step's time, the last angles.

    Accuracy of each seed and their mean; the time by the plain loop's, where `costs` knows it; the
    angle to the true gradient after the last epoch by layer, the mean over seeds.
    """
    figure, panels = new_figure(1, 3 if costs else 2, (12.5 if costs else 9.0, 1.4 + 0.27 * len(runs)))
    axes_list = list(np.atleast_1d(np.asarray(panels, dtype=object)))
    _scores(axes_list[0], runs)
    if costs:
        _times(axes_list[1], runs, costs)
    _last_angles(figure, axes_list[-1], runs)
    for axes in axes_list:
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_yticks(range(len(runs)))
        axes.set_yticklabels([label for label, _ in runs] if axes is axes_list[0] else [])
        axes.tick_params(axis="y", length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    num_seeds = max(len(run.seeds) for _, run in runs)
    figure.suptitle(f"{runs[0][1].recipe.name}, {num_seeds} seed{'s' if num_seeds > 1 else ''}", fontsize=12)
    return figure


def _scores(axes: Axes, runs: Sequence[tuple[str, Run]]) -> None:
    for height, (_, run) in enumerate(runs):
        scores = [100 * result.score for result in run.results()]
        if not scores:
            continue
        axes.plot(scores, [height] * len(scores), color=COLOURS[4], marker="o", ms=5, ls="none", alpha=0.6)
        axes.plot(np.mean(scores), height, color=COLOURS[0], marker="|", ms=11, mew=2.4, ls="none")
        if run.recipe.rule_name == "backprop":
            axes.axvline(float(np.mean(scores)), color="#333333", lw=0.8, ls=(0, (1, 2)))
    axes.set_xlabel(f"test {WORDS[_headline(runs)]} (%): seeds, and bars at their means")
    axes.grid(alpha=0.25, lw=0.6)


def _times(axes: Axes, runs: Sequence[tuple[str, Run]], costs: dict[str, Any]) -> None:
    for height, (label, _) in enumerate(runs):
        if label not in costs:
            continue
        ratio = costs[label].ratio
        axes.plot([1, ratio], [height, height], color="#b8b8b8", lw=2, zorder=1)
        axes.plot(ratio, height, color=COLOURS[1], marker="o", ms=6, ls="none", zorder=2)
        axes.annotate(
            f"{ratio:.3g}", (max(1, ratio), height), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xscale("log")
    ratios = [1.0, *(costs[label].ratio for label, _ in runs if label in costs)]
    axes.set_xlim(0.8 * min(ratios), 2 * max(ratios))
    write_plainly(axes.xaxis)
    axes.set_xlabel("time of a step, by the plain loop's")
    axes.grid(axis="x", alpha=0.25, lw=0.6)


def _last_angles(figure: Figure, axes: Axes, runs: Sequence[tuple[str, Run]]) -> None:
    per_run = [_per_layer(run, "alignment", "angle")[1] for _, run in runs]
    deepest = max((len(angles) for angles in per_run), default=0) or 1
    shown = np.full((len(runs), deepest), np.nan)
    for row, angles in zip(shown, per_run, strict=True):
        if angles.size:
            row[: len(angles)] = angles[:, -1]
    top = float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0
    image = axes.imshow(
        shown, aspect="auto", cmap="Blues", vmin=0, vmax=max(top, LEAST_SCALE), interpolation="nearest",
        extent=(0.5, deepest + 0.5, len(runs) - 0.5, -0.5),
    )  # fmt: skip
    for height, (row, angles) in enumerate(zip(shown, per_run, strict=True)):
        depth = len(angles)
        _annotate_row(axes, np.arange(1, depth + 1), height, row[:depth], max(top, LEAST_SCALE))
    axes.set_xticks(range(1, deepest + 1))
    axes.set_xlabel("layer: angle to the true gradient, degrees")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)


def angle_maps(runs: Sequence[tuple[str, Run]]) -> Figure:
    """One heat map per run: angle to back-propagation, layers (input below) × epochs."""
    maps = [(label, run, *_per_layer(run, "alignment", "angle")) for label, run in runs]
    # Every layer's number and angles need a line's height.
    deepest = max(len(angles) for *_, angles in maps)
    figure, rows = new_figure(len(runs), 1, (10.5, 1.6 + max(1.7, 0.24 * deepest) * len(runs)))
    axes_list = np.atleast_1d(np.asarray(rows, dtype=object))
    top = max((float(angle) for *_, angles in maps for angle in angles.flat if math.isfinite(angle)), default=1.0)
    image: Any = None
    for axes, (label, run, epochs, angles) in zip(axes_list, maps, strict=True):
        image = axes.imshow(
            angles, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=max(top, 1e-3), interpolation="nearest",
            extent=(epochs[0] - 0.5, epochs[-1] + 0.5, 0.5, len(angles) + 0.5),
        )  # fmt: skip
        axes.set_yticks(range(1, len(angles) + 1))
        axes.set_ylabel("layer")
        axes.set_title(f"{label} on {run.recipe.name}: angle to back-propagation", fontsize=10, loc="left")
        if angles.shape[1] <= 16:
            _annotate(axes, epochs, angles, top)
    axes_list[-1].set_xlabel("epoch")
    figure.colorbar(image, ax=list(axes_list), label="angle (degrees)", fraction=0.03, pad=0.02)
    return figure


def weight_alignment_curves(runs: Sequence[tuple[str, Run]]) -> Figure:
    """One panel per run: cosine of feedback and forward weights by layer, mean over seeds."""
    figure, panels = new_figure(1, len(runs), (2.0 + 3.2 * len(runs), 3.4))
    for axes, (label, run) in zip(np.atleast_1d(np.asarray(panels, dtype=object)), runs, strict=True):
        epochs, cosines = _per_layer(run, "weight_alignment", "cosine")
        for number, values in enumerate(cosines, start=1):
            shade = 0.35 + 0.65 * number / len(cosines)
            dash = DASHES[(number - 1) % len(DASHES)]
            axes.plot(epochs, values, color=COLOURS[0], alpha=shade, ls=dash, lw=2, label=f"layer {number}")
        _finish(axes, "cosine of W and B", label)
        axes.set_yscale("linear")
        axes.set_ylim(min(-0.05, float(np.nanmin(cosines))), 1.05)
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{runs[0][1].recipe.name}: how near the feedback weights are to the forward ones", fontsize=11)
    return figure


def _annotate(axes: Axes, epochs: np.ndarray, angles: np.ndarray, top: float) -> None:
    for row, values in enumerate(angles, start=1):
        _annotate_row(axes, epochs, row, values, top)


def _annotate_row(axes: Axes, places: np.ndarray, height: float, values: np.ndarray, top: float) -> None:
    for place, value in zip(places, values, strict=True):
        shade = "white" if value > 0.6 * top else "#333333"
        told = f"{value:.1f}" if math.isfinite(value) else "no angle"
        axes.text(place, height, told, ha="center", va="center", fontsize=7, color=shade)


def _series(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and the metric for seeds × epochs, as far as every seed has come.

    Before training, at epoch 0, there is no training loss.
    """
    per_seed = [{m.epoch: getattr(m, key) for m in run.metrics(seed) if m.epoch or key != "train_loss"} for seed in run.seeds]
    per_seed = [series for series in per_seed if series]
    if not per_seed:
        return np.zeros(0), np.zeros((0, 0))
    epochs = sorted(set.intersection(*(set(series) for series in per_seed)))
    values = np.array([[series[e] for e in epochs] for series in per_seed], dtype=float)
    return np.array(epochs), np.where(np.abs(values) < LARGEST_SHOWN, values, np.nan)


def _per_layer(run: Run, metric: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and the mean over seeds of a metric's `key`, layers × epochs; empty without it."""
    per_seed = [
        {m.epoch: [getattr(layer, key) for layer in getattr(m, metric)] for m in run.metrics(s) if getattr(m, metric)}
        for s in run.seeds
    ]
    per_seed = [series for series in per_seed if series]
    if not per_seed:
        return np.zeros(0), np.zeros((0, 0))
    epochs = sorted(set.intersection(*(set(series) for series in per_seed)))
    values = np.array([[series[e] for e in epochs] for series in per_seed], dtype=float)
    return np.array(epochs), _mean(values).T if values.size else np.zeros((0, 0))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over seeds (the first axis) of what is known; nan where nothing is."""
    is_known = np.isfinite(values)
    count = is_known.sum(0)
    return np.where(count > 0, np.where(is_known, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _with_result(label: str, run: Run) -> str:
    scores = [100 * result.score for result in run.results()]
    if not scores:
        return label
    spread = f" ± {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else ""
    return f"{label}: test {WORDS[run.results()[0].headline]} {np.mean(scores):.2f}{spread} %"


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


def _finish(axes: Axes, quantity: str, title: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(quantity)
    axes.set_title(title, fontsize=10, loc="left")
    shown = [v for line in axes.lines for v in np.asarray(line.get_ydata(), dtype=float) if math.isfinite(v) and v > 0]
    if shown and max(shown) / min(shown) > 5:
        axes.set_yscale("log")
        write_plainly(axes.yaxis)
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


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
