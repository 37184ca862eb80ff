"""One trainer for every rule: epochs, validation, the best model tested at the end, and a resume
that is bit-exact.

All that a seed's run is at any step is in its last checkpoint: weights, optimizer, the rule's
state, both generators, and the running sums. What follows is a deterministic function of it and of
its conditions, so a run that was killed and resumed writes the same metrics and weights as one that
was not. Checkpoints and metrics of another moment of the same run are told from its own. Times are
kept apart, in timing.jsonl.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.data import Examples, Splits, batches
from dualprop.errors import CheckpointError
from dualprop.models import Whitening
from dualprop.network import Network
from dualprop.rules import Outcome
from dualprop.training import (
    averaging,
    checkpoint,
    conditions,
    divergence,
    documents,
    execution,
    files,
    folders,
    monitoring,
    optimization,
    plain,
    readings,
    step,
)
from dualprop.training.capture import CapturedStep, CudaGraph, TrainingStep
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.evaluation import Score, evaluate
from dualprop.training.moments import Progress, agree, chained
from dualprop.training.recipe import Recipe
from dualprop.training.records import Epoch, Result
from dualprop.training.starts import Starts

# How often, in steps, the running loss is checked for divergence: the check waits for the device.
CHECK_EVERY = 50
# Images that a whitening is fitted to.
WHITENED = 5000


class Reporter:
    """What the trainer tells while it runs. This one is silent; the command line's shows
    progress."""

    def changed(self, what: str) -> None:
        """Something that the run was begun with is another now: one line."""

    def seed_started(self, seed: int, num_steps: int, done: int) -> None: ...
    def step_done(self, done: int, num_examples: int, loss: Tensor, num_correct: Tensor) -> None: ...
    def epoch_done(self, metrics: dict[str, Any]) -> None: ...
    def seed_finished(self, result: Result) -> None: ...


def train_seed(
    recipe: Recipe, seed: int, load: Callable[[], Splits], folder: Path, reporter: Reporter, starts: Starts
) -> Result:
    """Train one seed in `folder`, from its last checkpoint if there is one, on what `load` gives,
    and return its result.

    Raises:
        CheckpointError: a checkpoint that is corrupt, of another run or of another moment.
        RunError: a result or metrics of which that is so, or conditions that changed, see `starts`.
        OSError: the folder can't be written; what was written before stays whole.
    """
    result = readings.result(folder, seed, belongs_to(recipe, seed))
    if result is not None:
        reporter.seed_finished(result)
        return result
    files.make_folder(folder)
    folders.remove_leftovers(folder)
    result = _SeedRun(recipe, seed, load(), folder, reporter).run(starts)
    files.write_json(folder / "result.json", result.to_plain())
    reporter.seed_finished(result)
    return result


def initial_model(recipe: Recipe, seed: int, splits: Splits) -> nn.Module:
    """The recipe's model with weights drawn by the seed, in its place; what whitens is fitted to
    the first training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(splits.input_shape, splits.num_classes)
    how = execution.resolve(recipe)
    model = how.place(model)
    for module in model.modules():
        if isinstance(module, Whitening):
            first = torch.arange(min(WHITENED, len(splits.train)))
            module.fit(splits.train.batch(first, how.parameters)[0])
    return model


def restore_best(model: nn.Module, recipe: Recipe, seed: int, folder: Path) -> None:
    """Give the model, on any device, the weights in `folder` that were best on the validation part
    so far (at the start, the initial ones). Raises CheckpointError where there are none."""
    path = folder / "best.safetensors"
    if not files.exists(path):
        raise CheckpointError(
            f"{folder} holds no weights: there is no {path.name}, which published results leave out. Give a run that has one."
        )
    checkpoint.restore_model(model, checkpoint.read(path, belongs_to(recipe, seed), "best"), path)


