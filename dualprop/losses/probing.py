"""One check of a user's loss at its first batch: is autograd's gradient that of its values?

A function that detaches, draws random numbers or leaves PyTorch has another gradient, or none, and
every layer would learn from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dualprop.errors import SettingError
from dualprop.losses import trees
from dualprop.losses.base import wide

Total = Callable[[Any, Any], Tensor]


def check(total: Total, outputs: Any, y: Any, name: str) -> bool:
    """Compare the gradient of total(outputs, y) with differences. Whether that was possible.

    It is not where values are not finite, or a CUDA graph is being captured. Of values in half
    precision no difference is taken.

    Raises:
        SettingError: no gradient, a wrong one, values that change from call to call, or outputs
            (N, 1) and targets (N,) that are broadcast to (N, N).
    """
    tensors = trees.leaves(outputs)
    if any(leaf.is_cuda for leaf in tensors) and torch.cuda.is_current_stream_capturing():
        return False
    outputs = trees.mapped(outputs, lambda leaf: wide(leaf).detach())
    _check_graph(total, outputs, y, name)
    try:
        # Twice the digits, where the function's own tensors allow that.
        twice = trees.mapped(outputs, _double), trees.mapped(y, _double)
        total(*twice)
        outputs, y = twice
    except (RuntimeError, TypeError, ValueError):
        pass
    gradient = trees.gradient(lambda s: total(s, y), outputs, name)
    here, again = (float(total(outputs, y)) for _ in range(2))
    floats = [leaf for leaf in trees.leaves(outputs) if leaf.is_floating_point()]
    slopes = [leaf for leaf in trees.leaves(gradient) if leaf.is_floating_point()]
    if not math.isfinite(here) or not all(bool(slope.isfinite().all()) for slope in slopes):
        return False
    if here != again:
        raise SettingError(
            f"the loss '{name}' gives {here:.9g} and then {again:.9g} for the same outputs. Draw its random numbers outside, "
            "or say check=False."
        )
    # Of what it is computed in, whatever it is given.
    eps = torch.finfo(total(outputs, y).dtype).eps
    if eps > 1e-6:
        return True  # in half precision no difference shows anything
    size = max(1.0, *(float(leaf.abs().max()) for leaf in floats if leaf.numel()))
    step, share = (1e-5, 1e-4) if eps < 1e-10 else (5e-3, 3e-2)
    step *= size
    for direction in _directions(floats, slopes):
        ahead, behind = (_at(total, outputs, y, direction, sign * step) for sign in (1, -1))
        slope = sum(float((g * d).double().sum()) for g, d in zip(slopes, direction, strict=True))
        sizes = sum(float((g * d).abs().double().sum()) for g, d in zip(slopes, direction, strict=True))
        # At a kink of the loss any slope between those of either side is a subgradient.
        low, high = sorted(((ahead - here) / step, (here - behind) / step))
        slack = share * (sizes + abs(low) + abs(high)) + 64 * eps * (1 + abs(here)) / step
        if math.isfinite(low) and math.isfinite(high) and not low - slack <= slope <= high + slack:
            raise SettingError(
                f"the gradient of the loss '{name}' is {slope:.6g} along a direction in which its values change by "
                f"{(low + high) / 2:.6g}. Some part of it is detached or not differentiable: mend it, or say check=False."
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


def _directions(floats: list[Tensor], slopes: list[Tensor]) -> list[list[Tensor]]:
    """Single entries, those of the largest gradient and some others, and one through all."""
    lengths = [leaf.numel() for leaf in floats]
    flat = torch.cat([slope.flatten() for slope in slopes])
    every = torch.arange(len(flat), device=flat.device)
    chosen = {*flat.abs().topk(min(2, len(flat))).indices.tolist(), 0, len(flat) // 2, len(flat) - 1}
    directions = [(every == entry).to(flat.dtype) for entry in sorted(chosen)]
    directions.append(torch.sin(12.9898 * (1 + every.double())).to(flat.dtype))
    return [[part.view_as(leaf) for part, leaf in zip(d.split(lengths), floats, strict=True)] for d in directions]


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
