"""One inference of dyads on one batch: how a step of a schedule updates them, and when they have settled.

The part of dual propagation that runs; its settings and the equations are in rules/dual_propagation.py. Layers k = 0…L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop import kernels
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, wide
from dualprop.network import Network, spectra
from dualprop.network.states import Activations, Dyads, residual
from dualprop.neurons import AbstractNeuron, Identity, Scale
from dualprop.rules.base import Outcome, check_targets
from dualprop.schedules import AnySchedule, Step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `DualPropagation` says, resolved for one network: `up` and `down` are the shares of s⁺ and s⁻."""

    alpha: float
    up: float
    down: float
    betas: tuple[float, ...]
    start: Literal["forward", "zeros", "previous"]
    output_nudge: Literal["linearized", "exact"]
    linearize_at: Literal["current", "forward"]
    damping: tuple[float, ...] | Literal["spectral", "spectral_full"] | None
    tolerance: float | None
    mean_is_free: bool
    loss: AbstractLoss


class Inference:
    """The activations of one batch, from their start to the end of the schedule.

    `keep_free` holds on to the states of the forward pass, which residuals are measured against.
    """

    def __init__(
        self, settings: Settings, network: Network, x: Tensor, y: Tensor, state: Dyads | None, keep_free: bool = False
    ) -> None:
        self.settings, self.network, self.y = settings, network, y
        self.activations = Activations(network, x, settings.betas)
        self.activations.forward()
        self.logits = self.activations.means[-1]
        check_targets(y, self.logits)
        self.free = tuple(self.activations.means) if keep_free else None
        self.forward_drive = self.activations.drive(network.depth)
        self.forward_gradient = settings.loss.gradient(self.logits, y)
        if state is not None and not isinstance(state, Dyads):
            raise SettingError(f"state must be the dyads of an earlier call, got {type(state).__name__}. Pass state=None.")
        self.directions: tuple[Tensor | None, ...] = ()
        self.damping = self._constants(state)
        self.passes = 0
        self.residual: float | None = None
        self._settled: list[tuple[object, ...]] = [()] * (network.depth + 1)
        if settings.start == "zeros":
            for k in range(1, network.depth + 1):
                self.activations.set(k, torch.zeros_like(self.activations.means[k]), None)
        elif settings.start == "previous" and state is not None and state.means:
            self._resume(state)
        else:
            for k in range(1, network.depth + 1):
                self._settled[k] = (self.activations.drive(k), None, False)

    def _constants(self, state: Dyads | None) -> tuple[Scale | None, ...]:
        """L_k of every hidden layer, None where undamped."""
        damping, hidden = self.settings.damping, range(1, self.network.depth)
        if damping is None:
            return (None,) * len(hidden)
        if isinstance(damping, tuple):
            if len(damping) != len(hidden):
                raise SettingError(
                    f"damping lists {len(damping)} constants, but the network has {len(hidden)} hidden layers. Give one each."
                )
            return tuple(constant or None for constant in damping)
        factor = abs(1 - 2 * self.settings.alpha) if damping == "spectral" else 1.0
        if factor == 0:
            return (None,) * len(hidden)
        return self._spectral_constants(factor, state)

    def _spectral_constants(self, factor: float, state: Dyads | None) -> tuple[Scale, ...]:
        """factor · max(0, r‖W_{k+1}‖² - 1)/2: from there on the loop s_k → a_{k+1} → δ_{k+1} → Δ_k contracts."""
        known = state.directions if state is not None else ()
        directions: list[Tensor | None] = [None] * self.network.depth
        constants: list[Scale] = []
        for k in range(1, self.network.depth):
            if len(self.network.out_of(k)) > 1:
                raise SettingError(
                    f"spectral damping follows one synapse out of a layer, but layers {self.network.out_of(k)} read layer {k}. "
                    "Give the constants yourself, damping=(…)."
                )
            (above,) = self.network.out_of(k)
            shape = self.activations.core_shape(above, k)
            pair, synapse = known[k] if k < len(known) else None, self.network.into(above).synapse_from(k)
            if pair is None or tuple(pair.shape[1:]) != shape:
                like = self.activations.means[k]
                pair = spectra.started(synapse, shape, like.dtype, like.device)
            directions[k], squared_norm = spectra.accelerated_step(synapse, pair)
            ratio = self.settings.betas[k - 1] / self.settings.betas[above - 1]
            constants.append((squared_norm * ratio - 1).clamp(min=0) * (factor / 2))
        self.directions = tuple(directions)
        return tuple(constants)

    def _resume(self, state: Dyads) -> None:
        if state.alpha != self.settings.alpha:
            raise SettingError(
                f"state must be the dyads of an earlier call with alpha={self.settings.alpha:g}. Pass state=None."
            )
        now = [tuple(mean.shape) for mean in self.activations.means[1:]]
        before = [tuple(mean.shape) for mean in state.means[1:]]
        if now != before:
            raise SettingError(
                f"the previous state has shapes {before}, this batch needs {now}. Keep the batch size (drop the last, "
                "smaller batch), or pass state=None."
            )
        for k in range(1, self.network.depth + 1):
            self.activations.set(k, state.means[k], state.differences[k])

    def run(self, schedule: AnySchedule, generator: torch.Generator | None) -> None:
        """Update through the schedule; with a tolerance, until the residual is no more than that."""
        if self.settings.tolerance is not None:
            self._run_until_settled(schedule, self.settings.tolerance)
            return
        steps = list(schedule.steps(self.network.depth, generator))
        # What was kept to measure a residual needs every drive once more.
        last = {} if self.free is not None else {k: number for number, step in enumerate(steps) for k in step.layers}
        for number, step in enumerate(steps):
            self.update(step, final={k for k in step.layers if last.get(k) == number})

    def _run_until_settled(self, schedule: AnySchedule, tolerance: float) -> None:
        for steps in schedule.passes(self.network.depth):
            for step in steps:
                self.update(step, final=set())
            self.passes += 1
            self.residual = self._residual()
            if not self.residual > tolerance:  # also where it is not a number: no further pass would mend that
                return

    def update(self, step: Step, final: set[int]) -> None:
        """Update the step's layers together, each from the states before the step; those in `final` for the last time."""
        nudged = not (step.before_arrival and self.settings.start == "zeros")
        new = [(k, self._dyad(k, nudged, k in final)) for k in step.layers]
        for k, (mean, delta) in new:
            self.activations.set(k, mean, delta)

    def _dyad(self, k: int, nudged: bool, is_final: bool) -> tuple[Tensor, Tensor | None]:
        """The new mean and difference of layer k; the very same tensors where nothing that it reads has changed."""
        acts, is_output = self.activations, k == self.network.depth
        a = acts.drive(k)
        feedback = None if is_output else acts.feedback(k)
        reads = (a, feedback, is_output and nudged)
        mean, delta = acts.means[k], acts.differences[k]
        damping = None if is_output else self.damping[k - 1]
        same_drive = bool(self._settled[k]) and self._settled[k][0] is a
        unchanged = same_drive and self._settled[k][1] is feedback and self._settled[k][2] == reads[2]
        # Under damping a state still moves, unless it is f(a) with nothing to pull it away.
        if unchanged and (damping is None or (delta is None and feedback is None)):
            return mean, delta
        self._settled[k] = reads
        if is_output:
            return self._output(a, nudged)
        if damping is not None:
            return self._damped(k, damping, a, feedback)
        neuron = self.network.into(k).neuron
        if feedback is None:
            return neuron.f(a), None
        free = (mean if same_drive else neuron.f(a)) if self.settings.mean_is_free else None
        overwrite = is_final and acts.release(k)
        return self._nudged(neuron, a, feedback, self.settings.betas[k - 1] / self.settings.betas[k], free, overwrite)

    def _nudged(
        self,
        neuron: AbstractNeuron,
        a: Tensor,
        pull: Tensor,
        strength: float,
        free: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Mean and difference of f(a + up·strength·pull) and f(a - down·strength·pull); `free` is the mean if it is f(a)."""
        up, down, alpha = strength * self.settings.up, strength * self.settings.down, self.settings.alpha
        if isinstance(neuron, Identity):
            # Written out, so that nothing cancels: at small β the two states agree in most of their digits.
            shift = alpha * up - (1 - alpha) * down
            return (a if shift == 0 else torch.add(a, pull, alpha=shift)), pull * (up + down)
        if free is not None:
            one_sided = up if down == 0 else -down
            return free, kernels.one_sided_difference(neuron, a, pull, one_sided, free, overwrite=overwrite)
        return kernels.dyad(neuron, a, pull, up, down, alpha, overwrite=overwrite)

    def _output(self, a: Tensor, nudged: bool) -> tuple[Tensor, Tensor | None]:
        settings, neuron = self.settings, self.network.into(self.network.depth).neuron
        loss, beta = settings.loss, settings.betas[-1]
        if not nudged:
            return neuron.f(a), None
        if settings.output_nudge == "exact":
            plus = loss.nudge(neuron, a, self.y, settings.up * beta)
            minus = loss.nudge(neuron, a, self.y, -settings.down * beta)
            delta = plus - minus
            return torch.add(minus, delta, alpha=settings.alpha), delta
        return self._nudged(neuron, a, self._loss_gradient(a), -beta)

    def _loss_gradient(self, a: Tensor) -> Tensor:
        if self.settings.linearize_at == "current" and a is not self.forward_drive:
            return self.settings.loss.gradient(self.network.into(self.network.depth).neuron.f(a), self.y)
        return self.forward_gradient

    def _damped(self, k: int, constant: Scale, a: Tensor, feedback: Tensor | None) -> tuple[Tensor, Tensor]:
        settings, neuron = self.settings, self.network.into(k).neuron
        ratio = settings.betas[k - 1] / settings.betas[k]
        # States of float32 also where drives are of half precision, which would lose what is left of them pass by pass.
        a, feedback = wide(a), None if feedback is None else wide(feedback)
        mean, delta = wide(self.activations.means[k]), self.activations.differences[k]
        old_plus = mean if delta is None else torch.add(mean, delta, alpha=1 - settings.alpha)
        old_minus = mean if delta is None else torch.add(mean, delta, alpha=-settings.alpha)
        up = a if feedback is None else torch.add(a, feedback, alpha=ratio * settings.up)
        down = a if feedback is None else torch.add(a, feedback, alpha=-ratio * settings.down)
        plus = neuron.prox(up + constant * old_plus, constant)
        minus = neuron.prox(down + constant * old_minus, constant)
        delta = plus - minus
        return torch.add(minus, delta, alpha=settings.alpha), delta

    def _residual(self) -> float:
        """How far one more update of every layer, undamped and each from the present states, would move them, relative to
        their displacement from the forward pass. Means and differences count alike. Drives and feedbacks that it computes
        are there for the next pass."""
        assert self.free is not None
        moves, displacements = [], []
        for k in range(1, self.network.depth + 1):
            mean, delta = self.activations.means[k], self.activations.differences[k]
            new_mean, new_delta = self._undamped(k)
            moves += [] if new_mean is mean else [new_mean - mean]
            displacements.append(mean - self.free[k])
            if new_delta is not delta:
                zero = torch.zeros_like(mean)
                moves.append((zero if new_delta is None else new_delta) - (zero if delta is None else delta))
            displacements += [] if delta is None else [delta]
        return residual(moves, displacements)

    def _undamped(self, k: int) -> tuple[Tensor, Tensor | None]:
        """What an undamped update of layer k would give; nothing is updated. A damped move is a fraction of it, and small
        where damping is strong however far the states are from their fixed point."""
        damping, settled = self.damping, list(self._settled)
        if k < self.network.depth and damping[k - 1] is not None:
            self.damping = (None,) * len(damping)
            self._settled[k] = ()
        new = self._dyad(k, nudged=True, is_final=False)
        self.damping, self._settled = damping, settled
        return new

    def statistics(self) -> dict[str, Any]:
        """The residual, and per layer the share of units whose nudges reach across a kink."""
        crossing = [self._kink_crossing(k) for k in range(1, self.network.depth + 1)]
        return {"residual": self._residual(), "kink_crossing": crossing}

    def _kink_crossing(self, k: int) -> float:
        """The share of the units of layer k whose two nudged drives lie on different sides of a kink of f."""
        settings, neuron, a = self.settings, self.network.into(k).neuron, self.activations.drive(k)
        if k == self.network.depth:
            pull: Tensor | None = self._loss_gradient(a)
            strength = -settings.betas[-1]
        else:
            pull, strength = self.activations.feedback(k), settings.betas[k - 1] / settings.betas[k]
        if pull is None:
            return 0.0
        crossed = neuron.crosses_kink(a + strength * settings.up * pull, a - strength * settings.down * pull)
        return float(crossed.double().mean())

    def dyads(self) -> Dyads:
        return Dyads(tuple(self.activations.means), tuple(self.activations.differences), self.settings.alpha, self.directions)

    def outcome(self) -> Outcome:
        scales = tuple(-1 / (beta * len(self.y)) for beta in self.settings.betas)
        gradients = self.activations.gradients(scales)
        iterated = {} if self.residual is None else {"passes": self.passes, "residual": self.residual}
        return Outcome(
            gradients=gradients,
            loss=self.settings.loss.value(self.logits, self.y).mean(),
            logits=self.logits,
            state=self.dyads(),
            diagnostics={**self.activations.counts, **iterated},
            unsettled=self._trouble(),
        )

    def _trouble(self) -> str:
        settings = self.settings
        if settings.tolerance is None or self.residual is None or self.residual <= settings.tolerance:
            return ""
        # Neither is a remedy where it is in use already; at alpha=½ the couplings are one, and spectral damping is none.
        is_plain_asymmetric = settings.up == settings.alpha != 0.5
        remedy = (
            "Use coupling='transposed', damping='spectral', alpha nearer to 0.5, or more passes."
            if is_plain_asymmetric
            else "Use more passes."
            if settings.mean_is_free
            else "Lower beta, use coupling='transposed' with alpha=0 or 1, or more passes."
        )
        return (
            f"inference did not settle: after pass {self.passes} one more update would move the states by {self.residual:.2g} "
            f"of their displacement (tolerance {settings.tolerance:g}). {remedy}"
        )
