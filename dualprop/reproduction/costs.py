"""What a run takes on this device: measured in a few real steps, and learned from its epochs.

A measurement takes the trainer's own steps on batches of the recipe's data, captured where the
trainer captures, after a warm-up; then what an epoch ends with (validation, the comparison with
back-propagation, two checkpoints), and the test. It stops after one step where that is enough to
know that the run is far too long.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop.bench import contenders
from dualprop.data import Examples, Splits, batches
from dualprop.errors import DataError
from dualprop.network import Network
from dualprop.network.stacked import stack
from dualprop.training import (
    averaging,
    capture,
    checkpoint,
    documents,
    environment,
    evaluation,
    execution,
    files,
    monitoring,
    runs,
    weights,
)
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.recipe import Recipe
from dualprop.training.records import Record, by_name

FILE, SCRATCH = "costs.json", "measuring.safetensors"
# Steps that are timed: at least so many and for so many seconds, but no more than the most.
LEAST_STEPS, LEAST_SECONDS, MOST_STEPS = 5, 0.5, 100
EVALUATED = 1000  # examples of which evaluating is timed, as the trainer takes them
SHARE = 0.05  # of the longest time, after which a measurement is content with one step
COMPILING = 5.0  # a warm-up of more seconds has compiled what is compiled once


class Cost(Record, frozen=True, kw_only=True):
    """Seconds of one seed's run, or of all seeds' where they step together.

    Attributes:
        setup: data, model, capture and what precedes the first epoch.
        epoch: with all that ends it.
        finish: the test.
        of: what it is known from; of "one step" it is a rough guess.
    """

    setup: float
    epoch: float
    finish: float
    of: Literal["one step", "a few steps", "its epochs"]

    def seconds(self, epochs: int) -> float:
        """Of what is left where so many epochs are."""
        return self.setup + epochs * self.epoch + self.finish

    def seen(self, epoch: float) -> Cost:
        """The same with what an epoch really took."""
        return type(self)(setup=self.setup, epoch=epoch, finish=self.finish, of="its epochs")


class Costs:
    """Those of a reproduction by label, kept in its folder; of another machine they are not
    taken."""

    def __init__(self, folder: Path, device: str) -> None:
        self.path, self.machine = folder / FILE, _machine(device)
        self.by_label: dict[str, Cost] = {}
        if files.exists(self.path):
            machine, kept = documents.read(self.path, _from_plain, f"Remove {self.path} to have it measured anew.")
            self.by_label = kept if machine == self.machine else {}

    def __getitem__(self, label: str) -> Cost | None:
        return self.by_label.get(label)

    def __setitem__(self, label: str, cost: Cost) -> None:
        self.by_label[label] = cost
        plain = {name: each.to_plain() for name, each in self.by_label.items()}
        files.write_json(self.path, {"machine": self.machine, "costs": plain})


class Loaded:
    """The data that were loaded last, as recipes of one data set are measured in turn; and which
    can't be had, so that nobody waits for a download twice."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.last: tuple[object, Splits, float] | None = None
        self.refused: dict[str, DataError] = {}

    def __call__(self, recipe: Recipe, seed: int) -> tuple[Splits, float]:
        """The recipe's data, divided by some seed, and the seconds that loading takes. Raises
        DataError."""
        if recipe.dataset in self.refused:
            raise self.refused[recipe.dataset]
        key = (
            recipe.dataset,
            recipe.border,
            recipe.validation_fraction,
            recipe.train_examples,
            recipe.residency,
            recipe.device,
        )
        if self.last is None or self.last[0] != key:
            began = time.perf_counter()
            try:
                splits = runs.load_data(recipe, seed, self.root)
            except DataError as error:
                self.refused[recipe.dataset] = error
                raise
            self.last = key, splits, time.perf_counter() - began
        return self.last[1:]


def measure(recipe: Recipe, loaded: Loaded, folder: Path, longest: float = math.inf, num_seeds: int = 1) -> Cost:
    """What a run of the recipe takes by one seed, or by so many that step together. Of one that
    takes more than `longest` seconds, and where a step alone is a good part of them, one step is
    enough. `folder` is on the disk that runs are written to.

    Raises what training raises.
    """
    runs.prepare(recipe)
    seed, began = recipe.seed_list[0], time.perf_counter()
    splits, loading = loaded(recipe, seed)
    stepping = _Stepping(recipe, seed, splits, num_seeds)
    compiles = torch.device(recipe.device).type != "cpu"
    if compiles and stepping.warm_up > COMPILING:
        stepping = _Stepping(recipe, seed, splits, num_seeds)
    num_steps = len(splits.train) // recipe.batch_size
    is_slow = time.perf_counter() - began > SHARE * longest
    # The first step of a process takes longer than all others; on a slow machine it has to do.
    first = stepping.last if is_slow and not compiles else stepping.seconds(1)
    setup = num_seeds * loading + stepping.warm_up
    if is_slow or first * num_steps * recipe.epochs > longest:
        # A prediction is a third of a step: its drives, without feedbacks and gradients. A step of
        # seeds together is of as many examples for each.
        example = first / 3 / recipe.batch_size
        epoch = num_steps * first + len(splits.validation) * example
        return Cost(setup=setup, epoch=epoch, finish=len(splits.test) * example, of="one step")
    number = min(MOST_STEPS, max(LEAST_STEPS, math.ceil(LEAST_SECONDS / max(first, 1e-6))))
    step = stepping.seconds(number) / number
    end = stepping.evaluation(splits.validation) + stepping.alignment() + 2 * stepping.writing(folder / SCRATCH)
    test = stepping.evaluation(splits.test) + stepping.evaluation(splits.test, recipe.views)
    # Together they take steps; what ends an epoch is each one's own.
    end, test = num_seeds * end, num_seeds * test
    return Cost(setup=setup + end, epoch=num_steps * step + end, finish=test, of="a few steps")


