"""The options of `dualprop reproduce`, and what of them a folder keeps for a resume."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from dualprop import recipes
from dualprop.errors import RunError, SettingError
from dualprop.reproduction import costs, items
from dualprop.reproduction.items import Figure, Item
from dualprop.settings import Count, NumSeeds, Threads, conform
from dualprop.training import documents, execution, files, runs
from dualprop.training.recipe import Recipe
from dualprop.training.records import Record

FILE = "reproduction.json"
Minutes = Annotated[float, Interval(gt=0, le=10**6)]
Precision = Literal["float32", "float64", "bfloat16", "tf32"]


@dataclass(frozen=True)
class ReproduceOptions:
    """Run the papers' tables and figures: dualprop reproduce [ITEM …] [--minutes M] [options].

    Attributes:
        items: which; by default all of `dualprop list items`.
        minutes: how long. What is worth most and fits is run whole, and the plan is told first;
            without it all is run.
        out: the new folder; by default one in runs/ named after the time.
        resume: go on in this folder; no other option but --minutes, --data and --allow-changed goes
            with it.
        allow_changed: resume although data, code or machine changed, so that the end can't be the
            uninterrupted run's; results say so.
        data: folder of the data sets; by default $DUALPROP_DATA, then the download cache.
        device: "cpu", "cuda", or another PyTorch device; by default "cuda" where there is one.
        dtype: of the products, in place of the recipes' own; results say so.
        epochs: shorten longer runs to so many, warm-up and cosine compressed with them; verdicts
            then say that it is not the published setting.
        seeds: fewer than the published runs have; verdicts then say where that is too few.
        threads: of the CPU; 0 leaves PyTorch's choice.
    """

    items: tuple[str, ...] = ()
    minutes: Minutes | None = None
    out: Path | None = None
    resume: Path | None = None
    allow_changed: bool = False
    data: Path | None = None
    device: str = ""
    dtype: Precision | None = None
    epochs: Count | None = None
    seeds: NumSeeds | None = None
    threads: Threads = 0


class Setting(Record, frozen=True, kw_only=True):
    """What a folder's runs have in common: reproduction.json. See `ReproduceOptions`."""

    items: tuple[str, ...]
    device: str
    dtype: Precision | None = None
    epochs: int | None = None
    seeds: int | None = None
    threads: int = 0

    @property
    def table(self) -> dict[str, Item]:
        """The items by name."""
        return items.named(self.items)

    def recipe(self, figure: Figure) -> Recipe:
        """Of the figure's runs here. Raises SettingError."""
        made = costs.shortened(figure.made(), self.epochs)
        made = dataclasses.replace(
            made, device=self.device, dtype=self.dtype or made.dtype, num_threads=self.threads or made.num_threads
        )
        # An item needs all its seeds, so that on a CPU too they may be one job.
        pays = made.stack_seeds == "auto" and execution.stacking_pays(made) and not execution.stacking_obstacle(made)
        return dataclasses.replace(made, stack_seeds="on") if pays else made

    def deviations(self, figure: Figure) -> list[str]:
        """In which the figure's runs are other than published, in words."""
        told, here = figure.made(), self.recipe(figure)
        epochs = [f"{here.epochs} of {told.epochs} epochs"] if here.epochs != told.epochs else []
        return epochs + ([f"{here.dtype} for {told.dtype}"] if here.dtype != told.dtype else [])

    def seeds_of(self, item: Item, figure: Figure) -> tuple[int, ...]:
        """Those that are trained for the item."""
        return item.seeds(figure)[: self.seeds]

    def figures(self) -> dict[str, Figure]:
        """All that can be trained, with their twins, by label."""
        wanted = [each for item in self.table.values() for figure in item.figures for each in (figure, figure.twin)]
        return {each.label: each for each in wanted if each is not None and each.is_there}

    def seeds_by_label(self) -> dict[str, tuple[int, ...]]:
        """Of each figure's run folder: the most that an item wants of it or of what it is the twin
        of."""
        most: dict[str, tuple[int, ...]] = {}
        for item in self.table.values():
            for figure in item.figures:
                for each in (figure, figure.twin):
                    if each is not None and each.is_there:
                        most[each.label] = max(most.get(each.label, ()), self.seeds_of(item, each), key=len)
        return most


def begun(options: ReproduceOptions) -> Setting:
    """The setting of a new reproduction. Raises SettingError."""
    conform(options)
    if options.allow_changed:
        raise SettingError("allow_changed has no meaning without resume. Leave it out.")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(
        items=tuple(items.named(options.items)), device=device, dtype=options.dtype, epochs=options.epochs,
        seeds=options.seeds, threads=options.threads,
    )  # fmt: skip
    # A device or a dtype that can't be had is refused before a folder is made.
    runs.prepare(dataclasses.replace(recipes.from_name("digits-mlp"), device=device, num_threads=options.threads))
    for figure in setting.figures().values():
        execution.resolve(setting.recipe(figure))
    return setting


def resumed(options: ReproduceOptions, folder: Path) -> Setting:
    """The setting of the folder to resume. Raises SettingError for an option that says otherwise,
    RunError where there is none."""
    conform(options)
    for each in fields(options):
        if each.name not in ("resume", "data", "minutes", "allow_changed") and getattr(options, each.name) != each.default:
            raise SettingError(f"resume keeps the items and options of its folder. Leave out {each.name}, or start anew.")
    path = folder / FILE
    if not files.exists(path):
        raise RunError(f"{folder} holds no {FILE}, so it is no reproduction. Give the folder that `dualprop reproduce` named.")
    return documents.read(path, Setting.from_plain, "Restore it, or begin anew.")
