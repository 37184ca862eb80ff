"""Arrays as a source holds them, divided into training, validation and test examples.

The test set never depends on the seed, so that runs with different seeds are compared on the same
examples; the validation set is drawn from the training set with the seed, and the statistics that
normalise, where a source brings none, are those of the rest.
Shapes: N examples, C channels, H×W space, D features, K classes."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from dualprop import memory
from dualprop.data import tasks
from dualprop.data.description import Description, title
from dualprop.data.examples import Examples
from dualprop.data.mapped import MappedImages
from dualprop.data.own.inputs import Inputs
from dualprop.data.tasks import Task
from dualprop.errors import DataError, SettingError
from dualprop.settings import Kind, Pixels


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set ready for training: three parts that share no example, normalised by the same
    constants."""

    name: str
    train: Examples
    validation: Examples
    test: Examples
    num_classes: int
    """Of outputs: classes, numbers or labels."""
    input_shape: tuple[int, ...]
    """Of one example: (C, H, W) or (D,)."""
    description: Description
    """All that prediction needs of it."""
    task: Task
    """What is predicted; targets that are numbers are standardised as it says."""
    inputs: Inputs | None = None
    """How own data was read."""
    remarks: tuple[str, ...] = ()
    """What is to be known of the reading, a line each."""
    digest: str = ""
    """Of what the source holds, see `Arrays.digest`; the same whatever the seed."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a source holds: x (N, C, H, W) or (N, D), uint8 or float32; y (N,) of any integer type,
    or (N, K) float32 where the task says so.

    Images may be mapped, where mean and std are given. Vectors may hold nan where a number is
    missing, else all is finite.
    mean, std: in the units of x, one number or one a channel; None where they are to be taken from
    the training part.
    task: what y means; None where it is classes without names.
    stratify: whether the validation part is to hold each class in its proportion.
    white: a white pixel in the units of x; by default 255 of bytes, 1 of floats in [0, 1].
    """

    x_train: np.ndarray | MappedImages
    y_train: np.ndarray
    x_test: np.ndarray | MappedImages
    y_test: np.ndarray
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    task: Task | None = None
    stratify: bool = False
    inputs: Inputs | None = None
    remarks: tuple[str, ...] = ()
    white: float = 0.0

    def digest(self) -> str:
        """BLAKE2b over all that is trained and tested on: kind, shape and content of the arrays,
        and the constants that normalise them. Of mapped images, which are many GB, the content of
        some in each file; of their labels all."""
        digest = hashlib.blake2b(f"{self.mean} {self.std}".encode(), digest_size=16)
        if self.inputs is not None and self.task is not None and self.inputs.source != "arrays":
            digest.update(f"{self.task.kind} {self.task.names} {self.inputs.names}".encode())
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            content = x.sample() if isinstance(x, MappedImages) else x
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
            for array in (content, y if y.dtype.kind == "f" else y.astype(np.int64)):
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def bordered(x: np.ndarray | MappedImages, border: int, name: str) -> np.ndarray | MappedImages:
    """x with `border` rows and columns of zeros around every image. Raises SettingError where x is
    no images in memory."""
    if border == 0:
        return x
    Kind.of(Pixels).conform("border", border)
    if not isinstance(x, np.ndarray) or x.ndim != 4:
        raise SettingError(f"border is put around images in memory, and those of {name} are none. Use border=0.")
    number, channels, height, width = x.shape
    num_bytes = number * channels * (height + 2 * border) * (width + 2 * border) * x.itemsize
    memory.check(num_bytes, f"a border of {border} around the images of {name}", "Lower border.")
    return np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))


