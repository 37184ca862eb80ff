"""Evaluating a recorded network: a stale drive runs the model again, once for all its layers.

Running it with given states is a pass up. What a layer sends down is a vector-Jacobian product of
its own tape, at the states of the last pass. Tapes share what lies between activations, as a
residual stream does. So several are taken by one call of autograd, which walks that once.
Layers k = 0…L, 0 the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.network.descent import Descent, TooEarly
from dualprop.network.evaluation import AbstractEvaluation, Inference
from dualprop.network.hooks import gradients_by
from dualprop.network.layers import Layer
from dualprop.network.recording import Tape, Visit
from dualprop.neurons import AbstractNeuron

Signals = tuple[Tensor | None, ...]


class Passes(Protocol):
    """The network: `recorded.RecordedLayers`."""

    @property
    def depth(self) -> int: ...
    @property
    def parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def names(self) -> dict[int, str]: ...
    def into(self, k: int) -> Layer: ...
    def out_of(self, k: int) -> tuple[int, ...]: ...
    def free(self) -> Tape: ...
    def run_pass(self, visit: Visit) -> Tape: ...


class PassEvaluation(AbstractEvaluation):
    """Passes of a recorded network: a stale drive runs the model again, once for all layers."""

    def __init__(self, network: Passes) -> None:
        self.network = network
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        self.tape: Tape | None = None
        # Whether another inference goes on from the same tape, and whether its graph is used up.
        self.is_shared = self.is_spent = False
        # By layer j: its signal, and what it sends to each layer that it reads, by this tape.
        self._sent: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
        # By layer k: the signals that it hears, and their sum.
        self._heard: dict[int, tuple[Signals, Tensor | None]] = {}
        # The signals of a descent, and the gradients that were computed on its way, unscaled.
        self._learned: tuple[Signals, dict[str, Tensor]] | None = None
        # The drive and the feedback of the layer that a pass under way has come to.
        self._arriving: tuple[int, Tensor, Tensor | None] | None = None

    def fork(self, linearized: bool) -> PassEvaluation:
        if linearized:
            raise SettingError("Jacobians of a network that is read by running it can't be held. Use jacobians='current'.")
        other = PassEvaluation(self.network)
        other.tape, other.is_spent = self.tape, self.is_spent
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
        if not self._is_fresh(states, k):
            self._run(lambda j, neuron, a: states.means[j])
        assert self.tape is not None
        return self.tape.values[k]

    def ascend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None]) -> None:
        rest = list(layers)
        while rest and self._is_fresh(states, rest[0]):
            update(rest.pop(0))
        if not rest:
            return
        # What the layers send is linearised at the states that the present tape was made of.
        self.prepare(states, rest)
        heard = {k: self.feedback(states, k) for k in rest}

        def visit(k: int, neuron: AbstractNeuron, a: Tensor) -> Tensor:
            if k in heard:
                self._update(k, a, heard.pop(k), update)
            return states.means[k]

        self._run(visit)

    def descend(self, states: Inference, layers: Sequence[int], update: Callable[[int], None], is_last: bool) -> None:
        rest = list(layers)
        self.drive(states, rest[0])
        while rest and (rest[0] == self.network.depth or not self.senders(states, rest[0]) or self._has_heard(states, rest[0])):
            update(rest.pop(0))
        if not rest:
            return
        spends = is_last and not self.is_shared
        learns = spends and self.learns_on_the_way and len(layers) == self.network.depth
        descent = Descent(self, states, rest, update, self._graph(states))
        self.is_spent = spends
        try:
            gradients = descent.run(self.network.names if learns else {}, retain_graph=not spends)
        except TooEarly:
            for k in descent.waiting:
                update(k)
            return
        sent = [j for j in descent.senders if states.differences[j] is not None]
        self.counts["feedbacks"] += sum(any(k in rest for k in self.network.into(j).sources) for j in sent)
        if learns:
            self.counts["gradients"] += sum(bool(self.network.into(j).parameters) for j in sent)
            self._learned = tuple(states.differences[1:]), gradients

    def arrive(self, states: Inference, k: int, total: Tensor | None, update: Callable[[int], None]) -> None:
        """Update layer k, where a descent has come to it, with the sum of what came down."""
        assert self.tape is not None
        heard = self._heard_of(states, k, total)
        if not self.is_spent:
            self._heard[k] = self._signals(states, k), heard
        self._update(k, self.tape.values[k], heard, update)

    def _update(self, k: int, a: Tensor, heard: Tensor | None, update: Callable[[int], None]) -> None:
        self._arriving = k, a, heard
        try:
            update(k)
        finally:
            self._arriving = None

    def prepare(self, states: Inference, layers: Sequence[int]) -> None:
        stale = [k for k in layers if k != self.network.depth and not self._has_heard(states, k)]
        senders = sorted({j for k in stale for j in self.senders(states, k)})
        if len(stale) < 2 or len(senders) < 2:
            return
        tape = self._graph(states)
        drives, signals = [tape.drives[j] for j in senders], [self.weighted(states, j) for j in senders]
        sums = torch.autograd.grad(drives, [tape.leaves[k] for k in stale], signals, retain_graph=True, allow_unused=True)
        self.counts["feedbacks"] += len(senders)
        for k, total in zip(stale, sums, strict=True):
            self._heard[k] = self._signals(states, k), self._heard_of(states, k, total)

    def feedback(self, states: Inference, k: int) -> Tensor | None:
        if self._arriving is not None and self._arriving[0] == k:
            return self._arriving[2]
        if self._has_heard(states, k):
            return self._heard[k][1]
        total: Tensor | None = None
        for j in self.senders(states, k):
            part = self._send(states, j).get(k)
            if part is not None:
                total = part if total is None else total + part
        heard = self._heard_of(states, k, total)
        self._heard[k] = self._signals(states, k), heard
        return heard

    def _heard_of(self, states: Inference, k: int, total: Tensor | None) -> Tensor | None:
        """What layer k hears of that sum of `weighted` signals."""
        return total if total is None or _is_uniform(states.betas) else total * states.betas[k]  # type: ignore[index]

    def weighted(self, states: Inference, j: int) -> Tensor:
        """What layer j sends: δ_j, or δ_j / β_j where layers have their own β."""
        signal = states.differences[j]
        assert signal is not None
        assert self.tape is not None
        if not _is_uniform(states.betas):
            signal = signal / states.betas[j - 1]  # type: ignore[index]
        return signal.to(self.tape.values[j].dtype)

    def release(self, k: int) -> bool:
        return False

    def core_shape(self, k: int, source: int) -> tuple[int, ...]:
        raise SettingError(
            "spectral damping is of synapses that are modules, but the model is read by running it. Give the constants "
            "yourself, damping=(…)."
        )

    def gradients(self, states: Inference, scales: tuple[float, ...]) -> dict[str, Tensor]:
        gradients, scale = self._learned_at(states, scales)
        if gradients is None:
            gradients, scale = self._gradients(states, scales)
        return {
            name: gradients[name].mul_(scale) if name in gradients else torch.zeros_like(p)
            for name, p in self.network.parameters.items()
        }

    def _learned_at(self, states: Inference, scales: tuple[float, ...]) -> tuple[dict[str, Tensor] | None, float]:
        """What was learned on the way, if at these states, and the one scale of all of it."""
        betas = (1.0,) * len(scales) if _is_uniform(states.betas) else states.betas
        assert betas is not None
        each = [scale * beta for scale, beta in zip(scales, betas, strict=True)]
        learned, self._learned = self._learned, None
        is_current = learned is not None and _same(learned[0], states.differences[1:])
        if not is_current or not self._is_fresh(states, self.network.depth) or not _is_near(each):
            return None, 1.0
        assert learned is not None
        return learned[1], each[0]

    def _gradients(self, states: Inference, scales: tuple[float, ...]) -> tuple[dict[str, Tensor], float]:
        """The gradients at these states, and a scale that they have yet to be multiplied with."""
        tape = self._graph(states, self.network.depth)
        is_uniform = len(set(scales)) == 1
        roots, signals, leaves = [], [], dict[str, Tensor]()
        for k in range(1, self.network.depth + 1):
            delta, drive = states.differences[k], tape.drives[k]
            reached = tape.reached(k, self.network.names)[1]
            if delta is None or not reached:
                continue
            roots.append(drive)
            signals.append((delta if is_uniform else delta * scales[k - 1]).to(drive.dtype))
            leaves |= reached
        self.counts["gradients"] += len(roots)
        each: tuple[Tensor, ...] = ()
        if leaves:
            each = gradients_by(roots, list(leaves.values()), signals, retain_graph=self.is_shared, materialize_grads=True)
        if not self.is_shared:
            self.tape = None
        return dict(zip(leaves, each, strict=True)), scales[0] if is_uniform else 1.0

    def gradient(self, states: Inference, k: int, scale: float) -> dict[str, Tensor]:
        raise SettingError("a layer of a network that is read by running it can't learn alone: it may share parameters.")

    def contrast(self, states: Inference, other: Inference, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        raise SettingError("a contrast of phases is of synapses that are modules, but the model is read by running it.")

    def senders(self, states: Inference, k: int) -> list[int]:
        """The layers that read layer k and send a signal."""
        return [j for j in self.network.out_of(k) if states.differences[j] is not None]

    def _signals(self, states: Inference, k: int) -> Signals:
        return tuple(states.differences[j] for j in self.senders(states, k))

    def _has_heard(self, states: Inference, k: int) -> bool:
        heard = self._heard.get(k)
        return heard is not None and _same(heard[0], self._signals(states, k))

    def _is_fresh(self, states: Inference, k: int) -> bool:
        """Whether a_k was made of the present states: of all below, as a branch may read any."""
        if self.tape is None:
            return False
        given, means = self.tape.states, states.means
        return all(given[j] is means[j] for j in range(1, k))

    def _graph(self, states: Inference, k: int = 1) -> Tape:
        """A tape whose drive a_k is of the present states, with its graph."""
        if self.is_spent or not self._is_fresh(states, k):
            self._run(lambda j, neuron, a: states.means[j])
        assert self.tape is not None
        return self.tape

    def _run(self, visit: Visit) -> None:
        before, self.tape = self.tape, None
        values: list[Tensor] = []

        def noting(k: int, neuron: AbstractNeuron, a: Tensor) -> Tensor:
            nonlocal before
            if before is not None:
                # What is made of the same states is the same tensor.
                a = before.values[k]
                values.append(a)
            state = visit(k, neuron, a)
            if before is not None and state is not before.states[k]:
                # From here on all is new, and has the memory of what was before.
                before = None
                self._forget_above(k)
            return state

        with torch.enable_grad():
            self.tape = self.network.run_pass(noting)
        self.tape.values[1 : len(values) + 1] = values
        if not values:
            self._forget_above(0)
        self.is_spent = False
        self.counts["drives"] += self.network.depth

    def _forget_above(self, k: int) -> None:
        """Forget what layers above k sent, by a tape that is no more."""
        self._sent = {j: sent for j, sent in self._sent.items() if j <= k}
        self._heard = {i: heard for i, heard in self._heard.items() if all(j <= k for j in self.network.out_of(i))}

    def _send(self, states: Inference, j: int) -> dict[int, Tensor]:
        """Jᵀ δ_j for every layer that layer j reads."""
        signal = states.differences[j]
        assert signal is not None
        sent = self._sent.get(j)
        if sent is not None and sent[0] is signal:
            return sent[1]
        tape = self._graph(states)
        sources = tape.reached(j, self.network.names)[0]
        parts: dict[int, Tensor] = {}
        if sources:
            leaves = [tape.leaves[k] for k in sources]
            each = torch.autograd.grad(
                tape.drives[j], leaves, self.weighted(states, j), retain_graph=True, materialize_grads=True
            )
            parts = dict(zip(sources, each, strict=True))
            self.counts["feedbacks"] += 1
        self._sent[j] = signal, parts
        return parts


def _is_uniform(betas: tuple[float, ...] | None) -> bool:
    return betas is None or len(set(betas)) == 1


def _is_near(values: Sequence[float]) -> bool:
    """Whether these numbers are one, but for rounding."""
    return max(values) - min(values) <= 1e-14 * abs(values[0])


def _same(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
