"""`dualprop report`: the table and the figures of runs and comparisons, again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualprop.cli.console import OutputConsole
from dualprop.errors import SettingError


def main(arguments: Sequence[str]) -> None:
    """Show each folder named."""
    usage = "usage: dualprop report RUN [RUN …]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    if any(word.startswith("-") for word in arguments):
        raise SettingError(f"report takes folders only. {usage}")
    from dualprop.analysis import reports
    from dualprop.cli import tables

    console = OutputConsole()
    for folder in arguments:
        tables.show_report(reports.report(Path(folder)), console)
