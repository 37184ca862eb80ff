"""Schedules: the order in which layers are updated during inference.

A schedule maps a depth L to passes, and a pass is a sequence of steps. A step is a group of layer
numbers 1…L that are updated together, each from the states before the step.

(Høier et al. 2023, §4; Høier & Zach 2024, §6; the names of the authors' code in brackets.)
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import Any

import torch

from dualprop.errors import SettingError, closest
from dualprop.settings import Count, Kind, NamedPart


@dataclass(frozen=True)
class Step:
    """One group of layers.

    `before_arrival`: states started from zeros, and the forward signal has not yet reached the
    output. The output is then driven but not nudged.
    """

    layers: tuple[int, ...]
    before_arrival: bool = False


class AbstractSchedule(NamedPart):
    """Passes over the layers of a network.

    `is_random`: they are drawn. `is_one_pass`: they are one given order, not sweeps of all layers.
    """

    is_one_pass: bool = False

    @property
    def is_random(self) -> bool:
        return False

    @classmethod
    def from_text(cls, text: str) -> AnySchedule:
        return parse(text)

    @classmethod
    def of(cls, value: Any) -> AnySchedule:
        return parse(value)

    @classmethod
    def choices(cls) -> str:
        return "NAME(N)|ORDER"

    @abstractmethod
    def passes(self, depth: int, generator: torch.Generator | None = None) -> Iterator[list[Step]]:
        """The passes for a network of `depth` layers."""

    @property
    def sweeps_down(self) -> bool:
        """Whether one pass brings an error down through any number of layers."""
        return False

    def steps(self, depth: int, generator: torch.Generator | None = None) -> Iterator[Step]:
        """The steps of all passes, in order."""
        for steps_of_pass in self.passes(depth, generator):
            yield from steps_of_pass

    def brings_down(self, depth: int | None) -> bool:
        """Whether an error at the output surely reaches layer 1.

        It does where steps update L, later L-1, … later 1. Drawn steps do not surely. A depth of
        None asks whether it does in any network.
        """
        if self.is_random or depth is None:
            return not self.is_random and self.sweeps_down
        awaited = depth
        for step in self.steps(depth):
            awaited -= awaited in step.layers
            if awaited == 0:
                return True
        return False


@dataclass(frozen=True)
class Schedule(AbstractSchedule):
    """A named schedule with its count.

    `str()` gives the form that recipes and the command line read, "up_down(2)".
    """

    name: str
    count: Count

    def __post_init__(self) -> None:
        if self.name not in _PLANS:
            raise SettingError(f"unknown schedule '{self.name}'.{closest(self.name, names())} Known: {', '.join(names())}.")
        Kind.of(Count).conform(f"the count of schedule '{self.name}'", self.count)

    def passes(self, depth: int, generator: torch.Generator | None = None) -> Iterator[list[Step]]:
        """The passes for a network of `depth` layers, `count` of them.

        random_order alone needs `generator`; its draws are one pass.
        """
        if self.name == "random_order":
            yield _random_order(depth, self.count, generator)
            return
        for number in range(self.count):
            yield _PLANS[self.name](depth, number)

    @property
    def sweeps_down(self) -> bool:
        return self.name in ("alternating_sweeps", "up_down", "top_down")

    @property
    def is_random(self) -> bool:
        return self.name == "random_order"

    def __str__(self) -> str:
        return f"{self.name}({self.count})"


@dataclass(frozen=True)
class ExplicitOrder(AbstractSchedule):
    """Layer numbers, or groups of them, in the order given."""

    groups: tuple[tuple[int, ...], ...]
    is_one_pass = True

    def __post_init__(self) -> None:
        for group in self.groups:
            if len(set(group)) != len(group):
                raise SettingError(f"the schedule updates a layer twice in the group {group}. Name each once a group.")

    def passes(self, depth: int, generator: torch.Generator | None = None) -> Iterator[list[Step]]:
        """The whole order, as one pass. Raises SettingError for a layer that does not exist."""
        for k in (k for group in self.groups for k in group):
            if not 1 <= k <= depth:
                raise SettingError(f"the schedule names layer {k}, but the network has layers 1 to {depth}.")
        yield [Step(group) for group in self.groups]

    def __str__(self) -> str:
        return ",".join("+".join(map(str, group)) for group in self.groups)


@dataclass(frozen=True)
class Beginning(AbstractSchedule):
    """The first `count` steps of another schedule, as one pass: its inference, stopped on the
    way."""

    schedule: AbstractSchedule
    count: int
    is_one_pass = True

    def passes(self, depth: int, generator: torch.Generator | None = None) -> Iterator[list[Step]]:
        """These steps alone."""
        yield list(islice(self.schedule.steps(depth, generator), self.count))

    @property
    def is_random(self) -> bool:
        return self.schedule.is_random

    def __str__(self) -> str:
        return f"the first {self.count} steps of {self.schedule}"


AnySchedule = Schedule | ExplicitOrder | Beginning


def alternating_sweeps(n: int) -> Schedule:
    """Down L…1, then (up 2…L-1, down L…1) n-1 times [fwbwK]. n = 1 is one downward sweep."""
    return Schedule("alternating_sweeps", n)


def up_down(n: int) -> Schedule:
    """(Up 1…L, down L-1…1) n times."""
    return Schedule("up_down", n)


def bottom_up(n: int) -> Schedule:
    """1…L, n times [fwK]. The error descends one layer a pass."""
    return Schedule("bottom_up", n)


def top_down(n: int) -> Schedule:
    """L…1, n times."""
    return Schedule("top_down", n)


def odd_even(n: int) -> Schedule:
    """1, 3, 5, … one after another, then 2, 4, …; n times. In a chain: all odd layers together,
    then all even ones."""
    return Schedule("odd_even", n)


def even_odd(n: int) -> Schedule:
    """2, 4, … one after another, then 1, 3, 5, …; n times. In a chain: all even layers together,
    then all odd ones."""
    return Schedule("even_odd", n)


def synchronous(n: int) -> Schedule:
    """All layers together, n times (P-DP). From zeros, L-1 steps pass before the output's nudge."""
    return Schedule("synchronous", n)


