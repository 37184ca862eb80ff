"""The table of runtimes: what an epoch of CIFAR-10 takes by methods, each on its own network, as
Høier et al. (2023) compare them.

Every network is also trained by its twin, a plain loop of back-propagation, and each method's step
is timed in turns with that loop's. Seconds per epoch are those of a step times 50,000 by the batch
size, which is the same for all. Gradients are compared on the batch of random numbers that is
timed, at the initial weights; of a rule that keeps a state, feedback maps say, with the one that
the timed steps have left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dualprop import recipes
from dualprop.analysis import drawing
from dualprop.bench import contenders, models, rows
from dualprop.bench.contenders import Contender
from dualprop.bench.options import BenchOptions, Group, Keep, Measure
from dualprop.bench.showing import new_table, number, say
from dualprop.bench.timing import PLAIN, PLAIN_AGAIN
from dualprop.errors import SettingError, closest
from dualprop.network import Network
from dualprop.recipes import variants
from dualprop.rules import Backprop
from dualprop.training.recipe import Recipe

READS = {"rules", "seconds", "memory"}
EXAMPLES = 50_000
# On narrower consoles some columns are left to the file.
WIDE, LEFT_OUT = 100, ("L", "D/F/G", "MB", "mem")
SHAPE, NUM_CLASSES = (3, 32, 32), 10
INK, GREY = "#333333", "#b8b8b8"


@dataclass(frozen=True)
class Method:
    """Its recipe, and its seconds per epoch as compared in the slides of Høier et al. (2023).

    There DP is measured on an A100, and others are estimated from Laborieux & Zenke (2022) and
    Ernoult et al. (2022). None where they don't have it.
    """

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


def prepare(options: BenchOptions) -> Measure:
    """Check the options that this table reads: rules, rounds, seconds, batch size, memory, …"""
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

    def measure_groups(keep: Keep) -> Iterator[Group]:
        groups: list[Group] = []
        for recipe_name, methods in by_recipe.items():
            recipe = recipes.from_name(recipe_name)
            made = {name: _measured(variants.named(name).apply(recipe), options) for name in methods}
            twin = _measured(variants.named("bp").apply(recipe), options)
            group_rows, refused = measure(twin, made, SHAPE, NUM_CLASSES, options)
            for row in group_rows:
                row["published"] = METHODS[row["rule"]].published if row["rule"] in METHODS else None
            groups.append({"model": recipe_name, "layers": recipe.model.depth, "rows": group_rows, "refused": refused})
            keep(groups)
            yield groups[-1]

    return measure_groups


def _measured(recipe: Recipe, options: BenchOptions) -> Recipe:
    """The recipe's step at the table's batch size, by an optimizer under which weights stay."""
    return dataclasses.replace(
        recipe, optimizer=models.RESTING, batch_size=options.batch_size, device=options.device,
        num_threads=options.threads, channels_last=options.channels_last, capture="off",  # type: ignore[arg-type]
    )  # fmt: skip


def measure(
    twin: Recipe, methods: Mapping[str, Recipe], shape: tuple[int, ...], num_classes: int, options: BenchOptions
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the plain loop of `twin`, of the same again, and of each method on that network.

    Also, by label, why a method can't run here. A row is that of `rows.timed` with:
    "seconds_per_epoch"; of a method "angle", to the gradient of what the rule predicts by, and
    "angle_to_backprop", to back-propagation's through the forward pass (degrees, the largest over
    layers), and "by_equilibrium", whether those are two; memory as `rows.add_memory` has it.
    """
    entries = [Contender(label, recipe, rule=label) for label, recipe in methods.items()]
    able, refused = rows.ready([*contenders.yardsticks(twin), *entries], shape, num_classes)
    group_rows = rows.timed(able, options.rounds, options.seconds)
    for row, entry in zip(group_rows, able, strict=True):
        row["seconds_per_epoch"] = row["milliseconds"] / 1e3 * EXAMPLES / entry.contender.recipe.batch_size
        if entry.contender.how == "rule":
            row["by_equilibrium"] = entry.contender.recipe.rule.predicts_by_equilibrium
            row |= _angles(entry, shape, num_classes)
    entries = [entry.contender for entry in able]
    del able  # weights and states of all
    if options.memory:
        rows.add_memory(group_rows, entries, shape, num_classes, num_steps=1)
    return group_rows, refused


