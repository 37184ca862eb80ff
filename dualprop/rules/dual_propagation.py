"""Dual propagation (Høier et al., 2023) and its transposed form, DP⊤ (Høier & Zach, 2024). Each neuron holds two states.

Inference sweeps the layers; weights then learn from s̄ = α s⁺ + (1-α) s⁻ and δ = s⁺ - s⁻. Layer k maps s̄_{k-1} to a_k; s_0
is the input, and Δ_k = Jᵀ δ_{k+1} comes back from the layer above, linearised at s̄_k. With r = β_k / β_{k+1}:

    DP    s⁺ = f(a + α r Δ)        s⁻ = f(a - (1-α) r Δ)
    DP⊤   s⁺ = f(a + (1-α) r Δ)    s⁻ = f(a - α r Δ)

The output is nudged by its loss instead: f(a ∓ … β_L ∇ℓ), or exactly, at the compartment's own argmin. s⁺ is the downhill
state. The gradient of layer k's parameters is -(1/β_k) Σ δ_kᵀ ∂a_k/∂W at s̄_{k-1}, averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualprop import kernels, losses, schedules
from dualprop.dyadic import Nudge, as_tuple, dyadic_activation, one_or_more
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.neurons import AbstractNeuron, Identity
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_targets
from dualprop.schedules import AnySchedule, Step
from dualprop.states import Activations, Dyads

_CHOICES = {
    "coupling": ("original", "transposed"),
    "start": ("forward", "zeros", "previous"),
    "output_nudge": ("linearized", "exact"),
    "linearize_at": (None, "current", "forward"),
    "engine": ("explicit", "fused"),
    "kernel": ("eager", "compiled"),
}


@dataclass(frozen=True, kw_only=True)
class DualPropagation(AbstractRule):
    """DP and DP⊤ in any update order.

    Attributes:
        coupling: "original" (DP) or "transposed" (DP⊤), which is stable for every alpha.
        alpha: in [0, 1], the weight of s⁺ in the mean. At ½ the two couplings are one.
        beta: nudging strength per example, > 0; one for all layers, or one per layer 1…L.
        schedule: from `dp.schedules`, its text ("bottom_up(4)"), or a sequence of layer numbers.
        start: the states before the first step: of the forward pass, zero, or of the `state` passed in (the forward pass
            where none is).
        output_nudge: "linearized", along ∇ℓ, or "exact".
        linearize_at: the output at which ∇ℓ is taken: the "current" one, or that of the "forward" pass, kept fixed. None is
            "current" for the original coupling and "forward" for the transposed and for damping, as in the authors' code.
        damping: None, or one constant ≥ 0 per hidden layer, L_k: s± = prox(a ± nudge + L_k s±_old, L_k).
        engine: "explicit" holds the dyads; "fused" is one downward sweep inside autograd, at the forward states.
        kernel: "compiled" has inductor fuse the elementwise work into one pass (needs a C++ compiler).
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, or a loss's name.

    Raises:
        SettingError: a value out of its range, or an exact nudge outside the domain where it is well posed.
    """

    coupling: Literal["original", "transposed"] = "original"
    alpha: float = 0.5
    beta: float | tuple[float, ...] = 1.0
    schedule: AnySchedule | str | Sequence[int] = schedules.alternating_sweeps(1)
    start: Literal["forward", "zeros", "previous"] = "forward"
    output_nudge: Literal["linearized", "exact"] = "linearized"
    linearize_at: Literal["current", "forward"] | None = None
    damping: tuple[float, ...] | None = None
    engine: Literal["explicit", "fused"] = "explicit"
    kernel: Literal["eager", "compiled"] = "eager"
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(repr(choice) for choice in choices)
                raise SettingError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        object.__setattr__(self, "schedule", schedules.parse(self.schedule))
        if not 0 <= self.alpha <= 1:
            raise SettingError(f"alpha must be in [0, 1], got {self.alpha:g}.")
        object.__setattr__(self, "beta", one_or_more(self.beta, "beta"))
        if not self._betas or not all(beta > 0 and math.isfinite(beta) for beta in self._betas):
            raise SettingError(f"beta must be positive and finite, got {self.beta}.")
        if self.damping is not None:
            object.__setattr__(self, "damping", as_tuple(one_or_more(self.damping, "damping")))
            if not all(constant >= 0 and math.isfinite(constant) for constant in self.damping):
                raise SettingError(f"damping constants must be at least 0 and finite, got {self.damping}.")
        self._check_exact_nudge()
        self._check_fused()

    def _check_exact_nudge(self) -> None:
        if self.output_nudge == "linearized":
            return
        if self.linearize_at is not None:
            raise SettingError("linearize_at has no meaning with output_nudge='exact'. Leave it at None.")
        uphill = self._shares[1] * self._betas[-1]
        if uphill >= self.loss.concave_limit:
            share = "(1-alpha)" if self.coupling == "original" else "alpha"
            raise SettingError(
                f"an exact {self.loss.name} nudge needs {share}·beta < {self.loss.concave_limit:g}, got {uphill:g}. "
                "Lower beta, move alpha, or use output_nudge='linearized'."
            )

    def _check_fused(self) -> None:
        if self.engine == "explicit":
            return
        plain = {"schedule": schedules.alternating_sweeps(1), "start": "forward", "output_nudge": "linearized", "damping": None}
        for name, value in plain.items():
            if getattr(self, name) != value:
                shown = repr(value) if isinstance(value, str) else value
                raise SettingError(f"engine='fused' needs {name}={shown}, got {getattr(self, name)}. Use engine='explicit'.")

    @property
    def _betas(self) -> tuple[float, ...]:
        return as_tuple(self.beta)

    @property
    def _shares(self) -> tuple[float, float]:
        """The shares of the nudge that s⁺ (downhill) and s⁻ (uphill) receive."""
        return (self.alpha, 1 - self.alpha) if self.coupling == "original" else (1 - self.alpha, self.alpha)

    @property
    def keeps_state(self) -> bool:
        return self.start == "previous"

    @property
    def needs_generator(self) -> bool:
        assert not isinstance(self.schedule, str | Sequence)
        return self.schedule.is_random

    def pack_state(self, state: Dyads | None) -> dict[str, Tensor]:
        if state is None:
            return {}
        means = {f"mean.{k}": mean for k, mean in enumerate(state.means)}
        return means | {f"difference.{k}": delta for k, delta in enumerate(state.differences) if delta is not None}

    def unpack_state(self, tensors: dict[str, Tensor]) -> Dyads | None:
        if not tensors:
            return None
        layers = range(sum(name.startswith("mean.") for name in tensors))
        means = tuple(tensors[f"mean.{k}"] for k in layers)
        return Dyads(means, tuple(tensors.get(f"difference.{k}") for k in layers), self.alpha)

    def infer(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Dyads | None = None,
        generator: torch.Generator | None = None,
    ) -> Dyads:
        """The dyads of every layer after the schedule. See `gradients` for the arguments and errors."""
        if self.engine == "fused":
            raise SettingError("engine='fused' holds no dyads. Use engine='explicit' to infer them.")
        with torch.no_grad():
            return self._run(network, x, y, state, generator).dyads()

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Dyads | None = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Infer, then -(1/β_k) δ_kᵀ s̄_{k-1} averaged over the batch, for every layer.

        Args:
            x: (N, …) in the dtype of the parameters.
            y: (N,) class indices or (N, K) target vectors.
            state: the dyads of an earlier call, for start="previous".
            generator: draws the layers of schedule random_order, and is needed for it alone.

        Raises:
            SettingError: x, y or state of the wrong shape, or settings that don't fit the network's depth.
        """
        if self.engine == "fused":
            return self._fused_gradients(network, x, y)
        with torch.no_grad():
            inference = self._run(network, x, y, state, generator)
            return inference.outcome()

    def _run(
        self, network: Network, x: Tensor, y: Tensor, state: Dyads | None, generator: torch.Generator | None
    ) -> _Inference:
        y = check_batch(x, y)
        if x.dtype in (torch.float16, torch.bfloat16):
            raise SettingError(f"explicit inference would lose its differences in {x.dtype}. Use float32, or engine='fused'.")
        if torch.is_autocast_enabled(x.device.type):
            raise SettingError("explicit inference does not run under autocast. Use engine='fused', or dp.dualize(model).")
        assert not isinstance(self.schedule, str | Sequence)
        inference = _Inference(self, network, x, y, state)
        steps = list(self.schedule.steps(network.depth, generator))
        last = {k: number for number, step in enumerate(steps) for k in step.layers}
        for number, step in enumerate(steps):
            inference.update(step, final={k for k in step.layers if last[k] == number})
        return inference

    def _fused_gradients(self, network: Network, x: Tensor, y: Tensor) -> Outcome:
        y = check_batch(x, y)
        betas = self.betas(network.depth)
        parameters = network.parameters
        up, down = self._shares
        with torch.enable_grad():
            s = x
            for k in range(1, network.depth + 1):
                layer = network.into(k)
                nudge = Nudge(up, down, betas[k - 1] * len(x), self.kernel == "compiled")
                a = layer.synapse.forward(s)
                s = a if isinstance(layer.neuron, Identity) else dyadic_activation(a, layer.neuron, nudge)
            check_targets(y, s)
            loss = self.loss.value(s, y).mean()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return Outcome(
            gradients=dict(zip(parameters, found, strict=True)),
            loss=loss.detach(),
            logits=s.detach(),
            diagnostics={"drives": network.depth, "feedbacks": network.depth - 1, "gradients": network.depth},
        )

    def betas(self, depth: int) -> tuple[float, ...]:
        """β_1…β_L. Raises SettingError where a list has another length."""
        if not isinstance(self.beta, tuple):
            return (float(self.beta),) * depth
        if len(self.beta) != depth:
            raise SettingError(f"beta lists {len(self.beta)} values, but the network has {depth} layers. Give one per layer.")
        return self.beta


