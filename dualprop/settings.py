"""Hyperparameters as data: each field of a frozen dataclass says its type and range.

A field is annotated as a number, `Annotated[float, Interval(ge=0, le=1)]`; as one number or one per
layer, `PerLayer`; as a `Literal` of choices; as a part (a loss, a schedule …) that text may stand
for; as another dataclass of settings; or as a tuple of these. `conform` checks and converts them
all. `with_ranges` writes the ranges into the
docstring, which `--help` and the documentation show.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Interval, Le, Lt

from dualprop.errors import SettingError


class NamedPart(ABC):
    """A replaceable part of a rule (a loss, a schedule, an energy …), held by recipes as text.

    The command line reads the same text.
    """

    @abstractmethod
    def __str__(self) -> str:
        """The text that `from_text` reads."""

    @classmethod
    @abstractmethod
    def from_text(cls, text: str) -> Any:
        """The part of that text. Raises SettingError where there is none."""

    @classmethod
    def of(cls, value: Any) -> Any:
        """The part itself, or that of a text. Raises SettingError where it is neither."""
        return value if isinstance(value, cls) else cls.from_text(value)

    @classmethod
    def as_part(cls, value: object) -> Self:
        """The value of a field that `conform` has made a part of, whatever the field was given."""
        assert isinstance(value, cls)
        return value

    @classmethod
    @abstractmethod
    def choices(cls) -> str:
        """What to choose from, as a help page shows it."""


@dataclass(frozen=True)
class Remedy:
    """What to do where a value is refused, in a sentence. It stands in a field's `Annotated`."""

    text: str


