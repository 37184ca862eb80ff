"""The loop of an estimator's `fit`: the trainer's own learner and steps, in memory.

A run of the trainer writes each epoch down. This one keeps what scikit-learn's networks keep: the
loss of each epoch, the scores of a validation part, and the best weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dualprop.data import Splits, batches
from dualprop.errors import SettingError
from dualprop.rules import Outcome
from dualprop.training import divergence, execution
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.learner import Learner
from dualprop.training.recipe import Recipe
from dualprop.training.stepping import Alone


@dataclass
class Progress:
    """What became of the epochs.

    Attributes:
        losses: the mean over each epoch's examples, as they were met.
        scores: of the validation part after each epoch, where there is one.
        best_score: the best of these.
        is_settled: whether it stopped since nothing got better.
        unsettled: why the inference of a last step did not settle; empty where it did.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_score: float = float("-inf")
    is_settled: bool = False
    unsettled: str = ""


class Fit:
    """One network that learns. `epochs` runs its training.

    Attributes:
        learner: what learns, see `Learner`.
    """

    def __init__(self, recipe: Recipe, seed: int, splits: Splits, before: dict[str, Tensor] | None = None) -> None:
        self.recipe, self.seed, self.splits = recipe, seed, splits
        self.how = execution.resolve(recipe)
        self.learner = Learner(recipe, seed, splits, self.how)
        if before:
            self.learner.restore(Checkpoint(before, {}), Path("what was learned before"))
        self.steps_per_epoch = len(splits.train) // recipe.batch_size
        self.num_steps = 0
        self.outcome: Outcome | None = None
        self.steps = Alone(recipe, self.how, self)
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    def state(self) -> dict[str, Tensor]:
        """What learning goes on from: weights, the optimizer's state, generators. Not the rule's
        states, which are of other examples."""
        self.learner.order_at_epoch = self.learner.order.get_state()
        tensors = self.learner.tensors()
        return {name: tensor.detach().clone() for name, tensor in tensors.items() if not name.startswith("rule.")}

    def epochs(
        self, tol: float, n_iter_no_change: int, early_stopping: bool, tell: Callable[[str], None] | None = None
    ) -> Progress:
        """Train until nothing gets better by `tol` over `n_iter_no_change` epochs: the score of the
        validation part if it is to stop early, else the training loss; or to the recipe's end. Each
        epoch is told, a line each.

        Raises SettingError where training diverges.
        """
        progress, unchanged, best_loss = Progress(), 0, float("inf")
        best_weights: dict[str, Any] = {}
        for _ in range(self.recipe.epochs):
            loss = self._epoch()
            progress.losses.append(loss)
            if early_stopping:
                score = float(getattr(self.learner.evaluate(self.splits.validation), self.splits.task.headline))
                progress.scores.append(score)
                is_better = score >= progress.best_score + tol
                if score > progress.best_score:
                    progress.best_score = score
                    best_weights = copy.deepcopy(self.learner.model.state_dict())
            else:
                is_better = loss <= best_loss - tol
            if tell is not None:
                scored = f", validation score {progress.scores[-1]:.4f}" if early_stopping else ""
                tell(f"epoch {len(progress.losses)}, loss {loss:.4f}{scored}")
            best_loss = min(best_loss, loss)
            unchanged = 0 if is_better else unchanged + 1
            if unchanged > n_iter_no_change:
                progress.is_settled = True
                break
        if best_weights:
            self.learner.model.load_state_dict(best_weights)
        assert self.outcome is not None
        progress.unsettled = self.outcome.unsettled
        return progress

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Of the epoch that was begun."""
        return next(self._batches)

    def learned(self, outcomes: list[Outcome], rate: float, model: int, sharing: int) -> None:
        """Note a step."""
        self.num_steps += 1
        self.outcome = outcomes[-1]

    def save(self) -> None:
        """Nothing is written."""

    def _epoch(self) -> float:
        """The mean loss over one epoch, in which each example is met once, but for fewer than there
        are batches."""
        recipe, learner = self.recipe, self.learner
        learner.reset_sums()
        self._batches = batches(
            self.splits.train, recipe.batch_size, dtype=self.how.inputs, generator=learner.order, drop_last=True
        )
        for _ in range(self.steps_per_epoch):
            self.steps.take([self])
        assert self.outcome is not None
        state = recipe.rule.pack_state(learner.rule_state).values()
        if reason := divergence.of_numbers(self.outcome, learner.model, state):
            raise SettingError(f"training diverged in epoch {self.num_steps // self.steps_per_epoch}: {reason}")
        return float(learner.loss_sum) / (self.steps_per_epoch * recipe.batch_size)
