"""What makes inputs of examples: the columns of a table, or the form of images. A run keeps it, so
that new examples are read as those it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dualprop.data.own.columns import Feature, Table


@dataclass(frozen=True)
class Inputs:
    """How examples are read.

    Attributes:
        source: "table", "images" or "arrays".
        features: of a table, in the order of the inputs.
        targets: of a table, the columns that are predicted.
        size, fit: of images, see `Reading`; size 0 is that of the images themselves.
        colour: of images, "grey" or "rgb".
    """

    source: Literal["table", "images", "arrays"]
    features: tuple[Feature, ...] = ()
    targets: tuple[str, ...] = ()
    size: int = 0
    fit: str = "crop"
    colour: str = "rgb"

    @property
    def names(self) -> tuple[str, ...]:
        """Of each number of a table's input."""
        return tuple(name for feature in self.features for name in feature.names)

    def encode(self, table: Table) -> np.ndarray:
        """The inputs of a table's rows, (N, D) float32; nan where a number is missing."""
        return np.concatenate([feature.encode(table) for feature in self.features], axis=1)
