"""Whether a rule's test accuracy differs from its back-propagation twin's by more than chance.

With several seeds the differences are paired, as both runs of a seed share weights, order and
augmentation; their mean is held against Student's 95 % interval. With one seed nothing is known of
the spread over seeds, and the difference is held against twice the sampling error of the test set
alone, √(p(1-p)/n + q(1-q)/n), which is the least that it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from dualprop.training.records import Result

# The 97.5 % points of Student's distribution with 1, 2, … degrees of freedom.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass(frozen=True)
class Difference:
    """Points of accuracy by which a rule is above its twin, ± what chance explains."""

    points: float
    chance: float
    num_seeds: int

    @property
    def verdict(self) -> str:
        """In words: "no difference seen", "above" or "below"."""
        if abs(self.points) <= self.chance:
            return "no difference seen"
        return "above back-propagation" if self.points > 0 else "below back-propagation"

    def __str__(self) -> str:
        basis = (
            "the test set's sampling error, one seed" if self.num_seeds == 1 else f"95 % interval over {self.num_seeds} seeds"
        )
        return f"{self.points:+.2f} points to back-propagation, chance ± {self.chance:.2f} ({basis}): {self.verdict}"


def difference(results: Sequence[Result], twin: Sequence[Result]) -> Difference | None:
    """Of two rules' results by seed.

    None where they share no seed, or one seed whose test set's size is not recorded.
    """
    of_twin = {result.seed: result for result in twin}
    pairs = [(result, of_twin[result.seed]) for result in results if result.seed in of_twin]
    if not pairs:
        return None
    points = [100 * (a.test_accuracy - b.test_accuracy) for a, b in pairs]
    if len(pairs) > 1:
        student = _STUDENT[min(len(pairs) - 1, len(_STUDENT)) - 1]
        return Difference(mean(points), student * stdev(points) / sqrt(len(points)), len(points))
    size = pairs[0][0].num_test
    if not size:
        return None
    variance = sum(result.test_accuracy * (1 - result.test_accuracy) for result in pairs[0]) / size
    return Difference(points[0], 200 * sqrt(variance), 1)


def to_twin(results: dict[str, list[Result]]) -> dict[str, Difference]:
    """Of every other rule or variant to "backprop" or "bp", where that is there and it is known."""
    twin = next((name for name in ("backprop", "bp") if name in results), None)
    if twin is None:
        return {}
    by_name = {name: difference(each, results[twin]) for name, each in results.items() if name != twin}
    return {name: each for name, each in by_name.items() if each is not None}