Positive = Annotated[float, Gt(0)]
# A strength that can't be chosen so.
GivenBeta = Annotated[
    float, Gt(0), Remedy("'auto' is of rules whose nudges may cross kinks: dual and equilibrium propagation, lifted networks.")
]
# A strength that is chosen on a first batch: `rules.nudging`.
Auto = Literal["auto"]
PerLayer = Annotated[float | tuple[float, ...], Gt(0)]
# Counts have a most: what is above it is a slip of the keyboard, and would fill the memory or never
# end. Passes, steps, epochs, or examples in a batch; units of a layer, or examples of a data set;
# pixels; seeds of one run.
Count = Annotated[int, Interval(ge=1, le=10**6)]
CountOrNone = Annotated[int, Interval(ge=0, le=10**6)]
CountPerLayer = Annotated[int | tuple[int, ...], Interval(ge=0, le=10**6)]
Units = tuple[Annotated[int, Interval(ge=1, le=10**9)], ...]
Examples = Annotated[int, Interval(ge=0, le=10**9)]
Pixels = Annotated[int, Interval(ge=0, le=1024)]
Threads = Annotated[int, Interval(ge=0, le=1024)]
NumSeeds = Annotated[int, Interval(ge=1, le=10**4)]
SeedNumber = Annotated[int, Interval(ge=0, lt=2**32)]
Seeds = tuple[SeedNumber, ...]
# What float32 holds in all its digits. A float in a setting is 0 or of such a size: others would
# become 0, lose digits or become infinite on the way into a tensor.
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True)
class Kind:
    """What a field's annotation says: choices, number types, parts, and the range of numbers.

    A tuple's `items` are the kinds of what it holds: one for each, or where it `repeats` one for
    all. `instances` are other dataclasses. What else there is (`is_other`) is left as it is given.
    """

    choices: tuple[object, ...] = ()
    number: type | None = None
    per_layer: bool = False
    plain: tuple[type, ...] = ()
    part: type[NamedPart] | None = None
    items: tuple[Kind, ...] = ()
    repeats: bool = False
    instances: tuple[type, ...] = ()
    is_other: bool = False
    bounds: Interval = Interval()
    remedy: str = ""

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """The kind of a resolved annotation."""
        fields: dict[str, Any] = {"choices": (), "plain": (), "instances": ()}
        listed: tuple[Any, ...] = ()
        for member, metadata in _members(hint):
            if typing.get_origin(member) is Literal:
                fields["choices"] += typing.get_args(member)
            elif member is type(None):
                fields["choices"] += (None,)
            elif member in (int, float):
                fields["number"] = member
            elif typing.get_origin(member) is tuple:
                listed = typing.get_args(member)
            elif isinstance(member, type) and issubclass(member, NamedPart):
                # Of several, the abstract one reads every text.
                fields["part"] = fields.get("part") or next(c for c in reversed(member.__mro__) if _reads_text(c))
            elif member in (bool, str):
                fields["plain"] += (member,)
            elif dataclasses.is_dataclass(member):
                fields["instances"] += (member,)
            else:
                fields["is_other"] = True
            fields |= {"bounds": _interval(metadata)} if _is_bounded(metadata) else {}
            for each in metadata:
                fields["remedy"] = f" {each.text}" if isinstance(each, Remedy) else fields.get("remedy", "")
        if listed and "number" in fields:
            fields["per_layer"] = True
        elif listed:
            fields |= {"items": tuple(cls.of(each) for each in listed if each is not ...), "repeats": listed[-1] is ...}
        return cls(**fields)

    @property
    def range(self) -> str:
        """The range in words, "in [0, 1]" or "from 1 to 10" say; empty where there is none."""
        low = next((bound for bound in (self.bounds.ge, self.bounds.gt) if bound is not None), None)
        high = next((bound for bound in (self.bounds.le, self.bounds.lt) if bound is not None), None)
        if low is None and high is None:
            return ""
        if high is None:
            least = "positive" if self.bounds.gt == 0 else f"at least {low:g}" if self.bounds.gt is None else f"above {low:g}"
            return least if self.number is int else f"{least} and finite"
        if self.number is int:
            return f"from {low} to {high if self.bounds.lt is None else high - 1}"  # type: ignore[operator]
        return f"in {'[' if self.bounds.gt is None else '('}{low:g}, {high:g}{']' if self.bounds.lt is None else ')'}"

    def conform(self, name: str, value: Any) -> Any:
        """The value in the field's type. Raises SettingError, naming the field, if it can't be.

        It can't where it has another type or is out of range.
        """
        if any(value is choice or (isinstance(value, str) and value == choice) for choice in self.choices):
            return value
        if self.part is not None:
            return self.part.of(value)
        if self.is_other:
            return value
        if self.items:
            return self._conform_items(name, value)
        if self.instances:
            if not isinstance(value, self.instances):
                raise SettingError(f"{name} must be {_one_of([each.__name__ for each in self.instances])}, got {value!r}.")
            return value
        if self.per_layer:
            numbers_ = _one_or_more(name, value, self.number, [c for c in self.choices if c is not None])
            self._check_range(name, numbers_)
            return numbers_
        if self.number is not None:
            number = _number(value, self.number)
            if number is None:
                what = "one whole number" if self.number is int else "one number"
                raise SettingError(f"{name} must be {what}, got {_shown(value)}.{self.remedy}")
            self._check_range(name, number)
            return number
        if self.choices and not self.plain:
            raise SettingError(f"{name} must be one of {', '.join(map(repr, self.choices))}, got {value!r}.")
        if self.plain and not isinstance(value, self.plain):
            raise SettingError(f"{name} must be {' or '.join(t.__name__ for t in self.plain)}, got {value!r}.")
        if isinstance(value, str) and value != value.encode(errors="replace").decode():
            # As the name of a file may be: no file of a run could hold it.
            raise SettingError(f"{name} must be UTF-8, got {value!r}. Rename what it names.")
        return value

    def _conform_items(self, name: str, value: Any) -> tuple[Any, ...]:
        values = None if isinstance(value, str | bytes | Set | Mapping) or not isinstance(value, Iterable) else tuple(value)
        if values is None or not (self.repeats or len(values) == len(self.items)):
            length = "" if self.repeats else f" of {len(self.items)}"
            raise SettingError(f"{name} must be a tuple{length}, got {value!r}.")
        return tuple(self.items[0 if self.repeats else i].conform(f"{name}[{i}]", each) for i, each in enumerate(values))

    def _check_range(self, name: str, value: float | tuple[float, ...]) -> None:
        values = value if isinstance(value, tuple) else (value,)
        fails = next((each for each in values if not self._holds(each)), None)
        if fails is not None or (not values and self.range):
            raise SettingError(f"{name} must be {self._must_be(fails)}, got {_shown(value)}.{self.remedy}")
        for each in values:
            if isinstance(each, float) and each and not SMALLEST <= abs(each) <= LARGEST:
                limits = f"{SMALLEST:.2g} to {LARGEST:.2g}"
                raise SettingError(f"{name} is {each:g}, and float32 holds numbers of {limits} and 0. Choose among those.")

    def _must_be(self, value: float | None) -> str:
        """The range; of a count, the end of it that this value is beyond."""
        if value is None or not self.range.startswith("from "):
            return self.range or "finite"
        low, high = self.range.removeprefix("from ").split(" to ")
        return f"at least {low}" if value < int(low) else f"at most {high}"

    def _holds(self, value: float) -> bool:
        bounds = self.bounds
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (bounds.ge is None or value >= bounds.ge)  # type: ignore[operator]
            and (bounds.gt is None or value > bounds.gt)  # type: ignore[operator]
            and (bounds.le is None or value <= bounds.le)  # type: ignore[operator]
            and (bounds.lt is None or value < bounds.lt)  # type: ignore[operator]
        )


def kinds(settings: type) -> dict[str, Kind]:
    """The kind of every field of a dataclass, or of every annotation of a class to be one."""
    if "__dataclass_fields__" in vars(settings):
        return _kinds_of_fields(settings)
    return {name: Kind.of(hint) for name, hint in typing.get_type_hints(settings, include_extras=True).items()}


