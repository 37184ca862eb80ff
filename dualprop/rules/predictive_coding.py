"""Predictive coding (PC: Rao & Ballard, 1999; Whittington & Bogacz, 2017): states descend their energy by gradient steps.

One state h_k a neuron, h_0 the input; every layer predicts the next, and the output is held at the targets:

    E = Σ_{k<L} ½‖h_k - f(a_k(h_{k-1}))‖² + β ℓ(f(a_L(h_{L-1})), y)          ε_k = h_k - f(a_k),  ε_L = -β ∇ℓ

(of squared error the last term is the output's own error, its state clamped to y, with precision β). From the forward pass all
hidden layers step together, with momentum m and step size γ; then the weights descend E at the states:

    v_k ← m v_k + γ ( J_{k+1}ᵀ ε_{k+1} - ε_k ),   h_k ← h_k + v_k          gradient of layer k: -(1/β) ε_kᵀ ∂f(a_k)/∂θ

averaged over the batch; J_{k+1} is the Jacobian of f ∘ a_{k+1}. Settled, the gradient is back-propagation's as β → 0, at order
β. It is back-propagation's to rounding (eps/β), and to be called so, in two published cases: with predictions and Jacobians
fixed at the forward pass (Millidge et al., 2020), and where each layer learns when the error first reaches it, by steps of size
1 (Song et al., 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop import losses
from dualprop.equilibrium import energies
from dualprop.equilibrium.relaxations import may_wait
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.network.states import Activations, residual
from dualprop.neurons import Identity
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_precision, check_targets
from dualprop.settings import check_choices, check_numbers

_CHOICES = {"predictions": ("current", "fixed"), "learn": ("end", "arrival"), "start": ("forward", "previous")}
# A last step that moves the states by more than this share of their displacement has settled nothing.
MOST_MOVED = 0.5


@dataclass(frozen=True)
class Values:
    """The states and velocities of the hidden layers 1…L-1, shapes (N, …)."""

    states: tuple[Tensor, ...]
    velocities: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class PredictiveCoding(AbstractRule):
    """Predictive coding: states by gradient steps on the prediction errors, output clamped.

    Attributes:
        beta: the precision of the output's error beside the hidden ones', per example, > 0. 1 is the field's standard, whose
            gradients are far from back-propagation's where errors are large (variant `pc`); less is nearer to them.
        steps: of inference, at least 1; the error descends a layer at each.
        step_size: γ, > 0.
        momentum: m, in [0, 1).
        predictions: "current", of the states as they are now, or "fixed", those and their Jacobians of the forward pass.
            Fixed, the errors tend to back-propagation's, and are those after L-1 steps of size 1: numerically BP.
        learn: from the errors at the "end", or each layer at their first "arrival": numerically BP (needs step_size=1, no
            momentum, steps ≥ L-1, and a chain of layers).
        start: of the states: the "forward" pass, or the `state` passed in (the forward pass where none is): "previous" with
            steps=1 and several updates a batch is incremental PC (Salvatori et al., 2024), variant `ipc`.
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, or a loss's name.

    Raises:
        SettingError: a value out of its range, or settings that don't go together.
    """

    beta: float = 0.05
    steps: int = 20
    step_size: float = 0.1
    momentum: float = 0.5
    predictions: Literal["current", "fixed"] = "current"
    learn: Literal["end", "arrival"] = "end"
    start: Literal["forward", "previous"] = "forward"
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_numbers(self)
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        if self.steps < 1:
            raise SettingError(f"steps must be at least 1, got {self.steps}.")
        if not 0 < self.beta < float("inf"):
            raise SettingError(f"beta must be positive and finite, got {self.beta:g}.")
        if not 0 < self.step_size < float("inf"):
            raise SettingError(f"step_size must be positive and finite, got {self.step_size:g}.")
        if not 0 <= self.momentum < 1:
            raise SettingError(f"momentum must be in [0, 1), got {self.momentum:g}.")
        if self.learn == "arrival" and (self.step_size != 1 or self.momentum != 0 or self.start != "forward"):
            raise SettingError("learn='arrival' needs step_size=1, momentum=0 and start='forward'. Set them, or learn='end'.")

    @property
    def keeps_state(self) -> bool:
        return self.start == "previous"

    def pack_state(self, state: Values | None) -> dict[str, Tensor]:
        if state is None or not self.keeps_state:
            return {}
        packed = {f"state.{k}": h for k, h in enumerate(state.states)}
        return packed | {f"velocity.{k}": v for k, v in enumerate(state.velocities)}

    def unpack_state(self, tensors: dict[str, Tensor]) -> Values | None:
        if not tensors:
            return None
        layers = range(len(tensors) // 2)
        return Values(tuple(tensors[f"state.{k}"] for k in layers), tuple(tensors[f"velocity.{k}"] for k in layers))

    def infer(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Values | None = None,
        generator: torch.Generator | None = None,
    ) -> Values:
        """States and velocities after the last step. See `gradients` for the arguments and errors."""
        with torch.no_grad():
            inference = self._prepare(network, x, y, state)
            for _ in range(self.steps):
                inference.step()
            return inference.values()

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Values | None = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Infer, and -(1/β) ε_kᵀ ∂f(a_k)/∂θ averaged over the batch, for every layer. `generator` is not used.

        Args:
            state: the values of an earlier call, for start="previous".

        Raises:
            SettingError: x, y or state of the wrong shape, or settings that don't fit the network.
        """
        with torch.no_grad():
            inference = self._prepare(network, x, y, state)
            activations, depth = inference.activations, network.depth
            found = activations.gradient(depth, inference.scale) if self.learn == "arrival" else {}
            moved = None
            for number in range(1, self.steps + 1):
                before = tuple(inference.moves)
                inference.step()
                if self.learn == "arrival" and number < depth:
                    found |= activations.gradient(depth - number, inference.scale)
                if number == self.steps > 1 and may_wait(x):
                    moved = inference.moved_since(before)
            found = found or activations.gradients((inference.scale,) * depth)
        diagnostics: dict[str, float] = {**activations.counts, "passes": self.steps}
        return Outcome(
            gradients={name: found[name] for name in network.parameters},
            loss=self.loss.value(inference.logits, inference.y).mean(),
            logits=inference.logits,
            state=inference.values() if self.keeps_state else None,
            diagnostics=diagnostics if moved is None else {**diagnostics, "residual": moved},
            unsettled=self._trouble(activations, moved),
        )

    def _trouble(self, activations: Activations, moved: float | None) -> str:
        unreached = [k for k, signal in enumerate(activations.differences) if k and signal is None]
        # In incremental PC it is on its way.
        if unreached and self.start == "forward":
            return f"the error has not reached layer {unreached[-1]} in {self.steps} steps. Raise steps to L-1 or more."
        if moved is None or moved <= MOST_MOVED or self.learn == "arrival":
            return ""
        return (
            f"the states have not settled: step {self.steps} still moved them by {moved:.2g} of their displacement. Raise "
            "steps, or lower step_size."
        )

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Values | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """ "residual": how far one more step would move the states, by their displacement from the forward pass."""
        with torch.no_grad():
            inference = self._prepare(network, x, y, state)
            for _ in range(self.steps):
                inference.step()
            before = tuple(inference.moves)
            inference.step()
            return {"residual": inference.moved_since(before)}

    def _prepare(self, network: Network, x: Tensor, y: Tensor, state: Values | None) -> _Inference:
        y = check_batch(x, y)
        check_output(network, self.loss)
        check_precision(network, x)
        energies.PredictiveCoding().check(network, "auto")
        if self.learn == "arrival":
            for layer in network.layers:
                if len(layer.sources) > 1:
                    raise SettingError(
                        f"learn='arrival' is of chains, but layer '{layer.name}' reads several. Use predictions='fixed'."
                    )
            if self.steps < network.depth - 1:
                raise SettingError(
                    f"learn='arrival' needs a step for each of the {network.depth - 1} layers below the output, got "
                    f"steps={self.steps}. Raise it."
                )
        return _Inference(self, network, x, y, state if self.keeps_state else None)


