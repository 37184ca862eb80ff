"""`dualprop list`: what there is, a line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError, closest


def main(arguments: Sequence[str]) -> None:
    """Show one kind of thing."""
    usage = f"usage: dualprop list {'|'.join(KINDS)}"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    if arguments[0] not in KINDS:
        raise SettingError(f"can't list '{arguments[0]}'.{closest(arguments[0], list(KINDS))} {usage}")
    if len(arguments) > 1:
        raise SettingError(f"unexpected '{arguments[1]}'. {usage}")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, summary in KINDS[arguments[0]]().items():
        table.add_row(name, summary)
    OutputConsole().print(table)


def _rules() -> dict[str, str]:
    from dualprop.rules import RULES

    return {name: _first_line(kind.__doc__) for name, kind in RULES.items()}


def _recipes() -> dict[str, str]:
    from dualprop.recipes import RECIPES

    return {name: _first_line(function.__doc__) for name, function in RECIPES.items()}


def _variants() -> dict[str, str]:
    from dualprop.recipes.variants import VARIANTS

    return {name: variant.summary for name, variant in VARIANTS.items()}


def _items() -> dict[str, str]:
    from dualprop.reproduction import listing

    return listing.summaries()


def _datasets() -> dict[str, str]:
    from dualprop import data

    return data.names()


def _models() -> dict[str, str]:
    from dualprop.models import NAMED, OwnModel

    own = {"path.py:build": _first_line(OwnModel.__doc__)}
    return {name: _first_line(make.__doc__) for name, make in NAMED.items()} | own


def _neurons() -> dict[str, str]:
    from dualprop import neurons

    return {name: _first_line(type(neurons.from_name(name)).__doc__) for name in neurons.names()}


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0]


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "rules": _rules,
    "variants": _variants,
    "recipes": _recipes,
    "items": _items,
    "datasets": _datasets,
    "models": _models,
    "neurons": _neurons,
}
