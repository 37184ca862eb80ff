"""Measuring and showing a table of the bench, whichever it is.

A table is a module with

    READS                                 the options that it reads beside EVERY table's
    prepare(options)                      checks them; returns what measures, see `options.Measure`
    show_group(group, results, console)   shows a group that is done
    show_end(results, console)            shows what stands below all groups
    draw(results, path)                   its figure, where it has one
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from dualprop import settings
from dualprop.analysis.keywords import by_keyword
from dualprop.bench import models
from dualprop.bench.options import BenchOptions, Group
from dualprop.bench.showing import say
from dualprop.errors import SettingError, closest
from dualprop.training import environment, files, folders, runs

TABLES = {name: f"dualprop.bench.{name}" for name in ("steps", "settling", "relaxations", "loader", "runtime")}
EVERY = {"table", "rounds", "batch_size", "threads", "device", "channels_last", "out", "figure"}


class Watch:
    """What is told while a table is measured. This one is silent; `Shown` prints."""

    def started(self, results: dict[str, Any]) -> None: ...
    def group_done(self, group: Group, results: dict[str, Any]) -> None: ...
    def finished(self, results: dict[str, Any]) -> None: ...
    def wrote(self, path: Path) -> None: ...


class Shown(Watch):
    """Prints each group as soon as it is measured."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def started(self, results: dict[str, Any]) -> None:
        _say_environment(results["environment"], self.console)

    def group_done(self, group: Group, results: dict[str, Any]) -> None:
        _module(results["options"]["table"]).show_group(group, results, self.console)

    def finished(self, results: dict[str, Any]) -> None:
        _module(results["options"]["table"]).show_end(results, self.console)

    def wrote(self, path: Path) -> None:
        say(self.console, f"wrote {path}")


@by_keyword(BenchOptions)
def measure(options: BenchOptions) -> dict[str, Any]:
    """Measure a table and return its numbers. The arguments are the fields of `BenchOptions`.

    The results are plain values, as `out` writes them: the "environment", the "options" that the
    table reads, and its "groups". `bench.show` prints them. Raises SettingError.
    """
    return run(options)


def run(options: BenchOptions, watch: Watch | None = None) -> dict[str, Any]:
    """The same by options that are there already, and told to `watch`.

    What is measured when it is interrupted is in the files already.
    """
    table = _checked(options)
    figure = options.figure or _figure_beside(options.out, table)
    with contextlib.ExitStack() as stack:
        paths = [path for path in (options.out, figure) if path is not None]
        for path in paths:
            stack.enter_context(folders.held_file(path))
        watch = watch or Watch()
        results = _measured(options, table, figure, watch)
        for path in paths:
            watch.wrote(path)
        return results


def _figure_beside(out: Path | None, table: Any) -> Path | None:
    """The figure that goes beside the file of the numbers, where there is one. Raises SettingError
    where a picture is there without numbers: it is not one of ours, and nobody has named it."""
    if out is None or not hasattr(table, "draw"):
        return None
    figure = out.with_suffix(".png")
    if files.exists(figure) and not files.exists(out):
        raise SettingError(
            f"{figure} is there already, and --out {out} would draw over it. Choose another --out, or give --figure."
        )
    return figure


def _measured(options: BenchOptions, table: Any, figure: Path | None, watch: Watch) -> dict[str, Any]:
    measure_groups = table.prepare(options)
    runs.prepare(models.recipe_by(options, models.parse_models(options.models)[0]))
    # Where the numbers were written says nothing of them, and much of whose machine it was.
    told = (EVERY | table.READS) - {"out", "figure", "run", "data"}
    plain = {name: value for name, value in asdict(options).items() if name in told}
    if options.run is not None:
        plain["models"] = f"run {options.run.name}"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    about = environment.describe(options.device) | {"load_before": load}
    results: dict[str, Any] = {"environment": about, "options": plain, "groups": []}
    watch.started(results)

    def keep(groups: list[Group]) -> None:
        results["groups"] = groups
        if options.out is not None:
            files.write_json(options.out, results)
        if figure is not None:
            table.draw(results, figure)

    for group in measure_groups(keep):
        watch.group_done(group, results)
    watch.finished(results)
    return results


def show(results: dict[str, Any], console: Console | None = None) -> None:
    """Print what `measure` returned, or what `out` holds."""
    shown = Shown(console or Console(markup=False, emoji=False))
    shown.started(results)
    for group in results["groups"]:
        shown.group_done(group, results)
    shown.finished(results)


def _module(name: str) -> Any:
    return import_module(TABLES[name])


def _checked(options: BenchOptions) -> Any:
    """The table's module. Raises SettingError."""
    settings.conform(options)
    if options.table not in TABLES:
        names = ", ".join(TABLES)
        raise SettingError(f"unknown table '{options.table}'.{closest(options.table, list(TABLES))} Known: {names}.")
    for path, option in ((options.out, "--out"), (options.figure, "--figure")):
        if path is not None and not path.parent.is_dir():
            raise SettingError(f"the folder of {path} does not exist. Make it, or choose another {option}.")
        if path is not None:
            files.exists(path)
    if options.run is not None and options.models != BenchOptions.models:
        raise SettingError(f"--run brings its own network, and --models names '{options.models}'. Leave one out.")
    if options.data is not None and options.run is None:
        raise SettingError("--data is of the data set of --run. Leave it out, or give --run.")
    if options.out is not None and options.out.suffix == ".png":
        raise SettingError(f"--out writes JSON, got {options.out}. Use --figure {options.out}, or name it .json.")
    table = _module(options.table)
    for each in fields(BenchOptions):
        # Leaving out what a table has not is no mistake.
        value = getattr(options, each.name)
        if each.name in EVERY | table.READS or value == each.default or value is False:
            continue
        option = f"--{each.name.replace('_', '-')}"
        raise SettingError(f"table '{options.table}' does not read {option}. Leave it out, or choose another --table.")
    if options.figure is not None and options.figure.suffix != ".png":
        raise SettingError(f"--figure writes PNG, got {options.figure}. Name it {options.figure.with_suffix('.png')}.")
    if options.figure is not None and not hasattr(table, "draw"):
        raise SettingError(f"table '{options.table}' has no figure. Leave --figure out.")
    return table


def _say_environment(about: dict[str, Any], console: Console) -> None:
    say(
        console,
        f"torch {about['torch']}, {about['processor']} ({about['instructions']}), "
        f"{about['threads']} threads, {about.get('accelerator', 'no accelerator')}; subnormals flushed, "
        "fused optimizer",
    )
    load = about["load_before"]
    if load is not None and load > about["cores"] / 4:
        told = f"this machine is busy already (load {load:.1f} on {about['cores']} cores): expect noise."
        say(console, told, style="yellow")
