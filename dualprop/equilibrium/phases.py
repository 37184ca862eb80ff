"""Phases: the states of a batch while they settle on an energy, free or with the output nudged.

A nudged phase starts from the free states, with all that the free phase has computed. Layers
k = 0…L, N batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualprop.equilibrium import holomorphic
from dualprop.equilibrium.energies import AbstractEnergy, Update
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, SquaredError, targets
from dualprop.network.states import States
from dualprop.neurons import AbstractNeuron, Scale
from dualprop.schedules import Step
from dualprop.settling import MOST_MOVED, Settling, kink_crossing, motion, settle

OutputNudge = Literal["linearized", "exact", "clamped"]


@dataclass(frozen=True)
class Nudge:
    """The pull at the output towards targets y: `strength` · loss, downhill where > 0.

    The strength is one number or one per example, (N, 1…). Under a complex strength states are
    complex, see `holomorphic`.
    """

    y: Tensor
    strength: complex | Tensor

    @property
    def is_complex(self) -> bool:
        return isinstance(self.strength, complex)

    def strength_like(self, outputs: Tensor) -> complex | Tensor:
        """What multiplies outputs (N, …). A number stays one: no copy to the device is needed."""
        return _like(self.strength, outputs) if isinstance(self.strength, Tensor) else self.strength


@dataclass(frozen=True)
class Dynamics:
    """What a phase settles by: the energy, the update of its layers, the pull of the loss."""

    energy: AbstractEnergy
    loss: AbstractLoss
    output_nudge: OutputNudge
    update: Update = "auto"
    step_size: float = 1.0


@dataclass(frozen=True)
class Equilibria:
    """The states of layers 0…L that inference settled at: free, and by nudge β_m.

    At the conjugate of a complex nudge they are the conjugates, which are not listed.
    """

    free: tuple[Tensor, ...]
    nudged: tuple[tuple[complex | Tensor, tuple[Tensor, ...]], ...]


@dataclass(frozen=True)
class Stop:
    """When a phase has settled.

    Attributes:
        is_measured: whether residuals may be measured at all; a tolerance needs it.
        tolerance: the residual after a pass that is small enough to stop. None makes all passes.
        limit: without a tolerance, the residual after the last pass that is small enough.
        most: passes, however many the schedule has.
        least: passes before a tolerance may stop.
    """

    is_measured: bool = True
    tolerance: float | None = None
    limit: float = MOST_MOVED
    most: int | None = None
    least: int = 0


class Phase:
    """The states of one batch while they settle, free or under a nudge.

    Attributes:
        states: of all layers; their differences are the signals σ.
        nudge: None in a free phase.
        start: the states where the phase began.
        settling: how it went; None before.
    """

    def __init__(
        self, dynamics: Dynamics, states: States, nudge: Nudge | None, frozen: bool = False, clamped: Tensor | None = None
    ) -> None:
        self.dynamics, self.network, self.nudge = dynamics, states.network, nudge
        self.states = states
        self.start = tuple(states.means)
        self.settling: Settling | None = None
        self.step, self.final = Step(()), frozenset[int]()
        layers = range(1, self.network.depth + 1)
        # The drive and the pull that a layer's present state was made of.
        self._made_of: list[tuple[Tensor, Tensor | None] | None] = [None] * (self.network.depth + 1)
        # The drive and state that a layer's present signal was made of. The forward pass has none.
        self._signalled: list[tuple[Tensor, Tensor] | None] = [None] * (self.network.depth + 1)
        if dynamics.energy.free_is_forward:
            for k in layers:
                self._signalled[k] = (states.drive(k), states.means[k])
        self.neurons = [self.network.into(k).neuron for k in layers]
        if frozen:
            drives = [states.drive(k) for k in layers]
            self.neurons = [_Tangent(*parts) for parts in zip(self.neurons, drives, self.start[1:], strict=True)]
        self._clamped = clamped

    def nudged(self, nudge: Nudge | None, is_frozen: bool) -> Phase:
        """A phase that starts from these states, with all that this one has computed.

        `is_frozen` holds their Jacobians.
        """
        clamped = None
        if nudge is not None and self.dynamics.output_nudge == "clamped":
            output = self.states.means[-1]
            clamped = output + nudge.strength_like(output) * (targets(nudge.y, output) - output)
        is_complex = nudge is not None and nudge.is_complex
        states = holomorphic.counterpart(self.states) if is_complex else self.states.fork(is_frozen)
        return Phase(self.dynamics, states, nudge, is_frozen, clamped)

    @property
    def kind(self) -> str:
        """What its states are called."""
        if self.nudge is None:
            return "free"
        return "complex nudged" if self.nudge.is_complex else "clamped" if self._clamped is not None else "nudged"

    @property
    def passes(self) -> int:
        """How many passes it took."""
        return 0 if self.settling is None else self.settling.passes

    @property
    def each(self) -> int:
        """What an evaluation counts as. A complex one is two real ones."""
        return 2 if self.nudge is not None and self.nudge.is_complex else 1

    def set(self, k: int, state: Tensor, signal: Tensor | None, a: Tensor) -> None:
        """Replace state and signal of layer k, made of the drive a."""
        self.states.set(k, state, signal)
        self._signalled[k] = (a, state)

    def positions(self) -> tuple[Tensor, ...]:
        return tuple(self.states.means)

    def ascend(self, layers: Sequence[int], update: Callable[[int], None]) -> None:
        """Update one layer after another. A block reads the layers above too, so that a pass of the
        model alone would not do."""
        for k in layers:
            update(k)

    def descend(self, layers: Sequence[int], update: Callable[[int], None], is_last: bool = False) -> None:
        """The same downwards."""
        self.ascend(layers, update)

    def prepare(self, layers: Sequence[int]) -> None:
        """Compute the pulls on these layers together."""
        for j in sorted({j for k in layers for j in self.network.out_of(k)}):
            self._refresh(j)
        self.states.prepare(layers)

    def moved_since(self, before: Sequence[Tensor]) -> list[float]:
        """How far the states are from `before`, relative to their displacement from the start; of
        each model."""
        return motion(self.states.means, before, self.start, self.network.num_models)

    def settle(self, passes: Iterable[Sequence[Step]], stop: Stop, after_pass: Callable[[int], None] | None = None) -> None:
        """Update blocks through the passes, see `settling.settle`, and keep how it went."""
        measure = self.moved_since if stop.is_measured or stop.tolerance is not None else None
        settling = settle(
            self, passes, Phase.block, measure, stop.tolerance, limit=stop.limit, most=stop.most, least=stop.least,
            after_pass=after_pass,
        )  # fmt: skip
        self.finish(settling)

    def finish(self, settling: Settling) -> None:
        """Bring every signal up to date, and keep how the phase has settled."""
        for k in range(1, self.network.depth + 1):
            self._refresh(k)
        self.settling = settling
        is_expected = self.nudge is not None and self.dynamics.energy.free_is_forward
        settling.expect_signals(self.states, "nudge", is_expected)

    def sweep(self) -> None:
        """One pair of error sweeps."""
        states, depth = self.states, self.network.depth
        pulls: list[Tensor | None] = [None] * (depth + 1)

        def pull_one(k: int) -> None:
            if k < depth:
                pulls[k] = states.feedback(k)
            if any(self.network.into(k).sources):  # else nothing below reads its signal
                a = states.drive(k)
                states.differences[k] = self._output(a)[1] if k == depth else self._sent(k, a, pulls[k])

        def settle_one(k: int) -> None:
            a, pull, pulls[k] = states.drive(k), pulls[k], None
            state, signal = self._output(a) if k == depth else self._settle(k, a, pull)
            self.set(k, state, signal, a)

        states.descend(range(depth, 0, -1), pull_one)
        states.ascend(range(1, depth + 1), settle_one)

    def block(self, k: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """New state, signal and drive of layer k; the same tensors if what it reads is too."""
        states, step_size = self.states, self.dynamics.step_size
        a = states.drive(k)
        if k == self.network.depth:
            state, signal = self._output(a)
            if step_size == 1 or state is self._clamped:
                return state, signal, a
            state = torch.lerp(states.means[k], state, step_size)
            return state, self._signal(k, a, state), a
        for j in self.network.out_of(k):
            self._refresh(j)
        pull = states.feedback(k)
        made_of = self._made_of[k]
        if step_size == 1 and made_of is not None and made_of[0] is a and made_of[1] is pull:
            return states.means[k], states.differences[k], a
        self._made_of[k] = (a, pull)
        state, signal = self._settle(k, a, pull)
        if step_size == 1:
            return state, signal, a
        state = torch.lerp(states.means[k], state, step_size)
        return state, self._signal(k, a, state), a

    def _settle(self, k: int, a: Tensor, pull: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.dynamics.energy.settle(self.neurons[k - 1], a, pull, self.dynamics.update)

    def _sent(self, k: int, a: Tensor, pull: Tensor | None) -> Tensor | None:
        return self.dynamics.energy.sent(self.neurons[k - 1], a, pull, self.dynamics.update)

    def _signal(self, k: int, a: Tensor, state: Tensor) -> Tensor:
        return self.dynamics.energy.signal(self.neurons[k - 1], a, state)

    def _output(self, a: Tensor) -> tuple[Tensor, Tensor | None]:
        dynamics, k = self.dynamics, self.network.depth
        if self._clamped is not None:
            return self._clamped, self._signal(k, a, self._clamped)
        if self.nudge is None:
            return self._settle(k, a, None)
        if dynamics.output_nudge == "exact":
            state = self._exactly_nudged(a, self.nudge)
            return state, self._signal(k, a, state)
        gradient = dynamics.loss.gradient(self.states.means[k], self.nudge.y)
        return self._settle(k, a, -self.nudge.strength_like(gradient) * gradient)

    def _exactly_nudged(self, a: Tensor, nudge: Nudge) -> Tensor:
        energy, loss, neuron = self.dynamics.energy, self.dynamics.loss, self.neurons[-1]
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
        states = self.states
        if not self.dynamics.energy.signal_reads_drive:
            return
        a, state, made_of = states.drive(k), states.means[k], self._signalled[k]
        if made_of is None or made_of[0] is not a or made_of[1] is not state:
            states.differences[k] = self._signal(k, a, state)
            self._signalled[k] = (a, state)

    def gradients(self, scale: complex) -> dict[str, Tensor]:
        """-scale · Σ over the batch of σ_kᵀ ∂a_k/∂parameter, for every trainable parameter.

        That is scale · ∂E/∂parameter.
        """
        assert not isinstance(scale, complex)
        return self.states.gradients((-scale,) * self.network.depth)

    def contrast(self, other: Phase, scales: tuple[complex, ...]) -> dict[str, Tensor]:
        """These `gradients` less those of another phase of the batch; no large sums are subtracted.

        Each layer's is times its own scale. Where these states are complex it is the real part of
        that.
        """
        return self.states.contrast(other.states, tuple(-scale for scale in scales))

    def contrasted(self, first: Phase | None, weight: complex) -> dict[str, Tensor]:
        """weight · (∂E/∂parameter here less that of the `first` phase, which is real).

        Nothing for the first phase itself.
        """
        if first is None:
            return {}
        if isinstance(weight, complex):
            return self.contrast(first, (weight,) * self.network.depth)
        return first.contrast(self, (-weight,) * self.network.depth)

    def weigh(self, weights: Tensor) -> None:
        """Multiply each example's signals by its weight, (N, 1), before gradients are taken."""
        signals = self.states.differences
        for k, signal in enumerate(signals):
            signals[k] = None if signal is None else signal * _like(weights, signal)

    def kink_crossing(self, free: Phase) -> list[float]:
        """Per layer, the share of units that the nudge takes across a kink of the activation.

        The units' a_k + T_k is compared, free and now.
        """
        crossed = []
        for k in range(1, self.network.depth + 1):
            neuron = self.network.into(k).neuron
            crossed.append(kink_crossing(neuron, free.total(k), self.total(k)))
        return crossed

    def total(self, k: int) -> Tensor:
        """a_k + T_k at the present states. At the output T is the nudge's pull."""
        a = self.states.drive(k)
        if k < self.network.depth:
            for j in self.network.out_of(k):
                self._refresh(j)
            pull = self.states.feedback(k)
        elif self.nudge is None:
            pull = None
        else:
            gradient = self.dynamics.loss.gradient(self.states.means[k], self.nudge.y)
            pull = -self.nudge.strength_like(gradient) * gradient
        return a if pull is None else a + pull