def draw(num_examples: int, fraction: float, seed: int, where: str, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rest, drawn): indices of all other examples and of a random `fraction`; each ascending,
    neither empty. Of the rest a random `most`, if that is fewer; 0 is all.

    `where` names the source in the DataError for less than two examples.
    """
    if num_examples < 2:
        raise DataError(f"{where}: {num_examples} training example can't be divided in two; store more.")
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed)).numpy()
    num_drawn = min(max(round(fraction * num_examples), 1), num_examples - 1)
    rest = order[num_drawn:]
    return np.sort(rest[:most] if most else rest), np.sort(order[:num_drawn])


def draw_stratified(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rest, drawn) as `draw` has it, with the fraction taken of each class."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        order = torch.randperm(len(members), generator=generator).numpy()
        drawn.append(members[order[: round(fraction * len(members))]])
    chosen = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(y)), chosen), chosen


def draw_in_proportion(y: np.ndarray, fraction: float, seed: int, where: str, most: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rest, drawn) as `draw` has it and as many, of each class of y (N,) its share, to within one
    example. A class keeps at least one in the rest."""
    if len(y) < 2:
        raise DataError(f"{where}: {len(y)} training example can't be divided in two; store more.")
    num_drawn = min(max(round(fraction * len(y)), 1), len(y) - 1)
    drawn = _in_proportion(y, num_drawn, seed)
    rest = np.setdiff1d(np.arange(len(y)), drawn)
    if most and most < len(rest):
        rest = rest[_in_proportion(y[rest], most, seed)]
    return rest, drawn


