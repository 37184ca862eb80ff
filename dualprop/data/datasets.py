"""The data sets by name, and `load`, which brings any of them onto a device as Splits."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dualprop import memory
from dualprop.data import imagenet32, mapped, own, sources
from dualprop.data.own import Reading
from dualprop.data.splits import Arrays, Splits, divide, draw, draw_in_proportion, draw_stratified
from dualprop.data.tasks import Task
from dualprop.errors import DataError, SettingError, closest

# Mean and std of digits' fixed training part, over the largest value, 16.
DIGITS_MEAN, DIGITS_STD = 0.3059, 0.3765
DIGITS_TEST_FRACTION = 0.2
DIGITS_TEST_SEED = 0
# Of own data without a test part.
TEST_SEED = 0


def names() -> dict[str, str]:
    """Each data set's name and what it is, in one line."""
    return {
        "digits": "handwritten digits, 8×8 grey, 1 438 + 359, 10 classes; ships with scikit-learn, needs no download",
        **{name: source.description for name, source in sources.SOURCES.items()},
        "imagenet32": imagenet32.DESCRIPTION,
        "PATH": "your own: a .csv, .tsv or .parquet table, a folder of class folders of images, .npz or .npy arrays, or a "
        "saved dataset of Hugging Face; `dualprop data describe PATH` shows what would be read",
    }


def load(
    name: str,
    *,
    root: Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    mirror: str | None = None,
    residency: Literal["auto", "device", "mapped"] = "auto",
    border: int = 0,
    train_examples: int = 0,
    reading: Reading | None = None,
) -> Splits:
    """The data set `name` (one of `names()`, or the path of own data), divided and on `device`.

    root: the folder with the user's own copies, else $DUALPROP_DATA; raw or .gz files, for CIFAR
    also the .tar.gz, in a
        folder of the data set's name, in torchvision's, or in the root itself. What is not there
        comes from the cache, or is downloaded into it.
    validation_fraction: in (0, 1), of the training set, drawn at random with `seed`. The test set
    is the canonical one
        where there is one, else fixed whatever the seed: a stratified fifth of digits, a sixth of
            own data without one.
    mirror: the URL that replaces the default one, else $DUALPROP_MIRROR; it holds NAME/FILE.gz, or
    FILE.gz (for CIFAR
        the .tar.gz).
    residency: where the images of imagenet32 are kept: all on the `device`, or "mapped", in their
    files, of which each
        batch is read. "auto" is the device if they take at most half of its free memory. Batches
        are the same.
    border: rows and columns of zeros around every image, before normalising (MNIST at 32×32: 2);
    not where images are mapped. train_examples: how many of the training part to keep, drawn with
    `seed`; 0, or more than there are, keeps all. Validation
        and test examples are the same for any number.

    reading: how own data is read.

    Normalisation: the field's constants, for each channel; for own data the statistics of the
    training part, validation excluded. Raises DataError for a data set that is unknown, missing,
    damaged or malformed, SettingError for the other arguments.
    """
    name = os.fspath(name)
    if not 0 < validation_fraction < 1:
        raise SettingError(f"validation_fraction must be in (0, 1), got {validation_fraction}.")
    if train_examples < 0:
        raise SettingError(f"train_examples must be at least 0, got {train_examples}. 0 keeps all.")
    unavailable = SettingError(f"device '{device}' is not available on this machine. Use 'cpu'.")
    with memory.told_as(lambda _: unavailable, RuntimeError, AssertionError, NotImplementedError):
        torch.empty(0, device=device)
    if residency not in ("auto", "device", "mapped"):
        raise SettingError(f"residency must be auto, device or mapped, got '{residency}'.")
    root = None if root is None else Path(root).expanduser()
    if reading is not None and reading != Reading() and not own.is_path(name):
        raise SettingError(f"reading is of own data, and {name} is read as it is. Leave it out.")
    if own.is_path(name):
        arrays = _own(Path(name).expanduser(), reading or Reading())
    elif name == "digits":
        arrays = _digits()
    elif name in sources.SOURCES:
        arrays = _canonical(name, root, mirror)
    elif name == "imagenet32":
        arrays = imagenet32.read(root)
    else:
        names = ["digits", *sources.SOURCES, "imagenet32"]
        hint = closest(name.lower().replace("_", "-"), names)
        raise DataError(
            f"unknown data set '{name}'.{hint} Known are {', '.join(names)}, and the paths of your own data, ./NAME say; "
            "`dualprop list datasets` describes them."
        )
    parts = [x for x in (arrays.x_train, arrays.x_test) if isinstance(x, mapped.MappedImages)]
    if residency == "mapped" and not parts:
        raise SettingError(f"residency 'mapped' is for imagenet32, and {name} is read into memory; leave it out.")
    is_streamed = residency == "mapped" or (
        residency == "auto" and bool(parts) and not mapped.fits(sum(x.num_bytes for x in parts), device)
    )
    return divide(
        arrays,
        name=name,
        validation_fraction=validation_fraction,
        seed=seed,
        device=device,
        leave_mapped=is_streamed,
        border=border,
        train_examples=train_examples,
    )


def _own(path: Path, reading: Reading) -> Arrays:
    read = own.read(path, reading)
    kept = {"task": read.task, "stratify": reading.stratify, "inputs": read.inputs, "remarks": read.remarks}
    if read.test is not None:
        return Arrays(read.x, read.y, *read.test, **kept)  # type: ignore[arg-type]
    if reading.stratify and read.task.kind == "classification":
        train, test = draw_in_proportion(read.y, reading.test_fraction, TEST_SEED, str(path))
    else:
        train, test = draw(len(read.y), reading.test_fraction, TEST_SEED, str(path))
    return Arrays(read.x[train], read.y[train], read.x[test], read.y[test], **kept)  # type: ignore[arg-type]


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images.astype(np.uint8)[:, None], digits.target  # whole numbers from 0 to 16
    train, test = draw_stratified(y, DIGITS_TEST_FRACTION, DIGITS_TEST_SEED)
    mean, std = (16 * DIGITS_MEAN,), (16 * DIGITS_STD,)
    return Arrays(x[train], y[train], x[test], y[test], mean=mean, std=std, white=16.0)


def _canonical(name: str, root: Path | None, mirror: str | None) -> Arrays:
    source = sources.SOURCES[name]
    parts = source.parse(name, sources.contents(name, root=root, mirror=mirror))
    mean, std = (tuple(255 * value for value in constants) for constants in (source.mean, source.std))
    # Files with a part of the classes are of other ones: those have numbers.
    is_whole = int(max(parts[1].max(), parts[3].max())) + 1 == len(source.classes)
    task = Task("classification", source.classes) if is_whole else None
    return Arrays(*parts, mean=mean, std=std, task=task)
