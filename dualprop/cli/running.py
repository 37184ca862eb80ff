"""Starting and resuming runs and comparisons from the command line.

A comparison is a folder with comparison.json and one run folder per rule; a single run is a run folder.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from dualprop.cli import tables
from dualprop.cli.progress import ConsoleReporter
from dualprop.errors import RunError
from dualprop.training import execution, files, runs
from dualprop.training.recipe import Recipe
from dualprop.training.runs import Run

COMPARISON = "comparison.json"


def start(
    recipes: dict[str, Recipe],
    seeds: tuple[int, ...],
    out: Path | None,
    data_root: Path | None,
    console: Console,
    single: bool = False,
    costs: bool = True,
) -> None:
    """Create the folder, then train the labelled recipes, of which `single` means the only one. Data and device are tried
    first, so that a mistake leaves no folder behind."""
    recipe = next(iter(recipes.values()))
    runs.prepare(recipe)
    splits = runs.load_data(recipe, seeds[0], data_root)
    for each in recipes.values():
        runs.check_fit(each, splits)
    folder = out or _new_folder(recipe.name)
    if single:
        run = runs.create(folder, recipe, seeds)
        _train_run(run, data_root, console)
        return
    files.claim(folder)
    plain = {"rules": {label: each.to_plain() for label, each in recipes.items()}, "seeds": list(seeds), "costs": costs}
    files.write_json(folder / COMPARISON, plain)
    _train_comparison(folder, data_root, console)


def resume(folder: Path, data_root: Path | None, console: Console) -> None:
    """Continue a run or a comparison where it stopped."""
    if (folder / COMPARISON).is_file():
        _train_comparison(folder, data_root, console)
    else:
        _train_run(runs.load(folder), data_root, console)


def load_comparison(folder: Path) -> tuple[dict[str, Recipe], tuple[int, ...], bool]:
    """Recipes by label (a rule's or a variant's name), seeds, and whether costs are measured. Raises RunError where damaged."""
    path = folder / COMPARISON
    try:
        plain = json.loads(path.read_text())
        recipes = {name: Recipe.from_plain(recipe) for name, recipe in plain["rules"].items()}
        if not recipes:
            raise ValueError("it names no rule")
        return recipes, runs.seeds_from(plain["seeds"]), bool(plain["costs"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}. Restore it, or compare anew.") from error


def comparison_runs(folder: Path) -> list[tuple[str, Run]]:
    """The comparison's run folders that exist, by label."""
    recipes, seeds, _ = load_comparison(folder)
    return [(name, Run(folder / name, recipe, seeds)) for name, recipe in recipes.items()]


def _train_run(run: Run, data_root: Path | None, console: Console) -> None:
    from dualprop.analysis import plots

    console.print(f"{run.recipe.name} by {run.recipe.rule_name} → {run.folder}", highlight=False, soft_wrap=True)
    console.print(f"execution: {execution.resolve(run.recipe)}", highlight=False, soft_wrap=True)
    _with_progress(run, data_root, console, run.recipe.rule_name)
    tables.show_runs([(run.recipe.rule_name, run)], console)
    _say_figures(plots.draw([(run.recipe.rule_name, run)], run.folder / "figures"), console)


def _train_comparison(folder: Path, data_root: Path | None, console: Console) -> None:
    from dualprop.analysis import differences, plots
    from dualprop.bench import rows
    from dualprop.training import environment

    recipes, seeds, with_costs = load_comparison(folder)
    first = next(iter(recipes.values()))
    files.remove_leftovers(folder)
    console.print(f"{first.name} by {', '.join(recipes)} → {folder}", highlight=False, soft_wrap=True)
    for name, recipe in recipes.items():
        console.print(f"execution of {name}: {execution.resolve(recipe)}", highlight=False, soft_wrap=True)
    labelled: list[tuple[str, Run]] = []
    for name, recipe in recipes.items():
        path = folder / name
        run = runs.load(path) if (path / "recipe.json").is_file() else runs.create(path, recipe, seeds)
        _with_progress(run, data_root, console, name)
        labelled.append((name, run))
    costs_path = folder / "costs.json"
    if with_costs and not costs_path.exists():
        console.print("measuring time and memory per step …", highlight=False)
        splits = runs.load_data(first, seeds[0], data_root)
        files.write_json(costs_path, rows.costs(recipes, splits.input_shape, splits.num_classes))
    costs = files.read_json(costs_path) if with_costs else None
    results = {
        "environment": environment.describe(first.device),
        "seeds": list(seeds),
        "rules": {name: runs.summary(run.results()) for name, run in labelled},
        "differences": {
            name: {**asdict(found), "verdict": found.verdict}
            for name, found in differences.to_twin({name: run.results() for name, run in labelled}).items()
        },
        "costs": costs,
    }
    files.write_json(folder / "results.json", results)
    tables.show_runs(labelled, console, costs)
    _say_figures(plots.draw(labelled, folder / "figures", costs), console)


def _with_progress(run: Run, data_root: Path | None, console: Console, label: str) -> None:
    reporter = ConsoleReporter(console, label, run.recipe.batch_size)
    try:
        runs.train(run, data_root, reporter)
    finally:
        reporter.close()


def _say_figures(paths: list[Path], console: Console) -> None:
    for path in paths:
        console.print(f"picture: {path}", highlight=False, soft_wrap=True)


def _new_folder(recipe_name: str) -> Path:
    stem = f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = Path("runs") / stem, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder
