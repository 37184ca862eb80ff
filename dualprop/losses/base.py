"""What a rule asks of a loss: values, gradients, nudges, and what its mean divides by.

N batch, K classes or output units. Inference descends the *sum* of a loss's terms; a rule divides
what it learns by β and by the number of terms, once. β is therefore per term of that sum as the
loss defines it: per example where the mean runs over examples, per valid token, per unit of class
weight, per element (F.mse_loss), or of the whole where the loss is a sum. Half-precision outputs
are taken in float32.
"""

from __future__ import annotations

import dataclasses
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import dualprop.captures as captures
from dualprop.errors import SettingError, closest
from dualprop.neurons import AbstractNeuron
from dualprop.settings import NamedPart


class AbstractLoss(NamedPart):
    """A loss on outputs and targets: here (N, K), and class indices (N,) or vectors (N, K).

    `is_holomorphic`: whether its gradient holds for complex outputs too. `has_exact_nudge`: whether
    `nudge` is known. `counts_targets`: whether what its mean divides by depends on the values of
    the targets, whose count waits for the device.
    """

    name: str
    concave_limit: float = 0.0
    is_holomorphic: bool = False
    has_exact_nudge: bool = True
    counts_targets: bool = False

    @abstractmethod
    def value(self, s: Tensor, y: Any) -> Tensor:
        """The sum of each example's terms, ℓ(s, y), shape (N,)."""

    @abstractmethod
    def gradient(self, s: Tensor, y: Any) -> Tensor:
        """∇ₛ of the sum of all terms, the shape of s: each example's own row of ∇ₛ ℓ(s, y)."""

    def prepared(self, y: Any, outputs: Tensor) -> Any:
        """The targets as `gradient` reads them with least work, for many gradients of one batch."""
        return y

    @abstractmethod
    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Any, c: float) -> Tensor:
        """The output state that an exact nudge of strength c settles at, shape (N, K)."""

    def total(self, s: Tensor, y: Any) -> Tensor:
        """The sum of all terms, shape (). Its gradient is `gradient`."""
        return self.value(s, y).sum()

    def mean(self, s: Tensor, y: Any) -> Tensor:
        """The scalar that training descends, shape (): `total` over `terms`."""
        return self.value(s, y).mean()

    def count(self, y: Any, num_examples: int) -> float:
        """What the mean divides the sum of terms by. Here the number of examples."""
        return num_examples

    def terms(self, y: Any, num_examples: int) -> float:
        """`count`, checked. Raises SettingError where no target counts."""
        terms = self.count(y, num_examples)
        if not (terms > 0 and math.isfinite(terms)):
            raise SettingError(
                f"the mean of the loss '{self.name}' divides by {terms:g} in this batch: no target counts. Leave the batch out."
            )
        return terms

    def batch_targets(self, y: Any, num_examples: int, dtype: torch.dtype) -> Any:
        """The targets as int64 indices (N,) or floating-point vectors (N, K).

        Raises SettingError unless there are as many as examples. `dtype` is of one-hot integers.
        """
        check_count(y, num_examples)
        if y.dim() == 1 and (y.dtype.is_floating_point or y.dtype == torch.bool):
            raise SettingError(
                f"class indices y must be integers, got {y.dtype}. Convert them, y.long() say, or for regression give "
                "y.unsqueeze(1)."
            )
        if y.dtype.is_floating_point:
            return y
        return y.long() if y.dim() == 1 else y.to(dtype)

    def check_targets(self, y: Any, outputs: Tensor) -> None:
        """Raise SettingError where targets don't fit outputs (N, K).

        Index ranges are checked on the CPU, where it is free.
        """
        if outputs.dim() != 2:
            raise SettingError(
                f"the network's outputs must have shape (N, K), got {tuple(outputs.shape)}. Add nn.Flatten(), or use a loss on "
                "such outputs: loss=torch.nn.functional.cross_entropy, say, or dp.losses.from_function."
            )
        if y.dim() > 1 and y.shape != outputs.shape:
            raise SettingError(f"target vectors y have shape {tuple(y.shape)} but the outputs {tuple(outputs.shape)}.")
        if y.dim() == 1:
            check_indices(y, outputs.shape[1])

    def check_output(self, neuron: AbstractNeuron) -> None:
        """Raise SettingError where the loss does not read the states of such an output neuron."""
        return

    def exact_conflict(self) -> Iterator[str]:
        """Why there is no exact nudge at all, and the remedy, if so."""
        if not self.has_exact_nudge:
            yield f"an exact nudge of the loss '{self.name}' is not known. Use output_nudge='linearized'."

    def uphill_conflict(self, strength: float, what: str, remedy: str) -> Iterator[str]:
        """Why an exact nudge of that strength uphill is not well posed, and the remedy, if so."""
        yield from self.exact_conflict()
        if strength > 0 and strength >= self.concave_limit:
            needed = f"< {self.concave_limit:g}" if self.concave_limit > 0 else "= 0"
            told = f"an exact {self.name} nudge needs {what} {needed}, got {strength:g}"
            yield f"{told}. {remedy}, or use output_nudge='linearized'."

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, value: Any) -> AbstractLoss:
        return from_name(value)

    @classmethod
    def from_text(cls, text: str) -> AbstractLoss:
        return from_name(text)

    @classmethod
    def choices(cls) -> str:
        return "|".join(LOSSES)


