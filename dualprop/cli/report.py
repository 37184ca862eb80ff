"""`dualprop report`: the table and the figures of runs and comparisons, again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError


def main(arguments: Sequence[str]) -> None:
    """Show the folder named; several side by side."""
    usage = "usage: dualprop report RUN [RUN …] [--figure FILE.png]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    from dualprop.cli import arguments as args

    figure, named = args.take_option(arguments, "--figure")
    if any(word.startswith("-") for word in named) or not named:
        raise SettingError(f"report takes folders, and --figure. {usage}")
    if figure is not None and (len(named) == 1 or not figure.lower().endswith(".png")):
        raise SettingError("--figure FILE.png is of several runs side by side; those of one lie in its folder. Leave it out.")
    from dualprop.analysis import reports
    from dualprop.cli import tables

    console, folders = OutputConsole(), tuple(Path(word) for word in named)
    if len(folders) == 1:
        tables.show_report(reports.report(folders[0]), console)
    else:
        tables.show_beside(reports.beside(folders, None if figure is None else Path(figure)), console)
