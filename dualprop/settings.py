"""Checks of hyperparameters that rules, `dualize` and objectives share."""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dualprop.errors import SettingError


class NamedPart(ABC):
    """A replaceable part of a rule (a loss, a schedule, an energy …), which recipes and the command line hold as text."""

    @abstractmethod
    def __str__(self) -> str:
        """The text that `from_text` reads."""

    @classmethod
    @abstractmethod
    def from_text(cls, text: str) -> Any:
        """The part of that text. Raises SettingError where there is none."""

    @classmethod
    @abstractmethod
    def choices(cls) -> str:
        """What to choose from, as a help page shows it."""


def one_or_more(values: float | Iterable[float], name: str) -> float | tuple[float, ...]:
    """One number as a float, several as a tuple. Raises SettingError naming the setting where they are no numbers."""
    try:
        given: tuple[object, ...] | None = None if isinstance(values, str) else tuple(values)  # type: ignore[arg-type]
    except TypeError:
        given = None
    found = tuple(_as_float(value) for value in ((values,) if given is None else given))
    known = tuple(value for value in found if value is not None)
    if len(known) < len(found):
        raise SettingError(f"{name} must be a number, or one number per layer, got {values!r}.")
    return known[0] if given is None else known


def _as_float(value: object) -> float | None:
    """None of what is no real number, or beyond any float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def as_tuple(values: float | tuple[float, ...]) -> tuple[float, ...]:
    """One number as a tuple of one."""
    return values if isinstance(values, tuple) else (values,)


def checked_beta(beta: float | Iterable[float]) -> float | tuple[float, ...]:
    """β as a float, or one per layer as a tuple. Raises SettingError unless positive and finite."""
    beta = one_or_more(beta, "beta")
    if not as_tuple(beta) or not all(value > 0 and math.isfinite(value) for value in as_tuple(beta)):
        raise SettingError(f"beta must be positive and finite, got {beta}.")
    return beta


def beta_per_layer(beta: float | tuple[float, ...], depth: int) -> tuple[float, ...]:
    """β_1…β_L. Raises SettingError where a list has another length."""
    if not isinstance(beta, tuple):
        return (beta,) * depth
    if len(beta) != depth:
        raise SettingError(f"beta lists {len(beta)} values, but the network has {depth} layers. Give one per layer.")
    return beta


def check_numbers(settings: Any) -> None:
    """Make Python's own numbers of the fields of this frozen dataclass that are annotated as one number, or none: NumPy's would
    not be written into a recipe. Raises SettingError where one is something else."""
    for each in dataclasses.fields(settings):
        value, (wanted, *others) = getattr(settings, each.name), str(each.type).split(" | ")
        if wanted not in ("float", "int") or others not in ([], ["None"]) or (others and value is None):
            continue
        if wanted == "int" and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            object.__setattr__(settings, each.name, int(value))
        elif wanted == "int":
            raise SettingError(f"{each.name} must be one whole number, got {value!r}.")
        elif (found := _as_float(value)) is None:
            raise SettingError(f"{each.name} must be one number, got {value!r}.")
        elif not isinstance(value, int):
            object.__setattr__(settings, each.name, found)


def check_choices(settings: object, choices: Mapping[str, Sequence[object]]) -> None:
    """Raise SettingError where an attribute of `settings` is none of its choices."""
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise SettingError(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(settings, name)!r}.")
