"""Evaluating a network's local maps at the states of an inference: drives, feedbacks, gradients.

Layers k = 0…L, 0 the input. A network read as modules (`SynapseEvaluation`) drives one synapse at a
time. A network read by running it (`recorded`) runs a pass. The states say which tensors are the
present ones; an evaluation keeps what it has computed of them, and reuses it exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dualprop.network.layers import Layer, summed
from dualprop.network.synapses import Tape

# A synapse by the layer that it drives and the layer that it reads.
Edge = tuple[int, int]


class Inference(Protocol):
    """The states that are evaluated: `States`."""

    means: list[Tensor]
    differences: list[Tensor | None]
    betas: tuple[float, ...] | None

    @property
    def evaluation(self) -> AbstractEvaluation: ...
    def set(self, k: int, mean: Tensor, difference: Tensor | None) -> None: ...


class Layers(Protocol):
    """The network: `Network`."""

    @property
    def depth(self) -> int: ...
    def into(self, k: int) -> Layer: ...
    def out_of(self, k: int) -> tuple[int, ...]: ...


class AbstractEvaluation(ABC):
    """What was computed of the local maps, and `counts` of it. See `States` for each method.

    `learns_on_the_way`: gradients will be asked for at the present means and signals, so that they
    may be computed together with what comes down.
    """

    counts: dict[str, int]
    learns_on_the_way: bool = False

    @abstractmethod
    def fork(self, linearized: bool) -> AbstractEvaluation: ...

    @abstractmethod
    def forward(self, states: Inference) -> None: ...

    @abstractmethod
    def ascend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None]) -> None: ...

    @abstractmethod
    def descend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None], is_last: bool) -> None: ...

    @abstractmethod
    def prepare(self, states: Inference, layers: Sequence[int]) -> None: ...

    @abstractmethod
    def drive(self, states: Inference, k: int) -> Tensor: ...

    @abstractmethod
    def feedback(self, states: Inference, k: int) -> Tensor | None: ...

    @abstractmethod
    def release(self, k: int) -> bool: ...

    @abstractmethod
    def core_shape(self, k: int, source: int) -> tuple[int, ...]: ...

    @abstractmethod
    def gradients(self, states: Inference, scales: tuple[float, ...]) -> dict[str, Tensor]: ...

    @abstractmethod
    def gradient(self, states: Inference, k: int, scale: float) -> dict[str, Tensor]: ...

    @abstractmethod
    def contrast(self, states: Inference, other: Inference, scales: tuple[complex, ...]) -> dict[str, Tensor]: ...


class SynapseEvaluation(AbstractEvaluation):
    """The synapses of a network, each evaluated for itself.

    A drive is reused while the means it read are the same tensors, a feedback while its signals
    are.
    """

    def __init__(self, network: Layers) -> None:
        layers = network.depth + 1
        self.network = network
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        # By synapse: its tape, and (mean below, part of the drive).
        self._tapes: dict[Edge, Tape] = {}
        self._parts: dict[Edge, tuple[Tensor, Tensor]] = {}
        # By layer: what was read, and what was made of it.
        self._drives: list[tuple[object, Tensor] | None] = [None] * layers
        self._feedbacks: list[tuple[object, Tensor | None] | None] = [None] * layers
        # By synapse where Jacobians are held: its tape, the mean below and the part of the drive.
        self._held: dict[Edge, tuple[Tape, Tensor, Tensor]] | None = None

    def fork(self, linearized: bool) -> SynapseEvaluation:
        other = SynapseEvaluation(self.network)
        # New tapes: the old ones keep the last signal of the other inference.
        other._tapes = {edge: Tape(tape.below, tape.records) for edge, tape in self._tapes.items()}
        other._parts = dict(self._parts)
        other._drives, other._feedbacks = list(self._drives), list(self._feedbacks)
        if linearized:
            other._held = {edge: (tape, *self._parts[edge]) for edge, tape in self._tapes.items()}
        return other

    def forward(self, states: Inference) -> None:
        for k in range(1, self.network.depth + 1):
            states.set(k, self.network.into(k).neuron.f(self.drive(states, k)), None)

    def ascend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None]) -> None:
        for k in layers:
            update(k)

    def descend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None], is_last: bool) -> None:
        for k in layers:
            update(k)

    def prepare(self, states: Inference, layers: Sequence[int]) -> None:
        """Each synapse is evaluated for itself."""

    def drive(self, states: Inference, k: int) -> Tensor:
        """a_k, summed over synapses."""
        parts = tuple(self._part(states, (k, source)) for source in self.network.into(k).sources)
        if len(parts) == 1:
            return parts[0]
        cached = self._drives[k]
        if cached is not None and _same(cached[0], parts):
            return cached[1]
        total = summed(parts, k, self.network.into(k).sources)
        self._drives[k] = (parts, total)
        return total

    def _part(self, states: Inference, edge: Edge) -> Tensor:
        k, source = edge
        below, cached = states.means[source], self._parts.get(edge)
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
        """False where one is a view of a state, or the output of a tape."""
        layer = self.network.into(k)
        self._drives[k] = self._feedbacks[k] = None
        for source in layer.sources:
            self._parts.pop((k, source), None)
        owns_drive = len(layer.sources) > 1 or layer.synapse.owns_drive
        return owns_drive and all(self.network.into(j).synapse_from(k).owns_feedback for j in self.network.out_of(k))

    def feedback(self, states: Inference, k: int) -> Tensor | None:
        readers = [j for j in self.network.out_of(k) if states.differences[j] is not None]
        signals = tuple(states.differences[j] for j in readers)
        varies = self._held is None and any(self.network.into(j).synapse_from(k).feedback_depends_on_state for j in readers)
        version = (*signals, states.means[k]) if varies else signals
        cached = self._feedbacks[k]
        if cached is not None and _same(cached[0], version):
            return cached[1]
        total: Tensor | None = None
        for j, signal in zip(readers, signals, strict=True):
            assert signal is not None
            tape = self._tape(states, (j, k)) if self._held is None else self._held[j, k][0]
            part = self.network.into(j).synapse_from(k).feedback(tape, signal)
            self.counts["feedbacks"] += 1
            ratio = 1.0 if states.betas is None else states.betas[k] / states.betas[j - 1]
            part = part if ratio == 1 else part * ratio
            total = part if total is None else total + part
        self._feedbacks[k] = (version, total)
        return total

    def gradients(self, states: Inference, scales: tuple[float, ...]) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}
        for k in range(1, self.network.depth + 1):
            gradients.update(self.gradient(states, k, scales[k - 1]))
        return gradients

    def gradient(self, states: Inference, k: int, scale: float) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}
        layer, delta = self.network.into(k), states.differences[k]
        for source in layer.sources:
            synapse = layer.synapse_from(source)
            parameters = synapse.parameters
            if not parameters:
                continue
            if delta is None:
                gradients.update({name: torch.zeros_like(p) for name, p in parameters.items()})
                continue
            gradients.update(synapse.gradient(self._tape(states, (k, source)), delta, scale))
            self.counts["gradients"] += 1
        return gradients

    def contrast(self, states: Inference, other: Inference, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}
        second = other.evaluation
        assert isinstance(second, SynapseEvaluation)
        for k in range(1, self.network.depth + 1):
            layer, signal, other_signal = self.network.into(k), states.differences[k], other.differences[k]
            assert signal is not None
            assert other_signal is not None
            for source in layer.sources:
                synapse, edge = layer.synapse_from(source), (k, source)
                if synapse.parameters:
                    tapes = self._tape(states, edge), second._tape(other, edge)
                    gradients.update(synapse.contrast(tapes[0], signal, tapes[1], other_signal, scales[k - 1]))
                    for counts in (self.counts, second.counts):
                        counts["gradients"] += 1
        return gradients

    def _tape(self, states: Inference, edge: Edge) -> Tape:
        """The tape of a synapse at the present mean below. It costs a drive only where it must."""
        k, source = edge
        synapse, below = self.network.into(k).synapse_from(source), states.means[source]
        tape = self._tapes.get(edge)
        if self._held is not None:
            self._part(states, edge)
            return self._tapes[edge]
        if tape is not None and tape.below is below:
            return tape
        if tape is None or synapse.needs_drive_to_linearize:
            self._part(states, edge)
        else:
            self._tapes[edge] = synapse.linearize(tape, below)
        return self._tapes[edge]


def _same(cached: object, version: tuple[object, ...]) -> bool:
    if not isinstance(cached, tuple) or len(cached) != len(version):
        return False
    return all(a is b for a, b in zip(cached, version, strict=True))
