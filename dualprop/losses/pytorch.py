"""PyTorch's own losses, `torch.nn.functional`'s and modules, as losses of a rule.

N batch, C classes. What the mean divides by is PyTorch's: all elements (mse_loss), the valid
targets or their class weights (cross_entropy), the batch ("batchmean"). Under reduction="sum" it is
1. Gradients are autograd's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualprop import memory
from dualprop.errors import SettingError
from dualprop.losses import trees
from dualprop.losses.base import AbstractLoss, check_count, check_indices, wide
from dualprop.neurons import AbstractNeuron, Sigmoid, Softmax

# What a loss is given as targets: numbers like the outputs, one for each; or class indices.
Reads = Literal["numbers", "classes"]

MODULES: dict[type[nn.Module], tuple[Callable[..., Tensor], Reads]] = {
    nn.CrossEntropyLoss: (F.cross_entropy, "classes"),
    nn.NLLLoss: (F.nll_loss, "classes"),
    nn.MultiMarginLoss: (F.multi_margin_loss, "classes"),
    nn.MSELoss: (F.mse_loss, "numbers"),
    nn.L1Loss: (F.l1_loss, "numbers"),
    nn.SmoothL1Loss: (F.smooth_l1_loss, "numbers"),
    nn.HuberLoss: (F.huber_loss, "numbers"),
    nn.BCELoss: (F.binary_cross_entropy, "numbers"),
    nn.BCEWithLogitsLoss: (F.binary_cross_entropy_with_logits, "numbers"),
    nn.KLDivLoss: (F.kl_div, "numbers"),
    nn.PoissonNLLLoss: (F.poisson_nll_loss, "numbers"),
    nn.SoftMarginLoss: (F.soft_margin_loss, "numbers"),
    nn.HingeEmbeddingLoss: (F.hinge_embedding_loss, "numbers"),
    nn.MultiLabelSoftMarginLoss: (F.multilabel_soft_margin_loss, "numbers"),
}
_FUNCTIONS = {function: module for module, (function, _) in MODULES.items()}


@dataclass(frozen=True, eq=False)
class TorchLoss(AbstractLoss):
    """A loss module of PyTorch on outputs (N, …), as it stands: weights, reduction and all.

    Targets have the outputs' shape, never one that PyTorch would broadcast; class indices have it
    without the classes' dimension, which is 1, or the last where `classes_last`.
    """

    module: nn.Module
    classes_last: bool = False

    has_exact_nudge = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return type(self.module).__name__

    @property
    def counts_targets(self) -> bool:  # type: ignore[override]
        return isinstance(self.module, nn.CrossEntropyLoss | nn.NLLLoss) and self.module.reduction == "mean"

    def value(self, s: Tensor, y: Tensor) -> Tensor:
        values = self._called("none", s, y)
        return values.flatten(1).sum(1) if values.dim() > 1 else values

    def total(self, s: Tensor, y: Tensor) -> Tensor:
        return self._called("sum", s, y)

    def mean(self, s: Tensor, y: Tensor) -> Tensor:
        return self._called(str(self.module.reduction), s, y)

    def gradient(self, s: Tensor, y: Tensor) -> Tensor:
        gradient: Tensor = trees.gradient(lambda outputs: self.total(outputs, y), s, self.name)
        return gradient

    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Tensor, c: float) -> Tensor:
        raise SettingError(next(self.exact_conflict()))

    def count(self, y: Tensor, num_examples: int) -> float:
        """The divisor of PyTorch's mean; 1 of a sum, N of "batchmean"."""
        module = self.module
        if module.reduction == "sum":
            return 1
        if module.reduction == "batchmean" or isinstance(module, nn.MultiMarginLoss):
            return num_examples
        if isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss):
            return self._count_classes(y)
        # This one averages over classes within each example.
        return y.numel() // (y.shape[-1] if isinstance(module, nn.MultiLabelSoftMarginLoss) else 1)

    def batch_targets(self, y: Any, num_examples: int, dtype: torch.dtype) -> Tensor:
        """Class indices in int64, or numbers as they are."""
        check_count(y, num_examples)
        if MODULES[type(self.module)][1] == "numbers" or (y.dtype.is_floating_point and y.dim() > 1):
            return y
        if y.dtype.is_floating_point or y.dtype == torch.bool:
            raise SettingError(f"class indices y must be integers, got {y.dtype}. Convert them, y.long() say.")
        return y.long()

    def check_targets(self, y: Tensor, outputs: Tensor) -> None:
        """Raise SettingError where targets don't fit outputs (N, …), or PyTorch would broadcast."""
        if MODULES[type(self.module)][1] == "numbers":
            if y.shape != outputs.shape:
                raise SettingError(
                    f"{self.name} needs targets of the outputs' shape {tuple(outputs.shape)}, got {tuple(y.shape)}, which "
                    "PyTorch might broadcast. Reshape y, y.unsqueeze(1) say."
                )
            return
        is_soft = y.dtype.is_floating_point and isinstance(self.module, nn.CrossEntropyLoss)
        needed = tuple(outputs.shape) if is_soft else self._shape_of_indices(outputs)
        if outputs.dim() < 2 or tuple(y.shape) != needed or (y.dtype.is_floating_point and not is_soft):
            what = "class probabilities" if is_soft else "integer class indices"
            raise SettingError(
                f"{self.name} reads classes at dimension {-1 if self.classes_last else 1}: outputs of {tuple(outputs.shape)} "
                f"need {what} of {needed}, got {y.dtype} of {tuple(y.shape)}. Reshape y, or for outputs (N, …, C) use "
                "dp.losses.from_torch(loss, classes_last=True)."
            )
        if not is_soft:
            ignored = getattr(self.module, "ignore_index", None)
            check_indices(y, outputs.shape[-1 if self.classes_last else 1], ignored)

    def check_output(self, neuron: AbstractNeuron) -> None:
        if isinstance(self.module, nn.CrossEntropyLoss | nn.NLLLoss) and isinstance(neuron, Softmax):
            raise SettingError(
                f"{self.name} takes {'log-probabilities' if isinstance(self.module, nn.NLLLoss) else 'logits'}, but the output "
                "neuron is Softmax. Use losses.LogLoss(), or remove the model's last activation."
            )
        if isinstance(self.module, nn.BCEWithLogitsLoss) and isinstance(neuron, Sigmoid):
            raise SettingError(
                "BCEWithLogitsLoss takes logits, but the output neuron is Sigmoid. Use nn.BCELoss(), or remove the model's "
                "last activation."
            )

    def _called(self, reduction: str, s: Tensor, y: Tensor) -> Tensor:
        """The module at that reduction, classes at dimension 1."""
        s, module = wide(s), self.module
        if MODULES[type(module)][1] == "numbers" or y.dtype.is_floating_point:
            y = y.to(s.dtype)
        if self.classes_last:
            s, y = s.movedim(-1, 1), y.movedim(-1, 1) if y.dtype.is_floating_point else y
        if reduction != module.reduction:
            module = copy.copy(module)
            module.reduction = reduction  # type: ignore[assignment]
        shapes = f"outputs of {tuple(s.shape)} and {s.dtype}, targets of {tuple(y.shape)}"

        def tell(reason: str) -> SettingError:
            return SettingError(f"{self.name} can't read {shapes}: {reason}. Check the loss.")

        with memory.told_as(tell, RuntimeError, ValueError, IndexError):
            value: Tensor = module(s, y)
        return value

    def _count_classes(self, y: Tensor) -> float:
        if y.dtype.is_floating_point:
            return y.numel() // y.shape[-1 if self.classes_last else 1]
        assert isinstance(self.module, nn.CrossEntropyLoss | nn.NLLLoss)
        ignored, weight = self.module.ignore_index, self.module.weight
        valid = y != ignored
        if weight is None:
            return int(valid.sum())
        check_indices(y, len(weight), ignored)
        return float(weight[y[valid]].sum(dtype=torch.float64))

    def _shape_of_indices(self, outputs: Tensor) -> tuple[int, ...]:
        shape = tuple(outputs.shape)
        return shape[:-1] if self.classes_last else (shape[0], *shape[2:])


