"""Equilibrium propagation (EP: Scellier & Bengio, 2017), by the contrast of settled phases.

States settle at a minimum h⁰ of an energy E(θ, x, h): the free phase. With the loss pulling at the
output they settle at h^β, of E + β ℓ(h_L, y). The loss's gradient at h⁰ is estimated by, say,

    centered    (1/2β) [ ∂E/∂θ(h^β) - ∂E/∂θ(h^{-β}) ]        error O(β²)

The rule is an energy × a relaxation × an estimator (`dualprop.equilibrium`). On a predictive coding
network (PCN: Kerjan, Høier & Scellier, 2026) h⁰ is the forward pass; as β → 0 the gradient is
back-propagation's. A Hopfield network predicts by h⁰; the gradient is the implicit one there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from dualprop import schedules
from dualprop.equilibrium import energies, estimators, holomorphic, implicit_gradient
from dualprop.equilibrium.energies import AbstractEnergy
from dualprop.equilibrium.estimators import AbstractEstimator, Term
from dualprop.equilibrium.phases import Dynamics, Equilibria, Nudge, OutputNudge, Phase, Stop, nudge_conflicts
from dualprop.equilibrium.relaxations import AbstractRelaxation, automatic
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.network.states import States
from dualprop.rules.base import AbstractRule
from dualprop.rules.checks import check_batch
from dualprop.rules.problem import Problem
from dualprop.schedules import AbstractSchedule, AnySchedule
from dualprop.settings import Auto, Positive, Remedy, number
from dualprop.settling import can_sync, fixed_passes, largest, lost_in_rounding

FREE_SCHEDULE = schedules.even_odd(60)


@dataclass(frozen=True, kw_only=True)
class EquilibriumPropagation(AbstractRule[Phase]):
    """Equilibrium propagation: energy × relaxation × estimator.

    Attributes:
        energy: "predictive_coding" or "hopfield".
        estimator: "centered", "forward", "backward", "random_sign", or of Hopfield networks
            "holomorphic(N)", "forward(held)" …, see `dualprop.equilibrium.estimators`.
        beta: the nudging strength, per example; or "auto", see `dp.choose_beta`.
        relaxation: "auto", or "error_sweeps(1)", "blocks(even_odd(10))" …, see `dp.relaxations`.
        free_schedule: of block updates in the free phase, where that is not the forward pass.
        start: of that free phase: "zeros" or the "forward" pass.
        tolerance: stop a phase at this residual (see `settling`), which waits for the device.
        jacobians: "current", or "free": held at those of the free states (PCN).
        output_nudge: "linearized" by ∇ℓ, the "exact" minimum, or "clamped" to (1-β) h_L⁰ + β y.
    """

    energy: AbstractEnergy | str = energies.PredictiveCoding()
    estimator: AbstractEstimator | str = estimators.Centered()
    beta: Positive | Auto = 0.02
    relaxation: Literal["auto"] | AbstractRelaxation | str = "auto"
    free_schedule: AnySchedule | str = FREE_SCHEDULE
    start: Literal["zeros", "forward"] = "zeros"
    tolerance: Annotated[float, Gt(0), Lt(1), Remedy("Use None to run all passes.")] | None = None
    jacobians: Literal["current", "free"] = "current"
    output_nudge: OutputNudge = "linearized"
    loss: AbstractLoss = CrossEntropy()

    precision = "full"
    crosses_kinks = True
    loses = "equilibrium propagation loses its displacements"

    def inference(self, problem: Problem) -> Phase:
        """The free phase."""
        free = self.free_phase(problem.network, problem.x, problem.generator, problem.is_measured)
        problem.predicted(free.states.means[-1])
        shrink = "Raise the number of free_schedule, or shrink the weights: with ReLU states may grow for ever."
        problem.report(free.states.counts, free.settling, shrink)
        return free

    def free_phase(self, network: Network, x: Tensor, generator: torch.Generator | None, is_measured: bool) -> Phase:
        """The settled states without a nudge. On a predictive coding network: the forward pass."""
        states = States(network, x)
        states.forward()
        if self._energy.free_is_forward:
            return Phase(self._dynamics, states, None)
        for k in range(1, network.depth + 1):
            mean = states.means[k]
            states.set(k, *((torch.zeros_like(mean), None) if self.start == "zeros" else (mean, mean)))
        phase = Phase(self._dynamics, states, None)
        # A nudge displaces states by about β of their size: motion must be small against that.
        tolerance = None if self.tolerance is None else self.tolerance * min(1.0, number(self.beta))
        phase.settle(self._free_order.passes(network.depth, generator), Stop(is_measured, tolerance))
        return phase

    def gradients_at(self, problem: Problem, settled: Phase) -> dict[str, Tensor]:
        """Σ_m w_m ∂E/∂θ(h^{β_m}), averaged over the batch."""
        total: dict[str, Tensor] = {}
        signs, first = self._signs(problem), None
        for term in self._terms:
            phase = self.nudged_phase(problem, settled, term, signs, first)
            weight = term.weight / problem.terms
            # A Hopfield network's are large, and their weights sum to 0: subtract the first's.
            _add(total, phase.gradients(weight) if self._energy.free_is_forward else phase.contrasted(first, weight))
            self._report(problem, phase, first)
            first = first if self._energy.free_is_forward else first or phase
            del phase  # its states: the next phase has its own
        return total

    def nudged_phase(self, problem: Problem, free: Phase, term: Term, signs: Tensor | None, first: Phase | None) -> Phase:
        """The settled phase of one term, from the free states; its signals with their signs."""
        sign = signs if term.is_signed else None
        nudge = Nudge(problem.y, term.nudge if sign is None else term.nudge * sign) if term.nudge else None
        phase = free.nudged(nudge, is_frozen=self.jacobians == "free")
        # Hopfield: as many passes as `first`, so that leftover motion cancels; if complex, or more.
        passes = 0 if term.is_held else None if first is None else first.passes
        is_measured = problem.is_measured and nudge is not None
        most, least = (None, passes or 0) if self._is_complex else (passes, 0)
        tolerance = None if most is not None else self.tolerance
        self._relaxation.settle(phase, problem.generator, Stop(is_measured, tolerance, most=most, least=least))
        if sign is not None:
            phase.weigh(sign)
        return phase

    def _report(self, problem: Problem, phase: Phase, first: Phase | None) -> None:
        remedy = self._relaxation.remedy(self._energy, self.output_nudge == "clamped", self._is_complex)
        problem.report(phase.states.counts, phase.settling, remedy, phase.each)
        if first is not None and first is not phase and problem.is_measured:
            lost = lost_in_rounding(first.states.means, phase.states.means, "nudge", problem.num_models)
            problem.doubt(lost, "Raise beta, or use float64.")

    def _signs(self, problem: Problem) -> Tensor | None:
        if problem.logits is None or not self._estimator.is_random:
            return None
        return estimators.signs(len(problem.logits), problem.generator, problem.network.is_recorded).to(problem.logits)

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The output of the free equilibrium, (N, K). On a PCN that is the forward pass."""
        if self._energy.free_is_forward:
            return network.forward(x)
        with torch.no_grad():
            # In parts of 100: a phase holds all that it computes, where a forward pass does not.
            parts = x.split(100)
            return torch.cat([self.free_phase(network, part, None, False).states.means[-1] for part in parts])

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of a Hopfield network the implicit gradient at its free equilibrium; nan if not found."""
        if self._energy.free_is_forward:
            return super().exact_gradients(network, x, y)
        with torch.no_grad():
            y, free = check_batch(network, x, y, self.loss), self.free_phase(network, x, None, can_sync(x))
        return implicit_gradient.gradients(network, free.states.means, y, self.loss)

    def states_at(self, problem: Problem, settled: Phase) -> Equilibria:
        """The free and the nudged states."""
        signs, nudged = self._signs(problem), []
        for term in (term for term in self._terms if term.nudge):
            phase = self.nudged_phase(problem, settled, term, signs, None)
            assert phase.nudge is not None
            nudged.append((phase.nudge.strength, tuple(phase.states.means)))
        return Equilibria(tuple(settled.states.means), tuple(nudged))

    def statistics_at(self, problem: Problem, settled: Phase) -> dict[str, Any]:
        """The first nudged phase's, and the residual of the complex phase that moves most."""
        first, residuals = None, []
        crossing: list[float] = []
        for term in (term for term in self._terms if term.nudge):
            if first is not None and not isinstance(term.nudge, complex):
                continue
            phase = self.nudged_phase(problem, settled, term, None, first)
            crossing = crossing or phase.kink_crossing(settled)
            residuals += self._relaxation.one_more(phase, problem.generator)
            first = first or phase
        return {"residual": largest(residuals), "kink_crossing": crossing}

    def check(self, network: Network) -> None:
        self._energy.check(network)
        self._energy.check_update(network, self._relaxation.update)
        if self._is_complex:
            holomorphic.check(network, self.loss, self.output_nudge)

    def conflicts(self) -> Iterator[str]:
        energy, estimator, settles_freely = self._energy, self._estimator, not self._energy.free_is_forward
        is_clamped, is_frozen = self.output_nudge == "clamped", self.jacobians == "free"
        yield from self._relaxation.conflicts(energy, is_clamped, is_frozen, self.tolerance)
        yield from estimator.conflicts(energy.name, energy.free_is_forward)
        if is_frozen and settles_freely:
            yield f"jacobians='free' is of predictive coding. With energy='{energy}' leave it at 'current'."
        if settles_freely and self._free_order.is_random:
            yield f"a prediction needs a fixed order, got free_schedule={self.free_schedule}. Use 'even_odd(60)'."
        if not settles_freely and (self.free_schedule, self.start) != (FREE_SCHEDULE, "zeros"):
            yield f"free_schedule and start are of energy='hopfield'. With energy='{energy}' leave them at their defaults."
        if settles_freely and self.tolerance is not None:
            yield from fixed_passes(self._free_order, "even_odd(100)")
        # A circle of nudges counts whatever lies inside: there the states must be a function of β.
        reach = 0.0 if self.beta == "auto" else self.beta
        uphill = reach if self._is_complex or not reach else max(0.0, *(term.uphill for term in self._terms))
        yield from nudge_conflicts(self.output_nudge, energy, self.loss, uphill, self._is_complex)

    @property
    def _energy(self) -> AbstractEnergy:
        return AbstractEnergy.as_part(self.energy)

    @property
    def _estimator(self) -> AbstractEstimator:
        return AbstractEstimator.as_part(self.estimator)

    @property
    def _free_order(self) -> AbstractSchedule:
        return AbstractSchedule.as_part(self.free_schedule)

    @property
    def _relaxation(self) -> AbstractRelaxation:
        if self.relaxation != "auto":
            return AbstractRelaxation.as_part(self.relaxation)
        return automatic(self._energy, self.output_nudge == "clamped")

    @property
    def _dynamics(self) -> Dynamics:
        update, step_size = self._relaxation.update, self._relaxation.step_size
        return Dynamics(self._energy, self.loss, self.output_nudge, update, step_size)

    @property
    def _terms(self) -> tuple[Term, ...]:
        """The phases to run. The free one is left out where its energy has no gradient."""
        terms = self._estimator.terms(number(self.beta))
        return tuple(term for term in terms if term.nudge != 0 or not self._energy.free_is_forward)

    @property
    def _is_complex(self) -> bool:
        """Whether some states are complex."""
        return any(isinstance(term.nudge, complex) for term in self._estimator.terms(1.0))

    @property
    def needs_synapses(self) -> str:
        return "" if self._energy.free_is_forward else f"energy='{self._energy}' is of synapses that are modules"

    @property
    def needs_generator(self) -> bool:
        order = self._relaxation.order
        return self._estimator.is_random or (order is not None and order.is_random)

    @property
    def stacking_obstacle(self) -> str:
        return "complex states are not stacked" if self._is_complex else super().stacking_obstacle

    @property
    def predicts_by_equilibrium(self) -> bool:
        return not self._energy.free_is_forward


def _add(total: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        total[name] = total[name].add_(gradient) if name in total else gradient
