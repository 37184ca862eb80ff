"""A seed's model: with its initial weights, and with its best ones, beside which lies what its
inputs and outputs are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.data import Description, Splits, Task
from dualprop.data.own.columns import Feature
from dualprop.data.own.inputs import Inputs
from dualprop.errors import CheckpointError, DataError
from dualprop.models import Whitening
from dualprop.training import checkpoint, documents, execution, files
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.recipe import Recipe
from dualprop.training.records import Described, Record

# Images that a whitening is fitted to.
WHITENED = 5000


def initial_model(recipe: Recipe, seed: int, splits: Splits) -> nn.Module:
    """The recipe's model with weights drawn by the seed, in its place; what whitens is fitted to
    the first training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(splits.input_shape, splits.num_classes)
    how = execution.resolve(recipe)
    model = how.place(model)
    for module in model.modules():
        if isinstance(module, Whitening):
            first = torch.arange(min(WHITENED, len(splits.train)))
            module.fit(splits.train.batch(first, how.parameters)[0])
    return model


def restore_best(model: nn.Module, recipe: Recipe, seed: int, folder: Path) -> None:
    """Give the model, on any device, the weights in `folder` that were best on the validation part
    so far (at the start, the initial ones). Raises CheckpointError where there are none."""
    checkpoint.restore_model(model, read_best(folder, [belongs_to(recipe, seed)]), best_path(folder))


def read_best(folder: Path, owners: Sequence[str] | None) -> Checkpoint:
    """The checkpoint of the best weights in a seed's folder; None where its owners are not known.
    Raises CheckpointError where there is none, or another's."""
    path = best_path(folder)
    if not files.exists(path):
        raise CheckpointError(
            f"{folder} holds no weights: there is no {path.name}, which published results leave out. Give a run that has one."
        )
    return checkpoint.read(path, owners, "best")


def best_path(folder: Path) -> Path:
    """Where they are."""
    return folder / "best.safetensors"


def described(description: Description) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint's header and tensors hold of the data, see `Description`."""
    return description.to_plain(), {"data.mean": description.mean, "data.std": description.std}


def description(best: Checkpoint, path: Path) -> Description | None:
    """The inverse, of a checkpoint that was read from there. None where it is of an earlier version
    and holds none. Raises CheckpointError where it does not fit together."""
    if "data" not in best.about:
        return None
    try:
        read = Described.from_plain(best.about["data"], "data.")
        features = tuple(Feature(each.column, each.words) for each in read.inputs.features)
        return Description(
            **{
                **_fields(read),
                "task": Task(**_fields(read.task)),
                "inputs": Inputs(**{**_fields(read.inputs), "features": features}),
                "mean": best.tensors["data.mean"],
                "std": best.tensors["data.std"],
            }
        )
    except (documents.Misfit, DataError, LookupError) as error:
        said = f"it holds no {error}" if isinstance(error, LookupError) else str(error).rstrip(".")
        raise CheckpointError(f"checkpoint {path} does not say what its inputs are: {said}. Restore it from a copy.") from error


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def belongs_to(recipe: Recipe, seed: int) -> str:
    """What is written into a checkpoint and a result, by which they know their run."""
    return f"{recipe.digest()} seed {seed}"


def owners(recipe: Recipe, seed: int, epochs_before: Sequence[int]) -> list[str]:
    """The same of a run that was extended: as it is, then as it was over each number of epochs
    before."""
    return [belongs_to(each, seed) for each in (recipe, *(dataclasses.replace(recipe, epochs=n) for n in epochs_before))]
