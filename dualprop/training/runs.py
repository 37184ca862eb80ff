"""Run folders: what is in them, and training all seeds of one.

RUN/recipe.json        the resolved recipe and the seeds, written before the first step
RUN/environment.json   each start: versions, commit, hardware, the data's digest, and where it began
RUN/seed-S/            metrics.jsonl, timing.jsonl, last and best checkpoint, result.json at the end
RUN/results.json       test accuracy over the seeds
RUN/figures/           training curves, angles to back-propagation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from dualprop import data, memory, settings
from dualprop.errors import DataError, RunError, SettingError
from dualprop.network import Network
from dualprop.rules import nudging
from dualprop.system.allocation import keep_freed_memory
from dualprop.training import documents, execution, files, folders, inheriting, optimization, readings, weights
from dualprop.training import recipe as recipes
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.documents import Misfit
from dualprop.training.recipe import Recipe
from dualprop.training.records import Epoch, Result, RunFile
from dualprop.training.reporting import Reporter
from dualprop.training.starts import Starts
from dualprop.training.step import drawing
from dualprop.training.trainer import train_seeds


@dataclass(frozen=True)
class Run:
    """A run folder with its recipe and seeds.

    `epochs_before` are the numbers of epochs before each time that it was extended.
    `is_current` says that the recipe is written as this version writes it. What an earlier version
    trained is of another digest, and known by its seed alone.
    """

    folder: Path
    recipe: Recipe
    seeds: tuple[int, ...]
    is_current: bool = True
    epochs_before: tuple[int, ...] = ()

    def seed_folder(self, seed: int) -> Path:
        """Where it is, or will be. Raises RunError where a link or a file is in its place."""
        return folders.inside(self.folder, f"seed-{seed}")

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint or a result of any seed."""
        names = ("last.safetensors", "result.json")
        return any(files.exists(self.seed_folder(seed) / name) for seed in self.seeds for name in names)

    def metrics(self, seed: int) -> list[Epoch]:
        """One for each epoch, the first before training. Raises RunError where they are damaged or
        not this seed's."""
        return readings.metrics(self.seed_folder(seed), self._result(seed))

    def results(self) -> list[Result]:
        """The results of the seeds that are finished. Raises RunError where one is damaged or not
        this run's."""
        return [result for seed in self.seeds if (result := self._result(seed)) is not None]

    def best(self, seed: int) -> Checkpoint:
        """The weights that were best on the validation part so far. Raises CheckpointError where
        there are none, or they are damaged or not this run's."""
        return weights.read_best(self.seed_folder(seed), self._owners(seed))

    def _owners(self, seed: int) -> list[str] | None:
        return weights.owners(self.recipe, seed, self.epochs_before) if self.is_current else None

    def _result(self, seed: int) -> Result | None:
        return readings.result(self.seed_folder(seed), seed, self._owners(seed))


def create(folder: Path, recipe: Recipe, seeds: tuple[int, ...]) -> Run:
    """A new run folder. Raises RunError where it exists already or another process has it; nothing
    in it is touched."""
    settings.number(getattr(recipe.rule, "beta", 1.0))
    with folders.claimed(folder):
        files.write_json(folder / "recipe.json", {"recipe": recipe.to_plain(), "seeds": list(seeds)})
    return Run(folder, recipe, seeds)


def extended(run: Run, epochs: int) -> Run:
    """The run over so many epochs, more than before; its seeds go on from their last checkpoints.

    Raises RunError where it is of an earlier version, and SettingError where it has more epochs.
    """
    if epochs == run.recipe.epochs:
        return run
    if epochs < run.recipe.epochs:
        raise SettingError(f"{run.folder} is of {run.recipe.epochs} epochs, and --epochs extends it. Give more than these.")
    if not run.is_current:
        raise RunError(f"{run.folder} is of an earlier version, whose recipe was another. Train anew --from {run.folder}.")
    before = (*run.epochs_before, run.recipe.epochs)
    recipe = replace(run.recipe, epochs=epochs)
    plain = {"recipe": recipe.to_plain(), "seeds": list(run.seeds), "epochs_before": list(before)}
    files.write_json(run.folder / "recipe.json", plain)
    return Run(run.folder, recipe, run.seeds, epochs_before=before)


