"""Predictive coding (PC: Rao & Ballard, 1999; Whittington & Bogacz, 2017), by gradient steps.

Each neuron has one state h_k; h_0 is the input. Every layer predicts the next, and the output is
held at the targets:

    E = Σ_{k<L} ½‖h_k - f(a_k(h_{k-1}))‖² + β ℓ(f(a_L(h_{L-1})), y)
    ε_k = h_k - f(a_k),    ε_L = -β ∇ℓ

With squared error the last term is the output's own error, its state clamped to y, with precision
β. From the forward pass all hidden layers step together, with momentum m and step size γ. Then the
weights descend E at the states:

    v_k ← m v_k + γ ( J_{k+1}ᵀ ε_{k+1} - ε_k ),    h_k ← h_k + v_k
    gradient of layer k: -(1/β) ε_kᵀ ∂f(a_k)/∂θ, averaged over the batch

J_{k+1} is the Jacobian of f ∘ a_{k+1}. Settled, the gradient is back-propagation's as β → 0, at
order β. In two published cases it is back-propagation's to rounding (eps/β), and to be called so:
with predictions and Jacobians fixed at the forward pass (Millidge et al., 2020), and where each
layer learns when the error first reaches it, by steps of size 1 (Song et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from dualprop import kernels
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.network.states import States, check_shapes
from dualprop.neurons import Identity
from dualprop.rules.base import AbstractRule
from dualprop.rules.problem import Problem
from dualprop.schedules import Step
from dualprop.settings import Count, GivenBeta, Positive
from dualprop.settling import MOST_MOVED, largest, residual, settle, update_together


@dataclass(frozen=True)
class Values:
    """The states and velocities of the hidden layers 1…L-1, shapes (N, …)."""

    states: tuple[Tensor, ...]
    velocities: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class PredictiveCoding(AbstractRule["PredictedStates"]):
    """Predictive coding: states by gradient steps on the prediction errors, output clamped.

    Attributes:
        beta: the precision of the output's error beside the hidden ones', per example. 1 is the
            field's standard (variant `pc`); where errors are large its gradients are far from
            back-propagation's. Smaller is nearer.
        steps: of inference; the error descends a layer at each.
        step_size: γ.
        momentum: m.
        predictions: "current", of the states as they are now, or "fixed", those of the forward
            pass, and their Jacobians. Fixed, the errors tend to back-propagation's. After L-1 steps
            of size 1 they are those: numerically BP.
        learn: from the errors at the "end", or each layer at their first "arrival": numerically BP,
            which needs step_size=1, no momentum, steps ≥ L-1, and a chain of layers; or "alongside"
            the last step: states and weights descend one gradient of E. Needs start="previous".
        start: "forward", from the forward pass, or "previous", from the `state` passed in (the
            forward pass where none is). "previous" with steps=1 and several updates a batch is
            incremental PC (Salvatori et al., 2024), variant `ipc`: states step, then weights learn
            at the new states. In pcx's published runs they learn "alongside".
    """

    beta: GivenBeta = 0.05
    steps: Count = 20
    step_size: Positive = 0.1
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    predictions: Literal["current", "fixed"] = "current"
    learn: Literal["end", "arrival", "alongside"] = "end"
    start: Literal["forward", "previous"] = "forward"
    loss: AbstractLoss = CrossEntropy()

    state_type = Values
    precision = "half_products"

    def inference(self, problem: Problem) -> PredictedStates:
        """The forward pass, the output held at the targets, steps of all hidden layers together."""
        states = PredictedStates(problem, self.predictions == "fixed", problem.state if self.keeps_state else None)
        scale = self.scale(problem)

        def after(step: int) -> None:
            if self.learn == "alongside" and step == self.steps:  # no one reads the last errors
                return
            self.renew(states)
            if self.learn == "arrival" and step < problem.depth:
                states.learned |= states.gradient(problem.depth - step, scale)
            elif self.learn == "alongside" and step == self.steps - 1:
                states.learned = states.gradients((scale,) * problem.depth)

        after(0)
        passes = [[Step(tuple(states.hidden))]] * self.steps
        measure = states.moved_since if problem.is_measured and not problem.for_states else None
        limit = float("inf") if self.learn == "arrival" else MOST_MOVED
        progress = settle(states, passes, self.update, measure, limit=limit, after_pass=after)
        # In incremental PC the error is on its way.
        progress.expect_signals(states, "error", is_expected=self.start == "forward")
        problem.report(states.counts, progress, "Raise steps, to L-1 or more, or lower step_size.")
        return states

    def update(self, states: PredictedStates, k: int) -> tuple[Tensor, Tensor | None]:
        """v ← m v + γ (Δ - ε), h ← h + v; the same tensors where nothing pulls."""
        pull, error, velocity, move = states.feedback(k), states.errors[k], states.velocities[k], states.moves[k]
        if any(each is not None for each in (pull, error, velocity)):
            states.moved(k, *kernels.moved(pull, error, velocity, move, states.free[k], self.step_size, self.momentum))
        return states.shown(k), states.differences[k]

    def renew(self, states: PredictedStates) -> None:
        """All errors at the present states. The output's is ε_L = -β ∇ℓ, its signal f'(a) ⊙ ε_L."""
        states.renew_errors()
        k = states.network.depth
        neuron, a = states.neuron(k), states.drive(k)
        if self.predictions == "fixed" and states.differences[k] is not None:
            return
        error = -self.beta * self.loss.gradient(neuron.f(a), states.y)
        states.set(k, states.shown(k), error if isinstance(neuron, Identity) else neuron.pull(a, error))

    def gradients_at(self, problem: Problem, settled: PredictedStates) -> dict[str, Tensor]:
        """-(1/β) ε_kᵀ ∂f(a_k)/∂θ, for every layer."""
        return settled.learned or settled.gradients((self.scale(problem),) * problem.depth)

    def scale(self, problem: Problem) -> float:
        """-1/β, and the mean over the batch."""
        return -1 / (problem.terms * self.beta)

    def states_at(self, problem: Problem, settled: PredictedStates) -> Values | None:
        return settled.values() if self.keeps_state or problem.for_states else None

    def statistics_at(self, problem: Problem, settled: PredictedStates) -> dict[str, Any]:
        """The numbers of one more step."""
        self.renew(settled)
        before = settled.positions()
        update_together(settled, Step(tuple(settled.hidden)), self.update)
        return {"residual": largest(settled.moved_since(before))}

    def conflicts(self) -> Iterator[str]:
        if self.learn == "arrival" and (self.step_size != 1 or self.momentum != 0 or self.start != "forward"):
            yield "learn='arrival' needs step_size=1, momentum=0 and start='forward'. Set them, or learn='end'."
        if self.learn == "alongside" and self.start == "forward":
            yield "learn='alongside' is of incremental PC. Use start='previous', or learn='end' with a step less."

    def check(self, network: Network) -> None:
        for layer in network.layers if self.learn == "arrival" else ():
            if len(layer.sources) > 1:
                raise SettingError(
                    f"learn='arrival' is of chains, but layer '{layer.name}' reads several. Use predictions='fixed'."
                )
        if self.learn == "arrival" and self.steps < network.depth - 1:
            raise SettingError(
                f"learn='arrival' needs a step for each of the {network.depth - 1} layers below the output, got "
                f"steps={self.steps}. Raise it."
            )

    @property
    def needs_synapses(self) -> str:
        return "learn='arrival' is of chains of synapses that are modules" if self.learn == "arrival" else ""

    @property
    def keeps_state(self) -> bool:
        return self.start == "previous"


class PredictedStates(States):
    """The states of one batch, layers 0…L.

    `means` hold what predicts, `differences` the signals f'(a_k) ⊙ ε_k.

    A state is held as the forward pass's and its move since, h_k = f(a_k⁰) + d_k, its error as
    d_k - (f(a_k) - f(a_k⁰)). In the layers that an error reaches last, moves are smaller than the
    last digit of their states.
    """

    def __init__(self, problem: Problem, is_fixed: bool, previous: Values | None) -> None:
        super().__init__(problem.network, problem.x)
        self.is_fixed, layers = is_fixed, problem.depth + 1
        self.forward()
        problem.predicted(self.means[-1])
        self.y = problem.criterion.prepared(problem.y, self.means[-1])
        self.free = tuple(self.means)
        self.hidden = range(1, problem.depth)
        self.states: list[Tensor] = list(self.free)
        # By layer, None where zero: d, its velocity, and ε with the drive and move behind it.
        self.moves: list[Tensor | None] = [None] * layers
        self.velocities: list[Tensor | None] = [None] * layers
        self.errors: list[Tensor | None] = [None] * layers
        self.free_drives = [self.drive(k) if k else problem.x for k in range(layers)]
        self._made_of: list[tuple[Tensor, Tensor | None]] = [(a, None) for a in self.free_drives]
        # Gradients of the layers that have learned already.
        self.learned: dict[str, Tensor] = {}
        if previous is not None:
            check_shapes(self.free[1:-1], previous.states)
            for k, h, v in zip(self.hidden, previous.states, previous.velocities, strict=True):
                self.states[k], self.moves[k], self.velocities[k] = h, h - self.free[k], v
                self.set(k, self.shown(k), None)

    def shown(self, k: int) -> Tensor:
        """What the layers above read of layer k: its state, unless predictions are fixed."""
        return self.free[k] if self.is_fixed or self.is_output(k) else self.states[k]

    def moved(self, k: int, velocity: Tensor, move: Tensor, state: Tensor) -> None:
        """The state of layer k has moved there."""
        self.velocities[k], self.moves[k], self.states[k] = velocity, move, state

    def renew_errors(self) -> None:
        """Bring errors and signals of the hidden layers up to date with drives and states."""
        for k in self.hidden:
            a, move = self.drive(k), self.moves[k]
            if self._made_of[k][0] is a and self._made_of[k][1] is move:
                continue
            free = None if a is self.free_drives[k] else self.free[k]
            error, signal = kernels.errors(self.neuron(k), a, free, move)
            self.errors[k], self._made_of[k] = error, (a, move)
            self.set(k, self.shown(k), signal)

    def positions(self) -> tuple[Tensor | None, ...]:
        return tuple(self.moves)

    def moved_since(self, before: Sequence[Tensor | None]) -> list[float]:
        """Each model's move of the states since `before`, by their displacement from the forward
        pass."""
        displacements = [now for now in self.moves if now is not None]
        pairs = [(now, then) for now, then in zip(self.moves, before, strict=True) if now is not None and now is not then]
        moves = [now if then is None else now - then for now, then in pairs]
        return residual(moves, displacements, self.network.num_models)

    def values(self) -> Values:
        states = tuple(self.states[k] for k in self.hidden)
        velocities = (self.velocities[k] for k in self.hidden)
        return Values(states, tuple(torch.zeros_like(h) if v is None else v for h, v in zip(states, velocities, strict=True)))
