"""`dualprop report`: the table and the figures of runs and comparisons, again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dualprop.errors import SettingError


def main(arguments: Sequence[str]) -> None:
    """Show each folder named."""
    usage = "usage: dualprop report RUN [RUN …]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    if any(word.startswith("-") for word in arguments):
        raise SettingError(f"report takes folders only. {usage}")
    from dualprop.analysis import plots
    from dualprop.cli import running, tables
    from dualprop.training import runs

    console = Console()
    for folder in map(Path, arguments):
        costs = None
        if (folder / running.COMPARISON).is_file():
            labelled = running.comparison_runs(folder)
            if (folder / "costs.json").exists():
                costs = json.loads((folder / "costs.json").read_text())
        else:
            run = runs.load(folder)
            labelled = [(run.recipe.rule_name, run)]
        tables.show_runs(labelled, console, costs)
        for path in plots.draw(labelled, folder / "figures"):
            console.print(f"picture: {path}", highlight=False, soft_wrap=True)
