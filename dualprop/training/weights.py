"""A seed's model: with its initial weights, and with its best ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dualprop.data import Splits
from dualprop.errors import CheckpointError
from dualprop.models import Whitening
from dualprop.training import checkpoint, execution, files
from dualprop.training.recipe import Recipe

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
    path = folder / "best.safetensors"
    if not files.exists(path):
        raise CheckpointError(
            f"{folder} holds no weights: there is no {path.name}, which published results leave out. Give a run that has one."
        )
    checkpoint.restore_model(model, checkpoint.read(path, belongs_to(recipe, seed), "best"), path)


def belongs_to(recipe: Recipe, seed: int) -> str:
    """What is written into a checkpoint and a result, by which they know their run."""
    return f"{recipe.digest()} seed {seed}"