class _Inference:
    """One inference on one batch: the activations, and how a step of the schedule updates them."""

    def __init__(self, rule: DualPropagation, network: Network, x: Tensor, y: Tensor, state: Dyads | None) -> None:
        self.rule, self.network, self.y = rule, network, y
        self.betas = rule.betas(network.depth)
        self.up, self.down = rule._shares
        # Without feedback in the mean, s̄ = f(a) exactly, and every layer above keeps its drive.
        self.mean_is_free = rule.coupling == "transposed" and rule.alpha in (0, 1) and rule.damping is None
        if rule.damping is not None and len(rule.damping) != network.depth - 1:
            raise SettingError(
                f"damping lists {len(rule.damping)} constants, but the network has {network.depth - 1} hidden layers."
            )
        at = rule.linearize_at
        if at is None:
            at = "current" if rule.coupling == "original" and rule.damping is None else "forward"
        self.linearize_at = at

        self.activations = Activations(network, x)
        self.activations.forward()
        self.logits = self.activations.means[-1]
        check_targets(y, self.logits)
        self.forward_drive = self.activations.drive(network.depth)
        self.forward_gradient = rule.loss.gradient(self.logits, y)
        self._settled: list[tuple[object, ...]] = [()] * (network.depth + 1)
        if rule.start == "zeros":
            for k in range(1, network.depth + 1):
                self.activations.set(k, torch.zeros_like(self.activations.means[k]), None)
        elif rule.start == "previous" and state is not None:
            self._resume(state)
        else:
            for k in range(1, network.depth + 1):
                self._settled[k] = (self.activations.drive(k), None, False)

    def _resume(self, state: Dyads) -> None:
        if not isinstance(state, Dyads) or state.alpha != self.rule.alpha:
            raise SettingError(f"state must be the dyads of an earlier call with alpha={self.rule.alpha:g}. Pass state=None.")
        now = [tuple(mean.shape) for mean in self.activations.means[1:]]
        before = [tuple(mean.shape) for mean in state.means[1:]]
        if now != before:
            raise SettingError(
                f"the previous state has shapes {before}, this batch needs {now}. Keep the batch size (drop the last, "
                "smaller batch), or pass state=None."
            )
        for k in range(1, self.network.depth + 1):
            self.activations.set(k, state.means[k], state.differences[k])

    def update(self, step: Step, final: set[int]) -> None:
        """Update the step's layers together, each from the states before the step; those in `final` for the last time."""
        nudged = not (step.before_arrival and self.rule.start == "zeros")
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
        damped = not is_output and self.rule.damping is not None and self.rule.damping[k - 1] > 0
        same_drive = bool(self._settled[k]) and self._settled[k][0] is a
        unchanged = same_drive and self._settled[k][1] is feedback and self._settled[k][2] == reads[2]
        # Under damping a state still moves, unless it is f(a) with nothing to pull it away.
        if unchanged and (not damped or (delta is None and feedback is None)):
            return mean, delta
        self._settled[k] = reads
        if is_output:
            return self._output(a, nudged)
        if damped:
            return self._damped(k, a, feedback)
        neuron = self.network.into(k).neuron
        if feedback is None:
            return neuron.f(a), None
        free = (mean if same_drive else neuron.f(a)) if self.mean_is_free else None
        overwrite = is_final and acts.release(k)
        return self._nudged(neuron, a, feedback, self.betas[k - 1] / self.betas[k], free, overwrite)

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
        up, down, alpha, compiled = strength * self.up, strength * self.down, self.rule.alpha, self.rule.kernel == "compiled"
        if isinstance(neuron, Identity):
            # Written out, so that nothing cancels: at small β the two states agree in most of their digits.
            shift = alpha * up - (1 - alpha) * down
            return (a if shift == 0 else torch.add(a, pull, alpha=shift)), pull * (up + down)
        if free is not None:
            return free, kernels.one_sided_difference(neuron, a, pull, up if down == 0 else -down, free, overwrite)
        return kernels.dyad(neuron, a, pull, up, down, alpha, compiled, overwrite)

    def _output(self, a: Tensor, nudged: bool) -> tuple[Tensor, Tensor | None]:
        neuron, loss, beta, alpha = (
            self.network.into(self.network.depth).neuron,
            self.rule.loss,
            self.betas[-1],
            self.rule.alpha,
        )
        if not nudged:
            return neuron.f(a), None
        if self.rule.output_nudge == "exact":
            plus = loss.nudge(neuron, a, self.y, self.up * beta)
            minus = loss.nudge(neuron, a, self.y, -self.down * beta)
            delta = plus - minus
            return torch.add(minus, delta, alpha=alpha), delta
        gradient = self.forward_gradient
        if self.linearize_at == "current" and a is not self.forward_drive:
            gradient = loss.gradient(neuron.f(a), self.y)
        return self._nudged(neuron, a, gradient, -beta)

    def _damped(self, k: int, a: Tensor, feedback: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.rule.damping is not None
        constant, neuron = self.rule.damping[k - 1], self.network.into(k).neuron
        ratio = self.betas[k - 1] / self.betas[k]
        mean, delta = self.activations.means[k], self.activations.differences[k]
        old_plus = mean if delta is None else torch.add(mean, delta, alpha=1 - self.rule.alpha)
        old_minus = mean if delta is None else torch.add(mean, delta, alpha=-self.rule.alpha)
        up = a if feedback is None else torch.add(a, feedback, alpha=ratio * self.up)
        down = a if feedback is None else torch.add(a, feedback, alpha=-ratio * self.down)
        plus = neuron.prox(up + constant * old_plus, constant)
        minus = neuron.prox(down + constant * old_minus, constant)
        delta = plus - minus
        return torch.add(minus, delta, alpha=self.rule.alpha), delta

    def dyads(self) -> Dyads:
        return Dyads(tuple(self.activations.means), tuple(self.activations.differences), self.rule.alpha)

    def outcome(self) -> Outcome:
        scales = tuple(-1 / (beta * len(self.y)) for beta in self.betas)
        gradients = self.activations.gradients(scales)
        return Outcome(
            gradients=gradients,
            loss=self.rule.loss.value(self.logits, self.y).mean(),
            logits=self.logits,
            state=self.dyads(),
            diagnostics=dict(self.activations.counts),
        )
