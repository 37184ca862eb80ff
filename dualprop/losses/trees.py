"""Outputs of several tensors: dictionaries, lists, tuples and dataclasses, flattened and rebuilt,
and the gradient of a scalar in all of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.losses.base import wide


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in its order. Other leaves (numbers, None) are left out."""
    found: list[Tensor] = []
    mapped(tree, lambda leaf: found.append(leaf) or leaf)  # type: ignore[func-returns-value]
    return found


def mapped(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same tree with function(leaf) in place of every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        changed = {key: mapped(value, function) for key, value in tree.items()}
        if type(tree) is dict:
            return changed
        # A mapping with a constructor of its own, as Hugging Face's ModelOutput.
        return type(tree)(**changed) if dataclasses.is_dataclass(tree) else type(tree)(changed)  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        parts = [mapped(value, function) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed_tree = copy.copy(tree)
        for field in dataclasses.fields(tree):
            object.__setattr__(changed_tree, field.name, mapped(getattr(tree, field.name), function))
        return changed_tree
    return tree


def gradient(scalar: Callable[[Any], Tensor], outputs: Any, name: str) -> Any:
    """The gradient of scalar(outputs) by autograd, a tree like the outputs.

    Zero where it does not depend on one. Half-precision outputs are taken in float32.

    Raises:
        SettingError: the scalar depends on none of the outputs.
    """
    held: list[Tensor] = []

    def hold(leaf: Tensor) -> Tensor:
        leaf = wide(leaf).detach()
        if leaf.is_floating_point() or leaf.is_complex():
            held.append(leaf.requires_grad_())
        return leaf

    with torch.enable_grad():
        total = scalar(mapped(outputs, hold))
        if not total.requires_grad:
            raise SettingError(
                f"the loss '{name}' has no gradient in the outputs: it detaches them, rounds them, or leaves PyTorch. Write it "
                "in differentiable operations on tensors."
            )
        gradients = iter(torch.autograd.grad(total, held, allow_unused=True, materialize_grads=True))
    return mapped(outputs, lambda leaf: next(gradients) if leaf.is_floating_point() or leaf.is_complex() else leaf)
