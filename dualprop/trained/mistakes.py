"""Pictures of what a model gets wrong: the confusion matrix, and the worst mistakes where the
examples are images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dualprop.analysis import drawing
from dualprop.data import Description, Examples
from dualprop.errors import printable
from dualprop.training import folders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dualprop.trained.scores import Evaluation

# Up to so many classes have their names and numbers in the picture.
NAMED, NUMBERED = 40, 20
_LONGEST = 18


def draw(evaluation: Evaluation, examples: Examples, description: Description, folder: Path) -> list[Path]:
    """Draw all pictures into `folder`, each replaced as a whole; returns their paths. Raises
    RunError where another process is drawing there, or where the folder leads elsewhere."""
    folders.make_inside(folder.parent, folder.name)
    with folders.held(folder, "drawn"):
        folders.remove_leftovers(folder)
        of = f"seed-{evaluation.seed}-{evaluation.part}"
        paths = [drawing.save(confusion_matrix(evaluation), folder / f"confusion_matrix-{of}.png")]
        if evaluation.mistakes and description.is_image and description.input_shape[0] in (1, 3):
            paths.append(drawing.save(worst(evaluation, examples, description), folder / f"worst_mistakes-{of}.png"))
        return paths


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """The share of each class (rows) that was taken for each (columns), with the numbers of
    examples."""
    confusion, names = evaluation.confusion, [short(each.name) for each in evaluation.classes]
    total = np.maximum(confusion.sum(1, keepdims=True), 1)
    side = min(3.5 + 0.42 * min(len(names), NAMED), 16)
    figure, axes = drawing.new_figure(1, 1, (side + 1, side))
    image = axes.imshow(100 * confusion / total, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if len(names) <= NUMBERED:
        for i, j in np.argwhere(confusion):
            colour = "white" if confusion[i, j] > 0.6 * total[i] else "#333333"
            axes.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=8, color=colour)
    if len(names) <= NAMED:
        places = range(len(names))
        is_long = max(map(len, names)) > 3
        axes.set_xticks(places, names, rotation=90 if is_long else 0, fontsize=9)
        axes.set_yticks(places, names, fontsize=9)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    right = f"{100 * evaluation.accuracy:.2f} % of {confusion.sum()} right"
    axes.set_title(f"{short(evaluation.title)}, {evaluation.part} part: {right}", fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, label="% of the class", fraction=0.046, pad=0.03)
    return figure


def worst(evaluation: Evaluation, examples: Examples, description: Description) -> Figure:
    """The worst mistakes as pictures, the surest first."""
    columns = min(8, len(evaluation.mistakes))
    rows = math.ceil(len(evaluation.mistakes) / columns)
    figure, grid = drawing.new_figure(rows, columns, (max(1.5 * columns, 4.5), 1.85 * rows + 0.5))
    panels = np.atleast_1d(np.asarray(grid, dtype=object)).reshape(-1)
    images = pictures(examples, [mistake.index for mistake in evaluation.mistakes], description)
    for axes in panels:
        axes.set_axis_off()
    for axes, mistake, image in zip(panels, evaluation.mistakes, images, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"said {short(mistake.said)}\nis {short(mistake.truth)}", fontsize=8)
    shown = f"the {len(evaluation.mistakes)} surest of {evaluation.num_mistakes} mistakes"
    figure.suptitle(f"{short(evaluation.title)}, {evaluation.part} part: {shown}", fontsize=10)
    return figure


def pictures(examples: Examples, indices: list[int], description: Description) -> list[np.ndarray]:
    """The examples as they are kept, (H, W) or (H, W, 3), in [0, 1]: black and white are those of
    the data, or where it says none its lowest and largest numbers."""
    x = examples.rows(torch.tensor(indices))[0].to(torch.float32)
    low, high = (0.0, description.white) if description.white else (description.lowest, description.largest)
    x = ((x - low) / max(high - low, 1e-30)).clamp(0, 1)
    return [each[0].numpy() if len(each) == 1 else each.permute(1, 2, 0).numpy() for each in x]


def short(name: str) -> str:
    """A name that fits, none of whose letters is mathematics to matplotlib."""
    name = printable(name).replace("\n", " ").replace("$", r"\$")
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