# The losses by name, and what makes a loss of another library's. `dualprop.losses` fills them in.
LOSSES: dict[str, type[AbstractLoss]] = {}
READERS: list[Callable[[Any], AbstractLoss | None]] = []


def from_name(name: Any) -> AbstractLoss:
    """The loss of that name, or the loss itself, or that of PyTorch's function or module.

    A loss with a setting is named with it, "cross_entropy(0.2)" say. Raises SettingError for an
    unknown one.
    """
    if isinstance(name, AbstractLoss):
        return name
    if isinstance(name, str) and name in LOSSES:
        return LOSSES[name]()
    if isinstance(name, str) and (named := re.fullmatch(r"(\w+)\(([-+.\de]+)\)", name)) and named[1] in LOSSES:
        return _with_setting(LOSSES[named[1]], named[2])
    for read in READERS:
        loss = read(name)
        if loss is not None:
            return loss
    if callable(name) and not isinstance(name, type):
        raise SettingError(
            f"the loss {describe(name)} is not one of PyTorch's that are known. Say what it returns: "
            "dp.losses.from_function(f, reduction='mean'), 'sum' or 'none'."
        )
    raise SettingError(f"unknown loss '{name}'.{closest(name, list(LOSSES))} Known: {', '.join(LOSSES)}.")


def _with_setting(kind: type[AbstractLoss], text: str) -> AbstractLoss:
    if not dataclasses.fields(kind):  # type: ignore[arg-type]
        raise SettingError(f"the loss '{kind.name}' has no setting. Leave out ({text}).")
    try:
        value = float(text)
    except ValueError:
        raise SettingError(f"the setting of the loss '{kind.name}' must be a number, got '{text}'.") from None
    return kind(value)  # type: ignore[call-arg]


def describe(function: Any) -> str:
    """What a function or module is called, in an error and as the name of its loss."""
    return str(getattr(function, "__qualname__", "") or type(function).__name__)


def wide(s: Tensor) -> Tensor:
    """s in float32 where it is of half precision: the output's few units are worth it."""
    return s.float() if s.dtype in (torch.float16, torch.bfloat16) else s


def targets(y: Tensor, like: Tensor) -> Tensor:
    """The target vectors (N, K) in `like`'s dtype: one-hot for class indices (N,), or y itself."""
    if y.dtype.is_floating_point:
        return y.to(like.dtype)
    return torch.zeros_like(like).scatter_(1, y.unsqueeze(1), 1)


def check_count(y: Any, num_examples: int) -> None:
    """Raise SettingError unless y is a tensor of as many targets as examples."""
    if not isinstance(y, Tensor):
        raise SettingError(f"y must be a tensor, got {type(y).__name__}. Use torch.as_tensor.")
    if y.shape[:1] != (num_examples,):
        raise SettingError(
            f"x holds {num_examples} examples but y has shape {tuple(y.shape)}. They must agree: one target per example."
        )


def check_indices(y: Tensor, num_classes: int, ignored: int | None = None) -> None:
    """Raise SettingError where class indices are out of range, but for the one that is ignored.

    They are checked on the CPU, where it is free, but for captured steps, whose operations check.
    """
    if y.device.type != "cpu" or captures.is_recording():
        return
    counted = y if ignored is None else y[y != ignored]
    if not counted.numel():
        return
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= num_classes:
        raise SettingError(
            f"class indices must be in 0…{num_classes - 1}, got {low}…{high}. Give the model an output per class."
        )
