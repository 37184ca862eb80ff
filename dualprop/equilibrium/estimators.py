"""Estimators of equilibrium propagation: which nudged phases are run, and how their energies' gradients are combined.

The gradient of the loss at the free equilibrium is estimated by Σ_m w_m ∂E/∂θ(h^{β_m}), h^β the equilibrium of E + β ℓ:

    centered       β, -β            1/2β, -1/2β      O(β²)   (Laborieux et al. 2021)
    forward        β, 0             1/β, -1/β        O(β)    (Scellier & Bengio 2017)
    backward       -β, 0            -1/β, 1/β        O(β)
    random_sign    ±β, 0            ±1/β, ∓1/β       O(β), O(β²) on average; the sign drawn for each example
    holomorphic(N) β e^{2πi m/N}    1/(N β_m)        O(β^N): Cauchy's integral over a circle (Laborieux & Zenke 2022)

At β_m = 0 an energy whose free state is the forward pass has no gradient: one phase is then all there is to run (Kerjan,
Høier & Scellier 2026, eq. 7 and 11). Complex nudges are of energies that have complex states: see `holomorphic`.
"""

from __future__ import annotations

import cmath
import math
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dualprop.errors import SettingError, closest
from dualprop.settings import NamedPart


@dataclass(frozen=True)
class Term:
    """One phase: its nudge β_m (0: free) and the weight of its gradient; both times a random sign per example if signed.

    A complex nudge stands for its conjugate too, and of the weighted gradient the real part counts.
    """

    nudge: float | complex
    weight: float | complex
    is_signed: bool = False

    @property
    def uphill(self) -> float:
        """How far the nudge may go uphill."""
        return self.nudge.real if self.is_signed else -self.nudge.real


class AbstractEstimator(NamedPart):
    """A weighted sum over phases."""

    name: str
    is_random: bool = False
    is_holomorphic: bool = False

    @abstractmethod
    def terms(self, beta: float) -> tuple[Term, ...]:
        """The phases for a nudging strength β > 0."""

    def conflicts(self, energy: str, free_is_forward: bool) -> Iterator[str]:
        """Why it can't be had with such an energy, and the remedy; nothing where it can."""
        if self.is_holomorphic and free_is_forward:
            yield (
                f"estimator='{self}' is of Hopfield networks, not of '{energy}'. Use energy='hopfield', or "
                "estimator='centered'."
            )

    def __str__(self) -> str:
        return self.name

    @classmethod
    def from_text(cls, text: str) -> AbstractEstimator:
        return from_name(text)

    @classmethod
    def choices(cls) -> str:
        return "|".join([*ESTIMATORS, "holomorphic(N)"])


@dataclass(frozen=True)
class Centered(AbstractEstimator):
    """The central difference of both nudges."""

    name = "centered"

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(beta, 1 / (2 * beta)), Term(-beta, -1 / (2 * beta))


@dataclass(frozen=True)
class Forward(AbstractEstimator):
    """The forward difference: nudged downhill, against free."""

    name = "forward"

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(beta, 1 / beta), Term(0.0, -1 / beta)


@dataclass(frozen=True)
class Backward(AbstractEstimator):
    """The backward difference: nudged uphill, against free."""

    name = "backward"

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(-beta, -1 / beta), Term(0.0, 1 / beta)


@dataclass(frozen=True)
class RandomSign(AbstractEstimator):
    """Forward or backward, drawn for each example."""

    name = "random_sign"
    is_random = True

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(beta, 1 / beta, is_signed=True), Term(0.0, -1 / beta, is_signed=True)


@dataclass(frozen=True)
class Holomorphic(AbstractEstimator):
    """The mean of ∂E/∂θ / β_m over N `points` β_m on a circle: its derivative at the centre, but for terms of order β^N.

    Real weights and inputs make h at the conjugate nudge the conjugate of h, so that m = 0…⌊N/2⌋ are run; `holomorphic(2)` is
    centered.
    """

    points: int = 4
    name = "holomorphic"
    is_holomorphic = True

    def __post_init__(self) -> None:
        if isinstance(self.points, bool) or not isinstance(self.points, int) or self.points < 2:
            raise SettingError(f"holomorphic(N) needs N ≥ 2 points, got {self.points}. With one nudge use 'forward'.")

    def terms(self, beta: float) -> tuple[Term, ...]:
        number = self.points
        found = [Term(beta, 1 / (number * beta))]
        for m in range(1, (number + 1) // 2):
            nudge = beta * cmath.exp(2j * math.pi * m / number)
            found.append(Term(nudge, 2 / (number * nudge)))
        return (*found, Term(-beta, -1 / (number * beta))) if number % 2 == 0 else tuple(found)

    def __str__(self) -> str:
        return f"{self.name}({self.points})"


ESTIMATORS: dict[str, type[AbstractEstimator]] = {
    "centered": Centered,
    "forward": Forward,
    "backward": Backward,
    "random_sign": RandomSign,
}


def from_name(name: str | AbstractEstimator) -> AbstractEstimator:
    """The estimator of that name, "holomorphic(6)" say; an estimator is returned as it is. Raises SettingError."""
    if isinstance(name, AbstractEstimator):
        return name
    counted = re.fullmatch(r"holomorphic(?:\((-?\d+)\))?", name) if isinstance(name, str) else None
    if counted:
        return Holomorphic(int(counted[1])) if counted[1] else Holomorphic()
    known = [*ESTIMATORS, "holomorphic(N)"]
    if not isinstance(name, str) or name not in ESTIMATORS:
        raise SettingError(f"unknown estimator '{name}'.{closest(name, known)} Known: {', '.join(known)}.")
    return ESTIMATORS[name]()


def signs(n: int, generator: torch.Generator | None) -> torch.Tensor:
    """±1 for each of n examples, shape (N, 1). Raises SettingError without a generator."""
    if generator is None:
        raise SettingError(
            "estimator='random_sign' draws a sign per example: pass generator=torch.Generator().manual_seed(0), say."
        )
    return torch.randint(2, (n, 1), generator=generator, device=generator.device).mul_(2).sub_(1)
