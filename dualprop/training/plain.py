"""Settings as plain values and back: dictionaries, lists, numbers and strings, as JSON has them.

A dataclass of settings is an object of its fields. A part that text stands for is that text. Of
rules and models there are several: their objects begin with a "name". The schema of each dataclass
is made of its annotations; ranges and choices are its own to check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from dualprop.errors import SettingError, closest
from dualprop.models import MODELS, Architecture
from dualprop.rules import RULES, AbstractRule
from dualprop.settings import NamedPart, kinds
from dualprop.training import documents
from dualprop.training.documents import Misfit

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """The plain value."""
    if isinstance(value, NamedPart):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = next((name for table in _TABLES.values() for name, kind in table.items() if kind is type(value)), None)
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return fields if name is None else {"name": name, **fields}
    return [to_plain(each) for each in value] if isinstance(value, tuple | list) else value


def from_plain(kind: type[T], plain: Any, where: str) -> T:
    """The inverse of `to_plain`; what is missing has its default.

    Raises Misfit, which names the field by its path from `where` ("recipe", say), where a value is
    of another type, unknown, missing without a default, or refused by the dataclass itself.
    """
    table = _TABLES.get(typing.cast("Any", kind))
    chosen: Any = kind
    if table is not None:
        plain = dict(documents.convert(plain, dict[str, Any], where))
        name = documents.convert(plain, _Named, f"{where}.").name
        if name not in table:
            known = ", ".join(table)
            raise Misfit(f"{where}.name must be one of {known}, got {documents.quoted(name)}.{closest(name[:60], list(table))}")
        chosen = table[name]
        del plain["name"]
    read = documents.convert(plain, schema(chosen), f"{where}.")
    values: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(chosen).items():
        value = getattr(read, name, msgspec.UNSET)
        if value is not msgspec.UNSET and _is_nested(hint):
            values[name] = from_plain(hint, value, f"{where}.{name}")
        elif value is not msgspec.UNSET:
            with _naming(where, name):
                values[name] = kinds(chosen)[name].conform(name, value)
    with _naming(where, *values):
        return typing.cast("T", chosen(**values))


@contextlib.contextmanager
def _naming(where: str, *names: str) -> Iterator[None]:
    """Have a SettingError name the path of its field. Most begin with a field; where there is but
    one that it can be of, that is it."""
    try:
        yield
    except SettingError as error:
        begins = str(error).split("[")[0].split(maxsplit=1)[0] in names
        path = f"{where}." if begins else f"{where}.{names[0]}: " if len(names) == 1 else f"{where}: "
        raise Misfit(f"{path}{error}") from error


class _Named(msgspec.Struct):
    name: str


# What there are several of, by name.
_TABLES: dict[Any, Mapping[str, type]] = {AbstractRule: RULES, Architecture: MODELS}


@functools.cache
def schema(kind: type) -> type[msgspec.Struct]:
    """The object that stands for a dataclass, its nested dataclasses left as objects."""
    hints = typing.get_type_hints(kind)
    fields: list[Any] = []
    for field in dataclasses.fields(kind):
        type_ = _as_json(hints[field.name])
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        fields.append((field.name, type_) if needed else (field.name, type_ | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct(kind.__name__, fields, kw_only=True, frozen=True, forbid_unknown_fields=True)


def _as_json(hint: Any) -> Any:
    """The type of the plain value of a field with this annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_nested(hint):
        return dict[str, Any]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_as_json, arguments))
    if origin is Annotated:
        return _as_json(arguments[0])
    if origin is Literal:
        return functools.reduce(operator.or_, map(type, arguments))
    if origin is tuple:
        return tuple[tuple(each if each is ... else _as_json(each) for each in arguments)]  # type: ignore[misc]
    return str if isinstance(hint, type) and issubclass(hint, NamedPart) else hint


def _is_nested(hint: Any) -> bool:
    return hint in _TABLES or (dataclasses.is_dataclass(hint) and not issubclass(hint, NamedPart))  # type: ignore[arg-type]
