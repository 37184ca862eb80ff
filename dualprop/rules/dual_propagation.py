"""Dual propagation (Høier et al., 2023) and its transposed form, DP⊤ (Høier & Zach, 2024). Each neuron holds two states.

Inference sweeps the layers; weights then learn from s̄ = α s⁺ + (1-α) s⁻ and δ = s⁺ - s⁻. Layer k maps s̄_{k-1} to a_k; s_0
is the input, and Δ_k = Jᵀ δ_{k+1} comes back from the layer above, linearised at s̄_k. With r = β_k / β_{k+1}:

    DP    s⁺ = f(a + α r Δ)        s⁻ = f(a - (1-α) r Δ)
    DP⊤   s⁺ = f(a + (1-α) r Δ)    s⁻ = f(a - α r Δ)

The output is nudged by its loss instead: f(a ∓ … β_L ∇ℓ), or exactly, at the compartment's own argmin. s⁺ is the downhill
state. The gradient of layer k's parameters is -(1/β_k) Σ δ_kᵀ ∂a_k/∂W at s̄_{k-1}, averaged over the batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop import losses, schedules
from dualprop.errors import SettingError
from dualprop.fused import recompute
from dualprop.fused.dyadic import CotangentNudge, dyadic_activation
from dualprop.losses import AbstractLoss, CrossEntropy, SquaredError
from dualprop.network import Network
from dualprop.network.states import Dyads
from dualprop.neurons import Identity
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_precision, check_targets
from dualprop.rules.dyadic_inference import Inference, Settings
from dualprop.schedules import AnySchedule
from dualprop.settings import as_tuple, beta_per_layer, check_choices, check_numbers, checked_beta, one_or_more

_CHOICES = {
    "coupling": ("original", "transposed"),
    "start": ("forward", "zeros", "previous"),
    "output_nudge": ("linearized", "exact"),
    "linearize_at": (None, "current", "forward"),
    "engine": ("auto", "explicit", "fused"),
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
        damping: None, or one constant ≥ 0 per hidden layer, L_k: s± = prox(a ± nudge + L_k s±_old, L_k). "spectral" takes
            |1-2α| max(0, r‖W_{k+1}‖² - 1)/2 from the spectral norm of the synapse above (Høier & Zach 2024, the Julia code);
            "spectral_full" leaves out |1-2α| (their Python code). One step of power iteration a call (30 without a state):
            its vectors are part of the state, and to pass that on keeps them tight.
        tolerance: None, or > 0: stop after the first pass from which one more undamped update of every layer would move the
            states by at most this, relative to their displacement from the forward pass. The schedule's count is then the
            most passes, and where they don't suffice the outcome's status says so. A check costs what it can't reuse.
        engine: "explicit" holds the dyads; "fused" is one downward sweep inside autograd, at the forward states. "auto" is
            fused for the gradients wherever that is the same: DP⊤ at alpha 0 or 1, after which nothing moves any more.
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, `LogLoss()` behind a softmax, or a loss's name.

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
    damping: tuple[float, ...] | Literal["spectral", "spectral_full"] | None = None
    tolerance: float | None = None
    engine: Literal["auto", "explicit", "fused"] = "auto"
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_numbers(self)
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        object.__setattr__(self, "schedule", schedules.parse(self.schedule))
        if not 0 <= self.alpha <= 1:
            raise SettingError(f"alpha must be in [0, 1], got {self.alpha:g}.")
        object.__setattr__(self, "beta", checked_beta(self.beta))
        self._check_damping()
        self._check_tolerance()
        self._check_exact_nudge()
        self._check_fused()

    def _check_damping(self) -> None:
        if self.damping is None or self.damping in ("spectral", "spectral_full"):
            return
        if isinstance(self.damping, str):
            raise SettingError(f"damping must be 'spectral', 'spectral_full' or one number per layer, got {self.damping!r}.")
        constants = as_tuple(one_or_more(self.damping, "damping"))
        if not all(constant >= 0 and math.isfinite(constant) for constant in constants):
            raise SettingError(f"damping constants must be at least 0 and finite, got {constants}.")
        object.__setattr__(self, "damping", constants)

    def _check_tolerance(self) -> None:
        if self.tolerance is None:
            return
        if not 0 < self.tolerance < math.inf:
            raise SettingError(f"tolerance must be positive and finite, got {self.tolerance:g}. Use None for no check.")
        if self._order.is_random or isinstance(self.schedule, schedules.ExplicitOrder):
            raise SettingError(
                f"tolerance needs a schedule of passes over all layers, got {self.schedule}. Use bottom_up(100), say."
            )

    def _check_exact_nudge(self) -> None:
        if self.output_nudge == "linearized":
            return
        if self.linearize_at is not None:
            raise SettingError("linearize_at has no meaning with output_nudge='exact'. Leave it at None.")
        uphill, limit = self._shares[1] * self._betas[-1], self.loss.concave_limit
        # An uphill share of 0 leaves s⁻ free, which every loss allows, also one that allows no more.
        if uphill > 0 and uphill >= limit:
            share, free = ("(1-alpha)", 1) if self.coupling == "original" else ("alpha", 0)
            needed, remedy = (f"< {limit:g}", "Lower beta, move alpha") if limit > 0 else ("= 0", f"Use alpha={free}")
            raise SettingError(
                f"an exact {self.loss.name} nudge needs {share}·beta {needed}, got {uphill:g}. "
                f"{remedy}, or use output_nudge='linearized'."
            )

    def _check_fused(self) -> None:
        if self.engine != "fused":
            return
        plain = {"schedule": schedules.alternating_sweeps(1), "start": "forward", "output_nudge": "linearized", "damping": None,
                 "tolerance": None}  # fmt: skip
        for name, value in plain.items():
            if getattr(self, name) != value:
                shown = repr(value) if isinstance(value, str) else value
                raise SettingError(f"engine='fused' needs {name}={shown}, got {getattr(self, name)}. Use engine='explicit'.")

    def chosen_engine(self, depth: int) -> Literal["explicit", "fused"]:
        """The engine that finds the gradients of a network of `depth` layers.

        At α ∈ {0, 1} the mean of DP⊤ is f(a), so that one downward sweep is the fixed point (Høier & Zach 2024): any schedule
        that brings the error down to layer 1 ends there.
        """
        if self.engine != "auto":
            return self.engine
        is_fixed_point = (
            self.coupling == "transposed"
            and self.alpha in (0, 1)
            and (self.start, self.output_nudge, self.damping, self.tolerance) == ("forward", "linearized", None, None)
            and self.linearize_at in (None, "forward")
            and self._order.brings_down(depth)
        )
        return "fused" if is_fixed_point else "explicit"

    uses_kernels = True

    @property
    def capture_obstacle(self) -> str:
        if self.tolerance is not None:
            return "with a tolerance each batch takes as many passes as it needs"
        if self.output_nudge == "exact" and not isinstance(self.loss, SquaredError):
            return f"an exact {self.loss.name} nudge is found by iteration"
        return super().capture_obstacle

    @property
    def _order(self) -> AnySchedule:
        assert isinstance(self.schedule, schedules.AbstractSchedule)
        return self.schedule

    @property
    def _betas(self) -> tuple[float, ...]:
        return as_tuple(self.beta)

    @property
    def _shares(self) -> tuple[float, float]:
        """The shares of the nudge that s⁺ (downhill) and s⁻ (uphill) receive."""
        return (self.alpha, 1 - self.alpha) if self.coupling == "original" else (1 - self.alpha, self.alpha)

    @property
    def keeps_state(self) -> bool:
        return self.start == "previous" or self._is_spectral

    @property
    def _is_spectral(self) -> bool:
        return isinstance(self.damping, str)

    @property
    def needs_generator(self) -> bool:
        return self._order.is_random

    def at_new_batch(self, state: Dyads | None) -> Dyads | None:
        """The vectors of spectral damping are the weights', not the batch's."""
        return Dyads((), (), self.alpha, state.directions) if state is not None and self._is_spectral else None

    def pack_state(self, state: Dyads | None) -> dict[str, Tensor]:
        if state is None:
            return {}
        packed = {f"direction.{k}": v for k, v in enumerate(state.directions) if v is not None}
        if self.start == "previous":
            packed |= {f"mean.{k}": mean for k, mean in enumerate(state.means)}
            packed |= {f"difference.{k}": delta for k, delta in enumerate(state.differences) if delta is not None}
        return packed

    def unpack_state(self, tensors: dict[str, Tensor]) -> Dyads | None:
        if not tensors:
            return None
        layers = range(sum(name.startswith("mean.") for name in tensors))
        means = tuple(tensors[f"mean.{k}"] for k in layers)
        # The last direction is of the layer below the output.
        last = max((int(name.removeprefix("direction.")) for name in tensors if name.startswith("direction.")), default=-1)
        directions = tuple(tensors.get(f"direction.{k}") for k in range(last + 1))
        return Dyads(means, tuple(tensors.get(f"difference.{k}") for k in layers), self.alpha, directions)

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
            inference = self._prepare(network, x, y, state)
            inference.run(self._order, generator)
            return inference.dyads()

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Dyads | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """ "residual" and, per layer, "kink_crossing", after the schedule; see `AbstractRule.statistics`. The fused engine,
        which holds no states, tells those of the explicit one."""
        if self.engine == "fused":
            return dataclasses.replace(self, engine="explicit").statistics(network, x, y, state, generator)
        with torch.no_grad():
            inference = self._prepare(network, x, y, state, keep_free=True)
            inference.run(self._order, generator)
            return inference.statistics()

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
            state: the dyads of an earlier call, for start="previous" and for spectral damping.
            generator: draws the layers of schedule random_order, and is needed for it alone.

        Raises:
            SettingError: x, y or state of the wrong shape, or settings that don't fit the network's depth.
        """
        if self.chosen_engine(network.depth) == "fused":
            return self._fused_gradients(network, x, y)
        with torch.no_grad():
            inference = self._prepare(network, x, y, state)
            inference.run(self._order, generator)
            return inference.outcome()

    def _prepare(self, network: Network, x: Tensor, y: Tensor, state: Dyads | None, keep_free: bool = False) -> Inference:
        y = check_batch(x, y)
        check_output(network, self.loss)
        check_precision(network, x)
        up, down = self._shares
        at: Literal["current", "forward"] = "current" if self.coupling == "original" and self.damping is None else "forward"
        settings = Settings(
            alpha=self.alpha,
            up=up,
            down=down,
            betas=self.betas(network.depth),
            start=self.start,
            output_nudge=self.output_nudge,
            linearize_at=self.linearize_at or at,
            damping=self.damping,
            tolerance=self.tolerance,
            # Without feedback in the mean, s̄ = f(a) exactly, and every layer above keeps its drive.
            mean_is_free=self.coupling == "transposed" and self.alpha in (0, 1) and self.damping is None,
            loss=self.loss,
        )
        return Inference(settings, network, x, y, state, keep_free=keep_free or self.tolerance is not None)

    def _fused_gradients(self, network: Network, x: Tensor, y: Tensor) -> Outcome:
        y = check_batch(x, y)
        check_output(network, self.loss)
        betas = self.betas(network.depth)
        parameters = network.parameters
        up, down = self._shares
        with torch.enable_grad():
            with recompute.recomputing():
                states = {0: x}
                for k, layer in enumerate(network.layers, start=1):
                    nudge = CotangentNudge(up, down, betas[k - 1] * len(x))
                    a = layer.forward(states)
                    states[k] = a if isinstance(layer.neuron, Identity) else dyadic_activation(a, layer.neuron, nudge)
                    del a
                    for source in layer.sources:
                        if network.out_of(source)[-1] == k:
                            del states[source]  # as plain autograd lets go of what nothing reads any more
            logits = states.pop(network.depth)
            check_targets(y, logits)
            loss = self.loss.value(logits, y).mean()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return Outcome(
            gradients=dict(zip(parameters, found, strict=True)),
            loss=loss.detach(),
            logits=logits.detach(),
            diagnostics=dict(network.counts_of_backprop),
        )

    def betas(self, depth: int) -> tuple[float, ...]:
        """β_1…β_L. Raises SettingError where a list has another length."""
        return beta_per_layer(self.beta, depth)
