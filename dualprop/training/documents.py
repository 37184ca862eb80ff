"""Reading JSON: every file of a run is read here, whole, and against a schema.

A schema is a type that msgspec reads (`records`, or what `plain` makes of a recipe's dataclasses).
What does not fit it is told by the path of the field, by what it must be and what it is:

    run/recipe.json is damaged: recipe.batch_size must be a whole number, got 2.5. Restore it, …

Strings of a file are quoted as Python writes them, so that none of their letters reaches a terminal
as it is. JSON is UTF-8, numbers are finite, no name stands twice in an object.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dualprop.errors import RunError, SettingError, closest
from dualprop.training import files

T = TypeVar("T")
# Bytes. A description or a result takes some thousand, a line of metrics as many.
LARGEST, LARGEST_LINES = 16 << 20, 256 << 20

# What msgspec calls the kinds of JSON, in words.
_KINDS = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "array": "a list",
          "object": "an object", "null": "null"}  # fmt: skip
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlong, _SHORT.maxdict, _SHORT.maxlevel = 60, 30, 3, 2


class Misfit(ValueError):
    """What does not fit, by field, in one sentence without its period; the file is the caller's."""


def read(path: Path, of_plain: Callable[[Any], T], remedy: str) -> T:
    """What `of_plain` makes of the value in a JSON file.

    Raises RunError, which ends in `remedy`, where the file is damaged, or where a Misfit or a
    SettingError comes.
    """
    try:
        return of_plain(parse(files.read(path, LARGEST)))
    except (Misfit, SettingError) as error:
        raise damaged(path, error, remedy) from error


def read_lines(path: Path, of_plain: Callable[[Any, str], T], remedy: str, length: int | None = None) -> list[T]:
    """What `of_plain` makes of each line, called "line 3: " say; none where there is no file.

    A last line without its end is still being written. `length` is of the part to read, in bytes.
    Raises RunError where a line is damaged.
    """
    if not files.exists(path):
        return []
    try:
        *lines, _ = files.read(path, LARGEST_LINES)[:length].split(b"\n")
        return [of_plain(parse(line, f"line {n}: "), f"line {n}: ") for n, line in enumerate(lines, start=1)]
    except Misfit as error:
        raise damaged(path, error, remedy) from error


def damaged(path: Path, error: object, remedy: str) -> RunError:
    """The error of a file that can't be used."""
    return RunError(f"{path} is damaged: {str(error).rstrip('.')}. {remedy}")


def parse(content: bytes | str, where: str = "") -> Any:
    """The plain value of a JSON text. Raises Misfit, which begins with `where`."""
    try:
        plain = msgspec.json.decode(content)
        # Which reads the last of two values of one name.
        json.loads(content, object_pairs_hook=_different)
    except RecursionError:
        raise Misfit(f"{where}its lists or objects are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Misfit(f"{where}it is not UTF-8: {error.reason}") from None
    except Misfit as error:
        raise Misfit(f"{where}{error}") from None
    except ValueError as error:
        raise Misfit(f"{where}it is no JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    return plain


def convert(plain: Any, kind: type[T], where: str = "") -> T:
    """A plain value as the type of its schema.

    Raises Misfit, in which the paths of fields follow `where`: "recipe." say.
    """
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise Misfit(_told(str(error), plain, kind, where)) from None
    except RecursionError:
        raise Misfit(f"{where}its lists or objects are nested too deeply") from None


def quoted(value: object) -> str:
    """A short repr, without a letter that a terminal would act upon."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _SHORT.repr(value)


def field(name: str) -> str:
    """A name in an object, as a part of a path; quoted where it is no usual one."""
    return name if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name) else quoted(name)


def _different(pairs: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise Misfit(f"{quoted(name)} stands twice in one object")
        names.add(name)


def _told(said: str, plain: Any, kind: type, where: str) -> str:
    """msgspec's message in the words of this house."""
    said, _, path = said.partition(" - at ")
    keys = list(_keys(path))
    below = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    shown = where + (below if where and where[-1] not in ". " else below.removeprefix("."))
    subject, holder = shown or "it", shown or where.rstrip(".: ") or "it"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", said):
        return f"{holder} lacks '{missing[1]}'"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", said, re.DOTALL):
        names = list(getattr(kind, "__struct_fields__", ())) if not keys else []
        return f"{holder} has an unknown field {quoted(unknown[1])}.{closest(unknown[1][:60], names)}"
    expected = said
    if wrong := re.match(r"Expected `([^`]*)`(.*)", said):
        expected = " or ".join(_KINDS.get(each, each) for each in wrong[1].split(" | ")) + re.sub(r", got .*", "", wrong[2])
    elif "out of range" in said:
        expected = "a number of ordinary size"
    return f"{subject} must be {expected}, got {quoted(_at(plain, keys))}"


def _keys(path: str) -> Iterator[str | int]:
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path):
        yield name or (int(index) if index != "..." else "…")


def _at(plain: Any, keys: list[str | int]) -> Any:
    for key in keys:
        plain = plain[key] if not isinstance(plain, dict) or key in plain else None
    return plain