class _Inference:
    """The states of one batch; layers 0…L. `activations` hold what predicts, and the signals f'(a_k) ⊙ ε_k.

    A state is the forward pass's and how far it has moved since, h_k = f(a_k⁰) + d_k, and its error d_k - (f(a_k) - f(a_k⁰)):
    in the layers that an error reaches last, moves are smaller than the last digit of their states.
    """

    def __init__(self, rule: PredictiveCoding, network: Network, x: Tensor, y: Tensor, previous: Values | None) -> None:
        self.rule, self.network, self.y = rule, network, y
        self.scale = -1 / (len(y) * rule.beta)
        self.activations = Activations(network, x)
        self.activations.forward()
        self.free = tuple(self.activations.means)
        self.logits = self.free[-1]
        check_targets(y, self.logits)
        self.hidden = range(1, network.depth)
        self.states: list[Tensor] = list(self.free)
        # d of each layer; None: zero.
        self.moves: list[Tensor | None] = [None] * (network.depth + 1)
        self.velocities: list[Tensor | None] = [None] * (network.depth + 1)
        # ε of each layer (None: zero), and the drive and the move that it was made of.
        self.errors: list[Tensor | None] = [None] * (network.depth + 1)
        self.free_drives = [self._drive(k) if k else x for k in range(network.depth + 1)]
        self._known: list[tuple[Tensor, Tensor | None]] = [(a, None) for a in self.free_drives]
        if previous is not None:
            self._resume(previous)
        self._refresh()
        self._set(network.depth, self._output_signal())

    def _resume(self, previous: Values) -> None:
        now, before = ([tuple(h.shape) for h in states] for states in (self.free[1:-1], previous.states))
        if now != before:
            raise SettingError(
                f"the previous state has shapes {before}, this batch needs {now}. Keep the batch size, or pass state=None."
            )
        for k, h, v in zip(self.hidden, previous.states, previous.velocities, strict=True):
            self.states[k], self.moves[k], self.velocities[k] = h, h - self.free[k], v
            self._set(k, None)

    def step(self) -> None:
        """All hidden layers together; then every error anew."""
        rule, acts = self.rule, self.activations
        for k, force in [(k, self._force(k, acts.feedback(k))) for k in self.hidden]:
            known = self.velocities[k]
            if force is None and known is None:
                continue
            push = rule.step_size * (torch.zeros_like(self.states[k]) if force is None else force)
            velocity = push if known is None else torch.add(push, known, alpha=rule.momentum)
            before = self.moves[k]
            move = velocity if before is None else before + velocity
            self.velocities[k], self.moves[k], self.states[k] = velocity, move, self.free[k] + move
            self._set(k, acts.differences[k])
        self._refresh()
        self._set(self.network.depth, self._output_signal())

    def _force(self, k: int, pull: Tensor | None) -> Tensor | None:
        error = self.errors[k]
        if error is None:
            return pull
        return -error if pull is None else pull - error

    def _set(self, k: int, signal: Tensor | None) -> None:
        """Give layer k a signal, and let those above read its state, unless predictions are fixed."""
        is_fixed = self.rule.predictions == "fixed" or k == self.network.depth
        self.activations.set(k, self.free[k] if is_fixed else self.states[k], signal)

    def _drive(self, k: int) -> Tensor:
        return self.activations.drive(k)

    def _refresh(self) -> None:
        for k in self.hidden:
            a, move = self._drive(k), self.moves[k]
            if self._known[k][0] is a and self._known[k][1] is move:
                continue
            neuron = self.network.into(k).neuron
            predicted = None if a is self.free_drives[k] else neuron.f(a) - self.free[k]
            error = -predicted if move is None else move if predicted is None else move - predicted  # type: ignore[operator]
            self.errors[k], self._known[k] = error, (a, move)
            self._set(k, error if isinstance(neuron, Identity) else error * neuron.derivative(a))

    def _output_signal(self) -> Tensor:
        neuron, a = self.network.into(self.network.depth).neuron, self._drive(self.network.depth)
        if self.rule.predictions == "fixed" and self.activations.differences[-1] is not None:
            return self.activations.differences[-1]
        error = -self.rule.beta * self.rule.loss.gradient(neuron.f(a), self.y)
        return error if isinstance(neuron, Identity) else error * neuron.derivative(a)

    def moved_since(self, before: tuple[Tensor | None, ...]) -> float:
        """How far the states are from where their moves were `before`, by their displacement from the forward pass."""
        displacements = [now for now in self.moves if now is not None]
        pairs = [(now, then) for now, then in zip(self.moves, before, strict=True) if now is not None and now is not then]
        return residual([now if then is None else now - then for now, then in pairs], displacements)

    def values(self) -> Values:
        velocities = (self.velocities[k] for k in self.hidden)
        states = tuple(self.states[k] for k in self.hidden)
        return Values(states, tuple(torch.zeros_like(h) if v is None else v for h, v in zip(states, velocities, strict=True)))
