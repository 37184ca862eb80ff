"""What a training step costs in time: steps of several contenders, interleaved in one process.

These machines are shared, so times are compared round by round: in each round every contender
takes one step, in a random order, and its time is divided by the plain loop's of the same round.
The median of those ratios is reported; a second plain loop among the contenders shows the noise.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from dualprop.training.comparisons import YARDSTICKS

PLAIN, PLAIN_AGAIN = YARDSTICKS
# However little time there is: the quartiles of fewer rounds say nothing.
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step, median and least; ratio to the plain loop, median and quartiles."""

    milliseconds: float
    least_milliseconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float
    rounds: int


def interleaved(
    steps: dict[str, Callable[[], object]],
    rounds: int,
    *,
    seconds: float = math.inf,
    baseline: str = PLAIN,
    warmup: int = 2,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time every step function in each round, in random order; ratios are to the baseline's step.

    No round begins after `seconds`, but the first LEAST_ROUNDS (or `rounds`, where that is fewer)
    always do. A fifth of that time more may go into warming up, at least one round of it.
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
    for measured in times.values():
        measured.clear()
    began = time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        one_round()
    return {name: _timing(times[name], times[baseline]) for name in steps}


def _timing(times: list[float], plain: list[float]) -> Timing:
    ratios = [of_step / of_plain for of_step, of_plain in zip(times, plain, strict=True)]
    quartiles = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    return Timing(median(times) * 1e3, min(times) * 1e3, median(ratios), quartiles[0], quartiles[2], len(times))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
