"""What a training step costs in time: steps of several contenders, interleaved in one process.

These machines are shared, so times are compared round by round: in each round every contender takes one step, in a random
order, and its time is divided by the plain loop's of the same round. The median of those ratios is reported; a second plain
loop among the contenders shows the noise floor. Peak memory is `dualprop.analysis.memory`'s.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dualprop import schedules
from dualprop.fused.dualization import dualize
from dualprop.network import Network
from dualprop.rules import DualPropagation, Outcome
from dualprop.training import execution, optimization, step
from dualprop.training.capture import CapturedStep, CudaGraph, TrainingStep
from dualprop.training.recipe import Recipe

PLAIN = "plain PyTorch loop"
COUNTS = ("drives", "feedbacks", "gradients")
PLAIN_AGAIN = "plain PyTorch loop, again"
# However little time there is: the quartiles of fewer rounds say nothing.
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step, median and least, and the median ratio to the plain loop with its quartiles over the rounds."""

    milliseconds: float
    least_milliseconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    rounds: int


def plain_step(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step as a PyTorch user writes it: zero_grad, loss.backward(), step, under autocast where the recipe has bfloat16. A
    dualized model runs it too."""
    optimizer, how = optimization.build(recipe.optimizer, model), execution.resolve(recipe)

    def one_step() -> None:
        optimizer.zero_grad()
        with how.computing():
            loss = recipe.rule.loss.value(model(x), y).mean()
        loss.backward()
        optimizer.step()

    return one_step


def rule_step(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Callable[[], list[Outcome]]:
    """One step of the trainer by the recipe's rule, its state carried along where it keeps one; captured where the trainer
    would, from the fourth on."""
    how, network = execution.resolve(recipe), Network.from_module(model)
    optimizer = optimization.build(recipe.optimizer, model, capturable=how.captured)
    draws = generator()
    state: Any = None

    def one_step(x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        with how.computing():
            return step.training_step(recipe, network, optimizer, x, y, state, draws)

    run: TrainingStep = one_step
    if how.captured:
        run = CapturedStep(one_step, recipe, CudaGraph(torch.device(recipe.device)))

    def next_step() -> list[Outcome]:
        nonlocal state
        outcomes, state = run(x, y, state)
        return outcomes

    return next_step


def generator() -> torch.Generator:
    """What a rule draws from in a benchmark, the same each time."""
    return torch.Generator().manual_seed(0)


def work_of_backprop(recipe: Recipe, input_shape: tuple[int, ...], num_classes: int) -> int:
    """Drives, feedbacks and gradients of one back-propagation step on the recipe's network, through its own weights."""
    with torch.device("meta"):
        network = Network.from_module(recipe.model.build(input_shape, num_classes))
    return sum(network.counts_of_backprop.values())


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """Drives, feedbacks and gradients of one training step."""
    return {kind: sum(int(outcome.diagnostics[kind]) for outcome in outcomes) for kind in COUNTS}


def interleaved(
    steps: dict[str, Callable[[], object]],
    rounds: int,
    *,
    seconds: float = math.inf,
    baseline: str = PLAIN,
    warmup: int = 2,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time every step function in each round, in random order; ratios are to the baseline's, within the round.

    No round begins after `seconds`, but the first LEAST_ROUNDS (or `rounds`, where that is fewer) always do. A fifth of that
    time more may go into warming up, of which there is one round at least.
    """
    shuffle = random.Random(seed)
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}

    def one_round() -> None:
        shuffle.shuffle(names)
        for name in names:
            _synchronize()
            started = time.perf_counter()
            steps[name]()
            _synchronize()
            times[name].append(time.perf_counter() - started)

    began = time.perf_counter()
    for number in range(warmup):
        if number and time.perf_counter() - began > seconds / 5:
            break
        one_round()
    for taken in times.values():
        taken.clear()
    began = time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        one_round()
    return {name: _timing(times[name], times[baseline]) for name in steps}


def _timing(times: list[float], plain: list[float]) -> Timing:
    ratios = [own / base for own, base in zip(times, plain, strict=True)]
    quartiles = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    return Timing(median(times) * 1e3, min(times) * 1e3, median(ratios), quartiles[0], quartiles[2], len(times))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Contender:
    """One row of a benchmark.

    Attributes:
        label: names the row; different for each.
        recipe: model, rule, optimizer, batch size, device.
        how: the step is that of the trainer by the recipe's "rule", the "plain" loop, or the plain loop on a "dualized" model.
        rule: what is computed, "DP α=½" say, whichever engine does it; empty for the plain loops.
        engine: by which engine of `analysis.benchmark`; empty where the rule has but one.
        recomputes_states: of a dualized model, see `dualize`.
    """

    label: str
    recipe: Recipe
    how: Literal["rule", "plain", "dualized"] = "rule"
    rule: str = ""
    engine: str = ""
    recomputes_states: bool = True

    @property
    def is_one_sweep(self) -> bool:
        """Whether it is dual propagation by a single downward sweep through the model's own weights, one update a batch."""
        rule, recipe = self.recipe.rule, self.recipe
        return (
            self.how != "plain"
            and isinstance(rule, DualPropagation)
            and (rule.schedule, rule.start, rule.damping) == (schedules.alternating_sweeps(1), "forward", None)
            and (recipe.feedback, recipe.updates_per_batch) == ("exact", 1)
        )

    def step(self, input_shape: tuple[int, ...], num_classes: int, seed: int = 0) -> Callable[[], object]:
        """A step on one random batch, from weights drawn by the seed."""
        return self.step_on(*self.problem(input_shape, num_classes, seed))

    def step_on(self, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
        """A step of this model on this batch."""
        recipe = self.recipe
        if self.how == "rule":
            return rule_step(model, recipe, x, y)
        if self.how == "dualized":
            rule = recipe.rule
            assert isinstance(rule, DualPropagation)
            hidden_beta = rule.beta if not isinstance(rule.beta, tuple) else rule.beta[:-1]
            model = dualize(
                model,
                coupling=rule.coupling,
                alpha=rule.alpha,
                beta=hidden_beta,
                recompute_states=self.recomputes_states,
            )
        return plain_step(model, recipe, x, y)

    def problem(self, input_shape: tuple[int, ...], num_classes: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
        """The model with weights drawn by the seed, inputs (N, *input_shape) and targets (N,), on the recipe's device."""
        recipe, how = self.recipe, execution.resolve(self.recipe)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(recipe.batch_size, *input_shape, generator=generator, dtype=how.parameters)
        x = x.to(recipe.device, how.inputs)
        if how.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        y = torch.randint(num_classes, (recipe.batch_size,), generator=generator).to(recipe.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = how.place(recipe.build(input_shape, num_classes))
        return model, x, y

    def to_plain(self) -> dict[str, Any]:
        """Plain values and the recipe's own dictionary, for another process."""
        return {**{name: getattr(self, name) for name in _FIELDS}, "recipe": self.recipe.to_plain()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Contender:
        return cls(**{name: plain[name] for name in _FIELDS}, recipe=Recipe.from_plain(plain["recipe"]))


_FIELDS = ("label", "how", "rule", "engine", "recomputes_states")
