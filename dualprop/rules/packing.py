"""A rule's state as named tensors and back, for checkpoints and captured steps.

A field of the state's dataclass is a tensor, a number, or tensors by position or by layer:
"means.2" is the third of the field `means`. A missing one among them becomes a tensor without
elements.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def pack(state: Any) -> dict[str, Tensor]:
    """The state as named tensors."""
    return dict(_items(state))


def unpack(kind: type, tensors: dict[str, Tensor]) -> Any:
    """The state of that class from what `pack` made, holding the same tensors."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        prefix = f"{field.name}."
        by_key = {int(name.removeprefix(prefix)): _held(t) for name, t in tensors.items() if name.startswith(prefix)}
        origin = typing.get_origin(hints[field.name])
        if origin is tuple:
            values[field.name] = tuple(by_key[k] for k in sorted(by_key))
        elif origin is not None and issubclass(origin, Mapping):
            # From the first layer up, as rules hold them, and not as a file lists its tensors.
            values[field.name] = {k: by_key[k] for k in sorted(by_key)}
        elif hints[field.name] is float:
            values[field.name] = float(tensors[field.name])
        else:
            values[field.name] = tensors[field.name]
    return kind(**values)


def _items(state: Any) -> Iterator[tuple[str, Tensor]]:
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            yield field.name, value
        elif isinstance(value, int | float):
            yield field.name, torch.tensor(value, dtype=torch.float64)
        else:
            for k, tensor in value.items() if isinstance(value, Mapping) else enumerate(value):
                yield f"{field.name}.{k}", torch.empty(0, dtype=torch.float64) if tensor is None else tensor


def _held(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None