def load(folder: Path) -> Run:
    """An existing run folder. Raises RunError where it is none."""
    path = folder / "recipe.json"
    if not files.exists(path):
        if not folder.is_dir():
            raise RunError(f"{folder} holds no recipe.json, so it is no run folder: it does not exist. Give one that does.")
        within = sorted(str(path.parent) for path in folder.glob("*/recipe.json"))
        remedy = f"Give one of its runs: {', '.join(within)}" if within else "Give the folder that `dualprop train` named"
        raise RunError(f"{folder} holds no recipe.json, so it is no run folder. {remedy}.")
    return documents.read(path, partial(_from_plain, folder), "Restore it, or train anew.")


def _from_plain(folder: Path, plain: Any) -> Run:
    file = RunFile.from_plain(plain)
    recipe = recipes.read(file.recipe, "recipe")
    is_current = recipe.to_plain() == file.recipe
    return Run(folder, recipe, different(file.seeds), is_current, file.epochs_before)


def different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds. Raises Misfit where one is there twice."""
    if len(set(seeds)) != len(seeds):
        raise Misfit(f"seeds must be different, got {documents.quoted(list(seeds))}")
    return seeds


def train(
    run: Run,
    data_root: Path | None = None,
    reporter: Reporter | None = None,
    *,
    seeds: Sequence[int] | None = None,
    allow_changed: bool = False,
    beside: Sequence[Run] = (),
) -> dict[str, Any]:
    """Train every seed that is not finished, each from its last checkpoint; write results.json and
    return it. `seeds` are those of the run to train now, by default all: a stack keeps the places
    of the others empty.

    A run that can't end as the uninterrupted one does, since its data, code or machine changed (see
    `conditions`), is refused unless `allow_changed`; its results then say so. `beside` are runs
    that it is compared with: it must begin as they did.

    Raises:
        DataError, CheckpointError, RunError, SettingError: with the remedy; what was written before
            stays whole.
    """
    reporter = reporter or Reporter()
    prepare(run.recipe)
    then = f"What was written before is whole: with more memory, continue with --resume {run.folder}."
    what = f"training {run.recipe.name} in batches of {run.recipe.batch_size}"
    is_stacked = execution.resolve(run.recipe, len(run.seeds)).num_stacked
    lower = "Take a smaller batch or model, or stack_seeds='off'." if is_stacked else "Take a smaller batch or model."
    with folders.held(run.folder), memory.asking(what, lower, then):
        folders.remove_leftovers(run.folder)
        starts = Starts(
            run.folder, run.recipe, num_seeds=len(run.seeds), advisor=run.seeds[0], is_begun=run.is_begun,
            allow_changed=allow_changed, beside=[each.folder for each in beside], tell=reporter.changed,
            epochs_before=run.epochs_before,
        )  # fmt: skip
        load = partial(load_data, run.recipe, data_root=data_root)
        wanted = run.seeds if seeds is None else seeds
        train_seeds(run.recipe, run.seeds, wanted, load, run.seed_folder, reporter, starts)
        results = summary(run.results())
        files.write_json(run.folder / "results.json", results)
    return results


def existing(folder: Path, recipe: Recipe, seeds: tuple[int, ...], epochs_before: Sequence[int] = ()) -> Run | None:
    """The run of this recipe in that folder, or over one of the numbers of epochs before; None
    where there is none yet. Raises RunError where another recipe's is."""
    if not files.exists(folder / "recipe.json"):
        return None
    run = load(folder)
    recipes = (recipe, *(replace(recipe, epochs=epochs) for epochs in epochs_before))
    if run.seeds != seeds or run.recipe.digest() not in [each.digest() for each in recipes]:
        raise RunError(f"{folder} holds a run of other settings or seeds. Choose another folder, or remove it.")
    return run


def finished(folder: Path, recipe: Recipe, seeds: tuple[int, ...], data_root: Path | None = None) -> Run:
    """The finished run of this recipe in that folder: trained, or continued, if it is not there.
    Raises RunError where another recipe's is, and what `train` raises."""
    run = existing(folder, recipe, seeds) or create(folder, recipe, seeds)
    train(run, data_root)
    return run


def load_data(recipe: Recipe, seed: int, data_root: Path | None = None) -> data.Splits:
    """The recipe's data on its device, divided by the seed. Raises DataError where a batch does not
    fit into it."""
    with memory.asking(f"the data set {recipe.dataset}", "Store fewer examples or smaller ones, or take another device."):
        splits = data.load(
            recipe.dataset,
            root=data_root,
            validation_fraction=recipe.validation_fraction,
            seed=seed,
            device=recipe.device,
            residency=recipe.residency,
            border=recipe.border,
            train_examples=recipe.train_examples,
            reading=recipe.reading,
        )
    if len(splits.train) < recipe.batch_size:
        raise DataError(
            f"{recipe.dataset} leaves {len(splits.train)} training examples, fewer than a batch of {recipe.batch_size}. "
            "Lower batch_size."
        )
    return splits


