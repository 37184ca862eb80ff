"""What training tells while it runs."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from dualprop.training.records import Result


class Reporter:
    """What the trainer tells while it runs. This one is silent; the command line's shows
    progress.

    Of seeds that step together, steps and epochs are told of one: the first, or where that is over,
    the next.
    """

    def changed(self, what: str) -> None:
        """What is to be known of the run, in a line: something that it was begun with is another
        now, or its rule's nudge is too strong."""

    def seed_started(self, seed: int, num_steps: int, done: int) -> None: ...
    def step_done(self, done: int, num_examples: int, loss: Tensor, num_correct: Tensor) -> None: ...
    def epoch_done(self, metrics: dict[str, Any]) -> None: ...

    def epoch_kept(self, seed: int, metrics: dict[str, Any]) -> None:
        """An epoch of any seed is over, and in its checkpoint: no resume takes it again."""

    def log_failed(self, what: str) -> None:
        """A log that was asked for is no longer written: one line."""
        warnings.warn(what, RuntimeWarning, stacklevel=2)

    def seed_finished(self, result: Result) -> None: ...
