"""What the files of a run hold, as the types that they are read into (see `documents`).

Runs of earlier versions lack what has a default here. Numbers that were not finite are None.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from msgspec import Meta, Struct, to_builtins

from dualprop.training.documents import convert, field

Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Ratio = Annotated[float, Meta(gt=0)]
Number = float | None
Numbers = Number | tuple[Number, ...]


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value whose fields are those of a JSON object; others are refused."""

    @classmethod
    def from_plain(cls, plain: Any, where: str = "") -> Self:
        """From the object. Raises Misfit, in which the paths of fields follow `where`."""
        return convert(plain, cls, where)

    def to_plain(self) -> dict[str, Any]:
        """The object."""
        plain: dict[str, Any] = to_builtins(self)
        return plain


# torch takes seeds up to 2⁶⁴-1, of which a float and so any reader of JSON holds these exactly.
Seeds = Annotated[tuple[Annotated[int, Meta(ge=0, le=2**53)], ...], Meta(min_length=1)]


# The numbers of epochs before each time that a run was extended.
EpochsBefore = tuple[Annotated[int, Meta(ge=1, le=10**6)], ...]


class RunFile(Record, frozen=True, kw_only=True):
    """recipe.json. The recipe is read by `plain`."""

    recipe: dict[str, Any]
    seeds: Seeds
    epochs_before: EpochsBefore = ()


class ComparisonFile(Record, frozen=True, kw_only=True):
    """comparison.json: recipes by label."""

    rules: Annotated[dict[str, Any], Meta(min_length=1)]
    seeds: Seeds
    costs: bool
    epochs_before: EpochsBefore = ()


class LogsFile(Record, frozen=True, kw_only=True):
    """logs.json: the names of a run's loggers, and what it is known by in their logs."""

    log: tuple[str, ...]
    identity: Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]


class Logged(Record, frozen=True, kw_only=True):
    """Beside a log that can't be asked: how many epochs it has."""

    epochs: Count


# The score that tells tasks apart, and which epochs are chosen by and rules compared in: the first
# of these that there is.
HEADLINES = ("r2", "f1", "accuracy")
WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "r2": "R²",
    "mae": "mean absolute error",
    "f1": "F1",
    "mean_average_precision": "mAP",
}


class Result(Record, frozen=True, kw_only=True, omit_defaults=True):
    """result.json: what a seed came to, tested with the weights of the epoch that was selected.

    Scores are those that the task has, see `scoring`. `test_accuracy` is of the plain prediction,
    `test_accuracy_over_views` of the mean over an image's views (`Recipe.views`), None where there
    are none.
    `imbalance` is by how much the largest class of the training part outnumbers the smallest, where
    that is more than twice.
    `belongs_to` is the recipe's digest and the seed. `stopped` is empty where training went to its
    end. `remarks` say what else is to be known: conditions that changed under way, a loss off its
    scale.
    """

    seed: Count
    test_accuracy: Share | None = None
    test_accuracy_over_views: Share | None = None
    test_loss: float | None
    test_top5_accuracy: Share | None = None
    test_balanced_accuracy: Share | None = None
    test_r2: Number = None
    test_mae: Number = None
    test_f1: Share | None = None
    test_mean_average_precision: Share | None = None
    num_test: Annotated[int, Meta(ge=1)] | None = None
    num_validation: Annotated[int, Meta(ge=1)] | None = None
    imbalance: Annotated[float, Meta(gt=2)] | None = None
    best_epoch: Count
    validation_accuracy: Share | None = None
    validation_r2: Number = None
    validation_f1: Share | None = None
    epochs: Count
    stopped: str
    remarks: tuple[str, ...] = ()
    belongs_to: str = ""

    @property
    def headline(self) -> str:
        """The name of the score that rules are compared in, see `HEADLINES`."""
        return next((name for name in HEADLINES if getattr(self, f"test_{name}") is not None), "accuracy")

    @property
    def score(self) -> float:
        """That score on the test part: 1 where all is right. Of R², which can be anything below, a
        number that was not finite is told as 0."""
        return getattr(self, f"test_{self.headline}") or 0.0


class Layer(Record, frozen=True, kw_only=True):
    """Two gradients of a layer, or its two weights, against each other; the angle in degrees."""

    layer: str
    cosine: float | None
    norm_ratio: float | None
    angle: Annotated[float, Meta(ge=0, le=180)] | None