def random_order(n: int) -> Schedule:
    """n single layers drawn uniformly from 1…L (R-DP-n)."""
    return Schedule("random_order", n)


def _singly(layers: Iterable[int]) -> list[Step]:
    return [Step((k,)) for k in layers]


def _alternating_sweeps(depth: int, number: int) -> list[Step]:
    return (_singly(range(2, depth)) if number else []) + _singly(range(depth, 0, -1))


def _up_down(depth: int, number: int) -> list[Step]:
    return _singly(range(1, depth + 1)) + _singly(range(depth - 1, 0, -1))


def _bottom_up(depth: int, number: int) -> list[Step]:
    return _singly(range(1, depth + 1))


def _top_down(depth: int, number: int) -> list[Step]:
    return _singly(range(depth, 0, -1))


def _odd_even(depth: int, number: int) -> list[Step]:
    return _singly(range(1, depth + 1, 2)) + _singly(range(2, depth + 1, 2))


def _even_odd(depth: int, number: int) -> list[Step]:
    return _singly(range(2, depth + 1, 2)) + _singly(range(1, depth + 1, 2))


def _synchronous(depth: int, number: int) -> list[Step]:
    return [Step(tuple(range(1, depth + 1)), before_arrival=number < depth - 1)]


def _random_order(depth: int, n: int, generator: torch.Generator | None) -> list[Step]:
    if generator is None:
        raise SettingError(
            f"schedule random_order({n}) draws its layers: pass generator=torch.Generator().manual_seed(0), say."
        )
    draws = torch.randint(1, depth + 1, (n,), generator=generator, device=generator.device)
    return _singly(draws.tolist())


# Name → the steps of pass 0, 1, … for a depth. Only random_order takes its count and a generator.
_PLANS: dict[str, Callable[..., list[Step]]] = {
    "alternating_sweeps": _alternating_sweeps,
    "up_down": _up_down,
    "bottom_up": _bottom_up,
    "top_down": _top_down,
    "odd_even": _odd_even,
    "even_odd": _even_odd,
    "synchronous": _synchronous,
    "random_order": _random_order,
}


def names() -> list[str]:
    """The schedules' names."""
    return list(_PLANS)


def parse(schedule: AnySchedule | str | Sequence[int | Sequence[int]]) -> AnySchedule:
    """A schedule from itself, its text, or a sequence. Raises SettingError.

    The text is "bottom_up(16)", or an order such as "4,3,2,1" with "1+3" for a group. The sequence
    holds layer numbers or groups of them.
    """
    if isinstance(schedule, AbstractSchedule):
        return schedule
    if isinstance(schedule, str):
        named = re.fullmatch(r"\s*([a-z_]+)\s*(?:\(\s*(\d+)\s*\))?\s*", schedule)
        if named:
            return Schedule(named[1], int(named[2] or 1))
        if not re.fullmatch(r"\s*\d+([,+]\d+)*\s*", schedule):
            raise SettingError(
                f"schedule '{schedule}' is neither a name with a count, such as 'bottom_up(4)', nor an order, such as '3,2,1'."
            )
        return ExplicitOrder(tuple(tuple(int(k) for k in group.split("+")) for group in schedule.split(",")))
    try:
        groups = tuple(tuple(index(k) for k in group) if isinstance(group, Iterable) else (index(group),) for group in schedule)
    except TypeError:
        groups = ()
    if not groups or not all(groups):
        raise SettingError("an explicit schedule is a non-empty sequence of layer numbers, or of groups of them.")
    return ExplicitOrder(groups)
