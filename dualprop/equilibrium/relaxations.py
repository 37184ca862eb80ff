"""Relaxation: how the states of an energy-based network settle, free or with a nudge on its output, and whether they have.

Two ways down from the error at the output:

    block updates   in the order of a schedule each layer k takes the state that minimises the energy between its neighbours as
                    they are now (the energies' `settle`); any energy
    error sweeps    down, ε_k from T_k and T_{k-1} from ε_k, at the Jacobians of the present states; then up, s_k from T_k and
                    the drive from the new s_{k-1}. One pair moves every layer to where it belongs, up to O(β²), for 2(L-1)
                    synapse evaluations; predictive coding networks

A nudged phase starts from the free states and knows all that the free phase computed. Layers k = 0…L, N batch, K outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualprop.equilibrium.energies import AbstractEnergy, Update
from dualprop.losses import AbstractLoss, targets
from dualprop.network import Network
from dualprop.network.states import Activations, residual
from dualprop.neurons import AbstractNeuron, Scale
from dualprop.schedules import AnySchedule, Step

# A last pass that moves the states by more than this share of their displacement has settled nothing.
MOST_MOVED = 0.5
# Where two phases differ by less than so many units in the last place of a layer's states, what is seen of it is rounding.
LEAST_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a phase settles, see `rules.equilibrium_propagation`."""

    energy: AbstractEnergy
    update: Update
    step_size: float
    output_nudge: Literal["linearized", "exact", "clamped"]
    loss: AbstractLoss


@dataclass(frozen=True)
class Nudge:
    """The pull at the output towards targets y: `strength` · loss, > 0 downhill, one number or one per example, (N, 1). States
    under a complex strength are complex, see `holomorphic`."""

    y: Tensor
    strength: complex | Tensor

    @property
    def is_complex(self) -> bool:
        return isinstance(self.strength, complex)

    def strength_like(self, outputs: Tensor) -> complex | Tensor:
        """What multiplies outputs (N, K): a number stays one, which a captured step needs no copy to the device for."""
        return self.strength.to(outputs.dtype) if isinstance(self.strength, Tensor) else self.strength