def _in_proportion(y: np.ndarray, num_drawn: int, seed: int) -> np.ndarray:
    """So many indices, ascending; shares are rounded by their largest remainders."""
    generator = torch.Generator().manual_seed(seed)
    labels, counts = np.unique(y, return_counts=True)
    shares = counts * (num_drawn / len(y))
    quotas = np.minimum(np.floor(shares).astype(int), counts - 1)
    # Ties of remainders go to the larger class.
    for k in np.lexsort((-counts, -(shares - np.floor(shares)))):
        quotas[k] += quotas.sum() < num_drawn and quotas[k] < counts[k] - 1
    order = [torch.randperm(int(count), generator=generator).numpy() for count in counts]
    chosen = [np.flatnonzero(y == label)[o[:quota]] for label, o, quota in zip(labels, order, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def count_classes(y_train: np.ndarray, y_test: np.ndarray, where: str) -> int:
    """K = the largest training label + 1, having checked that the labels are classes 0..K-1.

    `where` names the source in DataErrors. A class between may lack examples; class 0 may not, as
    labels from 1 on are more often a mistake, which would give the network an output too many.
    """
    for part, y in (("y_train", y_train), ("y_test", y_test)):
        if y.dtype.kind not in "iu":
            raise DataError(f"{where}: {part} has dtype {y.dtype}; store labels as integers, one class per example.")
        if y.size and y.min() < 0:
            raise DataError(f"{where}: {part} holds the label {y.min()}; number the classes from 0.")
    num_classes = int(y_train.max()) + 1
    if num_classes < 2:
        raise DataError(f"{where}: y_train holds only the class 0; there is nothing to learn from one class.")
    if y_train.min() > 0:
        raise DataError(f"{where}: the labels in y_train begin at {y_train.min()}; number the classes from 0.")
    if num_classes > len(y_train):
        labels = f"the label {num_classes - 1} but only {len(y_train)} examples"
        raise DataError(f"{where}: y_train holds {labels}; number the classes 0, 1, 2, … without gaps.")
    if y_test.max() >= num_classes:
        labels = f"the label {y_test.max()}, but y_train only 0 to {num_classes - 1}"
        raise DataError(f"{where}: y_test holds {labels}; leave out classes that training does not see.")
    return num_classes


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std (population) in float32: per channel (C, 1, 1) of images, per feature (D,) of
    vectors.

    The std of a constant channel or feature is given as 1, which maps it to 0 and not to NaN. What
    is missing (nan) of a feature is left out; of a feature without any number the mean is 0.
    """
    if x.dtype.kind == "f" and bool(np.isnan(x).any()):
        is_there = ~np.isnan(x)
        count = np.maximum(is_there.sum(0), 1)
        filled = np.where(is_there, x, 0).astype(np.float64)
        mean = filled.sum(0) / count
        std = np.sqrt((np.where(is_there, filled - mean, 0) ** 2).sum(0) / count).astype(np.float32)
        return mean.astype(np.float32), np.where(std == 0, np.float32(1), std)
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    count = x.size // x.shape[1]

    # In float64 a thousand examples at a time: a copy of everything would take eight times the
    # bytes of x.
    chunks = [slice(i, i + 1000) for i in range(0, len(x), 1000)]
    total = np.stack([x[chunk].sum(axes, dtype=np.float64) for chunk in chunks]).sum(0)
    mean = (total / count).reshape((-1, 1, 1) if x.ndim == 4 else -1)
    squares = np.stack([((x[chunk] - mean) ** 2).sum(axes) for chunk in chunks]).sum(0)
    std = np.sqrt(squares / count).astype(np.float32).reshape(mean.shape)
    # A float64 sum of equal float32 numbers is exact, so the std of a constant is 0 and not a
    # rounding error.
    return mean.astype(np.float32), np.where(std == 0, np.float32(1), std)


def constants(values: tuple[float, ...], num_channels: int) -> np.ndarray:
    """`values`, one or one a channel, as float32 (C, 1, 1)."""
    return np.broadcast_to(np.array(values, np.float32)[:, None, None], (num_channels, 1, 1)).copy()


def described(arrays: Arrays, name: str, border: int, normal: tuple[np.ndarray, np.ndarray], task: Task) -> Description:
    """All that prediction needs of these arrays, normalised by a mean and a std."""
    x = arrays.x_train
    # Of mapped images, which are many GB, the bytes' own range.
    lowest, largest = (float(np.nanmin(x)), float(np.nanmax(x))) if isinstance(x, np.ndarray) else (0.0, 255.0)
    is_image = x.ndim == 4
    white = 255.0 if x.dtype == np.uint8 else 1.0 if lowest >= 0 and largest <= 1 else 0.0
    return Description(
        title=title(name),
        task=task,
        inputs=arrays.inputs or Inputs("arrays"),
        input_shape=tuple(x.shape[1:]),
        mean=torch.from_numpy(normal[0]),
        std=torch.from_numpy(normal[1]),
        border=border,
        lowest=lowest,
        largest=largest,
        white=(arrays.white or white) if is_image else 0.0,
    )


def divide(
    arrays: Arrays,
    *,
    name: str,
    validation_fraction: float,
    seed: int,
    device: torch.device | str,
    leave_mapped: bool = False,
    border: int = 0,
    train_examples: int = 0,
) -> Splits:
    """Splits on `device`, a seeded `validation_fraction` in (0, 1) of the training set set aside
    for validation, and of the others `train_examples`, if that is fewer and not 0.

    Images get a `border` of zeros, which the statistics do not see. With `leave_mapped` images that
    are in files stay there, and only their batches come onto the device.
    """
    task = arrays.task or tasks.numbered(count_classes(arrays.y_train, arrays.y_test, name))
    digest = arrays.digest()
    if arrays.stratify and task.kind == "classification":
        train, validation = draw_in_proportion(arrays.y_train, validation_fraction, seed, name, train_examples)
    else:
        train, validation = draw(len(arrays.y_train), validation_fraction, seed, name, train_examples)
    task = tasks.fitted(task, arrays.y_train[train])
    x_train = arrays.x_train[train]
    if arrays.mean is None or arrays.std is None:
        assert isinstance(x_train, np.ndarray), "a source of mapped images brings its constants"
        mean, std = statistics(x_train)
    else:
        mean, std = (constants(values, x_train.shape[1]) for values in (arrays.mean, arrays.std))

    def examples(x: np.ndarray | MappedImages, y: np.ndarray) -> Examples:
        x = bordered(x, border, name)
        normal = torch.from_numpy(mean).to(device), torch.from_numpy(std).to(device)
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and bool(np.isnan(x).any()):
            # The mean is 0 once it is standardised.
            x = np.where(np.isnan(x), mean, x)
        labels = torch.from_numpy(task.standardised(y))
        if isinstance(x, MappedImages) and leave_mapped:
            return Examples(x, labels, *normal)
        pixels = x if isinstance(x, MappedImages) else torch.from_numpy(x)
        return Examples(pixels.to(device), labels.to(device), *normal)

    training = examples(x_train, arrays.y_train[train])
    return Splits(
        name=name,
        train=training,
        validation=examples(arrays.x_train[validation], arrays.y_train[validation]),
        test=examples(arrays.x_test, arrays.y_test),
        num_classes=task.num_outputs,
        input_shape=tuple(training.x.shape[1:]),
        task=task,
        inputs=arrays.inputs,
        remarks=arrays.remarks,
        description=described(arrays, name, border, (mean, std), task),
        digest=digest,
    )
