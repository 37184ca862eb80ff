"""Run folders to attack: made once in a campaign, copied into each trial's sandbox."""

from __future__ import annotations

import functools
import io
import os
import shutil
import signal
from pathlib import Path

import attempts
import numpy
from attempts import Attempt
from moments import Moment
from sandbox import is_root
from trials import Place, Trial

_LONGER = (
    "digits-mlp",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--model.widths",
    "8",
    "--checkpoint-every",
    "5",
    "--num-threads",
    "1",
)
# Twenty steps an epoch: the second seed's, or the second rule's, first epoch, after a checkpoint.
_MIDDLE = Moment("step", 53, signal.SIGKILL)
_RULES = ("--rules", "backprop,dual_propagation", "--no-costs", "--seeds", "1")
MADE_BY: dict[str, tuple[tuple[str, ...], Moment | None]] = {
    "run": (("train", *_LONGER, "--seeds", "2"), None),
    "partial run": (("train", *_LONGER, "--seeds", "2"), _MIDDLE),
    "comparison": (("compare", *_LONGER, *_RULES), None),
    "partial comparison": (("compare", *_LONGER, *_RULES), _MIDDLE),
}


def of(place: Place, name: str) -> Path:
    """The folder of that name, made by an undisturbed command, or by one that was killed."""
    if name not in place.materials:
        folder = place.root / "materials" / name.replace(" ", "-")
        folder.parent.mkdir(exist_ok=True)
        words, moment = MADE_BY[name]
        answer = attempts.make(
            Attempt(
                (*words, "--out", str(folder)), place.root, place.environment(None, place.root), moment=moment, is_fresh=False
            )
        )
        expected = 0 if moment is None else -moment.signal
        if answer.code != expected:
            raise RuntimeError(f"the {name} to attack could not be made: {answer}")
        place.materials[name] = folder
    return place.materials[name]


def put(trial: Trial, name: str, target: Path) -> None:
    """A copy of the folder of that name, which belongs to the trial's user."""
    shutil.copytree(of(trial.place, name), target)
    if trial.user is not None and is_root():
        for folder, folders, files in os.walk(target):
            for path in (folder, *(os.path.join(folder, each) for each in (*folders, *files))):
                os.chown(path, trial.user, trial.user, follow_symlinks=False)


@functools.cache
def _data() -> dict[str, bytes]:
    """Small data sets, good and bad, as .npz files."""
    dice = numpy.random.default_rng(0)
    y = dice.integers(0, 3, 600)
    x = (dice.normal(size=(600, 6)) + y[:, None]).astype("float32")
    sets: dict[str, dict[str, numpy.ndarray]] = {
        "good": {"x_train": x, "y_train": y},
        "unpaired": {"x_train": x, "y_train": y[:-1]},
        "not-finite": {"x_train": numpy.where(x > 2, numpy.nan, x), "y_train": y},
        "immense": {"x_train": x * numpy.float32(1e30), "y_train": y},
        "one-class": {"x_train": x, "y_train": y * 0},
        "labels": {"x_train": x, "y_train": y * 10**12},
        "objects": {"x_train": numpy.array([None, "x"], dtype=object), "y_train": y},
        "scalar": {"x_train": numpy.float32(1), "y_train": numpy.int64(1)},
    }
    contents = {}
    for name, arrays in sets.items():
        file = io.BytesIO()
        numpy.savez(file, **arrays)
        contents[name] = file.getvalue()
    return contents | {"cut": contents["good"][:3000], "text": b"x_train,y_train\n"}


def put_npz(folder: Path) -> None:
    """Files of data to name on the command line."""
    for name, content in _data().items():
        (folder / f"{name}.npz").write_bytes(content)
