"""`dualprop bench --table runtime`: seconds per epoch of CIFAR-10 by each method on its own network, and its twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop import recipes
from dualprop.analysis import benchmark, runtime
from dualprop.analysis.cost import PLAIN, PLAIN_AGAIN
from dualprop.analysis.runtime import Plan
from dualprop.cli.bench import BenchOptions, Keep
from dualprop.errors import SettingError, closest
from dualprop.recipes import variants
from dualprop.training.recipe import Recipe

READS = {"rules", "seconds", "memory"}
SHAPE, NUM_CLASSES = (3, 32, 32), 10


@dataclass(frozen=True)
class Method:
    """Its recipe, and the seconds per epoch that the seeds' table gives (DP on an A100; the others estimated there from their
    papers), where it does."""

    recipe: str
    published: float | None = None


# By variant.
METHODS: dict[str, Method] = {
    "dp": Method("cifar10-vgg16", 3.5),
    "dp-transposed": Method("cifar10-vgg16-transposed"),
    "ep": Method("cifar10-vgg5-ep"),
    "ep-published": Method("cifar10-vgg5-ep"),
    "pc": Method("cifar10-vgg5-pc"),
    "chl": Method("cifar10-cnn-chl"),
    "dtp": Method("cifar10-vgg-dtp", 240.0),
    "ep-hopfield": Method("cifar10-hopfield-ep"),
    "hep": Method("cifar10-hopfield-hep", 1700.0),
}

LEGEND = (
    "s/epoch: 50,000 images by the time of a step. seeds: what the seeds' table has, on other machines. L: layers. time, "
    "count, mem: by those of the plain loop of back-propagation on the same network (its own row: of the same loop again, the "
    "noise). D/F/G: drives, feedbacks and gradients a step. angle: the largest over layers, in degrees, to back-propagation "
    "through the forward pass; own: to the gradient of what the rule predicts by, where that is an equilibrium."
)


def prepare(options: BenchOptions) -> Callable[[Console, Keep], None]:
    """Check the options that this table reads: rules, rounds, seconds, batch size, threads, device, memory."""
    names = options.rules.split(",") if options.rules not in ("", "all") else list(METHODS)
    for name in names:
        if name not in METHODS:
            raise SettingError(
                f"table 'runtime' has no method '{name}'.{closest(name, list(METHODS))} Known: {', '.join(METHODS)}."
            )
    if len(set(names)) != len(names):
        raise SettingError(f"--rules names one twice: {options.rules}. Name each once.")
    by_recipe = {
        METHODS[name].recipe: [each for each in names if METHODS[each].recipe == METHODS[name].recipe] for name in names
    }
    plan = Plan(options.rounds, options.seconds, options.memory)

    def run(console: Console, keep: Keep) -> None:
        groups: list[dict[str, Any]] = []
        table = _table(options.batch_size)
        for recipe_name, own in by_recipe.items():
            recipe = recipes.from_name(recipe_name)
            made = {name: _measured(variants.named(name).apply(recipe), options) for name in own}
            twin = _measured(variants.named("bp").apply(recipe), options)
            rows, refused = runtime.measure(twin, made, SHAPE, NUM_CLASSES, plan)
            for row in rows:
                row["published"] = METHODS[row["rule"]].published if row["rule"] in METHODS else None
            groups.append({"model": recipe_name, "layers": recipe.model.depth, "rows": rows, "refused": refused})
            keep(groups)
            for cells in _cells(groups[-1]):
                table.add_row(*cells)
        console.print(table)
        for group in groups:
            for label, reason in group["refused"].items():
                console.print(f"– can't run here: {label}: {reason}", highlight=False, soft_wrap=True, markup=False)
        console.print(LEGEND, highlight=False, soft_wrap=True)

    return run


def draw(results: dict[str, Any], path: Path) -> None:
    """The figure of what is measured so far."""
    from dualprop.analysis import runtime_figure

    runtime_figure.draw(results, path)


def _measured(recipe: Recipe, options: BenchOptions) -> Recipe:
    """The recipe's step at the batch size of the table, by an optimizer under which its weights stay."""
    return dataclasses.replace(
        recipe, optimizer=benchmark.RESTING, batch_size=options.batch_size, device=options.device,
        num_threads=options.threads, channels_last=options.channels_last, capture="off",  # type: ignore[arg-type]
    )  # fmt: skip


def _table(batch_size: int) -> Table:
    title = f"seconds per epoch of CIFAR-10, batch {batch_size}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("method", no_wrap=True)
    for heading in ("L", "s/epoch", "seeds", "time", "count", "D/F/G", "MB", "mem", "angle", "own"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(group: dict[str, Any]) -> list[list[str]]:
    """The network's back-propagation, with what the same loop again differs by, and its methods."""
    rows = {row["label"]: row for row in group["rows"]}
    plain, again = rows.pop(PLAIN), rows.pop(PLAIN_AGAIN)
    layers = str(group["layers"])
    first = [f"BP, {group['model']}", layers, f"{plain['seconds_per_epoch']:,.0f}", "", f"{again['ratio']:.2f}", "1", ""]
    found = [[*first, _memory(plain), "1" if plain.get("memory") else "", "", ""]]
    for label, row in rows.items():
        found.append([
            f"  {label}", layers, f"{row['seconds_per_epoch']:,.0f}", _number(row, "published", ",g"), f"{row['ratio']:.2f}",
            f"{row['count_ratio']:.2f}", f"{row['drives']}/{row['feedbacks']}/{row['gradients']}", _memory(row),
            _number(row, "memory_ratio", ".2f"), _number(row, "angle_to_backprop", ".2f"),
            _number(row, "angle", ".2f") if row["by_equilibrium"] else "",
        ])  # fmt: skip
    return found


def _memory(row: dict[str, Any]) -> str:
    return _number(row.get("memory", {}), "tensors", ",.0f")


def _number(row: dict[str, Any], key: str, form: str) -> str:
    return "" if row.get(key) is None else format(row[key], form)
