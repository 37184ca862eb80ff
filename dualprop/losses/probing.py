"""One check of a user's loss at its first batch: is autograd's gradient that of its values?

A function that detaches, draws random numbers or leaves PyTorch has another gradient, or none, and
every layer would learn from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dualprop.captures as captures
from dualprop.errors import SettingError
from dualprop.losses import trees
from dualprop.losses.base import wide

Total = Callable[[Any, Any], Tensor]
# Outputs of more elements than this are not copied into float64.
LARGE = 2**24


def check(total: Total, outputs: Any, y: Any, name: str) -> bool:
    """Compare the gradient of total(outputs, y) with differences. Whether that was possible.

    It is not where values are not finite, or a step is being captured. Of values in half
    precision no difference is taken.

    Raises:
        SettingError: no gradient, a wrong one, values that change from call to call, or outputs
            (N, 1) and targets (N,) that are broadcast to (N, N).
    """
    tensors = trees.leaves(outputs)
    if any(captures.forbid_waiting(leaf) for leaf in tensors):
        return False
    outputs = trees.mapped(outputs, lambda leaf: wide(leaf).detach())
    _check_graph(total, outputs, y, name)
    with torch.no_grad():
        return _check_slopes(total, *_in_double(total, outputs, y), name)


def _in_double(total: Total, outputs: Any, y: Any) -> tuple[Any, Any]:
    """Both with twice the digits, where the function's own tensors and memory allow that."""
    if sum(leaf.numel() for leaf in trees.leaves(outputs)) > LARGE:
        return outputs, y
    twice = trees.mapped(outputs, _double), trees.mapped(y, _double)
    try:
        total(*twice)
    except (RuntimeError, TypeError, ValueError):
        return outputs, y
    return twice


def _check_slopes(total: Total, outputs: Any, y: Any, name: str) -> bool:
    """Compare with differences at two steps: one may be too coarse for a steep loss."""
    gradient = trees.gradient(lambda s: total(s, y), outputs, name)
    here, again = total(outputs, y), float(total(outputs, y))
    floats = [leaf for leaf in trees.leaves(outputs) if leaf.is_floating_point()]
    slopes = [leaf for leaf in trees.leaves(gradient) if leaf.is_floating_point()]
    if not math.isfinite(here) or not all(bool(slope.isfinite().all()) for slope in slopes):
        return False
    if float(here) != again:
        raise SettingError(
            f"the loss '{name}' gives {float(here):.9g} and then {again:.9g} for the same outputs. Draw its random numbers "
            "outside, or say check=False."
        )
    # Of what it is computed in, whatever it is given.
    eps = torch.finfo(here.dtype).eps
    if eps > 1e-6:
        return True  # in half precision no difference shows anything
    size = max(1.0, *(float(leaf.abs().max()) for leaf in floats if leaf.numel()))
    steps, share = ((1e-5, 1e-7), 1e-4) if eps < 1e-10 else ((5e-3, 5e-4), 3e-2)
    for direction in _directions(floats, slopes):
        slope = sum(float((g * d).double().sum()) for g, d in zip(slopes, direction, strict=True))
        sizes = sum(float((g * d).abs().double().sum()) for g, d in zip(slopes, direction, strict=True))
        found = []
        for step in (max(step, 1e3 * eps * size) for step in steps):
            ahead, behind = (_at(total, outputs, y, direction, sign * step) for sign in (1, -1))
            # At a kink of the loss any slope between those of either side is a subgradient.
            low, high = sorted(((ahead - again) / step, (again - behind) / step))
            slack = share * (sizes + abs(low) + abs(high)) + 64 * eps * (1 + abs(again)) / step
            if not (math.isfinite(low) and math.isfinite(high)) or low - slack <= slope <= high + slack:
                break
            found.append((low + high) / 2)
        else:
            raise SettingError(
                f"the gradient of the loss '{name}' is {slope:.6g} along a direction in which its values change by "
                f"{found[0]:.6g}. Some part of it is detached or not differentiable: mend it, or say check=False."
            )
    return True


def _check_graph(total: Total, outputs: Any, y: Any, name: str) -> None:
    """Raise SettingError where something is broadcast by mistake, or reads parameters directly."""
    held = trees.mapped(outputs, lambda leaf: leaf.requires_grad_(leaf.is_floating_point()))
    with torch.enable_grad(), _Broadcasts(name):
        value = total(held, y)
    known = {id(leaf) for leaf in trees.leaves(held)}
    trees.mapped(outputs, lambda leaf: leaf.requires_grad_(False))
    waiting, seen = [value.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise SettingError(
                f"the loss '{name}' reads a tensor of shape {tuple(leaf.shape)} that requires grad, beside the outputs: a rule "
                "learns through the outputs alone. Detach it, or move it into the model; for weight decay use the optimizer's."
            )
        waiting += [following for following, _ in node.next_functions]


def _directions(floats: list[Tensor], slopes: list[Tensor]) -> Iterator[list[Tensor]]:
    """Single entries, those of the largest gradient and some others, and one through all."""
    lengths = [leaf.numel() for leaf in floats]
    flat = torch.cat([slope.flatten() for slope in slopes])
    chosen = {*flat.abs().topk(min(2, len(flat))).indices.tolist(), 0, len(flat) // 2, len(flat) - 1}

    def shaped(direction: Tensor) -> list[Tensor]:
        return [part.view_as(leaf) for part, leaf in zip(direction.split(lengths), floats, strict=True)]

    for entry in sorted(chosen):
        direction = torch.zeros_like(flat)
        direction[entry] = 1
        yield shaped(direction)
    yield shaped(torch.sin(12.9898 * torch.arange(1, len(flat) + 1, dtype=flat.dtype, device=flat.device)))


def _at(total: Total, outputs: Any, y: Any, direction: list[Tensor], step: float) -> float:
    parts = iter(direction)
    moved = trees.mapped(outputs, lambda leaf: leaf + step * next(parts) if leaf.is_floating_point() else leaf)
    return float(total(moved, y))


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


class _Broadcasts(TorchFunctionMode):
    """Refuses outputs (N, 1) beside targets (N,), or the reverse, which give (N, N)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        tensors = [arg for arg in args[:2] if isinstance(arg, Tensor)]
        if len(tensors) == 2 and tensors[0].requires_grad != tensors[1].requires_grad:
            column, row = sorted((tuple(t.shape) for t in tensors), key=len, reverse=True)
            if len(row) == 1 and row[0] > 1 and column == (*row, 1):
                result_is_square = getattr(function, "__name__", "").endswith(("_loss", "_with_logits", "entropy", "kl_div"))
                result = None if result_is_square else function(*args, **(kwargs or {}))
                if result_is_square or (isinstance(result, Tensor) and tuple(result.shape) == row * 2):
                    raise SettingError(
                        f"the loss '{self.name}' broadcasts shapes {column} and {row} to {row * 2}: every output would "
                        "meet every target. Squeeze the outputs, outputs.squeeze(1), or give y.unsqueeze(1)."
                    )
                return result
        return function(*args, **(kwargs or {}))
