"""Evaluating a recorded network: a stale drive runs the model again, once for all its layers.

Running it with given states is a pass up. What a layer sends down is a vector-Jacobian product of
its own tape, at the states of the last pass. Layers k = 0…L, 0 the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.network.evaluation import AbstractEvaluation, Inference
from dualprop.network.hooks import gradients_by
from dualprop.network.recording import Tape, Visit
from dualprop.neurons import AbstractNeuron


class Passes(Protocol):
    """The network: `recorded.RecordedLayers`."""

    @property
    def depth(self) -> int: ...
    @property
    def parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def names(self) -> dict[int, str]: ...
    def out_of(self, k: int) -> tuple[int, ...]: ...
    def free(self) -> Tape: ...
    def run_pass(self, visit: Visit) -> Tape: ...


class PassEvaluation(AbstractEvaluation):
    """Passes of a recorded network: a stale drive runs the model again, once for all layers."""

    def __init__(self, network: Passes) -> None:
        self.network = network
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        self.tape: Tape | None = None
        self.is_shared = False
        # By layer j: its signal, and what it sends to each layer that it reads, by this tape.
        self._sent: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
        # By layer j: its signal, and the gradients that were computed on the way down, unscaled.
        self._learned: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
        # By layer k: the signals that it hears, and their sum.
        self._heard: dict[int, tuple[tuple[object, ...], Tensor | None]] = {}
        # The drive that is arriving, in a pass under way.
        self._arriving: tuple[int, Tensor] | None = None

    def fork(self, linearized: bool) -> PassEvaluation:
        if linearized:
            raise SettingError("Jacobians of a network that is read by running it can't be held. Use jacobians='current'.")
        other = PassEvaluation(self.network)
        other.tape = self.tape
        other.is_shared = self.is_shared = True
        return other

    def forward(self, states: Inference) -> None:
        self.tape = self.network.free()
        for k in range(1, self.network.depth + 1):
            states.set(k, self.tape.states[k], None)
        self.counts["drives"] += self.network.depth

    def drive(self, states: Inference, k: int) -> Tensor:
        if self._arriving is not None and self._arriving[0] == k:
            return self._arriving[1]
        return self._fresh(states, k).values[k]

    def ascend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None]) -> None:
        rest = list(layers)
        while rest and self._is_fresh(states, rest[0]):
            update(rest.pop(0))
        if not rest:
            return
        # What the layers send is linearised at the states that the present tape was made of.
        for j in rest:
            for reader in self.network.out_of(j):
                self._send(states, reader)

        def visit(k: int, neuron: AbstractNeuron, a: Tensor) -> Tensor:
            if k in rest:
                self._arriving = k, a
                update(k)
                self._arriving = None
            return states.means[k]

        self._run(visit)

    def feedback(self, states: Inference, k: int) -> Tensor | None:
        readers = [j for j in self.network.out_of(k) if states.differences[j] is not None]
        parts = [self._send(states, j).get(k) for j in readers]
        heard = self._heard.get(k)
        version = tuple(parts)
        if heard is not None and len(heard[0]) == len(version) and all(a is b for a, b in zip(heard[0], version, strict=True)):
            return heard[1]
        total: Tensor | None = None
        for j, part in zip(readers, parts, strict=True):
            if part is None:
                continue
            ratio = 1.0 if states.betas is None else states.betas[k] / states.betas[j - 1]
            part = part if ratio == 1 else part * ratio
            total = part if total is None else total + part
        self._heard[k] = version, total
        return total

    def release(self, k: int) -> bool:
        return False

    def core_shape(self, k: int, source: int) -> tuple[int, ...]:
        raise SettingError(
            "spectral damping is of synapses that are modules, but the model is read by running it. Give the constants "
            "yourself, damping=(…)."
        )

    def gradients(self, states: Inference, scales: tuple[float, ...]) -> dict[str, Tensor]:
        tape = self._fresh(states, self.network.depth)
        gradients: dict[str, Tensor] = {}
        roots, signals, leaves = [], [], dict[str, Tensor]()
        for k in range(1, self.network.depth + 1):
            delta, drive = states.differences[k], tape.drives[k]
            reached = tape.reached(k, self.network.names)[1]
            if delta is None or not reached:
                continue
            learned = self._learned.pop(k, None)
            if learned is not None and learned[0] is delta:
                _add(gradients, {name: gradient.mul_(scales[k - 1]) for name, gradient in learned[1].items()})
                continue
            roots.append(drive)
            signals.append((delta * scales[k - 1]).to(drive.dtype))
            leaves |= reached
            self.counts["gradients"] += 1
        if leaves:
            each = gradients_by(roots, list(leaves.values()), signals, retain_graph=self.is_shared, materialize_grads=True)
            _add(gradients, dict(zip(leaves, each, strict=True)))
        if not self.is_shared:
            self.tape = None
        return {
            name: torch.zeros_like(p) if name not in gradients else gradients[name]
            for name, p in self.network.parameters.items()
        }

    def gradient(self, states: Inference, k: int, scale: float) -> dict[str, Tensor]:
        raise SettingError("a layer of a network that is read by running it can't learn alone: it may share parameters.")

    def contrast(self, states: Inference, other: Inference, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        raise SettingError("a contrast of phases is of synapses that are modules, but the model is read by running it.")

    def _is_fresh(self, states: Inference, k: int) -> bool:
        """Whether a_k was made of the present states: of all below, as a branch may read any."""
        if self.tape is None:
            return False
        given, means = self.tape.states, states.means
        return all(given[j] is means[j] for j in range(1, k))

    def _fresh(self, states: Inference, k: int) -> Tape:
        """A tape whose drive a_k is of the present states."""
        if not self._is_fresh(states, k):
            self._run(lambda j, neuron, a: states.means[j])
        assert self.tape is not None
        return self.tape

    def _run(self, visit: Visit) -> None:
        with torch.enable_grad():
            after = self.network.run_pass(visit)
        before, self.tape = self.tape, after
        self.counts["drives"] += self.network.depth
        # What is made of the same states is the same tensor.
        same = 0
        if before is not None:
            same = next((k for k in range(1, after.depth) if after.states[k] is not before.states[k]), after.depth)
            for k in range(1, same + 1):
                after.values[k] = before.values[k]
        self._sent = {j: sent for j, sent in self._sent.items() if j <= same}
        self._learned = {j: learned for j, learned in self._learned.items() if j <= same}

    def _send(self, states: Inference, j: int) -> dict[int, Tensor]:
        """Jᵀ δ_j for every layer that layer j reads."""
        signal = states.differences[j]
        if signal is None:
            return {}
        sent = self._sent.get(j)
        if sent is not None and sent[0] is signal:
            return sent[1]
        tape = self._fresh(states, 1)
        sources, reached = tape.reached(j, self.network.names)
        leaves = [tape.leaves[k] for k in sources]
        parts: dict[int, Tensor] = {}
        if sources:
            drive = tape.drives[j]
            learning = reached if self.learns_on_the_way else {}
            each = gradients_by(
                drive, [*leaves, *learning.values()], signal.to(drive.dtype), retain_graph=True, materialize_grads=True
            )
            parts = dict(zip(sources, each, strict=False))
            self.counts["feedbacks"] += 1
            if learning:
                self._learned[j] = signal, dict(zip(learning, each[len(leaves) :], strict=True))
                self.counts["gradients"] += 1
        self._sent[j] = signal, parts
        return parts


def _add(total: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        total[name] = total[name].add_(gradient) if name in total else gradient
