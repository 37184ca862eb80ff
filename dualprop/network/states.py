"""States of a network during inference: what is computed of each layer, and what of it is stale.

Layers k = 0…L, 0 the input. A dyad is held as its mean s̄ = α s⁺ + (1-α) s⁻ and its difference
δ = s⁺ - s⁻. These are what the other layers see: the mean goes up, the difference comes down.
s⁺ = s̄ + (1-α) δ and s⁻ = s̄ - α δ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.network.layers import summed
from dualprop.network.network import Network
from dualprop.network.synapses import Tape
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


# A synapse by the layer that it drives and the layer that it reads.
Edge = tuple[int, int]


class States:
    """The states of one inference on one batch, with exact reuse: nothing is computed twice.

    Every tensor here is written once and then only replaced, so a tensor's identity is its version.
    A drive is reused while the means it read are the same tensors, a feedback while its signals
    are. Nothing compares values, so nothing waits for the device. `counts` holds the drives,
    feedbacks and gradients that were computed. `betas` are β_1…β_L where they may differ: each
    reader's signal then counts by its own β.
    """

    def __init__(self, network: Network, x: Tensor, betas: tuple[float, ...] | None = None) -> None:
        layers = network.depth + 1
        self.network, self.betas = network, betas
        self.means: list[Tensor] = [x] * layers  # placeholders above 0 until they are set
        self.differences: list[Tensor | None] = [None] * layers
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        # The step of a schedule in progress, and those of its layers that are in their last update.
        self.step, self.final = Step(()), frozenset[int]()
        # The states' name where they did not settle: "free" or "nudged", say.
        self.kind = ""
        # By synapse: its tape, and (mean below, part of the drive).
        self._tapes: dict[Edge, Tape] = {}
        self._parts: dict[Edge, tuple[Tensor, Tensor]] = {}
        # By layer: what was read, and what was made of it.
        self._drives: list[tuple[object, Tensor] | None] = [None] * layers
        self._feedbacks: list[tuple[object, Tensor | None] | None] = [None] * layers
        # By synapse where Jacobians are held: its tape, the mean below and the part of the drive.
        self._held: dict[Edge, tuple[Tape, Tensor, Tensor]] | None = None

    def fork(self, linearized: bool = False) -> States:
        """A second inference from these states, with all that is computed; counts start at zero.

        `linearized`: from now on drives, feedbacks and gradients are those of the synapses'
        Jacobians at these states, pool switches as they are here, wherever the states then go.
        """
        other = States(self.network, self.means[0], self.betas)
        other.means, other.differences = list(self.means), list(self.differences)
        # New tapes: the old ones keep the last signal of the other inference.
        other._tapes = {edge: Tape(tape.below, tape.records) for edge, tape in self._tapes.items()}
        other._parts = dict(self._parts)
        other._drives, other._feedbacks = list(self._drives), list(self._feedbacks)
        if linearized:
            other._held = {edge: (tape, *self._parts[edge]) for edge, tape in self._tapes.items()}
        return other

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
        for k in range(1, self.network.depth + 1):
            self.set(k, self.network.into(k).neuron.f(self.drive(k)), None)

    def drive(self, k: int) -> Tensor:
        """a_k from the means below, summed over synapses. Only a new mean below costs a drive."""
        parts = tuple(self._part((k, source)) for source in self.network.into(k).sources)
        if len(parts) == 1:
            return parts[0]
        cached = self._drives[k]
        if cached is not None and _same(cached[0], parts):
            return cached[1]
        total = summed(parts, k, self.network.into(k).sources)
        self._drives[k] = (parts, total)
        return total

    def _part(self, edge: Edge) -> Tensor:
        k, source = edge
        below, cached = self.means[source], self._parts.get(edge)
        if cached is not None and cached[0] is below:
            return cached[1]
        synapse = self.network.into(k).synapse_from(source)
        if self._held is None:
            drive, self._tapes[edge] = synapse.drive(below)
        else:
            tape, start, drive_at_start = self._held[edge]
            change, self._tapes[edge] = synapse.differential(tape, below - start)
            drive = drive_at_start + change
        self._parts[edge] = (below, drive)
        self.counts["drives"] += 1
        return drive

    def core_shape(self, k: int, source: int) -> tuple[int, ...]:
        """The shape of one example entering the core of synapse (k, source), once driven."""
        return self._tapes[k, source].core_shape

    def release(self, k: int) -> bool:
        """Forget the drive and the feedback of layer k, before its last update.

        True where both were held here alone, and may be written over. False where one is a view of
        a state, or the output of a tape.
        """
        layer = self.network.into(k)
        self._drives[k] = self._feedbacks[k] = None
        for source in layer.sources:
            self._parts.pop((k, source), None)
        owns_drive = len(layer.sources) > 1 or layer.synapse.owns_drive
        return owns_drive and all(self.network.into(j).synapse_from(k).owns_feedback for j in self.network.out_of(k))

    def feedback(self, k: int) -> Tensor | None:
        """Δ_k = Σ (β_{k+1}/β_j) Jᵀ δ_j over the layers j that read layer k; None where it is zero.

        It is linearised at the mean s̄_k.

        Times β_k/β_{k+1} it is the pull on layer k. In a chain j is k+1, and the ratio here 1.
        """
        readers = [j for j in self.network.out_of(k) if self.differences[j] is not None]
        signals = tuple(self.differences[j] for j in readers)
        varies = self._held is None and any(self.network.into(j).synapse_from(k).feedback_depends_on_state for j in readers)
        version = (*signals, self.means[k]) if varies else signals
        cached = self._feedbacks[k]
        if cached is not None and _same(cached[0], version):
            return cached[1]
        total: Tensor | None = None
        for j, signal in zip(readers, signals, strict=True):
            assert signal is not None
            tape = self._tape((j, k)) if self._held is None else self._held[j, k][0]
            part = self.network.into(j).synapse_from(k).feedback(tape, signal)
            self.counts["feedbacks"] += 1
            ratio = 1.0 if self.betas is None else self.betas[k] / self.betas[j - 1]
            part = part if ratio == 1 else part * ratio
            total = part if total is None else total + part
        self._feedbacks[k] = (version, total)
        return total

    def gradients(self, scales: tuple[float, ...]) -> dict[str, Tensor]:
        """scales[k-1] · Σ over the batch of δ_kᵀ ∂a_k/∂parameter, at the means below.

        For every trainable parameter of every layer k.
        """
        gradients: dict[str, Tensor] = {}
        for k in range(1, self.network.depth + 1):
            gradients.update(self.gradient(k, scales[k - 1]))
        return gradients

    def gradient(self, k: int, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of δ_kᵀ ∂a_k/∂parameter, at the means below.

        For every trainable parameter of layer k.
        """
        gradients: dict[str, Tensor] = {}
        layer, delta = self.network.into(k), self.differences[k]
        for source in layer.sources:
            synapse = layer.synapse_from(source)
            parameters = synapse.parameters
            if not parameters:
                continue
            if delta is None:
                gradients.update({name: torch.zeros_like(p) for name, p in parameters.items()})
                continue
            gradients.update(synapse.gradient(self._tape((k, source)), delta, scale))
            self.counts["gradients"] += 1
        return gradients

    def contrast(self, other: States, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        """Each layer's `gradients` less those of a near inference, see `Synapse.contrast`.

        The other inference is on the same batch; its states and signals differ little. One gradient
        is counted for each. The scales are real where both inferences are.
        """
        gradients: dict[str, Tensor] = {}
        for k in range(1, self.network.depth + 1):
            layer, signal, other_signal = self.network.into(k), self.differences[k], other.differences[k]
            assert signal is not None
            assert other_signal is not None
            for source in layer.sources:
                synapse, edge = layer.synapse_from(source), (k, source)
                if synapse.parameters:
                    gradients.update(synapse.contrast(self._tape(edge), signal, other._tape(edge), other_signal, scales[k - 1]))
                    for counts in (self.counts, other.counts):
                        counts["gradients"] += 1
        return gradients

    def _tape(self, edge: Edge) -> Tape:
        """The tape of a synapse at the present mean below. It costs a drive only where it must."""
        k, source = edge
        synapse, below = self.network.into(k).synapse_from(source), self.means[source]
        tape = self._tapes.get(edge)
        if self._held is not None:
            self._part(edge)
            return self._tapes[edge]
        if tape is not None and tape.below is below:
            return tape
        if tape is None or synapse.needs_drive_to_linearize:
            self._part(edge)
        else:
            self._tapes[edge] = synapse.linearize(tape, below)
        return self._tapes[edge]


def _same(cached: object, version: tuple[object, ...]) -> bool:
    if not isinstance(cached, tuple) or len(cached) != len(version):
        return False
    return all(a is b for a, b in zip(cached, version, strict=True))


def check_shapes(now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Raise SettingError where the states of an earlier call are not of this batch's shapes."""
    needed, given = ([tuple(mean.shape) for mean in means] for means in (now, before))
    if needed != given:
        raise SettingError(
            f"the previous state has shapes {given}, this batch needs {needed}. Keep the batch size (drop the last, "
            "smaller batch), or pass state=None."
        )
