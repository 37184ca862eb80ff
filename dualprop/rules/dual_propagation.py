"""Dual propagation (DP: Høier et al., 2023) and its transposed form, DP⊤ (Høier & Zach, 2024).

Each neuron holds two states. Weights learn from s̄ = α s⁺ + (1-α) s⁻ and δ = s⁺ - s⁻. Layer k maps
s̄_{k-1} to a_k (s_0: the input); back comes Δ_k = Jᵀ δ_{k+1} at s̄_k. With r = β_k / β_{k+1}:

    DP    s⁺ = f(a + α r Δ)        s⁻ = f(a - (1-α) r Δ)
    DP⊤   s⁺ = f(a + (1-α) r Δ)    s⁻ = f(a - α r Δ)

The loss nudges the output. Layer k's gradient is -(1/β_k) δ_kᵀ ∂a_k/∂W at s̄_{k-1}, a batch mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from dualprop import fused, kernels, neurons, schedules
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy, wide
from dualprop.network.states import Dyads
from dualprop.rules.base import AbstractRule
from dualprop.rules.checks import Precision
from dualprop.rules.dyad_states import DyadStates
from dualprop.rules.problem import Problem
from dualprop.settings import Auto, PerLayer, Remedy, as_tuple, beta_per_layer, number
from dualprop.settling import fixed_passes, kink_crossing, largest, settle


@dataclass(frozen=True, kw_only=True)
class DualPropagation(AbstractRule[DyadStates | Tensor]):
    """DP and DP⊤ in any update order.

    Attributes:
        coupling: "original" (DP) or "transposed" (DP⊤), which is stable for every alpha.
        alpha: the weight of s⁺ in the mean. At ½ the two couplings are one.
        beta: nudging strength per example, or per term of the loss's mean (`dp.losses`); one for
            all layers, one per layer 1…L, or "auto", see `dp.choose_beta`.
        schedule: from `dp.schedules`, its text ("bottom_up(4)"), or a sequence of layer numbers.
        start: of the states: the "forward" pass, "zeros", or the "previous" call's `state`.
        output_nudge: "linearized", along ∇ℓ, or "exact".
        linearize_at: where ∇ℓ is taken, the "current" or "forward" output. None: as the authors do.
        damping: "spectral", "spectral_full" or L_k by hidden layer, see damped_dual_propagation.md.
        tolerance: stop at this residual (see `settling`). None makes all passes, unchecked.
        engine: "explicit" holds the dyads, "fused" runs in autograd; "auto" is fused if both agree.
    """

    coupling: Literal["original", "transposed"] = "original"
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    beta: PerLayer | Auto = 1.0
    schedule: schedules.AnySchedule | str | Sequence[int] = schedules.alternating_sweeps(1)
    start: Literal["forward", "zeros", "previous"] = "forward"
    output_nudge: Literal["linearized", "exact"] = "linearized"
    linearize_at: Literal["current", "forward"] | None = None
    damping: Annotated[float | tuple[float, ...], Ge(0)] | Literal["spectral", "spectral_full"] | None = None
    tolerance: Annotated[float, Gt(0), Remedy("Use None for no check.")] | None = None
    engine: Literal["auto", "explicit", "fused"] = "auto"
    loss: AbstractLoss = CrossEntropy()

    state_type = Dyads
    precision = "half_products"
    uses_kernels = crosses_kinks = True

    def inference(self, problem: Problem) -> DyadStates | Tensor:
        """The free pass, then the schedule."""
        if self._is_fused(problem):
            return problem.mean_loss(lambda x: fused.swept(problem.network, x, number(self.beta), self.shares, problem.terms))
        betas, is_measured = self.betas(problem.depth), self.tolerance is not None or problem.for_states
        states = DyadStates(problem, betas, self.loss, self.start, self.damping, self.alpha, is_measured)
        states.evaluation.learns_on_the_way = self._mean_is_free and not is_measured
        passes = self._order.passes(problem.depth, problem.generator)
        measure = None if self.tolerance is None else lambda before: states.one_more(self.update)
        progress = settle(states, passes, self.update, measure, self.tolerance, releases=not is_measured)
        problem.report(states.counts, None if self.tolerance is None else progress, self._settling_remedy)
        if not progress.trouble:
            # With states of before the error is on its way.
            progress.expect_signals(states, "error", is_expected=self.start != "previous")
            problem.doubt([progress.trouble] * problem.num_models, "Use more, or a schedule that sweeps down.")
        return states

    def update(self, states: DyadStates, k: int) -> tuple[Tensor, Tensor | None]:
        """s̄ and δ of layer k's dyad; the same tensors where nothing that it reads has changed."""
        a, feedback = states.drive(k), None if states.is_output(k) else states.feedback(k)
        if states.has_read(k, a, feedback):
            return states.means[k], states.differences[k]
        if states.is_output(k):
            return self.nudged_output(states, k, a)
        if states.damping[k] is not None:
            return self.damped_dyad(states, k, a, feedback)
        if feedback is None:
            return states.neuron(k).f(a), None
        return self.dyad(states, k, a, feedback, strength=states.betas[k - 1] / states.betas[k])

    def dyad(self, states: DyadStates, k: int, a: Tensor, pull: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """s̄ and δ of s⁺ = f(a + up·strength·pull) and s⁻ = f(a - down·strength·pull)."""
        up, down = (strength * share for share in self.shares)
        neuron, alpha, overwrite = states.neuron(k), self.alpha, states.may_overwrite(k)
        if isinstance(neuron, neurons.Identity):  # written out: at small β s± share most digits
            shift = alpha * up - (1 - alpha) * down
            return (a if shift == 0 else torch.add(a, pull, alpha=shift)), pull * (up + down)
        if self._mean_is_free and not states.is_output(k):
            free, one_sided = states.free(k, a), up if down == 0 else -down
            return free, kernels.one_sided_difference(neuron, a, pull, one_sided, free, overwrite=overwrite)
        return kernels.dyad(neuron, a, pull, up, down, alpha, overwrite=overwrite)

    def nudged_output(self, states: DyadStates, k: int, a: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output's dyad: f(a ∓ share·β ∇ℓ), or the exact argmins; s⁺ goes downhill."""
        neuron, beta = states.neuron(k), states.betas[-1]
        if not states.is_nudged:
            return neuron.f(a), None
        if self.output_nudge == "linearized":
            return self.dyad(states, k, a, self.loss_gradient(states, a), strength=-beta)
        up, down = self.shares
        minus = self.loss.nudge(neuron, a, states.y, -down * beta)
        delta = self.loss.nudge(neuron, a, states.y, up * beta) - minus
        return torch.add(minus, delta, alpha=self.alpha), delta

    def gradients_at(self, problem: Problem, settled: DyadStates | Tensor) -> dict[str, Tensor]:
        """-(1/β_k) δ_kᵀ ∂a_k/∂W at s̄_{k-1}, for every layer."""
        if isinstance(settled, Tensor):
            return problem.gradients_of(settled)
        return settled.gradients(tuple(-1 / (beta * problem.terms) for beta in settled.betas))

    def loss_gradient(self, states: DyadStates, a: Tensor) -> Tensor:
        """∇ℓ by the output, where it is linearised."""
        if self._linearizes_at == "current" and a is not states.forward_drive:
            return self.loss.gradient(states.neuron(states.network.depth).f(a), states.y)
        return states.forward_gradient

    def damped_dyad(self, states: DyadStates, k: int, a: Tensor, feedback: Tensor | None) -> tuple[Tensor, Tensor]:
        """s± = prox(a ± nudge + L s±_old, L)."""
        neuron, constant, ratio = states.neuron(k), states.damping[k], states.betas[k - 1] / states.betas[k]
        assert constant is not None
        # In float32 also where drives are of half precision, which would lose small moves.
        a, feedback = wide(a), None if feedback is None else wide(feedback)
        mean, delta = wide(states.means[k]), states.differences[k]
        sides: list[Tensor] = []
        for share, weight in zip(self.shares, (1 - self.alpha, -self.alpha), strict=True):
            old = mean if delta is None else torch.add(mean, delta, alpha=weight)
            sign = 1 if not sides else -1
            nudged = a if feedback is None else torch.add(a, feedback, alpha=sign * ratio * share)
            sides.append(neuron.prox(nudged + constant * old, constant))
        delta = sides[0] - sides[1]
        return torch.add(sides[1], delta, alpha=self.alpha), delta

    def states_at(self, problem: Problem, settled: DyadStates | Tensor) -> Dyads | None:
        if isinstance(settled, Tensor):
            return None
        if problem.for_states and self.engine == "fused":
            raise SettingError("engine='fused' holds no dyads. Use engine='explicit' to infer them.")
        return Dyads(tuple(settled.means), tuple(settled.differences), self.alpha, settled.directions)

    def statistics_at(self, problem: Problem, settled: DyadStates | Tensor) -> dict[str, Any]:
        """The numbers of the explicit engine, since the fused one holds no states."""
        assert isinstance(settled, DyadStates)
        crossing, (up, down) = [], self.shares
        for k in range(1, problem.depth + 1):
            a, is_output = settled.drive(k), settled.is_output(k)
            pull = self.loss_gradient(settled, a) if is_output else settled.feedback(k)
            strength = -settled.betas[-1] if is_output else settled.betas[k - 1] / settled.betas[k]
            nudges = None if pull is None else (a + strength * up * pull, a - strength * down * pull)
            crossing.append(0.0 if nudges is None else kink_crossing(settled.neuron(k), *nudges))
        return {"residual": largest(settled.one_more(self.update)), "kink_crossing": crossing}

    def conflicts(self) -> Iterator[str]:
        if self.tolerance is not None:
            yield from fixed_passes(self._order, "bottom_up(100)")
        if self.output_nudge == "exact":
            if self.linearize_at is not None:
                yield "linearize_at has no meaning with output_nudge='exact'. Leave it at None."
            share, free = ("(1-alpha)", 1) if self.coupling == "original" else ("alpha", 0)
            # With an uphill share of 0, s⁻ is free. Every loss allows that.
            remedy = f"Use alpha={free}" if self.loss.concave_limit <= 0 else "Lower beta, move alpha"
            uphill = 0.0 if self.beta == "auto" else self.shares[1] * as_tuple(self.beta)[-1]
            yield from self.loss.uphill_conflict(uphill, f"{share}·beta", remedy)
        plain = {"schedule": schedules.alternating_sweeps(1), "start": "forward", "output_nudge": "linearized", "damping": None,
                 "tolerance": None}  # fmt: skip
        for name, value in plain.items() if self.engine == "fused" else ():
            if getattr(self, name) != value:
                shown = repr(value) if isinstance(value, str) else value
                yield f"engine='fused' needs {name}={shown}, got {getattr(self, name)}. Use engine='explicit'."

    def chosen_engine(self, depth: int | None) -> Literal["explicit", "fused"]:
        """Fused where the explicit one would end at the same point, with any depth if None."""
        # At α ∈ {0, 1} the mean of DP⊤ is f(a), and one downward sweep is the fixed point (Høier &
        # Zach 2024). Any schedule that brings the error down to layer 1 ends there.
        if self.engine != "auto":
            return self.engine
        is_plain = (self.start, self.output_nudge, self.tolerance) == ("forward", "linearized", None)
        is_settled = self._mean_is_free and is_plain and self._linearizes_at == "forward" and self._order.brings_down(depth)
        return "fused" if is_settled else "explicit"

    def _is_fused(self, problem: Problem) -> bool:
        return not problem.for_states and self.chosen_engine(problem.known_depth) == "fused"

    def betas(self, depth: int) -> tuple[float, ...]:
        """β_1…β_L. Raises SettingError where a list has another length."""
        return beta_per_layer(number(self.beta), depth)

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of the nudge that s⁺ (downhill) and s⁻ (uphill) receive."""
        return (self.alpha, 1 - self.alpha) if self.coupling == "original" else (1 - self.alpha, self.alpha)

    @property
    def _order(self) -> schedules.AbstractSchedule:
        assert isinstance(self.schedule, schedules.AbstractSchedule)
        return self.schedule

    @property
    def _mean_is_free(self) -> bool:
        """Whether s̄ = f(a) exactly: the drives above then stay what they are."""
        return self.coupling == "transposed" and self.alpha in (0, 1) and self.damping is None

    @property
    def _linearizes_at(self) -> str:
        plain = "current" if self.coupling == "original" and self.damping is None else "forward"
        return self.linearize_at or plain

    @property
    def _settling_remedy(self) -> str:
        # Advise nothing that is in use. At α = ½ the couplings are one, and spectral damping is 0.
        if self.coupling == "original" and self.alpha != 0.5:
            return "Use coupling='transposed', damping='spectral', alpha nearer to 0.5, or more passes."
        if self._mean_is_free:
            return "Use more passes."
        return "Lower beta, use coupling='transposed' with alpha=0 or 1, or more passes."

    @property
    def reads_layers(self) -> bool:
        return self.chosen_engine(None) == "explicit"

    def needed_precision(self, problem: Problem) -> Precision:
        return "any" if self._is_fused(problem) else self.precision

    @property
    def keeps_state(self) -> bool:
        return self.start == "previous" or isinstance(self.damping, str)

    @property
    def stacking_obstacle(self) -> str:
        return "spectral damping is by one network's weights" if isinstance(self.damping, str) else super().stacking_obstacle

    def kept(self, state: Dyads) -> Dyads:
        return state if self.start == "previous" else Dyads((), (), self.alpha, state.directions)

    def at_new_batch(self, state: Dyads | None) -> Dyads | None:
        """Keep the vectors of spectral damping: they are the weights', not the batch's."""
        is_spectral = isinstance(self.damping, str)
        return Dyads((), (), self.alpha, state.directions) if state is not None and is_spectral else None
