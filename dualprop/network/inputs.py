"""A model's inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.

The first tensor among them has the examples in its first dimension.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dualprop.errors import SettingError


def tensors(x: Any) -> list[Tensor]:
    """All tensors, in order. Raises SettingError where there is none."""
    found = [x] if isinstance(x, Tensor) else [value for value in tree_leaves(x) if isinstance(value, Tensor)]
    if not found:
        raise SettingError(
            f"x must hold a tensor, got {type(x).__name__}. Pass a tensor, a tuple of arguments or a dict of keyword arguments."
        )
    return found


def first(x: Any) -> Tensor:
    """The first tensor."""
    return tensors(x)[0]


def detached(x: Any) -> Any:
    """The same with other tensor objects of the same storage, outside any graph."""
    return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, x)


def copied(x: Any) -> Any:
    """The same with copies of the tensors."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, x)


def versions(x: Any) -> list[int]:
    """How often each tensor was written over."""
    return [0 if value.is_inference() else value._version for value in tensors(x)]


def called(model: nn.Module, x: Any) -> Any:
    """model(x), with a tuple as its arguments and a dict as its keyword arguments."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)