def chosen(recipe: Recipe, splits: data.Splits, seed: int) -> Recipe:
    """The recipe with a number in place of beta="auto": by the weights that the seed begins with,
    on training examples from all over. Raises SettingError where it can't be chosen so."""
    if getattr(recipe.rule, "beta", None) != "auto":
        return recipe
    first: Any = replace(recipe.rule, beta=nudging.candidates(recipe.rule)[0])  # type: ignore[call-arg]
    check_fit(replace(recipe, rule=first), splits)
    how = execution.resolve(recipe)
    model = weights.initial_model(recipe, seed, splits)
    if recipe.start_from:
        inheriting.inherit([model], recipe, seed)
    number = len(splits.train)
    size = min(nudging.EXAMPLES, number)
    spread = torch.arange(size) * number // size
    x, y = splits.train.batch(spread, how.inputs, channels_last=how.channels_last)
    with how.computing(), drawing(recipe, seed, 0):
        choice = nudging.choose(recipe.weighted(splits.task).rule, Network.from_module(model), x, y)
    rule: Any = replace(recipe.rule, beta=choice.rule.beta)  # type: ignore[call-arg]
    return replace(recipe, rule=rule, chosen=choice.told)


def check_fit(recipe: Recipe, splits: data.Splits) -> None:
    """Take one step on one batch, on a model that is thrown away: what does not fit together is
    found before a folder is made.

    Raises SettingError or UnsupportedModuleError.
    """
    recipe.check_task(splits.task)
    recipe = recipe.weighted(splits.task)
    recipe.augmentation.check(splits.input_shape)
    if recipe.views != "none" and len(splits.input_shape) != 3:
        raise SettingError(f"only images have views, not vectors {splits.input_shape}; leave out views.")
    how = execution.resolve(recipe)
    model = how.place(recipe.build(splits.input_shape, splits.num_classes))
    optimization.build(recipe.optimizer, model)
    x, y = splits.train.batch(torch.arange(min(2, len(splits.train))), how.inputs, channels_last=how.channels_last)
    with how.computing():
        recipe.rule.gradients(Network.from_module(model), x, y, generator=torch.Generator().manual_seed(0))


def check_start(recipe: Recipe, splits: data.Splits, seeds: tuple[int, ...]) -> None:
    """See that every seed has the weights that it is to start from, if it is to start from some.
    Raises what `inheriting.inherit` does."""
    for seed in seeds if recipe.start_from else ():
        inheriting.inherit([recipe.build(splits.input_shape, splits.num_classes)], recipe, seed)


def prepare(recipe: Recipe) -> None:
    """Set what is the process's own: threads, memory, and the treatment of subnormal numbers.

    Raises SettingError where the device can't be used.
    """
    keep_freed_memory()
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    torch.set_flush_denormal(recipe.flush_subnormals)
    execution.set_products(recipe)

    def tell(reason: str) -> SettingError:
        return SettingError(f"device '{recipe.device}' can't be used: {reason}. Try --device cpu.")

    with memory.told_as(tell, RuntimeError, AssertionError, NotImplementedError):
        torch.zeros(1, device=recipe.device).item()


def summary(results: list[Result]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for one seed) of each test score, that over views
    too where there are some, beside each seed's result."""
    names = [name for name in Result.__struct_fields__ if name.startswith("test_") and name not in _APART]
    shown = {name: [value for result in results if (value := getattr(result, name)) is not None] for name in names}
    plain = {key: value for name, values in shown.items() if values for key, value in _over_seeds(name, values).items()}
    of_views = [result.test_accuracy_over_views for result in results if result.test_accuracy_over_views is not None]
    return {
        **plain,
        **(_over_seeds("test_accuracy_over_views", of_views) if of_views else {}),
        "num_seeds": len(results),
        "seeds": [result.to_plain() for result in results],
    }


# Summed up where there are views, or with the accuracy.
_APART = ("test_accuracy_over_views", "test_loss", "test_top5_accuracy")


def _over_seeds(name: str, values: list[float]) -> dict[str, float | None]:
    return {f"{name}_mean": mean(values), f"{name}_std": stdev(values) if len(values) > 1 else None}
