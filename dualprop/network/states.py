"""States of a network during inference: what is known of each layer, and what of it is stale.

Layers k = 0…L, 0 the input. A dyad is held as its mean s̄ = α s⁺ + (1-α) s⁻ and its difference δ = s⁺ - s⁻, which is what
the other layers see of it: the mean goes up, the difference comes down. s⁺ = s̄ + (1-α) δ and s⁻ = s̄ - α δ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dualprop.network.layers import summed
from dualprop.network.network import Network
from dualprop.network.synapses import Tape


@dataclass(frozen=True)
class Dyads:
    """The dyads of every layer: `means[k]`, `differences[k]` (None where exactly zero), shapes (N, …), k = 0 the input.

    `directions[k]` holds the vectors of the power iteration for the synapse above layer k, where damping is spectral.
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
Place = tuple[int, int]


class Activations:
    """The states of one inference on one batch, with exact reuse: nothing is computed twice.

    Every tensor here is written once and then only replaced, so a tensor's identity is its version: a drive is reused while
    the means that it read are the same tensors, a feedback while its signals are. Nothing compares values, so nothing waits
    for the device. `counts` holds the drives, feedbacks and gradients that were computed. `betas` are β_1…β_L where they may
    differ: what each reader sends down counts by its own.
    """

    def __init__(self, network: Network, x: Tensor, betas: tuple[float, ...] | None = None) -> None:
        layers = network.depth + 1
        self.network, self.betas = network, betas
        self.means: list[Tensor] = [x] * layers  # placeholders above 0 until they are set
        self.differences: list[Tensor | None] = [None] * layers
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        # By synapse: its tape, and (mean below, part of the drive).
        self._tapes: dict[Place, Tape] = {}
        self._parts: dict[Place, tuple[Tensor, Tensor]] = {}
        # By layer: what was read, and what was made of it.
        self._drives: list[tuple[object, Tensor] | None] = [None] * layers
        self._feedbacks: list[tuple[object, Tensor | None] | None] = [None] * layers
        # By synapse where Jacobians are held: its tape, the mean below and the part of the drive there.
        self._held: dict[Place, tuple[Tape, Tensor, Tensor]] | None = None

    def fork(self, linearized: bool = False) -> Activations:
        """A second inference that starts from these states, and knows all that is known of them; its counts start at zero.

        `linearized`: drives, feedbacks and gradients are those of the synapses' Jacobians at these states from now on, pool
        switches as they are here, wherever the states then go.
        """
        other = Activations(self.network, self.means[0], self.betas)
        other.means, other.differences = list(self.means), list(self.differences)
        # Tapes of its own: what they keep of the last signal is the other inference's.
        other._tapes = {place: Tape(tape.below, tape.records) for place, tape in self._tapes.items()}
        other._parts = dict(self._parts)
        other._drives, other._feedbacks = list(self._drives), list(self._feedbacks)
        if linearized:
            other._held = {place: (tape, *self._parts[place]) for place, tape in self._tapes.items()}
        return other

    def set(self, k: int, mean: Tensor, difference: Tensor | None) -> None:
        """Replace the state of layer k. Pass the very same tensor where it did not change."""
        self.means[k], self.differences[k] = mean, difference

    def forward(self) -> None:
        """The forward pass: s_k = f(a_k) in every layer, no differences."""
        for k in range(1, self.network.depth + 1):
            self.set(k, self.network.into(k).neuron.f(self.drive(k)), None)

    def drive(self, k: int) -> Tensor:
        """a_k from the means below, summed over the synapses into layer k; of each anew only if its mean was replaced."""
        parts = tuple(self._part((k, source)) for source in self.network.into(k).sources)
        if len(parts) == 1:
            return parts[0]
        known = self._drives[k]
        if known is not None and _same(known[0], parts):
            return known[1]
        total = summed(parts, k, self.network.into(k).sources)
        self._drives[k] = (parts, total)
        return total

    def _part(self, place: Place) -> Tensor:
        k, source = place
        below, known = self.means[source], self._parts.get(place)
        if known is not None and known[0] is below:
            return known[1]
        synapse = self.network.into(k).synapse_from(source)
        if self._held is None:
            drive, self._tapes[place] = synapse.drive(below)
        else:
            tape, start, drive_at_start = self._held[place]
            change, self._tapes[place] = synapse.differential(tape, below - start)
            drive = drive_at_start + change
        self._parts[place] = (below, drive)
        self.counts["drives"] += 1
        return drive

    def core_shape(self, k: int, source: int) -> tuple[int, ...]:
        """The shape of one example where it enters the core of the synapse from `source` into layer k, once driven."""
        return self._tapes[k, source].core_shape

    def release(self, k: int) -> bool:
        """Forget the drive and the feedback of layer k, which is not to be updated again. Whether both were held here alone,
        so that they may be written over: not where they are views of a state, or the output of a tape."""
        layer = self.network.into(k)
        self._drives[k] = self._feedbacks[k] = None
        for source in layer.sources:
            self._parts.pop((k, source), None)
        owns_drive = len(layer.sources) > 1 or layer.synapse.owns_drive
        return owns_drive and all(self.network.into(j).synapse_from(k).owns_feedback for j in self.network.out_of(k))

    def feedback(self, k: int) -> Tensor | None:
        """Δ_k = Σ (β_{k+1}/β_j) Jᵀ δ_j over the layers j that read layer k, linearised at the mean s̄_k; None where it is zero.

        Times β_k/β_{k+1} it is the pull on layer k. In a chain j is k+1, and the ratio here 1.
        """
        readers = [j for j in self.network.out_of(k) if self.differences[j] is not None]
        signals = tuple(self.differences[j] for j in readers)
        varies = self._held is None and any(self.network.into(j).synapse_from(k).feedback_depends_on_state for j in readers)
        version = (*signals, self.means[k]) if varies else signals
        known = self._feedbacks[k]
        if known is not None and _same(known[0], version):
            return known[1]
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
        """scales[k-1] · Σ over the batch of δ_kᵀ ∂a_k/∂parameter at the means below, for every trainable parameter of every
        layer k."""
        found: dict[str, Tensor] = {}
        for k in range(1, self.network.depth + 1):
            found.update(self.gradient(k, scales[k - 1]))
        return found

    def gradient(self, k: int, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of δ_kᵀ ∂a_k/∂parameter at the means below, for every trainable parameter of layer k."""
        found: dict[str, Tensor] = {}
        layer, delta = self.network.into(k), self.differences[k]
        for source in layer.sources:
            synapse = layer.synapse_from(source)
            if not synapse.parameters:
                continue
            if delta is None:
                found.update({name: torch.zeros_like(p) for name, p in synapse.parameters.items()})
                continue
            found.update(synapse.gradient(self._tape((k, source)), delta, scale))
            self.counts["gradients"] += 1
        return found

    def contrast(self, other: Activations, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        """Each layer's `gradients` less those of another inference on the same batch whose states and signals are near, see
        `Synapse.contrast`. One gradient is counted for each. The scales are real where both inferences are."""
        found: dict[str, Tensor] = {}
        for k in range(1, self.network.depth + 1):
            layer, signal, other_signal = self.network.into(k), self.differences[k], other.differences[k]
            assert signal is not None
            assert other_signal is not None
            for source in layer.sources:
                synapse, place = layer.synapse_from(source), (k, source)
                if synapse.parameters:
                    found.update(synapse.contrast(self._tape(place), signal, other._tape(place), other_signal, scales[k - 1]))
                    for counts in (self.counts, other.counts):
                        counts["gradients"] += 1
        return found

    def _tape(self, place: Place) -> Tape:
        """The tape of a synapse at the present mean below. It costs a drive only where nothing less will do."""
        k, source = place
        synapse, below = self.network.into(k).synapse_from(source), self.means[source]
        tape = self._tapes.get(place)
        if self._held is not None:
            self._part(place)
            return self._tapes[place]
        if tape is not None and tape.below is below:
            return tape
        if tape is None or synapse.needs_drive_to_linearize:
            self._part(place)
        else:
            self._tapes[place] = synapse.linearize(tape, below)
        return self._tapes[place]


def residual(moves: Sequence[Tensor], displacements: Sequence[Tensor]) -> float:
    """‖moves‖ / ‖displacements‖ over all layers, examples and units: how far one more update of every layer would move the
    states, relative to how far inference has moved them from the free state. 0 where nothing moves; waits for the device."""
    moved, displaced = (math.sqrt(sum(_squared_norm(t) for t in tensors)) for tensors in (moves, displacements))
    return 0.0 if moved == 0 else moved / displaced if displaced else math.inf


def _squared_norm(t: Tensor) -> float:
    return float((torch.view_as_real(t) if t.is_complex() else t).double().square().sum())


def _same(known: object, version: tuple[object, ...]) -> bool:
    return isinstance(known, tuple) and len(known) == len(version) and all(a is b for a, b in zip(known, version, strict=True))
