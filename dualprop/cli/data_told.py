"""What is said of the data that is trained on: its parts and its task, and what is to be known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod

from dualprop.data import Splits, own

# Below so many examples, one is a point of accuracy or more.
FEW = 100


def lines(splits: Splits) -> Iterator[str]:
    """What own data was read as."""
    shape = splits.input_shape
    what = f"{shape[0]} numbers" if len(shape) == 1 else f"images of {shape[2]}×{shape[1]}, {_channels(shape[0])}"
    sizes = f"{len(splits.train)} training, {len(splits.validation)} validation and {len(splits.test)} test examples"
    yield f"data: {splits.description.title}, {sizes}, {what if prod(shape) > 1 else 'a number'} each → {splits.task}"


def of_one_name(dataset: str) -> Iterator[str]:
    """That a data set that comes with the library is read, and not what lies here by its name."""
    if not own.is_path(dataset) and os.path.exists(dataset):
        yield f"data: {dataset} is the data set of that name; what lies here is ./{dataset}"


def remarks(splits: Splits, selects_best: bool) -> Iterator[str]:
    """What is to be known of it."""
    yield from (f"data: {remark}" for remark in splits.remarks)
    if splits.task.imbalance:
        yield (
            f"data: the largest class has {splits.task.imbalance:.1f} times the examples of the smallest. Look at the balanced "
            "accuracy; --class-weights balanced gives each class the same weight"
        )
    if selects_best:
        yield from too_few(len(splits.validation), splits.task.headline)


def too_few(num_validation: int, headline: str) -> Iterator[str]:
    """That a validation part is too small to choose an epoch by this score, if it is."""
    if num_validation < FEW:
        each = f", of which one is {100 / num_validation:.1f} points," if headline == "accuracy" else ""
        yield (
            f"validation: {num_validation} example{'s' if num_validation > 1 else ''}{each} are too few to "
            "choose an epoch by. Ties go to the lower loss; --select last or a larger --validation-fraction avoids it."
        )


def _channels(number: int) -> str:
    return {1: "grey", 3: "colours"}.get(number, f"{number} channels")
