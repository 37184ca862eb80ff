"""Options from dataclasses (tyro), with every mistake told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dualprop import models, recipes
from dualprop.bench import experiments
from dualprop.errors import SettingError, closest
from dualprop.settings import Count, Kind, NamedPart, kinds
from dualprop.training.recipe import Recipe

T = TypeVar("T")

# What people type, written out; and what else they may mean by it.
SHORT = {
    "--lr": "--optimizer.learning-rate", "--learning-rate": "--optimizer.learning-rate",
    "--learning_rate": "--optimizer.learning-rate", "--momentum": "--optimizer.momentum",
    "--weight-decay": "--optimizer.weight-decay", "--weight_decay": "--optimizer.weight-decay",
    "--optimizer": "--optimizer.name", "--beta": "--rule.beta", "--alpha": "--rule.alpha", "--loss": "--rule.loss",
    "--widths": "--model.widths", "--channels": "--model.channels", "--activation": "--model.activation",
    "--num-epochs": "--epochs", "--bs": "--batch-size",
}  # fmt: skip
# Options that are read before the others.
TAKEN = {"train": ("--rule", "--model", "--from"), "compare": ("--model", "--from")}
MEANT = {
    "--variant": ("--variants", "--rule"), "--variants": ("--rule",), "--rule": ("--rules",), "--rules": ("--rule",),
    "--method": ("--rules", "--rule"), "--algorithm": ("--rules", "--rule"), "--seed": ("--seeds",),
    "--output": ("--out",), "--output-dir": ("--out",), "--dir": ("--out",), "--data-dir": ("--data",),
    "--root": ("--data",), "--train-size": ("--train-examples",), "--arch": ("--model",), "--network": ("--model",),
    "--gpu": ("--device",), "--cuda": ("--device",), "--precision": ("--dtype",), "--wd": ("--optimizer.weight-decay",),
}  # fmt: skip

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
        said = _in_one_line(told.getvalue(), command)
        raise SettingError(_by_the_field(default, said, arguments) or said) from None


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
    with the model that --model names. And the other arguments."""
    folder, rest = take_option(arguments, "--from")
    model, rest = take_option(rest, "--model")
    if rest and not rest[0].startswith("-"):
        recipe, rest = recipes.from_name(rest[0]), rest[1:]
        recipe = recipe if folder is None else recipe.starting_from(folder)
    else:
        recipe = recipes.from_name(default) if folder is None else experiments.started_from(Path(folder))
    return recipe if model is None else dataclasses.replace(recipe, model=models.from_name(model)), rest


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


def join_option(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments with an option that is given several times as one, its values with commas
    between."""
    value, rest = take_option(arguments, name)
    values = []
    while value is not None:
        values.append(value)
        value, rest = take_option(rest, name)
    return [*rest, name, ",".join(values)] if values else rest


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
    log: str = ""


def take_resume(arguments: Sequence[str], command: str) -> Resume | None:
    """What to resume, where --resume is given. Raises SettingError for anything beside what goes
    with it."""
    folder, rest = take_option(arguments, "--resume")
    if folder is None:
        return None
    data, rest = take_option(rest, "--data")
    epochs, rest = take_option(rest, "--epochs")
    log, rest = take_option(rest, "--log")
    allowing = [word for word in rest if word.replace("_", "-") == "--allow-changed"]
    rest = [word for word in rest if word not in allowing]
    if rest:
        raise SettingError(
            f"--resume keeps the recipe and the options of its folder. Leave out '{rest[0]}', or {command} anew."
        )
    number = None if epochs is None else _epochs(epochs)
    return Resume(Path(folder), None if data is None else Path(data), bool(allowing), number, log or "")


def _epochs(word: str) -> int:
    """The number that --epochs gives."""
    if not re.fullmatch(r"[0-9]{1,18}", word):
        raise SettingError(f"epochs must be a whole number from 1 on, got '{word[:40]}'.")
    Kind.of(Count).conform("epochs", int(word))
    return int(word)


def in_full(arguments: Sequence[str]) -> list[str]:
    """The arguments with short names of options, --lr say, written out."""
    return [f"{SHORT.get(name, name)}{equals}{value}" for name, equals, value in (each.partition("=") for each in arguments)]


def _check_spelling(default: Any, arguments: Sequence[str], command: str) -> None:
    names = [*options(default), *TAKEN.get(command, ()), "--help"]
    for word in arguments:
        name = word.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and name not in names:
            meant = next((each for each in MEANT.get(name, ()) if each in names), None)
            told = closest(name, names) if meant is None else f" Did you mean '{meant}'?"
            raise SettingError(f"unknown option '{word}'.{told} `dualprop {command} --help` shows them all.")


def take_settings(arguments: Sequence[str], default: Any) -> tuple[dict[str, list[str]], list[str]]:
    """Options of one of several rules, "--dp.beta 0.1": by the rule's label, as the rule's own; and
    the other arguments."""
    known = {name.split(".")[0] for name in options(default) if "." in name}
    taken: dict[str, list[str]] = {}
    rest: list[str] = []
    label = ""
    for word in arguments:
        name = word.partition("=")[0]
        if word.startswith("--"):
            prefix = name.partition(".")[0]
            label = prefix.removeprefix("--") if "." in name and prefix not in known else ""
            word = f"--{word.partition('.')[2]}" if label else word
        (taken.setdefault(label, []) if label else rest).append(word)
    return taken, rest


def settings_of(taken: dict[str, list[str]], by_label: dict[str, Recipe], command: str) -> dict[str, dict[str, Any]]:
    """The settings of rules that such options give. Raises SettingError where none is labelled
    so."""
    settings: dict[str, dict[str, Any]] = {}
    for label, words in taken.items():
        if label not in by_label:
            known = ", ".join(by_label)
            raise SettingError(
                f"unknown option '--{label}.{words[0].removeprefix('--')}': no '{label}' is compared."
                f"{closest(label, list(by_label))} There are {known}."
            )
        rule = by_label[label].rule
        with _of_label(label):
            changed = parse(type(rule), rule, words, command)
        names = [field.name for field in dataclasses.fields(rule)]
        settings[label] = {n: getattr(changed, n) for n in names if getattr(changed, n) != getattr(rule, n)}
    return settings


@contextlib.contextmanager
def _of_label(label: str) -> Iterator[None]:
    """Have an error say whose option it is of."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"of {label}: {error}") from error


def _by_the_field(default: Any, said: str, arguments: Sequence[str]) -> str:
    """What a field of numbers says of a word that is none; empty where another mistake was told."""
    found = re.match(r"--(\S+): (could not convert|no type matching)", said)
    words = [word for each in arguments for word in each.split("=", 1)]
    if found is None or f"--{found[1]}" not in words[:-1]:
        return ""
    *path, name = found[1].replace("-", "_").split(".")
    try:
        owner = default.recipe if path and not hasattr(default, path[0]) else default
        for part in path:
            owner = getattr(owner, part)
        kinds(type(owner))[name].conform(name, words[words.index(f"--{found[1]}") + 1])
    except SettingError as error:
        return str(error)
    except (AttributeError, LookupError, NameError, TypeError):
        return ""
    return ""


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