class Phase:
    """The states of one batch while they settle, free or under a nudge.

    `moved` lists how far passes moved the states, by their displacement from where the phase began: every pass where there is a
    tolerance, else the last. `trouble` says why they did not settle and what to do; empty where they did.
    """

    def __init__(
        self,
        settings: Settings,
        network: Network,
        activations: Activations,
        nudge: Nudge | None,
        frozen: bool = False,
        clamped: Tensor | None = None,
    ) -> None:
        self.settings, self.network, self.nudge = settings, network, nudge
        self.activations = activations
        self.start = tuple(activations.means)
        self.passes = 0
        self.moved: list[float] = []
        self.trouble = ""
        layers = range(1, network.depth + 1)
        self._settled: list[tuple[Tensor, Tensor | None] | None] = [None] * (network.depth + 1)
        # The drive and the state that a layer's present signal was made of. At the forward pass it is zero.
        self._signalled: list[tuple[Tensor, Tensor] | None] = [None] * (network.depth + 1)
        if settings.energy.free_is_forward:
            for k in layers:
                self._signalled[k] = (activations.drive(k), activations.means[k])
        self.neurons = [network.into(k).neuron for k in layers]
        if frozen:
            drives = [activations.drive(k) for k in layers]
            self.neurons = [_Tangent(*parts) for parts in zip(self.neurons, drives, self.start[1:], strict=True)]
        self._clamped = clamped

    def settle_by_blocks(
        self,
        schedule: AnySchedule,
        generator: torch.Generator | None,
        is_measured: bool,
        tolerance: float | None,
        most: int | None = None,
        least: int = 0,
    ) -> None:
        """Update through the schedule, `most` passes of it at most; with a tolerance, until one moves the states no more, after
        `least` passes or later."""
        before = self.start
        for steps in itertools.islice(schedule.passes(self.network.depth, generator), most):
            before = tuple(self.activations.means)
            for step in steps:
                self.update(step)
            self.passes += 1
            if tolerance is not None and not self._measure(before) > tolerance and self.passes >= least:
                break
        # What the first pass moves is the displacement itself.
        if tolerance is None and is_measured and self.passes > 1:
            self._measure(before)
        self._finish(str(schedule), tolerance)

    def settle_by_error_sweeps(self, pairs: int, is_measured: bool, tolerance: float | None) -> None:
        """Pairs of a pass down and a pass up; with a tolerance, until a pair moves the states by no more than that."""
        before = self.start
        for _ in range(pairs):
            before = tuple(self.activations.means)
            self.sweep()
            self.passes += 1
            if self.passes > 1 and tolerance is not None and not self._measure(before) > tolerance:
                break
        if self.passes > 1 and tolerance is None and is_measured:
            self._measure(before)
        self._finish(f"{pairs} pairs of error sweeps", tolerance)

    def update(self, step: Step) -> None:
        """Update the step's layers together, each from the states before the step."""
        new = [(k, *self._block(k)) for k in step.layers]
        for k, a, state, signal in new:
            self.activations.set(k, state, signal)
            self._signalled[k] = (a, state)

    def sweep(self) -> None:
        """One pair of error sweeps."""
        acts, depth = self.activations, self.network.depth
        pulls: list[Tensor | None] = [None] * (depth + 1)
        for k in range(depth, 0, -1):
            if k < depth:
                pulls[k] = acts.feedback(k)
            if any(self.network.into(k).sources):  # else nothing below reads its signal
                a = acts.drive(k)
                acts.differences[k] = (self._output(a) if k == depth else self._settle(k, a, pulls[k]))[1]
        for k in range(1, depth + 1):
            a = acts.drive(k)
            state, signal = self._output(a) if k == depth else self._settle(k, a, pulls[k])
            acts.set(k, state, signal)
            self._signalled[k] = (a, state)

    def _block(self, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Drive, new state and signal of layer k; the very same tensors where nothing that it reads has changed."""
        acts, step_size = self.activations, self.settings.step_size
        a = acts.drive(k)
        if k == self.network.depth:
            state, signal = self._output(a)
            if step_size == 1 or state is self._clamped:
                return a, state, signal
            state = torch.lerp(acts.means[k], state, step_size)
            return a, state, self._signal(k, a, state)
        for j in self.network.out_of(k):
            self._refresh(j)
        pull = acts.feedback(k)
        known = self._settled[k]
        if step_size == 1 and known is not None and known[0] is a and known[1] is pull:
            return a, acts.means[k], acts.differences[k]
        self._settled[k] = (a, pull)
        state, signal = self._settle(k, a, pull)
        if step_size == 1:
            return a, state, signal
        state = torch.lerp(acts.means[k], state, step_size)
        return a, state, self._signal(k, a, state)

    def _settle(self, k: int, a: Tensor, pull: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.settings.energy.settle(self.neurons[k - 1], a, pull, self.settings.update)

    def _signal(self, k: int, a: Tensor, state: Tensor) -> Tensor:
        return self.settings.energy.signal(self.neurons[k - 1], a, state)

    def _output(self, a: Tensor) -> tuple[Tensor, Tensor | None]:
        settings, k = self.settings, self.network.depth
        if self._clamped is not None:
            return self._clamped, self._signal(k, a, self._clamped)
        if self.nudge is None:
            return self._settle(k, a, None)
        if settings.output_nudge == "exact":
            state = self._exactly_nudged(a, self.nudge)
            return state, self._signal(k, a, state)
        gradient = settings.loss.gradient(self.activations.means[k], self.nudge.y)
        return self._settle(k, a, -self.nudge.strength_like(gradient) * gradient)

    def _exactly_nudged(self, a: Tensor, nudge: Nudge) -> Tensor:
        energy, loss, neuron = self.settings.energy, self.settings.loss, self.neurons[-1]
        if isinstance(nudge.strength, complex):
            # Of squared error on linear outputs, see `holomorphic.check`.
            return (a + nudge.strength * targets(nudge.y, a)) / (1 + nudge.strength)
        if not isinstance(nudge.strength, Tensor):
            return energy.nudge(loss, neuron, a, nudge.y, nudge.strength)
        beta = float(nudge.strength.abs().max())
        down, up = (energy.nudge(loss, neuron, a, nudge.y, strength) for strength in (beta, -beta))
        return torch.where(nudge.strength > 0, down, up)

    def _refresh(self, k: int) -> None:
        """Bring the signal of layer k up to date with its drive, where it depends on that."""
        acts = self.activations
        if not self.settings.energy.signal_reads_drive:
            return
        a, state, known = acts.drive(k), acts.means[k], self._signalled[k]
        if known is None or known[0] is not a or known[1] is not state:
            acts.differences[k] = self._signal(k, a, state)
            self._signalled[k] = (a, state)

    def _measure(self, before: Sequence[Tensor]) -> float:
        """Note, and return, how far the last pass moved the states relative to their displacement from the start."""
        now = self.activations.means
        moves = [new - old for new, old in zip(now, before, strict=True) if new is not old]
        displacements = [new - old for new, old in zip(now, self.start, strict=True) if new is not old]
        self.moved.append(residual(moves, displacements))
        return self.moved[-1]

    def _finish(self, order: str, tolerance: float | None) -> None:
        """Bring every signal up to date, and judge whether the states have settled."""
        for k in range(1, self.network.depth + 1):
            self._refresh(k)
        unreached = [k for k, signal in enumerate(self.activations.differences) if k and signal is None]
        if self.nudge is not None and unreached and self.settings.energy.free_is_forward:
            self.trouble = f"the nudge has not reached layer {unreached[-1]} under {order}"
        limit = MOST_MOVED if tolerance is None else tolerance
        if self.moved and not self.moved[-1] <= limit:
            kind = "free" if self.nudge is None else "complex nudged" if self.nudge.is_complex else "nudged"
            self.trouble = f"the {kind} states {self._verdict()} under {order}"

    def _verdict(self) -> str:
        last, half = self.moved[-1], self.moved[len(self.moved) // 2]
        if not math.isfinite(last):
            return "diverged"
        told = f"pass {self.passes} still moved them by {last:.2g} of their displacement"
        if len(self.moved) > 5 and last > half / 2:
            return f"cycle: {told}, pass {len(self.moved) // 2 + 1} by {half:.2g},"
        return f"have not settled: {told}"

    def one_more(self, schedule: AnySchedule | None, generator: torch.Generator | None) -> float:
        """How far one more pass of the schedule, or pair of error sweeps, moves the states, by their displacement."""
        before = tuple(self.activations.means)
        if schedule is None:
            self.sweep()
        else:
            for step in next(iter(schedule.passes(self.network.depth, generator))):
                self.update(step)
        return self._measure(before)

    def gradients(self, scale: float) -> dict[str, Tensor]:
        """-scale · Σ over the batch of σ_kᵀ ∂a_k/∂parameter, which is scale · ∂E/∂parameter, for every trainable parameter."""
        return self.activations.gradients((-scale,) * self.network.depth)

    def contrast(self, other: Phase, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        """These `gradients` less those of another phase of the same batch, without the difference of large sums; each layer's
        times its own scale, or the real part of that where these states are complex."""
        return self.activations.contrast(other.activations, tuple(-scale for scale in scales))

    def weigh(self, weights: Tensor) -> None:
        """Multiply the signals of each example by its weight, (N, 1), before gradients are taken."""
        signals = self.activations.differences
        for k, signal in enumerate(signals):
            signals[k] = None if signal is None else signal * _like(weights, signal)

    def kink_crossing(self, free: Phase) -> list[float]:
        """Per layer, the share of units that the nudge takes across a kink of the activation: a_k + T_k, free and now."""
        crossed = []
        for k in range(1, self.network.depth + 1):
            neuron = self.network.into(k).neuron
            crossed.append(float(neuron.crosses_kink(free.total(k), self.total(k)).double().mean()))
        return crossed

    def total(self, k: int) -> Tensor:
        """a_k + T_k, what layer k is pulled by from both sides at the present states; at the output the nudge's pull."""
        a = self.activations.drive(k)
        if k < self.network.depth:
            for j in self.network.out_of(k):
                self._refresh(j)
            pull = self.activations.feedback(k)
        elif self.nudge is None:
            pull = None
        else:
            gradient = self.settings.loss.gradient(self.activations.means[k], self.nudge.y)
            pull = -self.nudge.strength_like(gradient) * gradient
        return a if pull is None else a + pull


@dataclass(frozen=True)
class Report:
    """What is kept of a phase once its gradients are taken. A complex evaluation counts as the two real ones that it is."""

    counts: dict[str, int]
    passes: int
    residual: float | None
    trouble: str

    @classmethod
    def of(cls, phase: Phase) -> Report:
        each = 2 if phase.nudge is not None and phase.nudge.is_complex else 1
        counts = {name: each * count for name, count in phase.activations.counts.items()}
        return cls(counts, phase.passes, phase.moved[-1] if phase.moved else None, phase.trouble)


def diagnostics(reports: Sequence[Report]) -> dict[str, float]:
    """Counts over all phases, passes of those that iterated, and the largest residual that was measured."""
    found: dict[str, float] = {kind: sum(report.counts[kind] for report in reports) for kind in reports[0].counts}
    found["passes"] = sum(report.passes for report in reports)
    residuals = [report.residual for report in reports if report.residual is not None]
    return {**found, "residual": largest(residuals)} if residuals else found


def largest(residuals: Sequence[float]) -> float:
    """The largest residual; what is not a number is larger than any."""
    return max(residuals, key=lambda residual: math.inf if math.isnan(residual) else residual)


def may_wait(x: Tensor) -> bool:
    """Whether the host may wait for the device: not while a CUDA graph is captured, whose replays are not measured."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def rounded(first: Phase, second: Phase, what: str) -> str:
    """Where `what` tells two phases apart by so little in a layer that it is rounding; empty where it does not, or can't be
    asked."""
    states = list(zip(first.activations.means, second.activations.means, strict=True))[1:]
    if not may_wait(states[0][0]):
        return ""
    for k, (before, after) in enumerate(states, start=1):
        least = LEAST_DIGITS * torch.finfo(before.dtype).eps * float(before.norm())
        if not float((after - before).norm()) >= least:
            return f"of the {what}'s effect on layer {k} only rounding is left in {before.dtype}"
    return ""


class _Tangent(AbstractNeuron):
    """An activation's tangent where a phase began, f(a) = h⁰ + f'(a⁰) (a - a⁰): what is left of it while its mask is held."""

    is_elementwise = False
    is_affine = True

    def __init__(self, neuron: AbstractNeuron, drive: Tensor, state: Tensor) -> None:
        self.is_projection, self.reach = neuron.is_projection, neuron.reach
        self.drive, self.state, self.slope = drive, state, neuron.derivative(drive)

    def f(self, a: Tensor) -> Tensor:
        return torch.addcmul(self.state, self.slope, a - self.drive)

    def f_(self, a: Tensor) -> Tensor:
        return self.f(a)

    def derivative(self, a: Tensor) -> Tensor:
        return self.slope

    def potential(self, s: Tensor) -> Tensor:
        raise NotImplementedError("a tangent is no activation of its own")

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        raise NotImplementedError("a tangent is no activation of its own")


def _like(weights: Tensor, like: Tensor) -> Tensor:
    return weights.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
