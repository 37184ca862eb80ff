"""Floating-point operations of a training step: counted, and listed by shape to be timed alone.

A multiplication and an addition are two, and only matrix products and convolutions count, as in
PyTorch's own counter. A layer of M multiply-adds takes 2M forward, 2M for the gradient of its
weights and 2M for that of its input, which the first layer does not need:

    FLOPs of a step = Σ_k 6 M_k - 2 M_1

Nothing is computed: the step runs on PyTorch's "meta" device, which knows shapes alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dualprop.training.recipe import Recipe

CONVOLUTION, INPUT_GRADIENT, WEIGHT_GRADIENT = "convolution", "input gradient", "weight gradient"
PRODUCT = "matrix product"


@dataclass(frozen=True)
class Shape:
    """A tensor without its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One matrix product or convolution: PyTorch's operator and arguments, tensors as shapes."""

    kind: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: int

    def __str__(self) -> str:
        sizes = ("×".join(map(str, each.size)) for each in self.arguments if isinstance(each, Shape) and len(each.size) > 1)
        return f"{self.kind} {', '.join(sizes)}"

    def filled(self, fill: Callable[[Shape], Tensor]) -> tuple[Any, ...]:
        """The arguments, with a tensor for every shape."""
        return tuple(fill(value) if isinstance(value, Shape) else value for value in self.arguments)


class _Recorder(TorchDispatchMode):
    """Notes the operators that PyTorch calls, below autograd, and what it counts of each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = func(*args, **(kwargs or {}))
        if flops := int(counter.get_total_flops()):
            self.calls.append((func, tuple(_shaped(value) for value in args), flops))
        return result


def of_step(recipe: Recipe, input_shape: tuple[int, ...], num_classes: int) -> int:
    """FLOPs of one back-propagation step on a batch: forward, and backward to every parameter."""
    with FlopCounterMode(display=False) as counter:
        _step(recipe, input_shape, num_classes)
    return int(counter.get_total_flops())


def operations(recipe: Recipe, input_shape: tuple[int, ...], num_classes: int) -> Counter[Operation]:
    """The matrix products and convolutions of one back-propagation step, and how often each occurs.

    The gradients of a convolution's input and weights, one operator to PyTorch, are two here; sums
    over biases are left out.
    """
    with _Recorder() as recorder:
        _step(recipe, input_shape, num_classes)
    counted: Counter[Operation] = Counter()
    for function, arguments, flops in recorder.calls:
        counted.update(_parts(function, arguments, flops))
    return counted


def _step(recipe: Recipe, input_shape: tuple[int, ...], num_classes: int) -> None:
    with torch.device("meta"):
        model = recipe.model.build(input_shape, num_classes)
        x, y = torch.empty(recipe.batch_size, *input_shape), torch.empty(recipe.batch_size, dtype=torch.int64)
    recipe.rule.loss.value(model(x), y).mean().backward()


def _shaped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), tuple(value.stride()))
    return tuple(value) if isinstance(value, list) else value


def _parts(function: Any, arguments: tuple[Any, ...], flops: int) -> list[Operation]:
    if function is not torch.ops.aten.convolution_backward.default:
        is_convolution = function is torch.ops.aten.convolution.default
        return [Operation(CONVOLUTION if is_convolution else PRODUCT, function, arguments, flops)]
    *rest, (needs_input, needs_weights, _) = arguments
    kinds = [(INPUT_GRADIENT, (True, False, False))] * needs_input + [(WEIGHT_GRADIENT, (False, True, False))] * needs_weights
    return [Operation(kind, function, (*rest, mask), flops // len(kinds)) for kind, mask in kinds]
