"""Options from dataclasses (tyro), with every mistake told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dualprop import recipes
from dualprop.bench import experiments
from dualprop.errors import SettingError, closest
from dualprop.settings import Count, Kind, NamedPart
from dualprop.training.recipe import Recipe

T = TypeVar("T")

_registry = ConstructorRegistry()
# A recipe's model and rule are of the type that they are; choosing another is not a subcommand.
_CONFIG = (tyro.conf.AvoidSubcommands,)


@_registry.primitive_rule
def _named_part(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds = [
        kind for kind in (info.type, *typing.get_args(info.type)) if isinstance(kind, type) and issubclass(kind, NamedPart)
    ]
    if not kinds:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kinds[0].choices(),
        instance_from_str=lambda words: kinds[0].from_text(words[0]),
        is_instance=lambda value: isinstance(value, NamedPart),
        str_from_instance=lambda part: [str(part)],
    )


def parse(kind: type[T], default: T, arguments: Sequence[str], command: str) -> T:
    """Read the options into `kind`. Prints the help and exits with 0 where asked; raises
    SettingError for a mistake."""
    _check_spelling(default, arguments, command)
    told = io.StringIO()
    try:
        with _registry, contextlib.redirect_stderr(told):
            return tyro.cli(kind, default=default, args=list(arguments), prog=f"dualprop {command}", config=_CONFIG)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise SettingError(_in_one_line(told.getvalue(), command)) from None


def options(value: Any, prefix: str = "") -> list[str]:
    """The option names of a (nested) dataclass value, "--rule.beta" say."""
    names: list[str] = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        unprefixed = field.metadata.get("flat", False)
        name = prefix if unprefixed else f"{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(inner) and not isinstance(inner, NamedPart):
            names += options(inner, name if unprefixed else f"{name}.")
        else:
            names.append(f"--{name}")
            if isinstance(inner, bool):
                *path, last = name.split(".")
                names.append("--" + ".".join([*path, f"no-{last}"]))
    return names


def take_recipe(arguments: Sequence[str], default: str) -> tuple[Recipe, list[str]]:
    """The recipe named by the first word, else that of the run that --from names, else the default;
    and the other arguments."""
    folder, rest = take_option(arguments, "--from")
    if rest and not rest[0].startswith("-"):
        recipe = recipes.from_name(rest[0])
        return recipe if folder is None else recipe.starting_from(folder), rest[1:]
    return recipes.from_name(default) if folder is None else experiments.started_from(Path(folder)), rest


def take_epochs(recipe: Recipe, arguments: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe over the epochs that --epochs gives, where warm-up and cosine are shortened with
    them unless they are given too, and the other arguments."""
    epochs, rest = take_option(arguments, "--epochs")
    if epochs is None:
        return recipe, rest
    return recipe.with_epochs(_epochs(epochs)), rest


def take_option(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE` where given, and the other arguments. Raises
    SettingError without one."""
    arguments, value = list(arguments), None
    for i, word in enumerate(arguments):
        if word == name:
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise SettingError(f"{name} needs a value.")
            value, arguments[i : i + 2] = arguments[i + 1], []
            break
        if word.startswith(f"{name}="):
            value, arguments[i : i + 1] = word.removeprefix(f"{name}="), []
            break
    return value, arguments


def take_switch(arguments: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Whether the switch is given, and the other arguments."""
    return name in arguments, [word for word in arguments if word != name]


@dataclasses.dataclass(frozen=True)
class Resume:
    """What --resume and the options that go with it say."""

    folder: Path
    data: Path | None
    allow_changed: bool
    epochs: int | None


def take_resume(arguments: Sequence[str], command: str) -> Resume | None:
    """What to resume, where --resume is given. Raises SettingError for anything beside what goes
    with it."""
    folder, rest = take_option(arguments, "--resume")
    if folder is None:
        return None
    data, rest = take_option(rest, "--data")
    epochs, rest = take_option(rest, "--epochs")
    allowing = [word for word in rest if word.replace("_", "-") == "--allow-changed"]
    rest = [word for word in rest if word not in allowing]
    if rest:
        raise SettingError(
            f"--resume keeps the recipe and the options of its folder. Leave out '{rest[0]}', or {command} anew."
        )
    number = None if epochs is None else _epochs(epochs)
    return Resume(Path(folder), None if data is None else Path(data), bool(allowing), number)


def _epochs(word: str) -> int:
    """The number that --epochs gives."""
    if not re.fullmatch(r"[0-9]{1,18}", word):
        raise SettingError(f"epochs must be a whole number from 1 on, got '{word[:40]}'.")
    Kind.of(Count).conform("epochs", int(word))
    return int(word)


def _check_spelling(default: Any, arguments: Sequence[str], command: str) -> None:
    names = [*options(default), "--help"]
    for word in arguments:
        name = word.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and name not in names:
            raise SettingError(f"unknown option '{word}'.{closest(name, names)} `dualprop {command} --help` shows them all.")


def _in_one_line(text: str, command: str) -> str:
    """The message in tyro's box, without its frame and its help."""
    message: list[str] = []
    # The first line is the frame's with its title; a ruled line ends the message. Frames are ASCII
    # where the locale is.
    for line in text.splitlines()[1:]:
        line = line.strip().strip("│|╭╮╰╯+ ").strip()
        if not line.strip("─- "):
            if message:
                break
            continue
        message.append(line)
    said = " ".join(word for word in message if word) or "the options can't be read"
    said = re.sub(r"^(Error parsing )?(recipe[.a-z_]*: )?", "", said)
    return f"{said.rstrip('.')}. `dualprop {command} --help` shows all options."