def from_torch(loss: Any, classes_last: bool = False, **keywords: Any) -> AbstractLoss:
    """A loss of PyTorch as a rule's `loss`, its module or its function with these keywords.

    Args:
        loss: a module, `nn.CrossEntropyLoss(ignore_index=0)`; or a function, `F.cross_entropy`. A
            rule's `loss=` takes either as it is, and a `functools.partial` of the function.
        classes_last: for classification of outputs (N, …, C), as language models give them.
            PyTorch reads classes at dimension 1.

    Raises:
        SettingError: not one of `dp.losses.pytorch.MODULES`, or without a reduction to one scalar.
    """
    found = read(functools.partial(loss, **keywords) if keywords else loss)
    if not isinstance(found, TorchLoss):
        known = ", ".join(function.__name__ for function in _FUNCTIONS)
        raise SettingError(f"{loss!r} is none of PyTorch's losses {known}. Use dp.losses.from_function.")
    if classes_last and not isinstance(found.module, nn.CrossEntropyLoss | nn.NLLLoss):
        raise SettingError(f"classes_last is of class indices, but {found.name} reads numbers like the outputs. Leave it out.")
    return TorchLoss(found.module, classes_last)


def read(loss: Any) -> AbstractLoss | None:
    """The loss of a module or function of PyTorch, by exact type; None of anything else."""
    keywords: dict[str, Any] = {}
    if isinstance(loss, functools.partial) and not loss.args:
        loss, keywords = loss.func, dict(loss.keywords)
    try:
        kind = _FUNCTIONS.get(loss)
    except TypeError:
        return None
    if kind is not None:
        try:
            loss, keywords = kind(**keywords), {}
        except TypeError as error:
            raise SettingError(f"{kind.__name__} takes no such keywords: {error}. Use dp.losses.from_function.") from error
    if type(loss) not in MODULES or keywords:
        return None
    if loss.reduction == "none":
        raise SettingError(
            f"{type(loss).__name__}(reduction='none') gives no one scalar to descend. Use 'mean' or 'sum', or "
            "dp.losses.from_function."
        )
    return TorchLoss(loss)
