"""A recipe: everything that determines a training run but its seed, as one frozen value that is
written beside the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval
from torch import nn

from dualprop import feedback, losses, memory, models, rules
from dualprop.data import Augmentation, Reading, Task
from dualprop.data.tasks import LOSS_OF
from dualprop.errors import RunError, SettingError, closest
from dualprop.kernels import Kernel
from dualprop.models import Architecture
from dualprop.rules import AbstractRule
from dualprop.settings import Count, CountOrNone, Examples, Kind, NumSeeds, Pixels, Positive, Seeds, Threads, conform
from dualprop.training import documents, plain
from dualprop.training.documents import Misfit
from dualprop.training.older_recipes import renewed

# What says how a run is computed, or why, and not what: no part of what a checkpoint belongs to.
_HOW = ("residency", "capture", "stack_seeds", "kernel", "chosen")
# What earlier versions did not know is no part either where it is left as it was.
_LATER = ("reading", "class_weights", "start_from")
# The losses by name that read the targets of a task.
_READS = {
    "classification": (losses.CrossEntropy, losses.SquaredError, losses.LogLoss, losses.BinaryCrossEntropy),
    "regression": (losses.SquaredError,),
    "multilabel": (losses.BinaryCrossEntropy, losses.SquaredError),
}
_NotNegative = Annotated[float, Ge(0)]
_SMALLER = "Lower the widths or channels of the model."


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer and its learning rate over time.

    Attributes:
        name: "adam", "adamw" or "sgd".
        learning_rate: the peak.
        weight_decay: L2 for adam and sgd, decoupled for adamw.
        momentum: of sgd.
        nesterov: of sgd.
        warmup_epochs: the rate rises linearly from `warmup_from` over these.
        warmup_from: the learning rate of the first step, if there is a warm-up.
        cosine: whether the rate then falls along a half cosine, towards `final_learning_rate` after
            the last step.
        cosine_epochs: counted from the first, those after which the cosine has ended and the rate
            stays; 0 for all.
        final_learning_rate: see cosine.
        layer_factors: what multiplies the rate of each module with parameters, from the first to
            the last; empty for 1 each.
        norm_factor: what multiplies the rate of normalisations' parameters. What their weights
            decay by a step stays as it is.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: _NotNegative = 0.0
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    warmup_epochs: _NotNegative = 0.0
    warmup_from: _NotNegative = 0.0
    cosine: bool = False
    cosine_epochs: _NotNegative = 0.0
    final_learning_rate: _NotNegative = 0.0
    layer_factors: tuple[_NotNegative, ...] = ()
    norm_factor: Positive = 1.0

    def __post_init__(self) -> None:
        conform(self)
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise SettingError("nesterov needs name='sgd' with a momentum above 0.")
        if self.warmup_from and not self.warmup_epochs:
            raise SettingError("warmup_from has no meaning without warmup_epochs.")
        if (self.final_learning_rate or self.cosine_epochs) and not self.cosine:
            raise SettingError("final_learning_rate and cosine_epochs have no meaning without cosine.")
        if self.cosine_epochs and self.cosine_epochs <= self.warmup_epochs:
            raise SettingError(f"cosine_epochs must be more than warmup_epochs, got {self.cosine_epochs:g}.")

    @property
    def num_states(self) -> int:
        """How many numbers it keeps for each parameter."""
        return int(self.momentum > 0) if self.name == "sgd" else 2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network, its data, a rule and how it is trained.

    Attributes:
        name: the recipe's name.
        cites: the table or figure that the recipe reproduces.
        published: pairs of a variant's name and its published test accuracy, such as ("dp", "98.43
            ± 0.03").
        dataset: a data set's name, or the path of own data: a table, a folder, arrays.
        reading: how own data is read.
        class_weights: of each example's loss: "none", or "balanced" by its class, N / (K n_k) where
            n_k of N training examples are of it; an epoch is then chosen by the balanced accuracy.
        border: rows and columns of black pixels (zeros, before normalising) around every image,
            training and test alike.
        train_examples: how many of the training part are used, drawn with the seed; 0 for all.
        residency: of the images of imagenet32: all on the "device", or "mapped", in their files;
            "auto" goes by size.
        augmentation: how training images are varied, each time they are shown.
        model: the architecture.
        feedback: the weights that errors come back through: "exact", the forward ones, or those of
            `dp.feedback`.
        rule: the learning rule and its hyperparameters.
        chosen: what beta="auto" chose and why, in words; the rule then has that number.
        start_from: the folder of a run whose best weights training starts from, see `inheriting`;
            empty where the seed draws them.
        optimizer: the optimizer and its learning rate over time.
        batch_size: examples per step; the last, smaller batch of an epoch is left out.
        averaging: of the weights, over about so many steps: what is validated and tested is their
            running mean, a ← a + (w - a) / averaging; 0 for the weights themselves. Of buffers
            (BatchNorm's statistics) too.
        select: the epoch that is tested: the "best" on the validation part, or the "last".
        views: of an image, whose logits are averaged when it is tested, beside the plain
            prediction: "none", "flips" (it and its mirror image), or "flips_and_shifts" (and the
            same shifted by a pixel, down right and up left, at half the weight).
        updates_per_batch: inferences, each followed by an update of the weights, on every batch
            (MS-DP).
        reset_states: whether a rule that starts from previous states starts anew at each batch; if
            not, they persist (L-DP).
        epochs: passes over the training part.
        budget_epochs: those of the `--budget` form; 0 takes a sixteenth of `epochs`, at least one.
        grid: pairs of α and β that a table compares, `--variants grid`.
        validation_fraction: of the training set; see `select`.
        seed_list: seeds of the published runs; a run of n seeds takes the first n, then counts on.
        align: whether to compare the gradients with back-propagation's after each epoch, on one
            batch, and to record the rule's statistics on it (residual, crossed kinks).
        checkpoint_every: steps between checkpoints within an epoch; 0 writes one after each epoch
            alone.
        device: "cpu", "cuda", or another PyTorch device.
        dtype: of the products: "float32", "float64", "bfloat16" (parameters stay float32) or "tf32"
            (on NVIDIA GPUs).
        channels_last: the memory format of images and kernels: "on", "off", or "auto", where the
            machine is faster by it.
        capture: "on" notes a step once and replays it, as a CUDA graph or on the CPU, where it is
            the same bit for bit; "off" does not; "auto" does on GPUs where it can, and on CPUs for
            fully connected networks of narrow layers, by rules whose inference is not measured.
        stack_seeds: "on" has the seeds of a run step together, as one model that holds them all;
            "off" trains one after another. "auto" stacks, on CUDA, MLPs that do not fill the
            device. Of an MLP alone, by a rule that no batch decides for as a whole.
        kernel: of the elementwise work of dyads, see `dualprop.kernels`: "native", "compiled",
            "eager", or "auto", which suits the device.
        num_threads: of the CPU; 0 leaves PyTorch's choice.
        flush_subnormals: treat subnormal numbers as zero, which x86 CPUs are many times faster
            with.
    """

    name: str
    cites: str = ""
    published: tuple[tuple[str, str], ...] = ()
    dataset: str
    reading: Reading = Reading()
    class_weights: Literal["none", "balanced"] = "none"
    border: Pixels = 0
    train_examples: Examples = 0
    residency: Literal["auto", "device", "mapped"] = "auto"
    augmentation: Augmentation = Augmentation()
    model: Architecture
    feedback: Literal["exact", "kolen_pollack", "random", "sign_symmetric"] = "exact"
    rule: AbstractRule
    chosen: str = ""
    start_from: str = ""
    optimizer: Optimizer = Optimizer()
    averaging: Annotated[float, Ge(0)] = 0.0
    select: Literal["best", "last"] = "best"
    views: Literal["none", "flips", "flips_and_shifts"] = "none"
    batch_size: Count = 100
    updates_per_batch: Count = 1
    reset_states: bool = False
    epochs: Count = 100
    budget_epochs: CountOrNone = 0
    grid: tuple[tuple[float, float], ...] = ()
    validation_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    seed_list: Seeds = (0,)
    align: bool = True
    checkpoint_every: Examples = 0
    device: str = "cpu"
    dtype: Literal["float32", "float64", "bfloat16", "tf32"] = "float32"
    channels_last: Literal["auto", "on", "off"] = "auto"
    capture: Literal["auto", "on", "off"] = "auto"
    stack_seeds: Literal["auto", "on", "off"] = "auto"
    kernel: Kernel = "auto"
    num_threads: Threads = 0
    flush_subnormals: bool = True

    def __post_init__(self) -> None:
        conform(self)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise SettingError(
                f"name must be letters, digits, '.', '_' and '-', as a folder is named after it, got '{self.name}'."
            )
        if type(self.rule.loss) not in losses.LOSSES.values():
            raise SettingError(
                f"a recipe is written down and holds its loss by name, {', '.join(losses.LOSSES)}, got {self.rule.loss}. Train "
                "with your own loss in a loop of your own: rule.backward(network, x, y)."
            )
        seeds = self.seed_list
        if not seeds or len(set(seeds)) != len(seeds):
            raise SettingError(f"seed_list must hold different seeds from 0 to 2³²-1, got {seeds}.")
        try:
            torch.device(self.device)
        except RuntimeError:
            raise SettingError(
                f"device must be 'cpu', 'cuda' or another PyTorch device, got {self.device!r}. Try --device cpu."
            ) from None
        if not self.dataset.strip():
            raise SettingError("dataset must be a data set's name or the path of own data, got an empty one.")
        if 0 < self.averaging < 1:
            raise SettingError(f"averaging must be 0 or at least 1 step, got {self.averaging:g}.")
        if not 0 <= self.optimizer.cosine_epochs <= self.epochs:
            raise SettingError(
                f"cosine_epochs must be at most the {self.epochs} epochs, got {self.optimizer.cosine_epochs:g}. "
                "Lower it, or shorten the run by --budget --budget-epochs, which compress it."
            )
        if self.optimizer.warmup_epochs >= self.epochs and self.optimizer.warmup_epochs > 0:
            raise SettingError(
                f"warmup_epochs must be fewer than the {self.epochs} epochs, got {self.optimizer.warmup_epochs:g}. Lower it, "
                "or shorten the run by --budget --budget-epochs, which compress it."
            )

    @property
    def model_name(self) -> str:
        return next(name for name, kind in models.MODELS.items() if kind is type(self.model)).replace("_", "-")

    @property
    def known_depth(self) -> int:
        """L, the layers of the model. Raises SettingError where they are not known beforehand."""
        if self.model.depth is None:
            raise SettingError("this goes by the number of layers, not known beforehand of a model of your own. Compare rules.")
        return self.model.depth

    @property
    def model_title(self) -> str:
        """What a run of it is named after."""
        return self.model.path.stem if isinstance(self.model, models.OwnModel) else self.model_name

    @property
    def rule_name(self) -> str:
        return next(name for name, kind in rules.RULES.items() if kind is type(self.rule))

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """The model for inputs (N, *input_shape), drawn from the global generator; its feedback
        weights after the others, so that those are the same whatever the feedback."""
        self._check_memory(input_shape, num_classes)
        with memory.asking(f"the model of {self.name}", _SMALLER):
            model = self.model.build(input_shape, num_classes)
            # Nothing below a whitening learns, so that no error comes back through it.
            fixed = [name for name, module in model.named_modules() if isinstance(module, models.Whitening)]
            return model if self.feedback == "exact" else feedback.convert(model, self.feedback, leave=fixed)

    def _check_memory(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """Raise OutOfMemoryError where parameters, gradients and the optimizer's state alone, which
        are all there at each step, take more memory than there is."""
        if isinstance(self.model, models.OwnModel):
            return
        with memory.asking(f"the model of {self.name}", _SMALLER), models.Unmade():
            parameters = self.model.build(input_shape, num_classes).parameters()
            number = sum(parameter.numel() for parameter in parameters)
        each = (2 + self.optimizer.num_states) * (8 if self.dtype == "float64" else 4)
        what = f"training the model of {self.name}, {number:,} parameters by {self.optimizer.name},"
        memory.check(each * number, what, _SMALLER, self.device)

    def with_rule(self, name: str) -> Recipe:
        """The same recipe by another rule at that rule's defaults and this recipe's loss; its own
        rule is left as it is. Back-propagation is the true one: through the forward weights, one
        update a batch."""
        kind = rules.from_name(name)
        if kind is type(self.rule):
            return self
        other = dataclasses.replace(self, rule=kind(loss=self.rule.loss))
        is_twin = kind is rules.Backprop
        return dataclasses.replace(other, feedback="exact", updates_per_batch=1, reset_states=False) if is_twin else other

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """The same recipe, with these settings of its rule. Raises SettingError for one that it has
        not."""
        names = [field.name for field in dataclasses.fields(self.rule)]
        for name in settings:
            if name not in names:
                raise SettingError(
                    f"{self.rule_name} has no setting '{name}'.{closest(name, names)} It has {', '.join(names)}."
                )
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, **settings))

    def selected_by(self, task: Task) -> str:
        """The name of the validation score that an epoch is chosen by."""
        return "balanced_accuracy" if self.class_weights == "balanced" else task.headline

    def for_task(self, task: Task) -> Recipe:
        """The recipe, with the task's own loss where its loss does not read such targets."""
        if isinstance(self.rule.loss, _READS[task.kind]):
            return self
        loss = losses.from_name(LOSS_OF[task.kind])
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, loss=loss))

    def check_task(self, task: Task) -> None:
        """Raise SettingError where the recipe can't be of this task."""
        if not isinstance(self.rule.loss, _READS[task.kind]):
            raise SettingError(
                f"{self.dataset} is of {task.kind}, whose targets {self.rule.loss} does not read. "
                f"Give --rule.loss {LOSS_OF[task.kind]}."
            )
        output = getattr(self.model, "output", "identity")
        if task.kind != "classification" and output != "identity":
            raise SettingError(
                f"{self.dataset} is of {task.kind}, and a {output} output is of classes. Give output='identity'."
            )
        if self.class_weights == "balanced" and (
            task.kind != "classification" or type(self.rule.loss) is not losses.CrossEntropy
        ):
            raise SettingError("class_weights are of classification by cross_entropy. Give --class-weights none.")

    def weighted(self, task: Task) -> Recipe:
        """The recipe as it is computed: with its classes' weights in the loss, if it has some."""
        if self.class_weights == "none":
            return self
        loss = dataclasses.replace(self.rule.loss, class_weights=task.balanced_weights())  # type: ignore[type-var]
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, loss=loss))

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe over so many epochs; where they are fewer, warm-up and cosine are shortened
        with them."""
        share = min(1.0, epochs / self.epochs)
        optimizer = dataclasses.replace(
            self.optimizer,
            warmup_epochs=self.optimizer.warmup_epochs * share,
            cosine_epochs=min(float(epochs), self.optimizer.cosine_epochs * share),
        )
        return dataclasses.replace(self, epochs=epochs, optimizer=optimizer)

    def starting_from(self, folder: str) -> Recipe:
        """The recipe from the best weights of that run. Nothing published is of it."""
        return dataclasses.replace(self, start_from=folder, cites="", published=())

    def compressed(self) -> Recipe:
        """The `--budget` form: fewer epochs, with warm-up and cosine shortened in proportion."""
        epochs = min(self.epochs, self.budget_epochs or max(1, self.epochs // 16))
        return dataclasses.replace(self.with_epochs(epochs), budget_epochs=epochs)

    def seeds(self, number: int | None) -> tuple[int, ...]:
        """The first `number` seeds of the list, counting on from its largest where it is shorter;
        None is all of it."""
        if number is None:
            return self.seed_list
        Kind.of(NumSeeds).conform("seeds", number)
        more = number - len(self.seed_list)
        if max(self.seed_list) + more >= 2**32:
            raise SettingError(f"seeds counts on from {max(self.seed_list)}, beyond 2³²-1. Lower seeds, or those of seed_list.")
        return self.seed_list[:number] + tuple(max(self.seed_list) + i for i in range(1, more + 1))

    def to_plain(self) -> dict[str, Any]:
        """Dictionaries, lists, numbers and strings, as recipe.json holds them."""
        made: dict[str, Any] = plain.to_plain(self)
        return made

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_plain`. Raises RunError where it does not describe a recipe of this
        version."""
        try:
            return read(values, "recipe")
        except Misfit as error:
            raise RunError(f"the recipe does not fit this version of dualprop: {error}") from error

    def digest(self) -> str:
        """SHA-256 of the recipe, by which a checkpoint knows its run; of all but what only says how
        it is computed."""
        values = self.to_plain()
        is_as_before = [name for name in _LATER if getattr(self, name) == type(self).__dataclass_fields__[name].default]
        for name in (*_HOW, *is_as_before):
            del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read(values: Any, where: str) -> Recipe:
    """A recipe from plain values, an earlier version's too. Raises Misfit, which names a field by
    its path from `where`."""
    return plain.from_plain(Recipe, renewed(documents.convert(values, dict[str, Any], where)), where)
