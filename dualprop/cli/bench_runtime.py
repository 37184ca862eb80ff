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
from dualprop.analysis.runtime import Plan, told_seconds
from dualprop.cli.bench import BenchOptions, Keep, number
from dualprop.errors import SettingError, closest
from dualprop.recipes import variants
from dualprop.training.recipe import Recipe

READS = {"rules", "seconds", "memory"}
# On narrower consoles some columns are left to the file.
WIDE, LEFT_OUT = 100, ("L", "D/F/G", "MB", "mem")
SHAPE, NUM_CLASSES = (3, 32, 32), 10


@dataclass(frozen=True)
class Method:
    """Its recipe, and its seconds per epoch as compared in the slides of Høier et al. (2023), where
    they have it: DP's on an A100, the others estimated from Laborieux & Zenke (2022) and Ernoult et
    al. (2022)."""

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
    "s/epoch: 50,000 images by the time of a step. published: as compared by Høier et al. (2023), on other machines. L: "
    "layers. time, count, mem: by those of the plain loop of back-propagation on the same network (its own row: of the same "
    "loop again, the noise). D/F/G: drives, feedbacks and gradients a step. angle: the largest over layers, in degrees, to "
    "back-propagation through the forward pass; own: to the gradient of what the rule predicts by, where that is an "
    "equilibrium."
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
        cells: list[dict[str, str]] = []
        for recipe_name, own in by_recipe.items():
            recipe = recipes.from_name(recipe_name)
            made = {name: _measured(variants.named(name).apply(recipe), options) for name in own}
            twin = _measured(variants.named("bp").apply(recipe), options)
            rows, refused = runtime.measure(twin, made, SHAPE, NUM_CLASSES, plan)
            for row in rows:
                row["published"] = METHODS[row["rule"]].published if row["rule"] in METHODS else None
            groups.append({"model": recipe_name, "layers": recipe.model.depth, "rows": rows, "refused": refused})
            keep(groups)
            cells += _cells(groups[-1])
            console.print(_told(groups[-1]), highlight=False, soft_wrap=True)
        console.print(_table(cells, options.batch_size, is_wide=console.width >= WIDE))
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


def _told(group: dict[str, Any]) -> str:
    """A line of what has just been measured; the whole table takes a while."""
    plain, _, *rows = group["rows"]
    own = [f"{row['label']} {_seconds(row)} ({row['ratio']:.3g} × BP)" for row in rows]
    return f"{group['model']}: {', '.join([f'BP {_seconds(plain)} s per epoch', *own])}"


def _table(cells: list[dict[str, str]], batch_size: int, is_wide: bool) -> Table:
    title = f"seconds per epoch of CIFAR-10, batch {batch_size}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    headings = [name for name in cells[0] if is_wide or name not in LEFT_OUT]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for row in cells:
        table.add_row(*(row[heading] for heading in headings))
    return table


def _cells(group: dict[str, Any]) -> list[dict[str, str]]:
    """The network's back-propagation, with what the same loop again differs by, and its methods."""
    rows = {row["label"]: row for row in group["rows"]}
    plain, again = rows.pop(PLAIN), rows.pop(PLAIN_AGAIN)
    first = {
        "method": f"BP, {group['model']}", "L": str(group["layers"]), "s/epoch": _seconds(plain), "published": "",
        "time": f"{again['ratio']:.2f}", "count": "1", "D/F/G": "", "MB": _memory(plain),
        "mem": "1" if plain.get("memory") else "", "angle": "", "own": "",
    }  # fmt: skip
    return [first, *(_cells_of(label, row, first["L"]) for label, row in rows.items())]


def _cells_of(label: str, row: dict[str, Any], layers: str) -> dict[str, str]:
    return {
        "method": f"  {label}", "L": layers, "s/epoch": _seconds(row), "published": number(row, "published", ",g"),
        "time": f"{row['ratio']:.2f}", "count": f"{row['count_ratio']:.2f}",
        "D/F/G": f"{row['drives']}/{row['feedbacks']}/{row['gradients']}", "MB": _memory(row),
        "mem": number(row, "memory_ratio", ".2f"), "angle": number(row, "angle_to_backprop", ".2f"),
        "own": number(row, "angle", ".2f") if row["by_equilibrium"] else "",
    }  # fmt: skip


def _seconds(row: dict[str, Any]) -> str:
    return told_seconds(row["seconds_per_epoch"])


def _memory(row: dict[str, Any]) -> str:
    return number(row.get("memory", {}), "tensors", ",.0f")