class _SeedRun:
    def __init__(self, recipe: Recipe, seed: int, splits: Splits, folder: Path, reporter: Reporter) -> None:
        self.recipe, self.seed, self.splits, self.folder, self.reporter = recipe, seed, splits, folder, reporter
        self.execution = execution.resolve(recipe)
        self.belongs_to = belongs_to(recipe, seed)
        self.last, self.best = folder / "last.safetensors", folder / "best.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.model = initial_model(recipe, seed, splits)
        self.network = Network.from_module(self.model)
        self.average = averaging.running_mean(self.model, recipe.averaging)
        self.tested = self.network if self.average is None else Network.from_module(self.average.module)
        captured = self.execution.captured
        self.optimizer = optimization.build(recipe.optimizer, self.model, capturable=captured)
        self.training_step: TrainingStep = self._uncaptured_step
        if captured:
            self.training_step = CapturedStep(self._uncaptured_step, recipe, CudaGraph(torch.device(recipe.device)))
        # Two streams: the order of the examples is the same whatever the rule draws.
        self.order = torch.Generator().manual_seed(seed)
        self.order_at_epoch = self.order.get_state()
        self.inference = torch.Generator().manual_seed(seed + 2**32)
        self.steps_per_epoch = len(splits.train) // recipe.batch_size
        self.rule_state: Any = None
        self.rate = recipe.optimizer.learning_rate
        self.progress = Progress()
        self._reset_sums()

    def _reset_sums(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.recipe.device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=self.recipe.device)

    def run(self, starts: Starts) -> Result:
        is_new = not files.exists(self.last)
        if not is_new:
            self._restore()
        described, changed = starts.compare(self.splits, self.progress.conditions or None)
        self.progress.conditions = conditions.of(described)
        if not is_new:
            self._agree(starts.allow_changed, bool(changed))
        at = f"from epoch {self.progress.epoch + 1}, step {self.progress.step + 1} on"
        self.progress.remarks += tuple(f"{at}: {what}" for what in changed)
        files.truncate(self.metrics, self.progress.metrics_bytes)
        files.drop_partial_line(self.folder / "timing.jsonl")
        starts.note(described, self.seed, self.progress.epoch, self.progress.step, changed)
        done = self.progress.epoch * self.steps_per_epoch + self.progress.step
        self.reporter.seed_started(self.seed, self.recipe.epochs * self.steps_per_epoch, done)
        if is_new:
            self._end_of_epoch({})
        while self.progress.epoch < self.recipe.epochs and not self.progress.stopped:
            self._epoch()
        return self._result()

    def _epoch(self) -> None:
        recipe, progress = self.recipe, self.progress
        self.order.set_state(self.order_at_epoch)
        started, first_step = time.perf_counter(), progress.step
        outcome: Outcome | None = None
        epoch_batches = batches(
            self.splits.train, recipe.batch_size, dtype=self.execution.inputs, generator=self.order, start=progress.step,
            drop_last=True, augmentation=recipe.augmentation, epoch=progress.epoch,
            channels_last=self.execution.channels_last,
        )  # fmt: skip
        for x, y in epoch_batches:
            outcome = self._step(x, y)
            if progress.stopped:
                break
            # The last step's is the epoch's own, which is written with its metrics.
            is_due = recipe.checkpoint_every and progress.step % recipe.checkpoint_every == 0
            if is_due and progress.step < self.steps_per_epoch:
                self._write_checkpoint()
        num_examples = max(1, progress.step * recipe.batch_size)
        trained: dict[str, Any] = {
            "learning_rate": self.rate,
            "train_loss": float(self.loss_sum) / num_examples,
            "train_accuracy": int(self.num_correct) / num_examples,
            **({} if outcome is None else outcome.diagnostics),
            **({} if outcome is None or "residual" not in outcome.diagnostics else {"unsettled_steps": progress.unsettled}),
            **({"unsettled": outcome.unsettled} if outcome is not None and outcome.unsettled else {}),
        }
        seconds = time.perf_counter() - started
        progress.epoch, steps, progress.step, progress.unsettled = progress.epoch + 1, progress.step - first_step, 0, 0
        files.append(
            self.folder / "timing.jsonl",
            files.to_json({"epoch": progress.epoch, "steps": steps, "seconds": round(seconds, 4)}),
        )
        self.order_at_epoch = self.order.get_state()
        self._end_of_epoch(trained, Outcome.remedy if outcome is None else outcome.remedy)

    def _step(self, x: Tensor, y: Tensor) -> Outcome:
        recipe, progress = self.recipe, self.progress
        global_step = progress.epoch * self.steps_per_epoch + progress.step
        rate = optimization.learning_rate(recipe.optimizer, global_step, self.steps_per_epoch, recipe.epochs)
        optimization.set_learning_rate(self.optimizer, rate)
        self.rate = rate
        outcomes, self.rule_state = self.training_step(x, y, self.rule_state)
        if self.average is not None:
            self.average.update_parameters(self.model)
        # What the network said before it learned from this batch.
        outcome = outcomes[0]
        self.loss_sum += outcome.loss * len(y)
        self.num_correct += (outcome.logits.argmax(1) == y).sum()
        progress.step += 1
        progress.unsettled += any(outcome.unsettled for outcome in outcomes)
        self.reporter.step_done(global_step + 1, progress.step * len(y), self.loss_sum, self.num_correct)
        if progress.step % CHECK_EVERY == 0 or progress.step == self.steps_per_epoch:
            self._check_for_divergence(outcome)
        return outcome

    def _uncaptured_step(self, x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        # The context is entered here: what autocast keeps in it belongs to one step, captured or
        # not.
        with self.execution.computing():
            return step.training_step(self.recipe, self.network, self.optimizer, x, y, state, self.inference)

    def _check_for_divergence(self, outcome: Outcome) -> None:
        progress, num_examples = self.progress, self.progress.step * self.recipe.batch_size
        loss = float(self.loss_sum) / num_examples
        state = self.recipe.rule.pack_state(self.rule_state).values()
        reason = divergence.of_numbers(outcome, self.model, state) or divergence.of_loss(
            "training", loss, progress.loss_scale, learns=True, remedy=outcome.remedy
        )
        if reason:
            progress.stopped = f"diverged in epoch {progress.epoch + 1} by step {progress.step}: {reason}"

    def _set_loss_scale(self, before_training: float | None) -> None:
        y, loss = self.splits.validation.y, math.nan if before_training is None else before_training
        self.progress.loss_scale = divergence.loss_scale(self.recipe.rule.loss, y, self.splits.num_classes, loss)

    def _judge_losses(self, training: float, validation: Score, remedy: str) -> None:
        """Stop an epoch's run where a loss is far off its scale and the network does not learn;
        else keep what is wrong with it."""
        progress, learns = self.progress, validation.accuracy > 2 / self.splits.num_classes
        losses = {"training": training, "validation": validation.loss}
        told = [divergence.off_scale(which, loss, progress.loss_scale) for which, loss in losses.items()]
        reasons = [divergence.of_loss(which, loss, progress.loss_scale, learns, remedy) for which, loss in losses.items()]
        progress.doubt = next(filter(None, told), "")
        if any(reasons):
            progress.stopped = f"diverged in epoch {progress.epoch}: {next(filter(None, reasons))}"

    def _end_of_epoch(self, trained: dict[str, Any], remedy: str = "") -> None:
        """Validate, compare with back-propagation, note the metrics, keep the best model, write the
        checkpoint."""
        progress, recipe = self.progress, self.recipe
        score = self._evaluate(self.splits.validation)
        if not trained:
            self._set_loss_scale(score.loss)
        elif not progress.stopped:
            self._judge_losses(trained["train_loss"], score, remedy)
        metrics: dict[str, Any] = {
            "epoch": progress.epoch,
            **trained,
            "validation_loss": score.loss,
            "validation_accuracy": score.accuracy,
            "validation_top5_accuracy": score.top5_accuracy,
        }
        if recipe.align and not progress.stopped:
            metrics |= self._statistics()
        best_accuracy = progress.best.get("validation_accuracy", 0.0)
        # Near chance, half of the best is luck.
        has_learned = best_accuracy > 2 / self.splits.num_classes
        if not progress.stopped and has_learned and score.accuracy < best_accuracy / 2:
            before = "its best" if recipe.select == "best" else "what it was"
            progress.stopped = (
                f"validation accuracy fell to {score.accuracy:.4f}, less than half of {before}, after epoch "
                f"{progress.epoch}. Lower the learning rate or beta, or use coupling='transposed'."
            )
        line = files.to_json(metrics)
        progress.metrics_bytes = files.append(self.metrics, line)
        progress.metrics_digest = chained(progress.metrics_digest, line)
        is_better = recipe.select == "last" or score.accuracy > best_accuracy
        if not progress.best or (is_better and not progress.stopped):
            progress.best = {"epoch": progress.epoch, "validation_accuracy": score.accuracy}
            best = Checkpoint(checkpoint.model_tensors(self._tested_model), {"kind": "best", **progress.best})
            checkpoint.write(self.best, best, self.belongs_to)
        self._reset_sums()
        self._write_checkpoint()
        self.reporter.epoch_done(metrics)

    @property
    def _tested_model(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def _evaluate(self, examples: Examples, views: str = "none") -> Score:
        rule = self.recipe.rule
        return evaluate(
            self._tested_model, examples, rule.loss, self.execution, predict=lambda x: rule.predict(self.tested, x), views=views
        )

    def _statistics(self) -> dict[str, Any]:
        # A full batch, which the states of another fit.
        size, validation = self.recipe.batch_size, self.splits.validation
        examples = validation if len(validation) >= size else self.splits.train
        x, y = examples.batch(torch.arange(size), self.execution.inputs, channels_last=self.execution.channels_last)
        with self.execution.computing():
            return monitoring.of_rule(
                self.network, self.recipe.rule, x, y, self.rule_state, self.seed, self.recipe.updates_per_batch
            )

    def _write_checkpoint(self) -> None:
        rule_state = self.recipe.rule.pack_state(self.rule_state)
        tensors = {
            **checkpoint.model_tensors(self.model),
            **({} if self.average is None else checkpoint.model_tensors(self.average, "average")),
            **checkpoint.optimizer_tensors(self.optimizer),
            **{f"rule.{name}": tensor for name, tensor in rule_state.items()},
            "order": self.order_at_epoch,
            "inference": self.inference.get_state(),
            "loss_sum": self.loss_sum,
            "num_correct": self.num_correct,
        }
        checkpoint.write(self.last, Checkpoint(tensors, asdict(self.progress)), self.belongs_to)

    def _agree(self, allow_changed: bool, is_changed: bool) -> None:
        """Have metrics and best weights agree with the last checkpoint, or refuse them by name."""
        progress = self.progress
        readings.check_begun(self.folder, progress.metrics_bytes, progress.epoch, progress.best)
        if not progress.loss_scale:
            # As earlier versions left it.
            first, *_ = documents.read_lines(self.metrics, Epoch.from_plain, "Restore it.", progress.metrics_bytes)
            self._set_loss_scale(first.validation_loss)
        saved = checkpoint.read(self.best, self.belongs_to, "best")
        with checkpoint.fitting(self.best):
            if told := agree(progress, saved.about, self.folder, allow_changed, is_changed):
                self.reporter.changed(told)

    def _restore(self) -> None:
        saved = checkpoint.read(self.last, self.belongs_to, "last")
        with checkpoint.fitting(self.last):
            self._take(saved)

    def _take(self, saved: Checkpoint) -> None:
        self.progress = plain.from_plain(Progress, saved.about, "about")
        checkpoint.restore_model(self.model, saved, self.last)
        if self.average is not None:
            checkpoint.restore_model(self.average, saved, self.last, "average")
        checkpoint.restore_optimizer(self.optimizer, saved)
        # Copied: products round by where their operands lie in memory, and those of a file lie
        # anywhere.
        rule_state = {name: tensor.to(self.recipe.device, copy=True) for name, tensor in saved.under("rule").items()}
        self.rule_state = self.recipe.rule.unpack_state(rule_state)
        self.order.set_state(saved.tensors["order"])
        self.order_at_epoch = self.order.get_state()
        self.inference.set_state(saved.tensors["inference"])
        self.loss_sum.copy_(saved.tensors["loss_sum"])
        self.num_correct.copy_(saved.tensors["num_correct"])

    def _result(self) -> Result:
        """Test the model of the epoch that the recipe selects."""
        saved = checkpoint.read(self.best, self.belongs_to, "best")
        checkpoint.restore_model(self._tested_model, saved, self.best)
        score = self._evaluate(self.splits.test)
        views = self.recipe.views
        over_views = None if views == "none" else self._evaluate(self.splits.test, views).accuracy
        progress = self.progress
        doubts = (progress.doubt,) if progress.doubt and not progress.stopped else ()
        return Result(
            seed=self.seed,
            test_accuracy=score.accuracy,
            test_accuracy_over_views=over_views,
            test_loss=score.loss,
            test_top5_accuracy=score.top5_accuracy,
            num_test=len(self.splits.test),
            best_epoch=int(progress.best["epoch"]),
            validation_accuracy=progress.best["validation_accuracy"],
            epochs=progress.epoch,
            stopped=progress.stopped,
            remarks=progress.remarks + doubts,
            belongs_to=self.belongs_to,
        )


def belongs_to(recipe: Recipe, seed: int) -> str:
    """What is written into a checkpoint and a result, by which they know their run."""
    return f"{recipe.digest()} seed {seed}"
