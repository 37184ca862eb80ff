"""Figures of runs: training curves, and the angle to back-propagation per layer and epoch.

Of more rules than there are colours, a small panel each, and an overview of what each reached, what
its step costs and where its angles ended. Colours: one fixed colour per rule (blue, orange, …, safe
for colour-blind readers), and a single-hue scale for angles.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualprop.analysis.drawing import COLOURS, DASHES, finish, new_figure, put_title, save, tick_epochs, write_plainly
from dualprop.training import folders
from dualprop.training.records import WORDS, Cost, Result
from dualprop.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 6  # of the layers of one run
# Degrees: a scale that ends below would colour rounding.
LEAST_SCALE = 1.0
# Near the largest float axes can't be divided. What is beyond is left out, as what is not finite.
LARGEST_SHOWN = 1e100


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
    many = len(runs) > len(COLOURS)
    paths = [save(small_multiples(runs) if many else training_curves(runs), folder / "training_curves.png")]
    aligned = [
        (label, run)
        for label, run in runs
        if run.recipe.rule_name != "backprop" and _per_layer(run, "alignment", "angle")[1].size
    ]
    if many:
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
    title = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    figure = (small_multiples if len(runs) > len(COLOURS) else training_curves)(runs, title)
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
        colour, dash = COLOURS[number], DASHES[number % len(DASHES)]
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
            point = "o" if epochs.size == 1 else None
            axes.plot(epochs, _mean(shown), color=colour, ls=dash, lw=2, marker=point, label=_with_result(label, run))
            if len(shown) > 1:
                axes.fill_between(epochs, np.fmin.reduce(shown), np.fmax.reduce(shown), color=colour, alpha=0.18, lw=0)
    others = [label for label, run in runs if run.recipe.rule.loss != loss]
    left_out = f"; not of another loss: {', '.join(others)}" if others else ""
    recipe = runs[0][1].recipe
    quantity, told = ERRORS[_headline(runs)]
    finish(error_axes, quantity, told)
    finish(loss_axes, f"training loss ({loss.name.replace('_', ' ')})", f"Loss while training{left_out}")
    num_seeds = max(len(run.seeds) for _, run in runs)
    band = f", mean and range over {num_seeds} seeds" if num_seeds > 1 else ""
    put_title(figure, f"{title or recipe.name}{band}")
    if error_axes.lines:
        # Below, where no curve is.
        handles = error_axes.get_legend_handles_labels()
        figure.set_figheight(figure.get_figheight() + 0.24 * math.ceil(len(handles[0]) / 2))
        figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def small_multiples(runs: Sequence[tuple[str, Run]], title: str = "") -> Figure:
    """Validation error from the first epoch on, a panel per run: mean and range over the seeds.
    Behind each, dotted, the first run by back-propagation, or the first."""
    number, columns = len(runs), min(5, len(runs))
    rows = math.ceil(number / columns)
    figure, panels = new_figure(rows, columns, (2.4 * columns, 1.0 + 1.5 * rows))
    flat = list(np.asarray(panels, dtype=object).flat)
    behind, twin = next((each for each in runs if each[1].recipe.rule_name == "backprop"), runs[0])
    errors = {label: _errors(run) for label, run in runs}
    for axes, (label, run) in zip(flat, runs, strict=False):
        results = run.results()
        epochs, shown = errors[label]
        axes.plot(errors[behind][0], _mean(errors[behind][1]), color="#555555", ls=DASHES[2], lw=1.2)
        if epochs.size:
            axes.plot(epochs, _mean(shown), color=COLOURS[0], lw=2, marker="o" if epochs.size == 1 else None)
            axes.fill_between(epochs, np.fmin.reduce(shown), np.fmax.reduce(shown), color=COLOURS[0], alpha=0.18, lw=0)
        told = f": {100 * np.mean([result.score for result in results]):.2f} %" if results else ""
        finish(axes, "", f"{label}{told} {_ended_early(results)}".strip(), width=30)
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("")
    _on_one_scale(flat[:number], columns)
    for axes in flat[number:]:
        axes.set_axis_off()
    figure.supylabel(ERRORS[_headline(runs)][0], fontsize=10)
    figure.supxlabel("epoch", fontsize=10)
    num_seeds = max(len(run.seeds) for _, run in runs)
    band = f", mean and range over {num_seeds} seeds" if num_seeds > 1 else ""
    score = WORDS[_headline(runs)]
    put_title(figure, f"{title or twin.recipe.name}{band}; beside each name its test {score}; dotted: {behind}")
    return figure


def _errors(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Epochs from the first on (before it is chance), and validation errors in percent."""
    epochs, scores = _series(run, "validation_score")
    trained = epochs > 0
    return epochs[trained], 100 * (1 - scores[:, trained]) if epochs.size else scores


