"""`dualprop completion SHELL`: a script by which a shell completes commands, options and names."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from dualprop.cli import COMMANDS, listing
from dualprop.errors import SettingError, closest
from dualprop.settings import NamedPart

SHELLS = ("bash", "zsh", "fish")
_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
USAGE = """usage: dualprop completion bash|zsh|fish

  bash:  dualprop completion bash > ~/.local/share/bash-completion/completions/dualprop
  zsh:   dualprop completion zsh > ~/.zfunc/_dualprop      # with fpath+=~/.zfunc before compinit
  fish:  dualprop completion fish > ~/.config/fish/completions/dualprop.fish"""


def main(arguments: Sequence[str]) -> None:
    """Print the script of one shell."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] not in SHELLS:
        raise SettingError(
            f"no completion for '{arguments[0]}'.{closest(arguments[0], list(SHELLS))} Known: {', '.join(SHELLS)}."
        )
    if len(arguments) > 1:
        raise SettingError(f"unexpected '{arguments[1]}'. {USAGE.splitlines()[0]}")
    import shtab

    print(shtab.complete(parser(), shell=arguments[0]))


def parser() -> argparse.ArgumentParser:
    """All commands and options as argparse describes them; nothing is parsed by it."""
    whole = argparse.ArgumentParser(prog="dualprop", add_help=False)
    commands = whole.add_subparsers()
    for name, (_, summary) in COMMANDS.items():
        of_one = commands.add_parser(name, help=summary, add_help=False)
        positional, default, more = _described(name)
        if positional is not None:
            _complete(of_one.add_argument("words", nargs="*", help=summary), positional)
        for option, values in {**dict(_options(default)), **more, "--help": []}.items():
            if values == []:
                of_one.add_argument(option, action="store_true")
            else:
                _complete(of_one.add_argument(option), values)
    return whole


# What completes a word: these, a path, nothing that is known, or (an empty list) no word at all.
Words = list[str] | type[Path] | None


def _complete(action: argparse.Action, words: Words) -> None:
    import shtab

    if words is Path:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif isinstance(words, list):
        action.choices = words


def _described(command: str) -> tuple[Words, Any, dict[str, Words]]:
    """What the command takes without a name, the default value of its options, and options beside
    those."""
    match command:
        case "train" | "compare":
            return _training(command)
        case "list":
            return list(listing.KINDS), None, {}
        case "completion":
            return list(SHELLS), None, {}
        case "data":
            from dualprop.cli.data import DescribeOptions

            return ["describe"], DescribeOptions(), {}
        case "report":
            return Path, None, {"--figure": Path}
        case "reproduce":
            from dualprop.reproduction.items import ITEMS
            from dualprop.reproduction.options import ReproduceOptions

            return list(ITEMS), ReproduceOptions(), {"--list": []}
        case "bench":
            from dualprop.bench import BenchOptions

            return None, BenchOptions(), {}
        case "check":
            from dualprop.analysis import CheckOptions

            return None, CheckOptions(), {}
        case "show":
            from dualprop.analysis import ShowOptions

            return None, ShowOptions(), {}
    from dualprop.cli import evaluate, export, predict

    kinds = {"predict": predict.PredictOptions, "evaluate": evaluate.EvaluateOptions, "export": export.ExportOptions}
    return Path, kinds[command](tyro.MISSING), {}


def _training(command: str) -> tuple[Words, Any, dict[str, Words]]:
    from dualprop import data, recipes, rules
    from dualprop.bench import experiments
    from dualprop.recipes.variants import VARIANTS

    recipe = recipes.from_name(experiments.DEFAULT_RECIPE)
    more: dict[str, Words] = {"--resume": Path, "--data": Path, "--allow-changed": [], "--from": Path}
    more |= {"--rule": list(rules.RULES), "--dataset": list(data.names())}
    if command == "train":
        return list(recipes.RECIPES), experiments.TrainOptions(recipe), more
    return list(recipes.RECIPES), experiments.CompareOptions(recipe), more | {"--variants": list(VARIANTS)}


def _options(value: Any, prefix: str = "") -> Iterator[tuple[str, Words]]:
    """The options of a (nested) dataclass value, and what completes each."""
    if value is None:
        return
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        inner, hint = getattr(value, field.name), hints[field.name]
        is_flat = field.metadata.get("flat", False) or field.name == "recipe"
        name = prefix if is_flat else f"{prefix}{field.name}".replace("_", "-")
        if _is_positional(hint):
            continue
        if dataclasses.is_dataclass(inner) and not isinstance(inner, NamedPart):
            yield from _options(inner, name if is_flat else f"{name}.")
        elif isinstance(inner, bool):
            *path, last = name.split(".")
            yield from ((f"--{name}", []), ("--" + ".".join([*path, f"no-{last}"]), []))
        else:
            yield f"--{name}", _words(hint)


def _is_positional(hint: Any) -> bool:
    return any(each is _POSITIONAL for each in typing.get_args(hint))


def _words(hint: Any) -> Words:
    """The words that an option of this type can be, a path, or what is not known."""
    parts = list(_parts(hint))
    if Path in parts:
        return Path
    return [str(each) for part in parts if typing.get_origin(part) is typing.Literal for each in typing.get_args(part)] or None


def _parts(hint: Any) -> Iterable[Any]:
    """The type and what it is made of."""
    yield hint
    if typing.get_origin(hint) is not typing.Literal:
        for inner in typing.get_args(hint):
            yield from _parts(inner)