def nudge_conflicts(
    kind: OutputNudge, energy: AbstractEnergy, loss: AbstractLoss, uphill: float, is_complex: bool
) -> Iterator[str]:
    """Why such a nudge of the output can't be had, and the remedy.

    `uphill` is how far it goes uphill.
    """
    if kind == "clamped" and not (energy.free_is_forward and isinstance(loss, SquaredError)):
        yield (
            "output_nudge='clamped' pulls the output of a predictive coding network to its targets. Use "
            "energy='predictive_coding' and loss='squared_error', or output_nudge='linearized'."
        )
    if kind == "exact" and is_complex and not isinstance(loss, SquaredError):
        yield (
            f"an exact {loss.name} nudge is found by real iteration. With a holomorphic estimator use "
            "output_nudge='linearized'."
        )
    if kind == "exact":
        remedy = "Lower beta" if loss.concave_limit > 0 else "Use estimator='forward'"
        yield from loss.uphill_conflict(uphill, "an uphill beta", remedy)


class _Tangent(AbstractNeuron):
    """An activation's tangent where a phase began, h⁰ + f'(a⁰) (a - a⁰): its mask is held."""

    is_elementwise = False
    is_affine = True

    def __init__(self, neuron: AbstractNeuron, drive: Tensor, state: Tensor) -> None:
        if not neuron.is_elementwise:
            kind = type(neuron).__name__
            raise SettingError(
                f"jacobians='free' holds slopes of single units, but {kind} couples some. Use jacobians='current'."
            )
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
