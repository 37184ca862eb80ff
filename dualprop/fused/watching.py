"""What the first backward passes of a dualized model show: how many units their nudge takes across
a kink of their activation (`neurons.crossing`).

It is counted where the dyadic difference is taken, by a comparison an activation, in three passes.
The numbers are read at the forward pass after, so that no backward pass waits for a device.
"""

from __future__ import annotations

import warnings
from typing import Literal, Protocol

import torch
from torch import Tensor

import dualprop.captures as captures
from dualprop.errors import NudgeWarning
from dualprop.neurons import AbstractNeuron, crossing

# Passes that are looked at. β of dualize, and what it is while none is chosen: so small that what
# comes down is as by back-propagation. The kernels keep every digit of it.
PASSES = 3
DEFAULT = 1.0
WHILE_OPEN = DEFAULT * crossing.FACTORS[-1]


class Settings(Protocol):
    """`passes.Dualization`."""

    coupling: Literal["original", "transposed"]
    alpha: float
    beta: float | tuple[float, ...] | dict[int | str, float]
    watch: Watch | None


class Watch:
    """The largest share of each activation's units so far, at some multiples of its β.

    `is_open`: β is to be chosen; it is `WHILE_OPEN` until then.
    """

    def __init__(self, is_open: bool) -> None:
        self.is_open, self.num_passes = is_open, 0
        self.multiples = tuple(c / crossing.FACTORS[-1] for c in crossing.FACTORS) if is_open else (1.0,)
        self._shares: dict[int, Tensor] = {}

    def look(self, k: int, neuron: object, a: Tensor, dy: Tensor, up: float, down: float) -> None:
        """Activation k is nudged from a to a - up·dy and a + down·dy."""
        if not isinstance(neuron, AbstractNeuron) or not a.numel() or captures.forbid_waiting(a):
            return
        with torch.no_grad():
            # In half precision the nudge would be lost beside the drive.
            a, dy = a.float(), dy.float()
            crossed = [neuron.crosses_kink(a - up * c * dy, a + down * c * dy).float().mean() for c in self.multiples]
            shares = torch.stack(crossed)
            self._shares[k] = torch.maximum(self._shares[k], shares) if k in self._shares else shares

    def conclude(self, settings: Settings) -> None:
        """At the start of a forward pass: choose β, or tell of it, by what was seen."""
        if not self._shares or captures.forbid_waiting(next(iter(self._shares.values()))):
            return
        self.num_passes += 1
        none = [0.0] * len(self.multiples)
        seen = {k: each.tolist() for k, each in self._shares.items()}
        # By multiple, of activations 1, 2, …
        shares = list(zip(*(seen.get(k, none) for k in range(1, max(seen) + 1)), strict=True))
        if self.is_open:
            worst = [max(each) for each in shares]
            i = next((i for i, share in enumerate(worst) if share < crossing.SMALL_SHARE), len(worst) - 1)
            settings.beta, settings.watch = DEFAULT * crossing.FACTORS[i], None
            told = crossing.chosen(settings.beta, worst[i], DEFAULT, worst[0])
        else:
            is_bent = settings.coupling == "original" and settings.alpha != 0.5
            told = crossing.advice(shares[0], (), _largest(settings.beta), DEFAULT, is_bent)
            settings.watch = None if told or self.num_passes == PASSES else self
        if told:
            warnings.warn(told, NudgeWarning, stacklevel=crossing.caller())


def _largest(beta: float | tuple[float, ...] | dict[int | str, float]) -> float:
    return max(beta.values()) if isinstance(beta, dict) else max(beta) if isinstance(beta, tuple) else beta