def _on_one_scale(panels: Sequence[Axes], columns: int) -> None:
    """The panels on one scale, its numbers beside the first column alone."""
    shown = [v for axes in panels for line in axes.lines for v in np.asarray(line.get_ydata(), dtype=float)]
    known = [v for v in shown if math.isfinite(v) and v > 0]
    for number, axes in enumerate(panels):
        if known:
            axes.set_yscale("log" if max(known) > 5 * min(known) else "linear")
            axes.set_ylim(0.92 * min(known), 1.08 * max(known))
            if axes.get_yscale() == "log":
                write_plainly(axes.yaxis)
        axes.tick_params(axis="y", labelleft=number % columns == 0)


# What is missing to a perfect score.
ERRORS = {
    "accuracy": ("validation error (%)", "Error on the validation part"),
    "r2": ("100 (1 - R²)", "Variance of the validation part left unexplained (%)"),
    "f1": ("100 (1 - F1)", "What is missing to F1 = 100 % on the validation part"),
}


def _headline(runs: Sequence[tuple[str, Run]]) -> str:
    """The name of the score that the runs are shown by."""
    return next((epoch.headline for _, run in runs for seed in run.seeds for epoch in run.metrics(seed)[:1]), "accuracy")


def overview(runs: Sequence[tuple[str, Run]], costs: dict[str, Cost] | None) -> Figure:
    """A line per run: test accuracy, a step's time, the last angles.

    Accuracy of each seed and their mean; the time by the plain loop's, where `costs` knows it; the
    angle to the true gradient after the last epoch by layer, the mean over seeds, where it was
    compared.
    """
    angles = [_per_layer(run, "alignment", "angle")[1] for _, run in runs]
    are_known = any(each.size for each in angles)
    number = 1 + bool(costs) + are_known
    figure, panels = new_figure(1, number, (1.9 + 3.55 * number, 1.4 + 0.27 * len(runs)))
    axes_list = list(np.atleast_1d(np.asarray(panels, dtype=object)))
    _scores(axes_list[0], runs)
    if costs:
        _times(axes_list[1], runs, costs)
    if are_known:
        _last_angles(figure, axes_list[-1], angles)
    for axes in axes_list:
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_yticks(range(len(runs)))
        axes.set_yticklabels([label for label, _ in runs] if axes is axes_list[0] else [])
        axes.tick_params(axis="y", length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    num_seeds = max(len(run.seeds) for _, run in runs)
    put_title(figure, f"{runs[0][1].recipe.name}, {num_seeds} seed{'s' if num_seeds > 1 else ''}")
    return figure


def _scores(axes: Axes, runs: Sequence[tuple[str, Run]]) -> None:
    has_twin = False
    for height, (_, run) in enumerate(runs):
        scores = [100 * result.score for result in run.results()]
        if not scores:
            continue
        if ended := _ended_early(run.results()):
            axes.annotate(ended, (max(scores), height), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
        axes.plot(scores, [height] * len(scores), color=COLOURS[4], marker="o", ms=5, ls="none", alpha=0.6)
        axes.plot(np.mean(scores), height, color=COLOURS[0], marker="|", ms=11, mew=2.4, ls="none")
        if run.recipe.rule_name == "backprop":
            has_twin = True
            axes.axvline(float(np.mean(scores)), color="#333333", lw=0.8, ls=(0, (1, 2)))
    dotted = "\ndotted: back-propagation's mean" if has_twin else ""
    axes.set_xlabel(f"test {WORDS[_headline(runs)]} (%): seeds, and bars at their means{dotted}")
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


def _last_angles(figure: Figure, axes: Axes, per_run: Sequence[np.ndarray]) -> None:
    deepest = max((len(angles) for angles in per_run), default=0) or 1
    shown = np.full((len(per_run), deepest), np.nan)
    for row, angles in zip(shown, per_run, strict=True):
        if angles.size:
            row[: len(angles)] = angles[:, -1]
    top = float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0
    image = axes.imshow(
        shown, aspect="auto", cmap="Blues", vmin=0, vmax=max(top, LEAST_SCALE), interpolation="nearest",
        extent=(0.5, deepest + 0.5, len(per_run) - 0.5, -0.5),
    )  # fmt: skip
    for height, (row, angles) in enumerate(zip(shown, per_run, strict=True)):
        depth = len(angles)
        _annotate_row(axes, np.arange(1, depth + 1), height, row[:depth], max(top, LEAST_SCALE))
    axes.set_xticks(range(1, deepest + 1))
    axes.set_xlabel("layer: angle to the true gradient, degrees")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)


def angle_maps(runs: Sequence[tuple[str, Run]]) -> Figure:
    """One heat map per run: angle to back-propagation, layers (input below) × epochs."""
    maps = [(f"{label} on {run.recipe.name}: angle to back-propagation", *_per_layer(run, "alignment", "angle"))
            for label, run in runs]  # fmt: skip
    top = max((float(angle) for *_, angles in maps for angle in angles.flat if math.isfinite(angle)), default=1.0)
    return _maps(maps, "angle (degrees)", max(top, 1e-3), 1)


def _maps(maps: Sequence[tuple[str, np.ndarray, np.ndarray]], quantity: str, top: float, digits: int) -> Figure:
    """Titles, epochs and values, layers (input below) × epochs, a heat map each on one scale from 0
    to `top`."""
    # Every layer's number and angles need a line's height.
    deepest = max(len(angles) for *_, angles in maps)
    figure, rows = new_figure(len(maps), 1, (10.5, 1.6 + max(1.7, 0.24 * deepest) * len(maps)))
    axes_list = np.atleast_1d(np.asarray(rows, dtype=object))
    image: Any = None
    for axes, (title, epochs, angles) in zip(axes_list, maps, strict=True):
        image = axes.imshow(
            angles, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=top, interpolation="nearest",
            extent=(epochs[0] - 0.5, epochs[-1] + 0.5, 0.5, len(angles) + 0.5),
        )  # fmt: skip
        axes.set_yticks(range(1, len(angles) + 1))
        axes.set_ylabel("layer")
        axes.set_title(textwrap.fill(title, 110), fontsize=10, loc="left")
        tick_epochs(axes)
        if angles.shape[1] <= 16:
            _annotate(axes, epochs, angles, top, digits)
    axes_list[-1].set_xlabel("epoch")
    figure.colorbar(image, ax=list(axes_list), label=quantity, fraction=0.03, pad=0.02)
    return figure


def weight_alignment_curves(runs: Sequence[tuple[str, Run]]) -> Figure:
    """Cosine of feedback and forward weights by layer, mean over seeds: a panel of curves per run,
    or a heat map of many layers."""
    per_run = [(label, *_per_layer(run, "weight_alignment", "cosine")) for label, run in runs]
    title = f"{runs[0][1].recipe.name}: how near the feedback weights are to the forward ones"
    if max(len(cosines) for *_, cosines in per_run) > MOST_CURVES:
        figure = _maps([(label, epochs, cosines) for label, epochs, cosines in per_run], "cosine of W and B", 1.0, 2)
        put_title(figure, title)
        return figure
    figure, panels = new_figure(1, len(runs), (2.0 + 3.2 * len(runs), 3.4))
    for axes, (label, epochs, cosines) in zip(np.atleast_1d(np.asarray(panels, dtype=object)), per_run, strict=True):
        for number, values in enumerate(cosines, start=1):
            shade = 0.35 + 0.65 * number / len(cosines)
            dash, point = DASHES[(number - 1) % len(DASHES)], "o" if epochs.size == 1 else None
            axes.plot(epochs, values, color=COLOURS[0], alpha=shade, ls=dash, lw=2, marker=point, label=f"layer {number}")
        finish(axes, "cosine of W and B", label, width=40)
        axes.set_yscale("linear")
        known = cosines[np.isfinite(cosines)]
        axes.set_ylim(min(-0.05, float(known.min())) if known.size else -0.05, 1.05)
    axes.legend(frameon=False, fontsize=9)
    put_title(figure, title)
    return figure


def _annotate(axes: Axes, epochs: np.ndarray, values: np.ndarray, top: float, digits: int) -> None:
    for row, each in enumerate(values, start=1):
        _annotate_row(axes, epochs, row, each, top, digits)


def _annotate_row(axes: Axes, places: np.ndarray, height: float, values: np.ndarray, top: float, digits: int = 1) -> None:
    for place, value in zip(places, values, strict=True):
        shade = "white" if value > 0.6 * top else "#333333"
        told = f"{round(float(value), digits) + 0.0:.{digits}f}" if math.isfinite(value) else "none"
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
    """The label with the test score, and whether seeds diverged or collapsed."""
    results = run.results()
    if not results:
        return label
    scores = [100 * result.score for result in results]
    spread = f" ± {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else ""
    ended = f" ({told})" if (told := _ended_early(results)) else ""
    return f"{label}: test {WORDS[results[0].headline]} {np.mean(scores):.2f}{spread} %{ended}"


def _ended_early(results: Sequence[Result]) -> str:
    """ "diverged", "2 of 3 diverged"; empty where all seeds trained to their end."""
    words = ["diverged" if result.stopped.startswith("diverged") else "collapsed" for result in results if result.stopped]
    how = " or ".join(dict.fromkeys(words))
    return how if len(results) == 1 or not words else f"{len(words)} of {len(results)} {how}"
