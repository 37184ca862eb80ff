"""The engines' figures against their targets: time and memory of a step, by a plain loop's.

    best engine                          ≤ 1.02 of the time and ≤ 1.05 of the memory
    explicit inference in one sweep      ≤ 1.10 of the time

over the noise floor. The floor of a time is the largest of |median - 1| of the second plain loop
and (upper - lower quartile) by √rounds, about the standard error of a median, of that loop and of
the row itself. The floor of resident memory is what the two plain processes differ by. The tensors'
memory is exact. A floor above MOST_NOISE decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dualprop.bench.timing import PLAIN_AGAIN

BEST_TIME, EXPLICIT_TIME, BEST_MEMORY = 1.02, 1.10, 1.05
MOST_NOISE = 0.05


@dataclass(frozen=True)
class Verdict:
    """One figure against its target.

    Within the noise: it is above the target by no more than the floor. Undecided: the floor is too
    high for the figure to be told from its target.
    """

    rule: str
    what: Literal["best engine", "explicit engine", "memory of tensors", "memory resident"]
    engine: str
    measured: float
    target: float
    noise: float

    @property
    def result(self) -> Literal["met", "within the noise", "missed", "undecided"]:
        if self.measured > self.target + self.noise:
            return "missed"
        if self.noise > MOST_NOISE:
            return "undecided"
        return "met" if self.measured <= self.target else "within the noise"


def noise_of_time(rows: Sequence[dict[str, Any]]) -> float:
    """The floor of a ratio of times; 0 where the plain loop ran but once."""
    for row in rows:
        if row["label"] == PLAIN_AGAIN:
            return max(abs(row["ratio"] - 1), _error(row))
    return 0.0


def _error(row: dict[str, Any]) -> float:
    return float(row["upper_quartile"] - row["lower_quartile"]) / math.sqrt(row["rounds"])


def noise_of_memory(rows: Sequence[dict[str, Any]]) -> float:
    """The floor of a ratio of resident memories; 0 where it was not measured."""
    again = [row["resident_ratio"] for row in rows if row["label"] == PLAIN_AGAIN and row.get("resident_ratio")]
    return abs(again[0] - 1) if again else 0.0


def best(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By rule, the row of the fastest engine that keeps to BEST_MEMORY; of all, where none does."""

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        return (row.get("memory_ratio") or 0) > BEST_MEMORY, row["ratio"]

    fastest: dict[str, dict[str, Any]] = {}
    for row in sorted((row for row in rows if row["engine"]), key=rank):
        fastest.setdefault(row["rule"], row)
    return {rule: fastest[rule] for rule in dict.fromkeys(row["rule"] for row in rows if row["engine"])}


def judge(rows: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Every rule that is one sweep of dual propagation, by its engines, against the targets."""
    single = [row for row in rows if row["is_one_sweep"]]
    explicit = best([row for row in single if row["engine"].startswith("explicit")])
    time, resident = noise_of_time(rows), noise_of_memory(rows)
    verdicts = []
    for rule, row in best(single).items():
        verdicts.append(Verdict(rule, "best engine", row["engine"], row["ratio"], BEST_TIME, max(time, _error(row))))
        if rule in explicit:
            slower = explicit[rule]
            noise = max(time, _error(slower))
            verdicts.append(Verdict(rule, "explicit engine", slower["engine"], slower["ratio"], EXPLICIT_TIME, noise))
        if row.get("memory_ratio"):
            verdicts.append(Verdict(rule, "memory of tensors", row["engine"], row["memory_ratio"], BEST_MEMORY, 0.0))
        if row.get("resident_ratio"):
            verdicts.append(Verdict(rule, "memory resident", row["engine"], row["resident_ratio"], BEST_MEMORY, resident))
    return verdicts