class _Stepping:
    """A model of the recipe under way, or a stack of so many; `warm_up` is what its building and
    first steps took, and `last` the last of them alone."""

    def __init__(self, recipe: Recipe, seed: int, splits: Splits, num_seeds: int) -> None:
        self.recipe, self.splits, self.num_seeds = recipe, splits, num_seeds
        self.execution = execution.resolve(recipe, num_seeds)
        began = time.perf_counter()
        self.model = weights.initial_model(recipe, seed, splits)
        model = stack([self.model] * num_seeds) if self.execution.num_stacked else self.model
        self.step = contenders.trainer_step(model, recipe)
        self.average = averaging.running_mean(self.model, recipe.averaging)
        self.batches = self._endless(torch.Generator().manual_seed(seed))
        self._take(capture.WARMUP if self.execution.captured else 0)
        self.last = self.seconds(1)
        self.warm_up = time.perf_counter() - began

    def _endless(self, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches(
                self.splits.train, self.recipe.batch_size, dtype=self.execution.inputs, generator=order, drop_last=True,
                augmentation=self.recipe.augmentation, channels_last=self.execution.channels_last,
            )  # fmt: skip

    def _take(self, number: int) -> None:
        for _ in range(number):
            drawn = list(islice(self.batches, self.num_seeds))
            x, y = drawn[0] if len(drawn) == 1 else (torch.cat(each) for each in zip(*drawn, strict=True))
            self.step(x, y)
            if self.average is not None:
                for _ in drawn:
                    self.average.update_parameters(self.model)
        _synchronize(self.recipe.device)

    def seconds(self, number: int) -> float:
        """Of so many further steps."""
        return _timed(lambda: self._take(number), self.recipe.device)

    def evaluation(self, examples: Examples, views: str | None = None) -> float:
        """Of evaluating all of these, or what their views take beside the plain prediction."""
        if views == "none":
            return 0.0
        rule, network, number = self.recipe.rule, Network.from_module(self.model), min(EVALUATED, len(examples))
        x, _ = examples.batch(torch.arange(number), self.execution.inputs, channels_last=self.execution.channels_last)

        def predict() -> None:
            with torch.no_grad(), self.execution.computing():
                evaluation.over_views(lambda each: rule.predict(network, each), x, views or "none")

        predict()
        return _timed(predict, self.recipe.device) * len(examples) / number

    def alignment(self) -> float:
        """Of the comparison with back-propagation after an epoch."""
        if not self.recipe.align:
            return 0.0
        recipe, network = self.recipe, Network.from_module(self.model)
        x, y = next(self.batches)

        def compare() -> None:
            with self.execution.computing():
                monitoring.of_rule(network, recipe.rule, x, y, None, 0, recipe.updates_per_batch)

        compare()
        return _timed(compare, recipe.device)

    def writing(self, path: Path) -> float:
        """Of writing a checkpoint there, without the optimizer's state."""
        written = Checkpoint(checkpoint.model_tensors(self.model), {"kind": "best"})
        seconds = _timed(lambda: checkpoint.write(path, written, ""), self.recipe.device)
        files.remove(path)
        return seconds * (1 + (self.recipe.optimizer.num_states + (self.average is not None)) / 2)


def shortened(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe in fewer epochs, its warm-up and cosine compressed with them."""
    if epochs is None or epochs >= recipe.epochs:
        return recipe
    return dataclasses.replace(recipe, budget_epochs=epochs).compressed()


def _timed(function: Callable[[], object], device: str) -> float:
    _synchronize(device)
    began = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _machine(device: str) -> str:
    about = environment.describe(device)
    return str(about.get("accelerator") or f"{about['processor']}, {about['threads']} threads")


def _from_plain(plain: Any) -> tuple[str, dict[str, Cost]]:
    kept = documents.convert(plain, dict[str, Any])
    return documents.convert(kept.get("machine"), str, "machine"), by_name(kept.get("costs"), Cost, "costs.")
