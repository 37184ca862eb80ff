"""The user's own examples as they were read, before they are divided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dualprop.data.own.inputs import Inputs
from dualprop.data.tasks import Task


@dataclass(frozen=True, eq=False)
class Own:
    """Inputs and targets of N examples.

    Attributes:
        x: (N, C, H, W) or (N, D), uint8 or float32; of tables nan where a number is missing.
        y: (N,) int64 classes, or (N, K) float32.
        task: what y means.
        inputs: how x was read.
        test: x and y of the test part, where the data has one.
        remarks: what is to be known of the reading.
    """

    x: np.ndarray
    y: np.ndarray
    task: Task
    inputs: Inputs
    test: tuple[np.ndarray, np.ndarray] | None = None
    remarks: tuple[str, ...] = ()
