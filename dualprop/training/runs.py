"""Run folders: what is in them, and training all seeds of one.

RUN/recipe.json        the resolved recipe and the seeds, written before the first step
RUN/environment.json   each start: versions, commit, hardware, the data's digest, and where it began
RUN/seed-S/            metrics.jsonl, timing.jsonl, last and best checkpoint, result.json at the end
RUN/results.json       test accuracy over the seeds
RUN/figures/           training curves, angles to back-propagation
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from dualprop import data
from dualprop.errors import DataError, RunError, SettingError
from dualprop.network import Network
from dualprop.training import execution, files, optimization
from dualprop.training.recipe import Recipe
from dualprop.training.starts import Starts
from dualprop.training.trainer import Reporter, train_seed


@dataclass(frozen=True)
class Run:
    """A run folder with its recipe and seeds."""

    folder: Path
    recipe: Recipe
    seeds: tuple[int, ...]

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint or a result of any seed."""
        names = ("last.safetensors", "result.json")
        return any((self.seed_folder(seed) / name).exists() for seed in self.seeds for name in names)

    def metrics(self, seed: int) -> list[dict[str, Any]]:
        """One dictionary per epoch, the first before training."""
        return files.read_lines(self.seed_folder(seed) / "metrics.jsonl")

    def results(self) -> list[dict[str, Any]]:
        """The results of the seeds that are finished."""
        paths = [self.seed_folder(seed) / "result.json" for seed in self.seeds]
        return [files.read_json(path) for path in paths if path.exists()]


def create(folder: Path, recipe: Recipe, seeds: tuple[int, ...]) -> Run:
    """A new run folder. Raises RunError where it exists already; nothing in it is touched."""
    files.claim(folder)
    files.write_json(folder / "recipe.json", {"recipe": recipe.to_plain(), "seeds": list(seeds)})
    return Run(folder, recipe, seeds)


def load(folder: Path) -> Run:
    """An existing run folder. Raises RunError where it is none."""
    path = folder / "recipe.json"
    if not path.is_file():
        within = sorted(str(path.parent) for path in folder.glob("*/recipe.json"))
        remedy = f"Give one of its runs: {', '.join(within)}" if within else "Give the folder that `dualprop train` named"
        raise RunError(f"{folder} holds no recipe.json, so it is no run folder. {remedy}.")
    try:
        plain = json.loads(path.read_text())
        return Run(folder, Recipe.from_plain(plain["recipe"]), seeds_from(plain["seeds"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}. Restore it, or train anew.") from error


def seeds_from(plain: Any) -> tuple[int, ...]:
    """Seeds as they stand in a file. Raises ValueError unless they are different whole numbers of
    at least 0."""
    seeds = tuple(plain)
    if not seeds or len(set(seeds)) != len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"its seeds are {plain}")
    return seeds


def train(
    run: Run,
    data_root: Path | None = None,
    reporter: Reporter | None = None,
    *,
    allow_changed: bool = False,
    beside: Sequence[Run] = (),
) -> dict[str, Any]:
    """Train every seed that is not finished, each from its last checkpoint; write results.json and
    return it.

    A run that can't end as the uninterrupted one does, since its data, code or machine changed (see
    `conditions`), is refused unless `allow_changed`; its results then say so. `beside` are runs
    that it is compared with: it must begin as they did.

    Raises:
        DataError, CheckpointError, RunError, SettingError: with the remedy; what was written before
            stays whole.
    """
    reporter = reporter or Reporter()
    prepare(run.recipe)
    with _locked(run.folder):
        files.remove_leftovers(run.folder)
        starts = Starts(
            run.folder, run.recipe, is_begun=run.is_begun, allow_changed=allow_changed,
            beside=[each.folder for each in beside], tell=reporter.changed,
        )  # fmt: skip
        for seed in run.seeds:
            load = functools.partial(load_data, run.recipe, seed, data_root)
            train_seed(run.recipe, seed, load, run.seed_folder(seed), reporter, starts)
        results = summary(run.results())
        files.write_json(run.folder / "results.json", results)
    return results


def finished(folder: Path, recipe: Recipe, seeds: tuple[int, ...], data_root: Path | None = None) -> Run:
    """The finished run of this recipe in that folder: trained, or continued, if it is not there.
    Raises RunError where another recipe's is, and what `train` raises."""
    run = load(folder) if (folder / "recipe.json").is_file() else create(folder, recipe, seeds)
    if (run.recipe.digest(), run.seeds) != (recipe.digest(), seeds):
        raise RunError(f"{folder} holds a run of other settings or seeds. Choose another folder, or remove it.")
    train(run, data_root)
    return run


def load_data(recipe: Recipe, seed: int, data_root: Path | None = None) -> data.Splits:
    """The recipe's data on its device, divided by the seed. Raises DataError where a batch does not
    fit into it."""
    splits = data.load(
        recipe.dataset,
        root=data_root,
        validation_fraction=recipe.validation_fraction,
        seed=seed,
        device=recipe.device,
        residency=recipe.residency,
        border=recipe.border,
        train_examples=recipe.train_examples,
    )
    if len(splits.train) < recipe.batch_size:
        raise DataError(
            f"{recipe.dataset} leaves {len(splits.train)} training examples, fewer than a batch of {recipe.batch_size}. "
            "Lower batch_size."
        )
    return splits


def check_fit(recipe: Recipe, splits: data.Splits) -> None:
    """Take one step on one batch, on a model that is thrown away: what does not fit together is
    found before a folder is made.

    Raises SettingError or UnsupportedModuleError.
    """
    recipe.augmentation.check(splits.input_shape)
    how = execution.resolve(recipe)
    model = how.place(recipe.build(splits.input_shape, splits.num_classes))
    optimization.build(recipe.optimizer, model)
    x, y = splits.train.batch(torch.arange(min(2, len(splits.train))), how.inputs, channels_last=how.channels_last)
    with how.computing():
        recipe.rule.gradients(Network.from_module(model), x, y, generator=torch.Generator().manual_seed(0))


def prepare(recipe: Recipe) -> None:
    """Set what is the process's own: threads, memory, and the treatment of subnormal numbers.

    Raises SettingError where the device can't be used.
    """
    _keep_freed_memory()
    if recipe.num_threads:
        torch.set_num_threads(recipe.num_threads)
    torch.set_flush_denormal(recipe.flush_subnormals)
    execution.set_products(recipe)
    try:
        torch.zeros(1, device=recipe.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise SettingError(f"device '{recipe.device}' can't be used: {reason}. Try --device cpu.") from error


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next step, where it would return it and
    fault it in page by page.

    A step of the benchmark's conv nets is a fifth faster for it, by every rule. Other C libraries
    are left as they are.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 32 << 20)  # the most that glibc takes
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for one seed) of the test accuracy, beside each
    seed's result."""
    accuracies = [result["test_accuracy"] for result in results]
    return {
        "test_accuracy_mean": mean(accuracies),
        "test_accuracy_std": stdev(accuracies) if len(accuracies) > 1 else None,
        "num_seeds": len(accuracies),
        "seeds": results,
    }


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system releases it when the process ends, however it
    ends."""
    with open(folder / ".lock", "w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{folder} is being trained by another process. Wait for it, or stop it.") from None
        yield
