"""The user's own loss: any function of outputs and targets, its gradient by autograd.

N batch. At the first batch the gradient is compared with finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop import memory
from dualprop.errors import SettingError
from dualprop.losses import probing, trees
from dualprop.losses.base import AbstractLoss, describe
from dualprop.neurons import AbstractNeuron

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True, eq=False)
class OwnLoss(AbstractLoss):
    """A loss made by `from_function`. Outputs and targets may be trees of tensors."""

    function: Callable[[Any, Any], Tensor]
    reduction: Reduction = "mean"
    divisor: Callable[[Any], Any] | float | None = None
    is_checked: bool = True
    name: str = "own loss"
    # The forms of outputs and targets that were checked.
    _passed: set[Any] = field(default_factory=set, repr=False)

    has_exact_nudge = False

    @property
    def counts_targets(self) -> bool:  # type: ignore[override]
        return callable(self.divisor)

    def value(self, s: Any, y: Any) -> Tensor:
        if self.reduction != "none":
            raise SettingError(
                f"the loss '{self.name}' is one scalar of the batch and has no value per example. Give from_function a "
                "function that returns values (N,), with reduction='none'."
            )
        return self._called(s, y)

    def total(self, s: Any, y: Any) -> Tensor:
        value = self._called(s, y)
        if self.reduction == "none":
            return value.sum()
        return value * self.terms(y, _num_examples(s)) if self.reduction == "mean" else value

    def mean(self, s: Any, y: Any) -> Tensor:
        value = self._called(s, y)
        return value.sum() / self.terms(y, _num_examples(s)) if self.reduction == "none" else value

    def gradient(self, s: Any, y: Any) -> Any:
        def tell(reason: str) -> SettingError:
            return SettingError(
                f"the loss '{self.name}' fails at outputs that inference leads to: {reason}. Lower beta, "
                "or use a loss of any real outputs (of logits, not of probabilities)."
            )

        with memory.told_as(tell, RuntimeError):
            return trees.gradient(lambda outputs: self.total(outputs, y), s, self.name)

    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Any, c: float) -> Tensor:
        raise SettingError(next(self.exact_conflict()))

    def count(self, y: Any, num_examples: int) -> float:
        if self.reduction == "sum":
            return 1
        if self.divisor is None:
            return num_examples
        return float(self.divisor(y) if callable(self.divisor) else self.divisor)

    def batch_targets(self, y: Any, num_examples: int, dtype: torch.dtype) -> Any:
        """The targets as they are: any tree of tensors, one row of each per example."""
        for leaf in trees.leaves(y):
            if leaf.shape[:1] != (num_examples,):
                raise SettingError(
                    f"x holds {num_examples} examples but y has shape {tuple(leaf.shape)}. They must agree; what is no target "
                    "of an example belongs into the function."
                )
        return y

    def check_targets(self, y: Any, outputs: Any) -> None:
        """At the first batch of such shapes: that the gradient is right, and nothing broadcast."""
        form = tuple((leaf.dim(), len(leaf) > 1, leaf.shape[1:].numel() == 1) for leaf in trees.leaves((outputs, y)))
        if self.is_checked and form not in self._passed and probing.check(self.total, outputs, y, self.name):
            self._passed.add(form)

    def _called(self, s: Any, y: Any) -> Tensor:
        value, n = self.function(s, y), _num_examples(s)
        needed = (n,) if self.reduction == "none" else ()
        if not isinstance(value, Tensor) or tuple(value.shape) != needed:
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            remedy = "'mean' or 'sum' for one scalar" if needed else "'none' for one value per example, shape (N,)"
            raise SettingError(
                f"the loss '{self.name}' with reduction='{self.reduction}' must return a tensor of shape {needed}, got "
                f"{found}. Use reduction={remedy}, or reduce it in the function."
            )
        return value


def from_function(
    function: Callable[[Any, Any], Tensor],
    reduction: Reduction = "mean",
    terms: Callable[[Any], Any] | float | None = None,
    name: str = "",
    check: bool = True,
) -> OwnLoss:
    """A rule's `loss` of function(outputs, y): its gradients tend to that of the scalar it gives.

    β counts per term. A nudge descends β times the sum of terms: a mean is taken times `terms`
    inside inference, a sum as it is. The nudge of the output is linearised, along autograd's
    gradient; the exact one is refused.

    Args:
        function: of the network's outputs (N, …) and the targets as they were given, in
            differentiable operations. Either may be a dict, a tuple or a dataclass of tensors.
        reduction: what it returns: "mean", one scalar that is a mean over terms; "sum", one scalar
            that is a sum; "none", values (N,), of which the loss is the mean.
        terms: what the mean divides by, a number or a function of y, such as the valid tokens:
            `lambda y: (y != -100).sum()`. By default the number of examples. With "none" the loss
            is the sum of the values over it.
        name: in messages. By default the function's.
        check: at the first batch, compare the gradient with finite differences, in float64, in a
            few entries and along a direction through all. A stop-gradient needs check=False.

    Raises:
        SettingError: what is no function, no such reduction, or terms of a sum. At the first batch:
            a value of another shape, without gradient or with a wrong one, or of outputs (N, 1)
            and targets (N,) that were broadcast to (N, N).
    """
    if not callable(function) or isinstance(function, type):
        raise SettingError(f"from_function needs a function of (outputs, y), got {function!r}.")
    if reduction not in ("mean", "sum", "none"):
        raise SettingError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
    if terms is not None and reduction == "sum":
        raise SettingError("terms are what a mean divides by, but reduction='sum' divides by nothing. Leave one out.")
    return OwnLoss(function, reduction, terms, check, name or describe(function))


def _num_examples(outputs: Any) -> int:
    return next(len(leaf) for leaf in trees.leaves(outputs) if leaf.dim())
