"""What one seed's training is around its steps: its data, where it stands, its files.

All that it is at any step is in its last checkpoint. It takes no steps itself: what learns may be
one of a stack that steps together (`stepping`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dualprop.data import Splits, batches
from dualprop.rules import Outcome, nudging
from dualprop.training import (
    checkpoint,
    conditions,
    divergence,
    documents,
    files,
    inheriting,
    optimization,
    plain,
    readings,
    weights,
)
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.execution import Execution
from dualprop.training.learner import Learner
from dualprop.training.moments import Progress, agree, chained
from dualprop.training.recipe import Recipe
from dualprop.training.records import Epoch, Result
from dualprop.training.reporting import Reporter
from dualprop.training.scoring import Score
from dualprop.training.starts import Starts

# How often, in steps, the running loss is checked for divergence: the check waits for the device.
CHECK_EVERY = 50


class Seed:
    """One seed of a run.

    Attributes:
        learner: what of it learns.
        progress: where it stands.
        is_told: whether the reporter is told of its steps and epochs.
        is_advisor: whether it is told how the rule's nudge does: by one seed of a run.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        splits: Splits,
        folder: Path,
        reporter: Reporter,
        how: Execution,
        epochs_before: Sequence[int] = (),
    ) -> None:
        # A checkpoint belongs to the recipe as it is written, or as it was before it was extended.
        self.owners, self.epochs_before = weights.owners(recipe, seed, epochs_before), epochs_before
        self.belongs_to = self.owners[0]
        recipe.check_task(splits.task)
        self.recipe = recipe = recipe.weighted(splits.task)
        self.seed, self.splits, self.folder, self.reporter = seed, splits, folder, reporter
        self.execution, self.is_told, self.is_advisor = how, False, False
        self.last, self.best = folder / "last.safetensors", folder / "best.safetensors"
        self.metrics, self.timing = folder / "metrics.jsonl", folder / "timing.jsonl"
        self.learner = Learner(recipe, seed, splits, how)
        self.steps_per_epoch = len(splits.train) // recipe.batch_size
        self.progress = Progress()
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._started, self._first_step = 0.0, 0
        # At an epoch's end: its metrics, the rule's remedy, and the seconds that it took.
        self._trained: tuple[dict[str, Any], str, float] | None = None

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take."""
        return self.progress.epoch >= self.recipe.epochs or bool(self.progress.stopped)

    @property
    def moment(self) -> tuple[int, int]:
        """The epochs and the steps of the present one that are done."""
        return self.progress.epoch, self.progress.step

    @property
    def num_steps(self) -> int:
        """That are done in all."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def begin(self, starts: Starts) -> None:
        """Go on from the last checkpoint, if there is one."""
        is_new = not files.exists(self.last)
        self.is_advisor = self.seed == starts.advisor
        if not is_new:
            self._restore()
        described, changed = starts.compare(self.splits, self.progress.conditions or None)
        self.progress.conditions = conditions.of(described)
        if not is_new:
            self._agree(starts.allow_changed, bool(changed))
        at = f"from epoch {self.progress.epoch + 1}, step {self.progress.step + 1} on"
        self.progress.remarks += tuple(f"{at}: {what}" for what in changed)
        files.truncate(self.metrics, self.progress.metrics_bytes)
        files.drop_partial_line(self.timing)
        starts.note(described, self.seed, self.progress.epoch, self.progress.step, changed)

    def write_first(self) -> None:
        """Write how it stands before any step, where that is not written yet."""
        if not files.exists(self.last):
            if self.recipe.start_from:
                self._inherit()
            self._end_of_epoch({})

    def tell(self) -> None:
        """Tell the reporter of its steps and epochs from now on."""
        self.is_told = True
        self.reporter.seed_started(self.seed, self.recipe.epochs * self.steps_per_epoch, self.num_steps)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The batch of the next step."""
        recipe, progress = self.recipe, self.progress
        if self._batches is None:
            self.learner.order.set_state(self.learner.order_at_epoch)
            self._started, self._first_step = time.perf_counter(), progress.step
            self._batches = batches(
                self.splits.train, recipe.batch_size, dtype=self.execution.inputs, generator=self.learner.order,
                start=progress.step, drop_last=True, augmentation=recipe.augmentation, epoch=progress.epoch,
                channels_last=self.execution.channels_last,
            )  # fmt: skip
        return next(self._batches)

    def learned(self, outcomes: list[Outcome], rate: float, model: int, sharing: int) -> None:
        """Note that a step was taken with these outcomes, of which the seed's are those of `model`.
        `sharing` seeds took it together. `save` is to be called then."""
        recipe, progress, learner = self.recipe, self.progress, self.learner
        if learner.average is not None:
            learner.average.update_parameters(learner.model)
        progress.step += 1
        progress.unsettled += any(outcome.unsettled_of(model) for outcome in outcomes)
        num_examples = progress.step * recipe.batch_size
        if self.is_told:
            self.reporter.step_done(self.num_steps, num_examples, learner.loss_sum, learner.num_correct)
        is_last = progress.step == self.steps_per_epoch
        # What the network said before it learned from this batch.
        first = outcomes[0]
        if progress.step % CHECK_EVERY == 0 or is_last:
            self._check_for_divergence(first.of_model(model))
        if not (progress.stopped or is_last):
            return
        outcome = first.of_model(model)
        trained: dict[str, Any] = {
            "learning_rate": rate,
            "train_loss": float(learner.loss_sum) / num_examples,
            **({"train_accuracy": int(learner.num_correct) / num_examples} if self.splits.task.chance else {}),
            **outcome.diagnostics,
            **({"unsettled_steps": progress.unsettled} if "residual" in outcome.diagnostics else {}),
            **({"unsettled": outcome.unsettled} if outcome.unsettled else {}),
        }
        self._trained = trained, outcome.remedy, (time.perf_counter() - self._started) / sharing

    def save(self) -> None:
        """Do what is due after a step: a checkpoint, or all that ends an epoch."""
        progress, due = self.progress, self.recipe.checkpoint_every
        if self._trained is None:
            # The last step's is the epoch's own, which is written with its metrics.
            if due and progress.step % due == 0:
                self._write_checkpoint()
            return
        (trained, remedy, seconds), self._trained, self._batches = self._trained, None, None
        progress.epoch, steps, progress.step, progress.unsettled = progress.epoch + 1, progress.step - self._first_step, 0, 0
        files.append(self.timing, files.to_json({"epoch": progress.epoch, "steps": steps, "seconds": round(seconds, 4)}))
        self.learner.order_at_epoch = self.learner.order.get_state()
        self._end_of_epoch(trained, remedy)

    def _check_for_divergence(self, outcome: Outcome) -> None:
        progress, num_examples = self.progress, self.progress.step * self.recipe.batch_size
        loss = float(self.learner.loss_sum) / num_examples
        state = self.recipe.rule.pack_state(self.learner.rule_state).values()
        reason = divergence.of_numbers(outcome, self.learner.model, state) or divergence.of_loss(
            "training", loss, progress.loss_scale, learns=True, remedy=outcome.remedy
        )
        if reason:
            progress.stopped = f"diverged in epoch {progress.epoch + 1} by step {progress.step}: {reason}"

    def _set_loss_scale(self, before_training: float | None) -> None:
        y, loss = self.splits.validation.y, math.nan if before_training is None else before_training
        self.progress.loss_scale = divergence.loss_scale(self.recipe.rule.loss, y, self.splits.num_classes, loss)

    def _end_of_epoch(self, trained: dict[str, Any], remedy: str = "") -> None:
        """Validate, compare with back-propagation, note the metrics, keep the best model, write the
        checkpoint."""
        progress, recipe = self.progress, self.recipe
        score = self.learner.evaluate(self.splits.validation)
        if not trained:
            self._set_loss_scale(score.loss)
        elif not progress.stopped:
            losses = {"training": trained["train_loss"], "validation": score.loss}
            # Of classes only the order of the outputs counts: a network can learn at a loss off its
            # scale.
            learns = self._is_above_chance(score.accuracy)
            reason, progress.doubt = divergence.of_epoch(losses, progress.loss_scale, learns, remedy)
            progress.stopped = f"diverged in epoch {progress.epoch}: {reason}" if reason else ""
        metrics: dict[str, Any] = {
            "epoch": progress.epoch,
            **trained,
            **score.named("validation"),
        }
        if recipe.align and not progress.stopped:
            metrics |= self.learner.statistics(self.splits)
        if progress.epoch <= 1 and not progress.stopped:
            self._advise(metrics)
        reached, accuracy = progress.best.get("validation_accuracy", 0.0), score.accuracy
        # Near chance, half of the best is luck.
        has_fallen = accuracy is not None and self._is_above_chance(reached) and accuracy < reached / 2
        if not progress.stopped and has_fallen:
            before = "its best" if recipe.select == "best" else "what it was"
            progress.stopped = (
                f"validation accuracy fell to {accuracy:.4f}, less than half of {before}, after epoch "
                f"{progress.epoch}. Lower the learning rate or beta, or use coupling='transposed'."
            )
        line = files.to_json(metrics)
        progress.metrics_bytes = files.append(self.metrics, line)
        progress.metrics_digest = chained(progress.metrics_digest, line)
        if not progress.best or (not progress.stopped and (recipe.select == "last" or self._is_better(score))):
            progress.best = {"epoch": progress.epoch, **self._chosen_by(score)}
            checkpoint.write(self.best, self._best(), self.belongs_to)
        self.learner.reset_sums()
        self._write_checkpoint()
        self.reporter.epoch_kept(self.seed, metrics)
        if self.is_told:
            self.reporter.epoch_done(metrics)

    def _advise(self, metrics: dict[str, Any]) -> None:
        """Say where the rule's nudge is too strong, before training or after the first epoch."""
        recipe, is_first = self.recipe, not self.progress.epoch
        crossing = nudging.hidden(metrics.get("inference", {}))
        if is_first and not recipe.align:
            crossing = self.learner.crossing(self.splits)
        # Of feedback weights the angle is large anyhow; of small gradients, later, so it may be.
        angles = metrics.get("alignment", ()) if is_first and recipe.feedback == "exact" else ()
        told = nudging.advice(recipe.rule, crossing, [layer["angle"] for layer in angles])
        if told and not self.progress.is_advised:
            metrics["advice"], self.progress.is_advised = told, True
            if self.is_advisor:
                self.reporter.changed(told)

    def _chosen_by(self, score: Score) -> dict[str, float]:
        """What an epoch is chosen by, the most decisive first; of the loss what is finite."""
        names = [f"validation_{self.recipe.selected_by(self.splits.task)}"]
        named = score.named("validation")
        if "validation_accuracy" in named:
            names.append("validation_accuracy")
        return {name: named[name] for name in (*names, "validation_loss") if math.isfinite(named[name])}

    def _is_better(self, score: Score) -> bool:
        """Whether the score is higher than the best, or as high at a lower loss: a small validation
        part has few accuracies to tell epochs by."""
        first = f"validation_{self.recipe.selected_by(self.splits.task)}"

        def rank(values: Mapping[str, float]) -> tuple[float, float]:
            return values.get(first, -math.inf), -values.get("validation_loss", math.inf)

        return rank(self._chosen_by(score)) > rank(self.progress.best)

    def _is_above_chance(self, accuracy: float | None) -> bool:
        """Whether more than twice as many are right as by guessing, where one can guess."""
        chance = self.splits.task.chance
        return chance is not None and accuracy is not None and accuracy > 2 * chance

    def _inherit(self) -> None:
        path = inheriting.inherit(self.learner.models, self.recipe, self.seed)
        told = tuple(inheriting.remarks(self.recipe, self.seed, path, self.splits))
        self.progress.remarks += told

    def _best(self) -> Checkpoint:
        """The tested model as it is, and what its inputs and outputs are."""
        described, tensors = weights.described(self.splits.description)
        tensors |= checkpoint.model_tensors(self.learner.tested_model)
        return Checkpoint(tensors, {"kind": "best", **self.progress.best, "data": described})

    def _write_checkpoint(self) -> None:
        checkpoint.write(self.last, Checkpoint(self.learner.tensors(), asdict(self.progress)), self.belongs_to)

    def _agree(self, allow_changed: bool, is_changed: bool) -> None:
        """Have metrics and best weights agree with the last checkpoint, or refuse them by name."""
        progress = self.progress
        readings.check_begun(self.folder, progress.metrics_bytes, progress.epoch, progress.best)
        if not progress.loss_scale:
            # As earlier versions left it.
            first, *_ = documents.read_lines(self.metrics, Epoch.from_plain, "Restore it.", progress.metrics_bytes)
            self._set_loss_scale(first.validation_loss)
        saved = checkpoint.read(self.best, self.owners, "best")
        with checkpoint.fitting(self.best):
            if told := agree(progress, saved.about, self.folder, allow_changed, is_changed):
                self.reporter.changed(told)

    def _restore(self) -> None:
        saved = checkpoint.read(self.last, self.owners, "last")
        with checkpoint.fitting(self.last):
            self.progress = plain.from_plain(Progress, saved.about, "about")
            self.learner.restore(saved, self.last)
        if saved.belongs_to != self.belongs_to:
            self._extend(self.epochs_before[self.owners.index(saved.belongs_to) - 1])

    def _extend(self, epochs: int) -> None:
        """Note what follows from going on for more epochs than these."""
        rates = [
            optimization.learning_rate(self.recipe.optimizer, self.num_steps, self.steps_per_epoch, each)
            for each in (epochs, self.recipe.epochs)
        ]
        jumps = f", and its learning rate goes on at {rates[1]:.3g} in place of {rates[0]:.3g}" if rates[0] != rates[1] else ""
        told = f"begun for {epochs} epochs and extended to {self.recipe.epochs} after epoch {self.progress.epoch}{jumps}"
        self.progress.remarks += (told,)
        self.reporter.changed(f"seed {self.seed}: {told}")

    def result(self) -> Result:
        """Test the model of the epoch that the recipe selects."""
        saved = checkpoint.read(self.best, self.owners, "best")
        checkpoint.restore_model(self.learner.tested_model, saved, self.best)
        score = self.learner.evaluate(self.splits.test)
        views = self.recipe.views
        over_views = None if views == "none" else self.learner.evaluate(self.splits.test, views).accuracy
        progress = self.progress
        doubts = (progress.doubt,) if progress.doubt and not progress.stopped else ()
        known = Result.__struct_fields__
        return Result(
            seed=self.seed,
            **score.named("test"),
            test_accuracy_over_views=over_views,
            num_test=len(self.splits.test),
            num_validation=len(self.splits.validation),
            imbalance=self.splits.task.imbalance,
            best_epoch=int(progress.best["epoch"]),
            **{name: value for name, value in progress.best.items() if name in known},
            epochs=progress.epoch,
            stopped=progress.stopped,
            remarks=progress.remarks + doubts,
            belongs_to=self.belongs_to,
        )