class Epoch(Record, frozen=True, kw_only=True):
    """A line of metrics.jsonl: how a run stood after an epoch, and before the first.

    Attributes:
        inference: the rule's own statistics on the batch of the alignment.
        advice: what a user was told of the rule's nudge, see `rules.nudging`.
        numbers: of the epoch's last step by name, those of its rule: "drives", "residual", ….
    """

    epoch: Count
    validation_loss: Number
    validation_accuracy: Share | None = None
    validation_top5_accuracy: Share | None = None
    validation_balanced_accuracy: Share | None = None
    validation_r2: Number = None
    validation_mae: Number = None
    validation_f1: Share | None = None
    validation_mean_average_precision: Share | None = None
    learning_rate: Number = None
    train_loss: Number = None
    train_accuracy: Share | None = None
    unsettled: str = ""
    advice: str = ""
    unsettled_steps: Count = 0
    alignment: tuple[Layer, ...] = ()
    weight_alignment: tuple[Layer, ...] = ()
    inference: dict[str, Numbers] = {}
    numbers: dict[str, Numbers] = {}

    @property
    def headline(self) -> str:
        """The name of the score that the run is shown by, see `HEADLINES`."""
        return next((name for name in HEADLINES if getattr(self, f"validation_{name}") is not None), "accuracy")

    @property
    def validation_score(self) -> float | None:
        """That score on the validation part."""
        score: float | None = getattr(self, f"validation_{self.headline}")
        return score

    @classmethod
    def from_plain(cls, plain: Any, where: str = "") -> Self:
        """From a line, in which the rule's numbers stand beside the rest. Raises Misfit."""
        line = convert(plain, dict[str, Any], where)
        named = {name: value for name, value in line.items() if name in cls.__struct_fields__ and name != "numbers"}
        numbers = by_name({name: value for name, value in line.items() if name not in named}, Numbers, where)
        inference = by_name(named.get("inference", {}), Numbers, f"{where}inference.")
        return convert({**named, "inference": inference, "numbers": numbers}, cls, where)


def by_name(plain: Any, kind: Any, where: str) -> dict[str, Any]:
    """An object of any names, each value of this type. Raises Misfit, which names the name."""
    holder = convert(plain, dict[str, Any], where.rstrip("."))
    return {name: convert(value, kind, f"{where}{field(name)}") for name, value in holder.items()}


Name = Annotated[str, Meta(min_length=1, max_length=200)]
Size = Annotated[int, Meta(ge=1, le=10**9)]


class DescribedTask(Record, frozen=True, kw_only=True):
    """See `data.Task`."""

    kind: Literal["classification", "regression", "multilabel"]
    names: Annotated[tuple[Name, ...], Meta(min_length=1)]
    mean: tuple[float, ...] = ()
    std: tuple[Ratio, ...] = ()
    counts: tuple[Count, ...] = ()


class DescribedFeature(Record, frozen=True, kw_only=True):
    """See `data.own.columns.Feature`."""

    column: Name
    words: tuple[str, ...] = ()


class DescribedInputs(Record, frozen=True, kw_only=True):
    """See `data.own.inputs.Inputs`."""

    source: Literal["table", "images", "arrays"]
    features: tuple[DescribedFeature, ...] = ()
    targets: tuple[Name, ...] = ()
    size: Annotated[int, Meta(ge=0, le=1024)] = 0
    fit: Literal["crop", "pad", "stretch"] = "crop"
    colour: Literal["grey", "rgb"] = "rgb"


class Described(Record, frozen=True, kw_only=True):
    """The data of a run, "data" in the header of its best checkpoint: see `data.Description`."""

    title: Name
    task: DescribedTask
    inputs: DescribedInputs
    input_shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=3)]
    border: Annotated[int, Meta(ge=0, le=1024)] = 0
    lowest: float = 0.0
    largest: float = 0.0
    white: Annotated[float, Meta(ge=0)] = 0.0


class Memory(Record, frozen=True, kw_only=True):
    """In MB (10⁶ bytes): of the process, how far its steps raised it, and of their tensors."""

    peak: float
    by_steps: float
    tensors: float


class Cost(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a step takes, in costs.json: a row of the bench, see `bench.rows`.

    Counts are of a rule's step, memory of all but the second plain loop.
    """

    label: str
    rule: str
    engine: str
    is_one_sweep: bool
    milliseconds: Ratio
    least_milliseconds: Ratio
    ratio: Ratio
    lower_quartile: Ratio
    upper_quartile: Ratio
    rounds: Count
    drives: Count | None = None
    feedbacks: Count | None = None
    gradients: Count | None = None
    count_ratio: float | None = None
    memory: Memory | None = None
    memory_ratio: float | None = None
    resident_ratio: float | None = None
