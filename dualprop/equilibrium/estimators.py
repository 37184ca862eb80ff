"""Estimators of equilibrium propagation: which nudged phases are run, and how they are combined.

h^β is the equilibrium of E + β ℓ. The gradient of the loss at h⁰ is estimated by Σ_m w_m
∂E/∂θ(h^{β_m}):

    estimator        β_m              w_m             error
    centered         β, -β            1/2β, -1/2β     O(β²)   (Laborieux et al. 2021)
    forward          β, 0             1/β, -1/β       O(β)    (Scellier & Bengio 2017)
    backward         -β, 0            -1/β, 1/β       O(β)
    random_sign      ±β, 0            ±1/β, ∓1/β      O(β), O(β²) on average; a sign per example
    holomorphic(N)   β e^{2πi m/N}    1/(N β_m)       O(β^N)  (Laborieux & Zenke 2022)

The last is Cauchy's integral over a circle.

Where β_m = 0 the free state runs on, as long as the nudged one: what is left of its motion cancels.
In the code of Laborieux et al. it is held where the free phase ended: "forward(held)".

If the free state is the forward pass, the energy has no gradient at β_m = 0. Then that phase is not
run (Kerjan, Høier & Scellier 2026, eq. 7 and 11). Complex nudges need an energy that has complex
states: see `holomorphic`.
"""

from __future__ import annotations

import cmath
import math
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from dualprop import settings
from dualprop.errors import SettingError, closest
from dualprop.settings import NamedPart, Remedy

FreeState = Literal["running", "held"]


@dataclass(frozen=True)
class Term:
    """One phase: its nudge β_m (0: free) and the weight of its gradient.

    If signed, both are times a random sign per example. If held, it makes no pass.

    A complex nudge stands for its conjugate too. The real part of its weighted gradient counts.
    """

    nudge: float | complex
    weight: float | complex
    is_signed: bool = False
    is_held: bool = False

    @property
    def uphill(self) -> float:
        """How far the nudge may go uphill."""
        return self.nudge.real if self.is_signed else -self.nudge.real


class AbstractEstimator(NamedPart):
    """A weighted sum over phases."""

    name: str
    is_random: bool = False
    is_holomorphic: bool = False
    free: FreeState = "running"

    def __post_init__(self) -> None:
        settings.conform(self)

    @abstractmethod
    def terms(self, beta: float) -> tuple[Term, ...]:
        """The phases for a nudging strength β > 0."""

    def conflicts(self, energy: str, free_is_forward: bool) -> Iterator[str]:
        """Why it can't be used with such an energy, and the remedy; nothing where it can."""
        if self.is_holomorphic and free_is_forward:
            yield (
                f"estimator='{self}' is of Hopfield networks, not of '{energy}'. Use energy='hopfield', or "
                "estimator='centered'."
            )
        if self.free == "held" and free_is_forward:
            yield (
                f"estimator='{self}' is of Hopfield networks: the free state of '{energy}' is the forward pass, which does not "
                f"move. Use energy='hopfield', or estimator='{self.name}'."
            )

    def __str__(self) -> str:
        return f"{self.name}(held)" if self.free == "held" else self.name

    @classmethod
    def from_text(cls, text: str) -> AbstractEstimator:
        return from_name(text)

    @classmethod
    def choices(cls) -> str:
        return "|".join(NAMES)


@dataclass(frozen=True)
class Centered(AbstractEstimator):
    """The central difference of the two nudges."""

    name = "centered"

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(beta, 1 / (2 * beta)), Term(-beta, -1 / (2 * beta))


@dataclass(frozen=True)
class Forward(AbstractEstimator):
    """The forward difference: nudged downhill less free."""

    free: FreeState = "running"
    name = "forward"

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(beta, 1 / beta), Term(0.0, -1 / beta, is_held=self.free == "held")


@dataclass(frozen=True)
class Backward(AbstractEstimator):
    """The backward difference: free less nudged uphill."""

    free: FreeState = "running"
    name = "backward"

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(-beta, -1 / beta), Term(0.0, 1 / beta, is_held=self.free == "held")


@dataclass(frozen=True)
class RandomSign(AbstractEstimator):
    """Forward or backward, drawn for each example."""

    free: FreeState = "running"
    name = "random_sign"
    is_random = True

    def terms(self, beta: float) -> tuple[Term, ...]:
        return Term(beta, 1 / beta, is_signed=True), Term(0.0, -1 / beta, is_signed=True, is_held=self.free == "held")


@dataclass(frozen=True)
class Holomorphic(AbstractEstimator):
    """The mean of ∂E/∂θ / β_m over N `points` β_m on a circle.

    It is the derivative at the centre, up to terms of order β^N.

    Weights and inputs are real, so h at the conjugate nudge is the conjugate of h. Therefore only
    m = 0…⌊N/2⌋ are run. `holomorphic(2)` is centered.
    """

    points: Annotated[int, Interval(ge=2, le=1000), Remedy("With one nudge use 'forward'.")] = 4
    name = "holomorphic"
    is_holomorphic = True

    def terms(self, beta: float) -> tuple[Term, ...]:
        number = self.points
        terms = [Term(beta, 1 / (number * beta))]
        for m in range(1, (number + 1) // 2):
            nudge = beta * cmath.exp(2j * math.pi * m / number)
            terms.append(Term(nudge, 2 / (number * nudge)))
        return (*terms, Term(-beta, -1 / (number * beta))) if number % 2 == 0 else tuple(terms)

    def __str__(self) -> str:
        return f"{self.name}({self.points})"


# Those that contrast the free state, which runs on beside the nudged one or is held.
ONE_SIDED: dict[str, type[Forward | Backward | RandomSign]] = {
    "forward": Forward,
    "backward": Backward,
    "random_sign": RandomSign,
}
ESTIMATORS: dict[str, type[AbstractEstimator]] = {"centered": Centered, **ONE_SIDED}
NAMES = (*ESTIMATORS, *(f"{name}(held)" for name in ONE_SIDED), "holomorphic(N)")


def from_name(name: str | AbstractEstimator) -> AbstractEstimator:
    """The estimator of a name, "holomorphic(6)" say, or itself. Raises SettingError."""
    if isinstance(name, AbstractEstimator):
        return name
    counted = re.fullmatch(r"holomorphic(?:\((-?\d+)\))?", name) if isinstance(name, str) else None
    if counted:
        return Holomorphic(int(counted[1])) if counted[1] else Holomorphic()
    if isinstance(name, str) and name in ESTIMATORS:
        return ESTIMATORS[name]()
    if isinstance(name, str) and name in NAMES and name.endswith("(held)"):
        return ONE_SIDED[name.removesuffix("(held)")](free="held")
    raise SettingError(f"unknown estimator '{name}'.{closest(name, list(NAMES))} Known: {', '.join(NAMES)}.")


def signs(n: int, generator: torch.Generator | None, is_one: bool = False) -> torch.Tensor:
    """±1 for each of n examples, shape (N, 1). Raises SettingError without a generator.

    `is_one`: one sign for all, for a model that may tie its examples, as BatchNorm does. Signs of
    their own would mix phases of either sign in its statistics, and bias the mean.
    """
    if generator is None:
        raise SettingError(
            "estimator='random_sign' draws a sign per example: pass generator=torch.Generator().manual_seed(0), say."
        )
    drawn = torch.randint(2, (1 if is_one else n, 1), generator=generator, device=generator.device).mul_(2).sub_(1)
    return drawn.expand(n, 1)
