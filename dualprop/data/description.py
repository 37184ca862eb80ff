"""What a model reads and what its outputs mean: all that prediction needs beside weights.

It is taken from the data that a run was trained on, and lies in its best checkpoint: plain values
in the header, `mean` and `std` as the tensors "data.mean" and "data.std". So a run predicts without
its data. Shapes: C channels, H×W space, D features, K outputs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualprop.data.own.inputs import Inputs
from dualprop.data.tasks import Task
from dualprop.errors import DataError

# Of a class, a column or a title.
LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Description:
    """Of the data of one run and seed.

    Attributes:
        title: the data set's name in words, as tables and figures give it.
        task: what is predicted, and the names of the K outputs.
        inputs: how the files of new examples are read.
        input_shape: of one example as it is read: (C, H, W), before any border, or (D,).
        mean, std: float32, in the units of x: one number, one a channel (C, 1, 1), one a feature
            (D,), or one a pixel (C, H, W). The model is given (x - mean) / std.
        border: rows and columns of zeros put around an image, before it is normalised.
        lowest, largest: of the numbers that it was trained on, before they were normalised.
        white: what a white pixel is in the units of x: 255 of bytes, 16 of `digits`, 1 of floats
            from 0 to 1. 0 where pictures can't be read into these units.
    """

    title: str
    task: Task
    inputs: Inputs
    input_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    border: int = 0
    lowest: float = 0.0
    largest: float = 0.0
    white: float = 0.0

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise DataError(f"what is known of the data {self.title[:LONGEST_NAME]!r} does not fit together: {problem}.")

    @property
    def is_image(self) -> bool:
        return len(self.input_shape) == 3

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Of one example as the model sees it: with its border."""
        if not self.border:
            return self.input_shape
        channels, height, width = self.input_shape
        return channels, height + 2 * self.border, width + 2 * self.border

    def to_plain(self) -> dict[str, Any]:
        """All but `mean` and `std`, as JSON holds it."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("mean", "std")}
        return {**plain, "task": asdict(self.task), "inputs": asdict(self.inputs)}

    def _problem(self) -> str:
        names, features = self.task.names, self.inputs.names
        if len(names) < (2 if self.task.kind == "classification" else 1):
            return "it has too few outputs"
        if len(set(names)) != len(names) or not all(names):
            return "its outputs need names that differ"
        if len(self.input_shape) not in (1, 3) or min(self.input_shape) < 1:
            return "an example must be a vector (D,) or an image (C, H, W)"
        if self.border and not self.is_image:
            return "only images have a border"
        if features and self.input_shape != (len(features),):
            return "it names another number of features than an example has"
        shapes = {(), self.input_shape, (self.input_shape[0],) + (1,) * (len(self.input_shape) - 1)}
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values.dtype != torch.float32 or tuple(values.shape) not in shapes:
                return f"its {name} is {values.dtype} of shape {tuple(values.shape)}"
            if not bool(torch.isfinite(values).all()):
                return f"its {name} is not finite"
        return "its std is not above 0" if bool((self.std <= 0).any()) else ""


def title(name: str) -> str:
    """A data set's name in words: of a path its last part, without the suffix of a file."""
    path = Path(name)
    return (path.stem or name)[:LONGEST_NAME]
