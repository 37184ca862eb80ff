"""The table of the loader: how fast batches come, augmented and from files, beside a training step.

A loader that is twenty times as fast as the step costs it at most a twentieth, and less where it
reads ahead.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dualprop.bench import contenders, models
from dualprop.bench.options import BenchOptions, Group, Keep, Measure
from dualprop.bench.showing import new_table
from dualprop.data import Augmentation, Examples, batches
from dualprop.data.mapped import MappedFiles, MappedImages, PlacedFile
from dualprop.errors import SettingError

READS = {"models"}
SHAPE = (3, 32, 32)
WARMUP = 5


@dataclass(frozen=True)
class Case:
    """One way of making batches of images of CIFAR's and ImageNet32's shape."""

    label: str
    augmentation: Augmentation = Augmentation()
    channels_last: bool = False
    dtype: str = "float32"
    is_mapped: bool = False


VARIED = Augmentation(pad=4, flip=True)
CASES = (
    Case("normalised"),
    Case("cropped and flipped", VARIED),
    Case("cropped and flipped, channels last", VARIED, channels_last=True),
    Case("cropped and flipped, bfloat16", VARIED, dtype="bfloat16"),
    Case("cropped and flipped, from files", VARIED, is_mapped=True),
)


def prepare(options: BenchOptions) -> Measure:
    """Check the options that this table reads: models, rounds, batch size, threads, device.

    Of the models it takes the first that reads images of the loader's shape.
    """
    names = models.parse_models(options.models)
    name = next((name for name in names if models.MODELS[name].input_shape == SHAPE), None)
    if name is None:
        raise SettingError(f"none of the models {options.models} reads images, which the loader makes. Try --models conv.")

    def measure_groups(keep: Keep) -> Iterator[Group]:
        base = models.recipe_by(options, name)
        plain = contenders.yardsticks(base)[0].step(SHAPE, models.NUM_CLASSES)
        rows = measure(batch_size=options.batch_size, rounds=options.rounds, device=options.device, step=plain)
        groups: list[Group] = [{"model": name, "rows": rows}]
        keep(groups)
        yield groups[0]

    return measure_groups


def show_group(group: Group, results: dict[str, Any], console: Console) -> None:
    """The table."""
    batch_size, rounds = results["options"]["batch_size"], results["options"]["rounds"]
    title = f"batches of {batch_size} images, {rounds} of each, beside a plain step of {group['model']}"
    table = new_table(title, "images", ("ms a batch", "examples/s", "batches a step"), is_tight=False)
    for row in group["rows"]:
        cells = f"{row['milliseconds']:.3g}", f"{row['examples_per_second']:,.0f}", f"{row['times_the_step']:.1f}"
        table.add_row(row["label"], *cells)
    console.print(table)


def show_end(results: dict[str, Any], console: Console) -> None:
    """Nothing stands below it."""


def measure(
    *,
    batch_size: int = 100,
    rounds: int = 200,
    num_images: int = 20_000,
    device: str = "cpu",
    cases: tuple[Case, ...] = CASES,
    step: Callable[[], object] | None = None,
    step_rounds: int = 5,
) -> list[dict[str, Any]]:
    """One row per case: label, milliseconds a batch (median of `rounds`), examples_per_second over
    all of them, and times_the_step, how often a batch is made during one `step` (None without one).

    Images are random bytes; those from files lie in a temporary one, in the system's cache.
    batch_size: also the step's.
    """
    step_seconds = None if step is None else median(_seconds(step, step_rounds, warmup=1, device=device))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            epochs = _endless(_examples(case, num_images, device, Path(folder)), case, batch_size)
            times = _seconds(lambda epochs=epochs: next(epochs), rounds, WARMUP, device)  # type: ignore[misc]
            epochs.close()
            seconds = sum(times) / rounds
            rows.append(
                {
                    "label": case.label,
                    "milliseconds": 1e3 * median(times),
                    "examples_per_second": batch_size / seconds,
                    "times_the_step": None if step_seconds is None else step_seconds / seconds,
                }
            )
    return rows


def _examples(case: Case, num_images: int, device: str, folder: Path) -> Examples:
    generator = torch.Generator().manual_seed(0)
    x: Tensor | MappedImages = torch.randint(0, 256, (num_images, *SHAPE), dtype=torch.uint8, generator=generator)
    y = torch.randint(10, (num_images,), generator=generator)
    if case.is_mapped:
        path = folder / "images"
        assert isinstance(x, Tensor)
        path.write_bytes(x.numpy().tobytes())
        x = MappedImages(MappedFiles([(PlacedFile(path), 0, num_images)], math.prod(SHAPE)), SHAPE)
    else:
        x, y = x.to(device), y.to(device)
    return Examples(x, y, torch.full((3, 1, 1), 120.0, device=device), torch.full((3, 1, 1), 60.0, device=device))


def _endless(examples: Examples, case: Case, batch_size: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from batches(
            examples,
            batch_size,
            dtype=getattr(torch, case.dtype),
            generator=generator,
            drop_last=True,
            augmentation=case.augmentation,
            channels_last=case.channels_last,
        )


def _seconds(work: Callable[[], object], rounds: int, warmup: int, device: str) -> list[float]:
    times = []
    for i in range(warmup + rounds):
        began = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        if i >= warmup:
            times.append(time.perf_counter() - began)
    return times