def _angles(entry: rows.Ready, shape: tuple[int, ...], num_classes: int) -> dict[str, float | None]:
    """The largest over layers, None where a gradient is zero."""
    rule, outcomes = entry.contender.recipe.rule, entry.step()
    assert isinstance(outcomes, list)
    model, x, y = entry.contender.problem(shape, num_classes, seed=0)
    network = Network.from_module(model)
    state = outcomes[-1].state if rule.keeps_state else None
    if entry.contender.recipe.reset_states:
        state = rule.at_new_batch(state)
    gradients = rule.gradients(network, x, y, state=state, generator=contenders.generator()).gradients
    exact = {
        "angle": rule.exact_gradients(network, x, y),
        "angle_to_backprop": Backprop(loss=rule.loss).exact_gradients(network, x, y),
    }
    angles = {name: rows.largest_angle(network, gradients, target) for name, target in exact.items()}
    return {name: None if math.isnan(angle) else angle for name, angle in angles.items()}


def told_seconds(seconds: float) -> str:
    """Three digits of it at least, "3.51" and "1,204"."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def show_group(group: Group, results: dict[str, Any], console: Console) -> None:
    """A line of what has just been measured; the whole table takes a while."""
    plain, _, *rest = group["rows"]
    methods = [f"{row['label']} {_seconds(row)} ({row['ratio']:.3g} × BP)" for row in rest]
    say(console, f"{group['model']}: {', '.join([f'BP {_seconds(plain)} s per epoch', *methods])}")


def show_end(results: dict[str, Any], console: Console) -> None:
    """The table of all methods, what can't run here, and what the columns mean."""
    cells = [row for group in results["groups"] for row in _cells(group)]
    headings = [name for name in cells[0] if name != "method" and (console.width >= WIDE or name not in LEFT_OUT)]
    title = f"seconds per epoch of CIFAR-10, batch {results['options']['batch_size']}"
    table = new_table(title, "method", headings)
    for row in cells:
        table.add_row(row["method"], *(row[heading] for heading in headings))
    console.print(table)
    for group in results["groups"]:
        say(console, *(f"– can't run here: {label}: {reason}" for label, reason in group["refused"].items()))
    say(console, LEGEND)


def _cells(group: dict[str, Any]) -> list[dict[str, str]]:
    """The network's back-propagation, with what the same loop again differs by, and its methods."""
    by_label = {row["label"]: row for row in group["rows"]}
    plain, again = by_label.pop(PLAIN), by_label.pop(PLAIN_AGAIN)
    first = {
        "method": f"BP, {group['model']}", "L": str(group["layers"]), "s/epoch": _seconds(plain), "published": "",
        "time": f"{again['ratio']:.2f}", "count": "1", "D/F/G": "", "MB": _memory(plain),
        "mem": "1" if plain.get("memory") else "", "angle": "", "own": "",
    }  # fmt: skip
    return [first, *(_cells_of(label, row, first["L"]) for label, row in by_label.items())]


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


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the groups so far into `path`, replaced as a whole; nothing where there is none."""
    shown = [
        (row, group["rows"][0], group)
        for group in results["groups"]
        for row in group["rows"]
        if row["label"] not in (PLAIN, PLAIN_AGAIN)
    ]
    if not shown:
        return
    figure, axes = drawing.new_figure(1, 1, (10.5, 1.7 + 0.42 * len(shown)))
    for height, (row, plain, _) in enumerate(shown):
        seconds, twin = row["seconds_per_epoch"], plain["seconds_per_epoch"]
        axes.plot([twin, seconds], [height, height], color=GREY, lw=2, zorder=1)
        axes.plot(twin, height, color=GREY, marker="o", ms=8, ls="none", label="back-propagation, same network", zorder=2)
        axes.plot(seconds, height, color=drawing.COLOURS[0], marker="o", ms=8, ls="none", label="the method, here", zorder=3)
        if row["published"] is not None:
            axes.plot(
                row["published"], height, color=drawing.COLOURS[1], marker="D", ms=7, ls="none", zorder=3,
                label="the method as published, on other machines",
            )  # fmt: skip
        axes.annotate(
            f"{told_seconds(seconds)} s, {row['ratio']:.3g} × BP", (max(seconds, twin), height), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([f"{row['label']}  ({group['model']}, L = {group['layers']})" for row, _, group in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** 0.25)
    axes.set_xlabel("seconds per epoch of CIFAR-10 (50,000 images)")
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    environment = results["environment"]
    threads = environment["threads"]
    where = environment.get("accelerator") or f"{environment['processor']}, {threads} thread{'s' if threads > 1 else ''}"
    batch = results["options"]["batch_size"]
    figure.suptitle(f"An epoch of CIFAR-10 by each method, batch {batch}: {where}, torch {environment['torch']}", fontsize=11)
    drawing.save(figure, path)
