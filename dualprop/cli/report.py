"""`dualprop report`: the table and the figures of runs and comparisons, again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualprop.cli.console import OutputConsole
from dualprop.errors import RunError, SettingError


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
    from dualprop.training import files, runs

    console = OutputConsole()
    for folder in map(Path, arguments):
        costs = None
        if (folder / running.COMPARISON).is_file():
            labelled = running.comparison_runs(folder)
            if (folder / "costs.json").exists():
                costs = files.read_json(folder / "costs.json")
        else:
            run = runs.load(folder)
            labelled = [(run.recipe.rule_name, run)]
        if not any(run.metrics(seed) for _, run in labelled for seed in run.seeds):
            raise RunError(f"{folder} holds nothing that was trained yet. Train it with --resume {folder}.")
        tables.show_runs(labelled, console, costs)
        for path in plots.draw(labelled, folder / "figures", costs):
            console.print(f"picture: {path}", highlight=False, soft_wrap=True)