@functools.cache
def _kinds_of_fields(settings: type) -> dict[str, Kind]:
    hints = typing.get_type_hints(settings, include_extras=True)
    return {field.name: Kind.of(hints[field.name]) for field in dataclasses.fields(settings)}


def conform(settings: Any) -> None:
    """Give every field of this frozen dataclass the type that it is annotated with.

    Numbers become Python's, texts become the parts they stand for.

    Raises:
        SettingError: naming the first field of a wrong type, choice or range.
    """
    for name, kind in kinds(type(settings)).items():
        value = getattr(settings, name)
        conformed = kind.conform(name, value)
        if conformed is not value:
            object.__setattr__(settings, name, conformed)


def with_ranges(doc: str, by_name: dict[str, Kind]) -> str:
    """The docstring with the range of each attribute at the end of what it says of it."""
    lines: list[str] = []
    pending = ""
    for line in doc.splitlines():
        entry = line.strip().partition(":")
        starts = bool(entry[1]) and line.startswith(" " * 8) and not line.startswith(" " * 9)
        ends = starts or not line.strip() or not line.startswith(" " * 8)
        if ends and pending:
            lines[-1] += f" {pending[0].upper()}{pending[1:]}."
            pending = ""
        if starts and entry[0] in by_name:
            pending = by_name[entry[0]].range
        lines.append(line)
    return "\n".join(lines)


def as_tuple(values: float | tuple[float, ...]) -> tuple[float, ...]:
    """One number as a tuple of one."""
    return values if isinstance(values, tuple) else (values,)


@typing.overload
def number(beta: float | Auto) -> float: ...
@typing.overload
def number(beta: float | tuple[float, ...] | Auto) -> float | tuple[float, ...]: ...
def number(beta: float | tuple[float, ...] | Auto) -> float | tuple[float, ...]:
    """β, once it is chosen. Raises SettingError where it is not."""
    if beta == "auto":
        raise SettingError(
            "beta='auto' is chosen on a first batch, which the trainer does. In a loop of your own: "
            "rule = dp.choose_beta(rule, network, x, y)."
        )
    return beta


def checked_beta(beta: float | Iterable[float]) -> float | tuple[float, ...]:
    """β as a float, or one per layer as a tuple. Raises SettingError unless positive and finite."""
    conformed: float | tuple[float, ...] = Kind.of(PerLayer).conform("beta", beta)
    return conformed


def per_layer(value: Any, name: str, layers: range) -> tuple[Any, ...]:
    """One value for each of these layers. Raises SettingError where a list has another length."""
    if not isinstance(value, tuple):
        return (value,) * len(layers)
    if len(value) != len(layers):
        raise SettingError(
            f"{name} lists {len(value)} values, but it is of {len(layers)} layers, {layers.start} to {layers.stop - 1}. "
            "Give one per layer."
        )
    return value


def beta_per_layer(beta: float | tuple[float, ...], depth: int) -> tuple[float, ...]:
    """β_1…β_L. Raises SettingError where a list has another length."""
    return per_layer(beta, "beta", range(1, depth + 1))


def _shown(value: object) -> str:
    """A value in a message; Python itself refuses to write a number of thousands of digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _one_or_more(name: str, value: Any, kind: type | None, choices: list[object]) -> Any:
    try:
        is_one = isinstance(value, str | bytes | Set | Mapping)
        several: tuple[object, ...] | None = None if is_one else tuple(value)
    except TypeError:
        several = None
    assert kind is not None
    conformed = tuple(_number(each, kind) for each in ((value,) if several is None else several))
    if any(each is None for each in conformed):
        what = "a whole number" if kind is int else "a number"
        others = "".join(f"{choice!r}, " for choice in choices)
        remedy = " Give a tuple, in order of execution: print(network) counts." if isinstance(value, Mapping) else ""
        raise SettingError(f"{name} must be {others}{what}, or one number per layer, got {_shown(value)}.{remedy}")
    return conformed[0] if several is None else conformed


def _number(value: object, kind: type) -> int | float | None:
    """The number in Python's own type; None of what is no such number, or beyond any float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        return None
    try:
        return int(value) if isinstance(value, numbers.Integral) and kind is int else float(value)
    except OverflowError:
        return None


def _one_of(names: list[str]) -> str:
    return " or ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _members(hint: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types that a union may be, each with the metadata around it."""
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        yield from ((member, (*metadata, *more)) for member, more in _members(inner))
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _members(member)
    else:
        yield hint, ()


def _is_bounded(metadata: tuple[Any, ...]) -> bool:
    return any(isinstance(each, Interval | Ge | Gt | Le | Lt) for each in metadata)


def _interval(metadata: tuple[Any, ...]) -> Interval:
    bounds: dict[str, Any] = {}
    for each in metadata:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(each, name, None) is not None:
                bounds[name] = getattr(each, name)
    return Interval(**bounds)


def _reads_text(kind: type) -> bool:
    return issubclass(kind, NamedPart) and kind is not NamedPart
