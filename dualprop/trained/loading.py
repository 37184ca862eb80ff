"""The model of a run folder, without the data that it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from dualprop import memory
from dualprop.errors import CheckpointError, DataError, RunError, SettingError
from dualprop.trained.model import Trained
from dualprop.training import checkpoint, files, runs, weights
from dualprop.training.runs import Run


def load(
    run: Path | str, seed: int | None = None, device: torch.device | str = "cpu", data: Path | str | None = None
) -> Trained:
    """The model of a run with the weights that were best on its validation part, ready for new
    examples.

    Runs of earlier versions did not keep what normalises their inputs. It is computed anew from
    their data, which has to be there.

    Args:
        run: the run's folder.
        seed: one of the run's; by default the first that has weights.
        device: where the model is.
        data: for runs of earlier versions, the folder of data sets.

    Raises:
        RunError: it is no run folder, or has no such seed.
        CheckpointError: its weights are missing, damaged, or do not fit.
        DataError: of an earlier run, whose data is not there.
    """
    folder = Path(run)
    return of_run(runs.load(folder), seed, device, None if data is None else Path(data))


def of_run(run: Run, seed: int | None = None, device: torch.device | str = "cpu", data: Path | None = None) -> Trained:
    """The same of a run that is read already."""
    seed = chosen_seed(run, seed)
    path, best = weights.best_path(run.seed_folder(seed)), run.best(seed)
    recipe = run.recipe
    description = weights.description(best, path) or _from_data(run, seed, data)
    # Feedback weights are for learning; but an equilibrium may depend on them.
    is_plain = not recipe.rule.predicts_by_equilibrium
    built = (
        dataclasses.replace(recipe, feedback="exact", device="cpu") if is_plain else dataclasses.replace(recipe, device="cpu")
    )
    with torch.random.fork_rng(devices=[]):
        network = built.build(description.model_shape, description.task.num_outputs)
    if recipe.dtype == "float64":
        network.double()
    if is_plain:
        kept = {name: tensor for name, tensor in best.tensors.items() if not name.endswith(".feedback_weight")}
        best = dataclasses.replace(best, tensors=kept)
    checkpoint.restore_model(network, best, path)
    unavailable = SettingError(f"device '{device}' is not available on this machine. Use 'cpu'.")
    with memory.told_as(lambda _: unavailable, RuntimeError, AssertionError, NotImplementedError):
        return Trained(network, description, recipe).to(device)


def chosen_seed(run: Run, seed: int | None) -> int:
    """The seed that is asked for, else the first that has weights. Raises RunError."""
    if seed is not None and seed not in run.seeds:
        raise RunError(f"{run.folder} has no seed {seed}; it has {', '.join(map(str, run.seeds))}. Give one of these.")
    if seed is not None:
        return seed
    having = [each for each in run.seeds if files.exists(weights.best_path(run.seed_folder(each)))]
    if not having:
        raise CheckpointError(
            f"{run.folder} holds no weights: no best.safetensors of any seed, which published results leave out. Give a run "
            "that has one."
        )
    return having[0]


def _from_data(run: Run, seed: int, data: Path | None) -> weights.Description:
    try:
        return runs.load_data(dataclasses.replace(run.recipe, device="cpu"), seed, data).description
    except DataError as error:
        raise DataError(
            f"{run.folder} is of an earlier version, which did not keep the mean and std of its inputs; they are computed from "
            f"its data, which is not there: {error}"
        ) from error
