"""Progress of training: rich bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from dualprop.bench.experiments import Watch
from dualprop.bench.showing import say
from dualprop.cli import data_told
from dualprop.cli.outlets import shown
from dualprop.data import Splits
from dualprop.training import Reporter, execution
from dualprop.training.recipe import Recipe
from dualprop.training.records import HEADLINES, WORDS, Result

SECONDS_BETWEEN_LINES = 5
# Columns of the line on a terminal: the bar, a label at most, and what stands around them (blanks,
# the time left).
BAR, LONGEST_LABEL, AROUND = 6, 16, 15


class ConsoleWatch(Watch):
    """Says what is trained, how, and where to; each seed is shown by a `ConsoleReporter`."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def read(self, recipe: Recipe, splits: Splits) -> None:
        for line in data_told.of_one_name(recipe.dataset):
            say(self.console, line, style="yellow")
        if splits.inputs is None:
            return
        for line in data_told.lines(splits):
            self._say(line)
        for line in data_told.remarks(splits, recipe.select == "best"):
            say(self.console, line, style="yellow")
        if (fitted := recipe.for_task(splits.task)) is not recipe:
            words = [str(each.rule.loss).replace("_", " ") for each in (fitted, recipe)]
            self._say(f"loss: {words[0]}, as {words[1]} does not read such targets")

    def started(self, folder: Path, recipes: dict[str, Recipe], is_comparison: bool, num_seeds: int) -> None:
        first = next(iter(recipes.values()))
        self._say(f"{first.name} by {', '.join(recipes)} → {folder}")
        for label, recipe in recipes.items():
            of_label = f" of {label}" if is_comparison else ""
            self._say(f"execution{of_label}: {execution.resolve(recipe, num_seeds)}")
            if recipe.chosen:
                self._say(f"auto{of_label}: {recipe.chosen}")

    def measuring_costs(self) -> None:
        self._say("measuring time and memory per step, some seconds a rule (--no-costs leaves it out) …")

    def logging(self, lines: list[str]) -> None:
        for line in lines:
            self._say(line)

    def training(self, label: str, recipe: Recipe) -> AbstractContextManager[Reporter]:
        return contextlib.closing(ConsoleReporter(self.console, label, recipe.batch_size, recipe.epochs))

    def _say(self, line: str) -> None:
        say(self.console, line)


class ConsoleReporter(Reporter):
    """Shows one seed at a time under a label; of seeds that step together, the first.

    On a terminal it is a line with the epoch of how many, the loss, the last validation score and
    the time left, and with more where the terminal is wider.
    """

    def __init__(self, console: Console, label: str, batch_size: int, num_epochs: int) -> None:
        self.console, self.label, self.batch_size, self.num_epochs = console, label, batch_size, num_epochs
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.seed = 0
        self.started = self.shown = 0.0
        self.unsettled: tuple[int, str] = (0, "")
        self.num_steps = self.first_step = self.done = 0
        # Known from the metrics before training.
        self.has_accuracy = False
        self.validation = ""

    def changed(self, what: str) -> None:
        say(self.console, f"{self.label}: {what}", style="yellow")

    def log_failed(self, what: str) -> None:
        self.changed(what)

    def seed_started(self, seed: int, num_steps: int, done: int) -> None:
        self.seed, self.num_steps, self.first_step, self.done = seed, num_steps, done, done
        self.started = time.perf_counter()
        self.shown = 0.0
        self.unsettled = (0, "")
        if self.console.is_interactive:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=BAR),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self._title(), total=num_steps, completed=done, numbers=self._epoch())
        elif done:
            say(self.console, f"{self.label}, seed {seed}: continues at step {done} of {num_steps}")

    def step_done(self, done: int, num_examples: int, loss: Tensor, num_correct: Tensor) -> None:
        self.done = done
        now = time.perf_counter()
        # Reading the loss waits for the device, so only as often as an eye can follow.
        if self.bar is not None and now - self.shown > 0.2:
            self.shown = now
            accuracy = f"accuracy {int(num_correct) / num_examples:.3f}" if self.has_accuracy else ""
            parts = [self._epoch(), f"loss {float(loss) / num_examples:.3f}", self.validation, accuracy, self._rate(now)]
            room = self.console.width - len(self._title()) - BAR - AROUND
            self.bar.update(self.task, completed=done, numbers=in_width([part for part in parts if part], room))

    def epoch_done(self, metrics: dict[str, Any]) -> None:
        self.has_accuracy = "validation_accuracy" in metrics
        self.validation = f"val {_validation(metrics)[1]:.3f}"
        self.unsettled = (metrics.get("unsettled_steps", 0), metrics.get("unsettled", ""))
        now = time.perf_counter()
        is_last = self.done == self.num_steps
        # A line every few seconds: short runs would fill the screen.
        if self.bar is not None or not metrics["epoch"] or (now - self.shown < SECONDS_BETWEEN_LINES and not is_last):
            return
        self.shown = now
        left = (now - self.started) / max(1, self.done - self.first_step) * (self.num_steps - self.done)
        say(
            self.console,
            f"{self.label}, seed {self.seed}, epoch {metrics['epoch']} of {self.num_epochs}: loss {metrics['train_loss']:.4f}, "
            f"{_scores(metrics)}, "
            f"{self._rate(now)}, {left:.0f} s left",
        )

    def seed_finished(self, result: Result) -> None:
        self.close()
        line = (
            f"{self.label}, seed {result.seed}: test {WORDS[result.headline]} {100 * result.score:.2f} % "
            f"(after epoch {result.best_epoch} of {result.epochs})"
        )
        say(self.console, line)
        steps, reason = self.unsettled
        if steps and reason:
            say(self.console, f"  in {steps} steps of the last epoch {reason}", style="yellow")
        if result.stopped:
            say(self.console, f"  stopped early: {result.stopped}", style="yellow")

    def close(self) -> None:
        """Take the bar away; safe to call at any time."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _title(self) -> str:
        label = self.label if len(self.label) <= LONGEST_LABEL else f"{self.label[: LONGEST_LABEL - 1]}…"
        return shown(f"{label}, seed {self.seed}")

    def _epoch(self) -> str:
        """Which is under way, of how many."""
        number = min(self.num_epochs, self.done * self.num_epochs // max(1, self.num_steps) + 1)
        return f"epoch {number}/{self.num_epochs}"

    def _rate(self, now: float) -> str:
        steps = max(1, self.done - self.first_step)
        return f"{steps * self.batch_size / max(1e-9, now - self.started):,.0f} examples/s"


def _scores(metrics: dict[str, Any]) -> str:
    """The training accuracy, where there is one, and the validation score."""
    trained = f"accuracy {metrics['train_accuracy']:.4f}, " if "train_accuracy" in metrics else ""
    words, score = _validation(metrics)
    return f"{trained}validation{words} {score:.4f}"


def _validation(metrics: dict[str, Any]) -> tuple[str, float]:
    """What the validation score is called beside accuracy, and its value."""
    headline = next(name for name in HEADLINES if f"validation_{name}" in metrics)
    return "" if headline == "accuracy" else f" {WORDS[headline]}", metrics[f"validation_{headline}"]


def in_width(parts: Sequence[str], width: int) -> str:
    """As many of the parts as fit into so many columns, the first at least."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 1 + len(part) > width:
            break
        line = f"{line} {part}"
    return line
