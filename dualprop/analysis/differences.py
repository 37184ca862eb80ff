"""Whether a rule's test accuracy differs from another's by more than chance: from its
back-propagation twin's, or from a published figure.

To a twin: with several seeds the differences are paired, as both runs of a seed share weights,
order and augmentation; their mean is held against Student's 95 % interval. To a published mean and
standard deviation over n seeds: Welch's 95 % interval, to which half of the last printed digit is
added, for the mean and for the deviation; where no deviation is published, ours alone. With one
seed nothing is known of our spread, and the difference is held against twice the sampling error of
the test set alone, √(p(1-p)/n) for each run, which is the least that it can be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev, variance

from dualprop.errors import SettingError
from dualprop.training.records import Result

# The point of a distribution that 95 % of it is within, on both sides.
LEVEL = 0.975
# Points that a reader would call a difference. Where chance alone explains more, not having seen
# one says nothing.
NOTABLE = 1.0


@dataclass(frozen=True)
class Difference:
    """Points (hundredths of the score) by which a rule is above its twin, ± what is chance."""

    points: float
    chance: float
    num_seeds: int

    @property
    def verdict(self) -> str:
        """In words: "above", "below", "no difference seen", or "too few to tell", where a notable
        one could not have been seen."""
        if abs(self.points) <= self.chance:
            return "no difference seen" if self.chance <= NOTABLE else "too few to tell"
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
    points = [100 * (a.score - b.score) for a, b in pairs]
    if len(pairs) > 1:
        spread = student(len(pairs) - 1) * stdev(points) / sqrt(len(points))
        # Seeds that agree in every example are not known better than to one.
        sizes = [result.num_test for result, _ in pairs if result.num_test and result.headline == "accuracy"]
        return Difference(mean(points), max(spread, 100 / min(sizes)) if sizes else spread, len(points))
    # What sampling alone explains is known of shares of examples, and not of R² or F1.
    if not pairs[0][0].num_test or pairs[0][0].headline != "accuracy":
        return None
    return Difference(points[0], 2 * sqrt(sum(_sampling(result) for result in pairs[0])), 1)


def to_twin(results: dict[str, list[Result]]) -> dict[str, Difference]:
    """Of every other rule or variant to "backprop" or "bp", where that is there and it is known."""
    twin = next((name for name in ("backprop", "bp") if name in results), None)
    if twin is None:
        return {}
    by_name = {name: difference(each, results[twin]) for name, each in results.items() if name != twin}
    return {name: each for name, each in by_name.items() if each is not None}


@dataclass(frozen=True)
class Published:
    """A published accuracy in per cent: mean ± standard deviation over seeds, None where there is
    none, and the last digit printed, 0.01 say."""

    mean: float
    std: float | None
    num_seeds: int
    digit: float

    @classmethod
    def parse(cls, text: str, num_seeds: int) -> Published:
        """From "98.45 ± 0.04", or "98.45" of which no spread is known. Raises SettingError for
        anything else."""
        found = re.fullmatch(r"(\d+(?:\.(\d+))?)(?: ± (\d+(?:\.(\d+))?))?", text)
        if found is None:
            raise SettingError(f"a published figure is a mean ± a deviation over seeds, '98.45 ± 0.04', got '{text}'.")
        digits = [len(each or "") for each in (found[2], found[4])][: 2 if found[3] else 1]
        std = float(found[3]) if found[3] and num_seeds > 1 else None
        return cls(float(found[1]), std, num_seeds, 10.0 ** -min(digits))


@dataclass(frozen=True)
class Verdict:
    """Ours against a published figure.

    Attributes:
        points: by which we are above it; None without a seed.
        chance: what chance explains.
        num_seeds: of ours.
        wanted: how many there have to be for "no difference seen".
    """

    points: float | None
    chance: float
    num_seeds: int
    wanted: int

    @property
    def words(self) -> str:
        """ "below", "above", "no difference seen" or "too few to tell".

        What chance can't explain is told from any number of seeds. That no difference is seen is
        told of as many as are wanted, since few seeds would hide almost any.
        """
        if self.points is not None and abs(self.points) > self.chance:
            return "above" if self.points > 0 else "below"
        return "no difference seen" if self.num_seeds >= self.wanted else "too few to tell"

    def __str__(self) -> str:
        if self.points is None:
            return self.words
        basis = "the test set's sampling error alone" if self.num_seeds == 1 else "Welch's 95 % interval"
        return f"{self.points:+.2f} points, chance ± {self.chance:.2f} ({basis}): {self.words}"


def to_published(results: Sequence[Result], published: Published, wanted: int) -> Verdict:
    """Of a rule's results, however many there are, to what is published of it."""
    accuracies = [100 * result.score for result in results]
    if not accuracies:
        return Verdict(None, 0.0, 0, wanted)
    points = mean(accuracies) - published.mean
    # What is printed is rounded.
    rounding = published.digit / 2
    theirs = 0.0 if published.std is None else (published.std + rounding) ** 2 / published.num_seeds
    if len(accuracies) == 1:
        sampling = _sampling(results[0]) if results[0].num_test else inf
        return Verdict(points, 2 * sqrt(sampling + theirs) + rounding, 1, wanted)
    ours = variance(accuracies) / len(accuracies)
    degrees = float(len(accuracies) - 1)
    if theirs:
        degrees = (ours + theirs) ** 2 / (ours**2 / degrees + theirs**2 / (published.num_seeds - 1))
    return Verdict(points, student(degrees) * sqrt(ours + theirs) + rounding, len(accuracies), wanted)


def student(degrees: float) -> float:
    """The 97.5 % point of Student's distribution."""
    # Takes a while to import.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, LEVEL))


def _sampling(result: Result) -> float:
    """The variance of an accuracy, in points squared, by the test set's size."""
    assert result.num_test
    return 1e4 * result.score * (1 - result.score) / result.num_test
