"""Layers updated one after another downwards, inside one backward pass of autograd.

On a tape state k is a leaf, and nothing leads from it to drive k. So the backward pass begins at
all drives at once, with zeros where a layer is yet to be updated. Autograd walks what was computed
later first: when it comes to drive k, all that layer k hears has arrived at its state. A hook there
updates the layer, and its signal goes on down together with those of the layers above.

The order is autograd's own affair, and is watched. Where threads compute parts of the model, a
drive may come too early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dualprop.network.evaluation import Inference
from dualprop.network.hooks import own, silenced
from dualprop.network.recording import Tape


class TooEarly(Exception):
    """Autograd has come to a drive before all that reads its layer's state."""


class Evaluation(Protocol):
    """`passes.PassEvaluation`."""

    def senders(self, states: Inference, k: int) -> list[int]: ...
    def weighted(self, states: Inference, j: int) -> Tensor: ...
    def arrive(self, states: Inference, k: int, total: Tensor | None, update: Callable[[int], None]) -> None: ...


class Descent:
    """`update(k)` of hidden layers in falling order, each from what is above it by then.

    Attributes:
        waiting: the layers that are yet to be updated.
        senders: the layers whose signals go down.
    """

    def __init__(
        self, evaluation: Evaluation, states: Inference, layers: Sequence[int], update: Callable[[int], None], tape: Tape
    ) -> None:
        self.evaluation, self.states, self.update, self.tape = evaluation, states, update, tape
        self.waiting = list(layers)
        above = range(layers[-1], tape.depth + 1)
        self.senders = [j for j in above if tape.drives[j].requires_grad and (j in layers or states.differences[j] is not None)]
        # By layer: the zeros that its drive begins with, and what has come down to its state.
        self._zeros: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    def run(self, names: dict[int, str], retain_graph: bool) -> dict[str, Tensor]:
        """Descend. Gives the gradients of the parameters named, by all signals.

        Raises TooEarly, where `waiting` are left.
        """
        tape, leaves = self.tape, {k: self.tape.leaves[k] for k in self.waiting}
        reached = [tape.reached(j, names)[1] for j in self.senders] if names else []
        parameters = {name: leaf for each in reached for name, leaf in each.items()}
        self._zeros = {k: _zeros(tape.values[k]) for k in self.waiting}
        signals = [self._zeros[j] if j in self._zeros else self.evaluation.weighted(self.states, j) for j in self.senders]
        drives = [tape.drives[j] for j in self.senders]
        hooks = [leaf.register_hook(self._noting(k)) for k, leaf in leaves.items()]
        hooks += [tape.drives[k].register_hook(self._updating(k)) for k in self.waiting if k in self.senders]
        gradients: tuple[Tensor | None, ...] = ()
        try:
            with silenced(parameters.values()):
                if drives:
                    inputs = [*leaves.values(), *parameters.values()]
                    gradients = torch.autograd.grad(drives, inputs, signals, retain_graph, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        # At drives from which nothing leads to what is asked for.
        for k in list(self.waiting):
            self._update(k)
        learned = zip(parameters, own(gradients[len(leaves) :]), strict=True)
        return {name: gradient for name, gradient in learned if gradient is not None}

    def _noting(self, k: int) -> Callable[[Tensor], Tensor]:
        def note(total: Tensor) -> Tensor:
            self._sums[k] = total
            # Else autograd would hold it to the end, for its answer.
            return _zeros(total)

        return note

    def _updating(self, k: int) -> Callable[[Tensor], Tensor]:
        def update(total: Tensor) -> Tensor:
            if self.evaluation.senders(self.states, k) and k not in self._sums:
                raise TooEarly
            self._update(k)
            if self.states.differences[k] is None:
                return total
            signal = self.evaluation.weighted(self.states, k)
            # Whatever else reads the drive has sent its own part of the gradient.
            return signal if total.data_ptr() == self._zeros[k].data_ptr() else total + signal

        return update

    def _update(self, k: int) -> None:
        total = None
        if self.evaluation.senders(self.states, k):
            total = self._sums.pop(k) if k in self._sums else torch.zeros_like(self.tape.values[k])
        self.waiting.remove(k)
        self.evaluation.arrive(self.states, k, total, self.update)


def _zeros(like: Tensor) -> Tensor:
    """Zeros of that shape in the memory of one."""
    return like.new_zeros(()).expand_as(like)
