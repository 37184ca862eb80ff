"""What a model runs out of sight of a mode: in functions of `torch.jit` or of C++.

PyTorch hands no call inside these to a mode. But autograd numbers the nodes of its graph, in the
order in which a thread makes them. Those made between two calls that the mode met were made out of
its sight, and their names tell by what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from dualprop.reading.activations import READERS

# The number of the node that this thread will make next.
number: Callable[[], int] = torch._C._autograd._get_sequence_nr
_OTHER_NAMES = {"prelu_kernel": "prelu", "rrelu_with_noise": "rrelu"}
# A function of torch.jit that has run often: autograd keeps one node for all that is in it.
JIT = "torch.jit"


class Sight:
    """The nodes that were made out of sight, in a pass that begins here.

    Attributes:
        number: of the node that was to be made next, when the last call was over.
        gaps: numbers of what was made out of sight, first to last, the last exclusive; and the
            module that called next.
    """

    __slots__ = ("_looked", "gaps", "number")

    def __init__(self) -> None:
        self.number, self.gaps = number(), list[tuple[int, int, str]]()
        self._looked: set[int] = set()

    def note(self, place: str) -> None:
        """Something was made since the last call was over. The next one is called in `place`."""
        now = number()
        self.gaps.append((self.number, now, place))
        self.number = now

    def under(self, values: Iterable[Any]) -> Iterator[tuple[str, bool, str]]:
        """Names of what made these tensors out of sight: activations, and Functions of the user's.

        With each comes whether it is an activation, and a place. What is of parameters alone is
        left out, and so is what was named before.
        """
        for node in _nodes_of(values):
            if self._is_new(node):
                yield from self._made_by(node)

    def _place(self, node: Any) -> str | None:
        nr = node._sequence_nr()
        return next((place for first, last, place in self.gaps if first <= nr < last), None)

    def _is_new(self, node: Any) -> bool:
        return node._sequence_nr() not in self._looked and self._place(node) is not None

    def _made_by(self, top: Any) -> Iterator[tuple[str, bool, str]]:
        names: list[tuple[str, bool, str]] = []
        stack, is_of_data = [top], False
        self._looked.add(top._sequence_nr())
        while stack:
            node = stack.pop()
            if (made := _name(node)) is not None:
                names.append((*made, self._place(node) or ""))
            for below, _ in node.next_functions:
                if below is None:
                    continue
                if self._is_new(below):
                    self._looked.add(below._sequence_nr())
                    stack.append(below)
                else:
                    is_of_data = is_of_data or not isinstance(getattr(below, "variable", None), nn.Parameter)
        if is_of_data:
            yield from names


def _nodes_of(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Tensor):
            # Else torch.compile looks at what it has read, by tensors without values.
            if value.grad_fn is not None and not type(value).__module__.startswith("torch._subclasses"):
                yield value.grad_fn
        elif isinstance(value, (list, tuple)):
            yield from _nodes_of(value)
        elif isinstance(value, dict):
            yield from _nodes_of(value.values())


def _name(node: Any) -> tuple[str, bool] | None:
    """The activation that made a node, and True; or a Function of the user's, and False."""
    if isinstance(node, BackwardCFunction):
        function = node._forward_cls  # type: ignore[attr-defined]
        is_ours = function.__module__.split(".")[0] in ("torch", "dualprop")
        return None if is_ours else (function.__name__, False)
    name = re.sub(r"Backward\d*$", "", node.name())
    if "DifferentiableGraph" in name:
        return JIT, True
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    name = _OTHER_NAMES.get(name, name)
    return (name, True) if name in _names_of_activations() else None


def _names_of_activations() -> set[str]:
    return {getattr(function, "__name__", "").rstrip("_") for function in READERS}
