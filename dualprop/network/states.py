"""States of a network during inference: what is computed of each layer, and what of it is stale.

Layers k = 0…L, 0 the input. A dyad is held as its mean s̄ = α s⁺ + (1-α) s⁻ and its difference
δ = s⁺ - s⁻. These are what the other layers see: the mean goes up, the difference comes down.
s⁺ = s̄ + (1-α) δ and s⁻ = s̄ - α δ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.network.network import Network
from dualprop.neurons import AbstractNeuron
from dualprop.schedules import Step


@dataclass(frozen=True)
class Dyads:
    """The dyads of every layer: `means[k]` and `differences[k]`, shapes (N, …); k = 0 is the input.

    A difference is None where it is exactly zero.

    `directions[k]` holds the vectors of the power iteration for the synapse above layer k, where
    damping is spectral.
    """

    means: tuple[Tensor, ...]
    differences: tuple[Tensor | None, ...]
    alpha: float
    directions: tuple[Tensor | None, ...] = ()

    @cached_property
    def plus(self) -> tuple[Tensor, ...]:
        """s⁺ of every layer."""
        return tuple(
            mean if delta is None else torch.add(mean, delta, alpha=1 - self.alpha)
            for mean, delta in zip(self.means, self.differences, strict=True)
        )

    @cached_property
    def minus(self) -> tuple[Tensor, ...]:
        """s⁻ of every layer."""
        return tuple(
            mean if delta is None else torch.add(mean, delta, alpha=-self.alpha)
            for mean, delta in zip(self.means, self.differences, strict=True)
        )

    def mean(self, k: int) -> Tensor:
        """s̄_k."""
        return self.means[k]

    def difference(self, k: int) -> Tensor:
        """δ_k."""
        delta = self.differences[k]
        return torch.zeros_like(self.means[k]) if delta is None else delta


class States:
    """The states of one inference on one batch, with exact reuse: nothing is computed twice.

    Every tensor here is written once and then only replaced, so a tensor's identity is its version.
    Drives, feedbacks and gradients are the network's `evaluation` of its local maps, which says
    what is reused. Nothing compares values, so nothing waits for the device. `betas` are β_1…β_L
    where they may differ: each reader's signal then counts by its own β.
    """

    def __init__(self, network: Network, x: Tensor, betas: tuple[float, ...] | None = None) -> None:
        layers = network.depth + 1
        self.network, self.betas = network, betas
        self.means: list[Tensor] = [x] * layers  # placeholders above 0 until they are set
        self.differences: list[Tensor | None] = [None] * layers
        self.evaluation = network.evaluation()
        # The step of a schedule in progress, and those of its layers that are in their last update.
        self.step, self.final = Step(()), frozenset[int]()
        # The states' name where they did not settle: "free" or "nudged", say.
        self.kind = ""

    def fork(self, linearized: bool = False) -> States:
        """A second inference from these states, with all that is computed; counts start at zero.

        `linearized`: from now on drives, feedbacks and gradients are those of the synapses'
        Jacobians at these states, pool switches as they are here, wherever the states then go.
        """
        other = States(self.network, self.means[0], self.betas)
        other.means, other.differences = list(self.means), list(self.differences)
        other.evaluation = self.evaluation.fork(linearized)
        return other

    @property
    def counts(self) -> dict[str, int]:
        """The drives, feedbacks and gradients that were computed."""
        return self.evaluation.counts

    def neuron(self, k: int) -> AbstractNeuron:
        """The neuron of layer k."""
        return self.network.into(k).neuron

    def is_output(self, k: int) -> bool:
        """Whether layer k is the last."""
        return k == self.network.depth

    def positions(self) -> tuple[Tensor | None, ...]:
        """What moves as the states settle, by layer."""
        return tuple(self.means)

    def set(self, k: int, mean: Tensor, difference: Tensor | None) -> None:
        """Replace the state of layer k. Pass the very same tensor where it did not change.

        `difference` is what the layers below receive through Jᵀ: δ of a dyad, f'(a) ⊙ ε of a
        prediction error, the state itself in a Hopfield network. One that depends on the drive is
        the rule's to renew.
        """
        self.means[k], self.differences[k] = mean, difference

    def forward(self) -> None:
        """The forward pass: s_k = f(a_k) in every layer, no differences."""
        self.evaluation.forward(self)

    def ascend(self, layers: Sequence[int], update: Callable[[int], None]) -> None:
        """`update(k)` of one layer after another upwards, each from what is below it by then."""
        self.evaluation.ascend(self, layers, update)

    def descend(self, layers: Sequence[int], update: Callable[[int], None], is_last: bool = False) -> None:
        """`update(k)` of one layer after another downwards, each from what is above it by then.

        `is_last`: nothing more will come down from these states.
        """
        self.evaluation.descend(self, layers, update, is_last)

    def prepare(self, layers: Sequence[int]) -> None:
        """Compute the feedbacks of these layers together, where that costs less."""
        self.evaluation.prepare(self, layers)

    def drive(self, k: int) -> Tensor:
        """a_k from the means below. Only a new mean below costs a drive."""
        return self.evaluation.drive(self, k)

    def feedback(self, k: int) -> Tensor | None:
        """Δ_k = Σ (β_{k+1}/β_j) Jᵀ δ_j over the layers j that read layer k; None where it is zero.

        It is linearised at the mean s̄_k.

        Times β_k/β_{k+1} it is the pull on layer k. In a chain j is k+1, and the ratio here 1.
        """
        return self.evaluation.feedback(self, k)

    def release(self, k: int) -> bool:
        """Forget the drive and the feedback of layer k, before its last update.

        True where both were held here alone, and may be written over.
        """
        return self.evaluation.release(k)

    def core_shape(self, k: int, source: int) -> tuple[int, ...]:
        """The shape of one example entering the core of synapse (k, source), once driven."""
        return self.evaluation.core_shape(k, source)

    def gradients(self, scales: tuple[float, ...]) -> dict[str, Tensor]:
        """scales[k-1] · Σ over the batch of δ_kᵀ ∂a_k/∂parameter, at the means below.

        For every trainable parameter of every layer k.
        """
        return self.evaluation.gradients(self, scales)

    def gradient(self, k: int, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of δ_kᵀ ∂a_k/∂parameter, at the means below.

        For every trainable parameter of layer k.
        """
        return self.evaluation.gradient(self, k, scale)

    def contrast(self, other: States, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        """Each layer's `gradients` less those of a near inference, see `Synapse.contrast`.

        The other inference is on the same batch; its states and signals differ little. One gradient
        is counted for each. The scales are real where both inferences are.
        """
        return self.evaluation.contrast(self, other, scales)


def check_shapes(now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Raise SettingError where the states of an earlier call are not of this batch's shapes."""
    needed, given = ([tuple(mean.shape) for mean in means] for means in (now, before))
    if needed != given:
        raise SettingError(
            f"the previous state has shapes {given}, this batch needs {needed}. Keep the batch size (drop the last, "
            "smaller batch), or pass state=None."
        )
