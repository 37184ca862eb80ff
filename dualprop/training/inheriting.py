"""Weights of another run, which training starts from: `train --from RUN`.

They are its best ones. Each seed starts from that seed's, or all of them from those of a run of one
seed. What the other run knows beside its weights, the optimizer's and the rule's state, is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from dualprop.data import Splits
from dualprop.errors import RunError, SettingError
from dualprop.training import documents, files, folders, weights
from dualprop.training.recipe import Recipe

_FEEDBACK = ".feedback_weight"


def folder_of(run: Path, seed: int) -> Path:
    """The folder of the seed whose weights a seed starts from: of a run, or that folder itself.

    Raises RunError where there is none, or it is not clear which.
    """
    if files.exists(weights.best_path(run)):
        return run
    same = folders.inside(run, f"seed-{seed}")
    if files.exists(weights.best_path(same)):
        return same
    others = sorted(path.parent for path in run.glob("seed-*/best.safetensors"))
    if len(others) == 1:
        return folders.inside(run, others[0].name)
    if others:
        raise RunError(f"{run} has no weights of seed {seed} to start from. Give those of one seed: --from {others[0]}.")
    raise RunError(f"{run} holds no weights to start from. Give the folder of a run, or of one of its seeds.")


def inherit(models: Sequence[nn.Module], recipe: Recipe, seed: int) -> Path:
    """Give the models the weights that this seed of the recipe starts from; returns the file.

    Feedback weights that only one of the two has stay as they are drawn. Raises RunError and
    CheckpointError where there are no weights, SettingError where they don't fit.
    """
    folder = folder_of(Path(recipe.start_from), seed)
    path, given = weights.best_path(folder), weights.read_best(folder, None).under("model")
    for model in models:
        own = model.state_dict()
        for told in _misfits(own, given):
            raise SettingError(
                f"the weights of {folder} don't fit the model of {recipe.name}: {told}. Give the same model and data, or "
                "another run."
            )
        model.load_state_dict({**own, **{name: tensor for name, tensor in given.items() if name in own}})
    return path


def remarks(recipe: Recipe, seed: int, path: Path, splits: Splits) -> Iterator[str]:
    """What is to be known of a result that started from these weights."""
    best = weights.read_best(path.parent, None)
    yield f"it started from the weights of {path.parent}, of its epoch {documents.quoted(best.about.get('epoch'))}"
    before = weights.description(best, path)
    if before is None:
        return
    now = splits.description
    if before.task.names != now.task.names:
        yield "the outputs that it started from were of classes, targets or labels of other names"
    if before.mean.shape != now.mean.shape or bool((before.mean != now.mean).any() or (before.std != now.std).any()):
        yield "the weights that it started from were trained on inputs of another mean and std"
    if path.parent.name != f"seed-{seed}" and recipe.select == "best":
        yield (
            "some of its validation examples may have trained the weights that it started from, those of another seed: the "
            "validation accuracy is too high then, the test accuracy is not"
        )


def _misfits(own: dict[str, Tensor], given: dict[str, Tensor]) -> Iterator[str]:
    """What keeps the weights from fitting."""
    for name in own:
        if name not in given and not name.endswith(_FEEDBACK):
            yield f"they lack {name}"
    for name, tensor in given.items():
        if name not in own and not name.endswith(_FEEDBACK):
            yield f"the model has no {name}"
        elif name in own and own[name].shape != tensor.shape:
            yield f"{name} is {tuple(tensor.shape)} there and {tuple(own[name].shape)} here"
