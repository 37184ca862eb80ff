"""What a training step costs: time interleaved in one process, and peak memory in a fresh one.

These machines are shared, so times are compared round by round: in each round every contender takes one step, in a random
order, and its time is divided by the plain loop's of the same round. The median of those ratios is reported; a second plain
loop among the contenders shows the noise floor.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.dyadic import dualize
from dualprop.errors import DualpropError
from dualprop.losses import AbstractLoss
from dualprop.network import Network
from dualprop.rules import DualPropagation, Outcome
from dualprop.training import execution, optimization, runs, step
from dualprop.training.execution import Execution
from dualprop.training.recipe import Optimizer, Recipe

PLAIN = "plain PyTorch loop"
COUNTS = ("drives", "feedbacks", "gradients")
PLAIN_AGAIN = "plain PyTorch loop, again"


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step (median), and the ratio to the plain loop with its quartiles over the rounds."""

    milliseconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float


def plain_step(
    model: nn.Module, loss: AbstractLoss, optimizer: Optimizer, how: Execution, x: Tensor, y: Tensor
) -> Callable[[], None]:
    """One step as a PyTorch user writes it: zero_grad, loss.backward(), step. A dualized model runs it too."""
    steps = optimization.build(optimizer, model.parameters())

    def step() -> None:
        steps.zero_grad()
        with how.computing():
            value = loss.value(model(x), y).mean()
        value.backward()
        steps.step()

    return step


def rule_step(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Callable[[], list[Outcome]]:
    """One step of the trainer by the recipe's rule, its state carried along where it keeps one."""
    network, optimizer = Network.from_module(model), optimization.build(recipe.optimizer, model.parameters())
    generator, how = torch.Generator().manual_seed(0), execution.resolve(recipe)
    state: Any = None

    def take() -> list[Outcome]:
        nonlocal state
        with how.computing():
            outcomes, state = step.take(recipe, network, optimizer, x, y, state, generator)
        return outcomes

    return take


def interleaved(steps: dict[str, Callable[[], object]], rounds: int, warmup: int = 3, seed: int = 0) -> dict[str, Timing]:
    """Time every step function in each round, in random order; ratios are to the one named PLAIN, within the round."""
    shuffle = random.Random(seed)
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for step_number in range(warmup + rounds):
        shuffle.shuffle(names)
        for name in names:
            _synchronize()
            started = time.perf_counter()
            steps[name]()
            _synchronize()
            if step_number >= warmup:
                times[name].append(time.perf_counter() - started)
    return {name: _timing(times[name], times[PLAIN]) for name in steps}


def _timing(times: list[float], plain: list[float]) -> Timing:
    ratios = [own / base for own, base in zip(times, plain, strict=True)]
    quartiles = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    return Timing(median(times) * 1e3, median(ratios), quartiles[0], quartiles[2])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Contender:
    """One row of a benchmark: a recipe's rule by the trainer's step, or ("plain", "dualized") the plain loop's."""

    label: str
    recipe: Recipe
    how: str = "rule"
    compiled: bool = False

    def step(self, input_shape: tuple[int, ...], num_classes: int, seed: int = 0) -> Callable[[], object]:
        """A step on one random batch, from weights drawn by the seed."""
        model, x, y = self._problem(input_shape, num_classes, seed)
        recipe = self.recipe
        if self.how == "rule":
            return rule_step(model, recipe, x, y)
        if self.how == "dualized":
            rule = recipe.rule
            assert isinstance(rule, DualPropagation)
            hidden_beta = rule.beta if not isinstance(rule.beta, tuple) else rule.beta[:-1]
            dualize(
                model,
                coupling=rule.coupling,
                alpha=rule.alpha,
                beta=hidden_beta,
                kernel="compiled" if self.compiled else "auto",
            )
        return plain_step(model, recipe.rule.loss, recipe.optimizer, execution.resolve(recipe), x, y)

    def counts(self, input_shape: tuple[int, ...], num_classes: int, seed: int = 0) -> dict[str, int]:
        """Drives, feedbacks and gradients of one training step, the second: by then a rule that keeps states has some."""
        model, x, y = self._problem(input_shape, num_classes, seed)
        take = rule_step(model, self.recipe, x, y)
        take()
        outcomes = take()
        return {kind: sum(int(outcome.diagnostics[kind]) for outcome in outcomes) for kind in COUNTS}

    def _problem(self, input_shape: tuple[int, ...], num_classes: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
        recipe = self.recipe
        generator = torch.Generator().manual_seed(seed)
        how = execution.resolve(recipe)
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
        return {"label": self.label, "recipe": self.recipe.to_plain(), "how": self.how, "compiled": self.compiled}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Contender:
        return cls(plain["label"], Recipe.from_plain(plain["recipe"]), plain["how"], plain["compiled"])


@dataclass(frozen=True)
class Memory:
    """Peak of the process, and how far its steps raised it, in MB (10⁶ bytes)."""

    peak: float
    by_steps: float


def memory(contender: Contender, input_shape: tuple[int, ...], num_classes: int, steps: int = 5) -> Memory:
    """Peak memory of a few steps in a process of their own: resident on the CPU, allocated by PyTorch on a GPU."""
    task = {"contender": contender.to_plain(), "input_shape": input_shape, "num_classes": num_classes, "steps": steps,
            "threads": torch.get_num_threads()}  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "dualprop.analysis.cost"], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise DualpropError(f"memory of '{contender.label}' could not be measured: {reason}. Leave it out with --no-memory.")
    return Memory(**json.loads(result.stdout.splitlines()[-1]))


def _measure_memory(task: dict[str, Any]) -> Memory:
    contender = Contender.from_plain(task["contender"])
    torch.set_num_threads(task["threads"])
    runs.prepare(contender.recipe)
    step = contender.step(tuple(task["input_shape"]), task["num_classes"])
    if contender.recipe.device.startswith("cuda"):
        allocated = torch.cuda.memory_allocated()
        for _ in range(task["steps"]):
            step()
        most = torch.cuda.max_memory_allocated()
        return Memory(most / 1e6, (most - allocated) / 1e6)
    resident, _ = _resident_and_peak()
    for _ in range(task["steps"]):
        step()
    _, peak = _resident_and_peak()
    return Memory(peak / 1e6, max(0.0, peak - resident) / 1e6)


def _resident_and_peak() -> tuple[float, float]:
    """Bytes resident now and at most since the process began; where the system tells only the peak, that for both."""
    try:
        status = Path("/proc/self/status").read_text()
        now, peak = (
            float(line.split()[1]) * 1024 for key in ("VmRSS:", "VmHWM:") for line in status.splitlines() if key in line
        )
    except (OSError, ValueError):
        # Not used on Linux, where it would begin at the peak of the process that started this one. macOS counts bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        now = peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return now, peak


if __name__ == "__main__":
    from dataclasses import asdict

    print(json.dumps(asdict(_measure_memory(json.load(sys.stdin)))))
