"""Equilibrium propagation (EP: Scellier & Bengio, 2017), on Hopfield and predictive coding networks (PCN).

States settle at a minimum h⁰ of an energy E(θ, x, h), the free phase, and with the loss pulling at the output at minima h^β of
E + β ℓ(h_L, y). The difference of the energy's gradients estimates that of the loss at h⁰:

    centered    (1/2β) [ ∂E/∂θ(h^β) - ∂E/∂θ(h^{-β}) ]        error O(β²)

The rule is an energy × a relaxation × an estimator, each replaceable (`dualprop.equilibrium`). On a PCN (Kerjan, Høier &
Scellier, 2026) the free phase is the forward pass and as β → 0 the gradient is back-propagation's; on a Hopfield network it is
the implicit gradient of its free equilibrium, which is also what it predicts by.
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
from dualprop.equilibrium.phases import Dynamics, Equilibria, Nudge, OutputNudge, Phase, nudge_conflicts
from dualprop.equilibrium.relaxations import AbstractRelaxation, Blocks, ErrorSweeps, settle_by_blocks
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.network.states import States
from dualprop.rules.base import AbstractRule
from dualprop.rules.problem import Problem, check_batch
from dualprop.schedules import AbstractSchedule, AnySchedule
from dualprop.settings import Positive, Remedy
from dualprop.settling import can_sync, fixed_passes, largest, lost_in_rounding

# Examples that a prediction by free equilibrium takes at a time.
PREDICTED_TOGETHER = 100
FREE_SCHEDULE = schedules.even_odd(60)


@dataclass(frozen=True, kw_only=True)
class EquilibriumPropagation(AbstractRule[Phase]):
    """Equilibrium propagation: energy × relaxation × estimator.

    Attributes:
        energy: "predictive_coding" or "hopfield".
        estimator: "centered", "forward", "backward", "random_sign", or "holomorphic(N)" of holomorphic Hopfield networks.
        beta: the nudging strength, per example.
        relaxation: how nudged states settle: "error_sweeps(1)" or "blocks(even_odd(10))", see `dp.relaxations`; "auto" takes
            the first where the energy has it and the output is not clamped.
        free_schedule: of block updates in the free phase, where that is not the forward pass.
        start: of that free phase: "zeros" or the "forward" pass.
        tolerance: settle until a pass moves the states by no more than this share of their displacement; schedule or pairs
            are then the most. It waits for the device.
        jacobians: "current", or held at those of the "free" states, where centered EP is back-propagation but for the loss's
            own curvature (PCN; one Linear or convolution a synapse).
        output_nudge: "linearized", by ∇ℓ at the present output (papers), the "exact" minimum, or "clamped" to
            (1-β) h_L⁰ + β y (PCN, squared error, blocks): no gradient of the loss, but one through (I + J Jᵀ)⁻¹ at the output.
    """

    energy: AbstractEnergy | str = energies.PredictiveCoding()
    estimator: AbstractEstimator | str = estimators.Centered()
    beta: Positive = 0.02
    relaxation: Literal["auto"] | AbstractRelaxation | str = "auto"
    free_schedule: AnySchedule | str = FREE_SCHEDULE
    start: Literal["zeros", "forward"] = "zeros"
    tolerance: Annotated[float, Gt(0), Lt(1), Remedy("Use None to run all passes.")] | None = None
    jacobians: Literal["current", "free"] = "current"
    output_nudge: OutputNudge = "linearized"
    loss: AbstractLoss = CrossEntropy()

    precision = "full"
    loses = "equilibrium propagation loses its displacements"

    def inference(self, problem: Problem) -> Phase:
        """The free phase."""
        free = self.free_phase(problem.network, problem.x, problem.generator, problem.is_measured)
        problem.predicted(free.states.means[-1])
        shrink = "Raise the number of free_schedule, or shrink the weights: with ReLU states may grow for ever."
        problem.report(free.states.counts, free.settling, shrink)
        return free

    def free_phase(self, network: Network, x: Tensor, generator: torch.Generator | None, is_measured: bool) -> Phase:
        """The settled states without a nudge: of a predictive coding network those of the forward pass."""
        states = States(network, x)
        states.forward()
        if self._energy.free_is_forward:
            return Phase(self._dynamics, states, None)
        for k in range(1, network.depth + 1):
            mean = states.means[k]
            states.set(k, *((torch.zeros_like(mean), None) if self.start == "zeros" else (mean, mean)))
        phase = Phase(self._dynamics, states, None)
        # Nudged states are displaced by about β of the free ones' size, and that is what motion must be small against.
        tolerance = None if self.tolerance is None else self.tolerance * min(1.0, self.beta)
        settle_by_blocks(phase, self._free_order, generator, is_measured, tolerance)
        return phase

    def gradients_at(self, problem: Problem, settled: Phase) -> dict[str, Tensor]:
        """Σ_m w_m ∂E/∂θ(h^{β_m}), averaged over the batch."""
        total: dict[str, Tensor] = {}
        signs, first = self._signs(problem), None
        for term in self._terms:
            phase = self.nudged_phase(problem, settled, term, signs, first)
            weight = term.weight / len(problem.y)
            # Those of a Hopfield network are large, and their weights sum to zero: taken relative to the first phase.
            _add(total, phase.gradients(weight) if self._energy.free_is_forward else phase.contrasted(first, weight))
            self._report(problem, phase, first)
            first = first if self._energy.free_is_forward else first or phase
            del phase  # its states: the next phase has its own
        return total

    def nudged_phase(self, problem: Problem, free: Phase, term: Term, signs: Tensor | None, first: Phase | None) -> Phase:
        """The settled phase of one term, from the free states; its signals with their signs.

        Hopfield: run as many passes as the `first` phase did, so that leftover motion cancels; where states are complex at
        least as many, until they have settled.
        """
        sign = signs if term.is_signed else None
        nudge = Nudge(problem.y, term.nudge if sign is None else term.nudge * sign) if term.nudge else None
        phase = free.nudged(nudge, is_frozen=self.jacobians == "free")
        is_measured, passes = problem.is_measured and nudge is not None, None if first is None else first.passes
        most, least = (None, passes or 0) if self._is_complex else (passes, 0)
        tolerance = None if most is not None else self.tolerance
        self._relaxation.settle(phase, problem.generator, is_measured, tolerance, most, least)
        if sign is not None:
            phase.weigh(sign)
        return phase

    def _report(self, problem: Problem, phase: Phase, first: Phase | None) -> None:
        problem.report(
            phase.states.counts,
            phase.settling,
            self._relaxation.remedy(self._energy, self.output_nudge == "clamped", self._is_complex),
            phase.each,
        )
        if first is not None and first is not phase and problem.is_measured:
            lost = lost_in_rounding(first.states.means, phase.states.means, "nudge")
            problem.doubt(f"{lost}. Raise beta, or use float64." if lost else "")

    def _signs(self, problem: Problem) -> Tensor | None:
        if not self._estimator.is_random:
            return None
        return estimators.signs(len(problem.x), problem.generator).to(problem.x.device, problem.x.dtype)

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The output of the free equilibrium, (N, K): of a predictive coding network its forward pass."""
        if self._energy.free_is_forward:
            return network.forward(x)
        with torch.no_grad():
            # In parts: a phase holds all that it computes of its examples, where a forward pass does not.
            parts = x.split(PREDICTED_TOGETHER)
            return torch.cat([self.free_phase(network, part, None, False).states.means[-1] for part in parts])

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of a Hopfield network the implicit gradient at its free equilibrium, see `implicit_gradient`; not a number where that
        is not found."""
        if self._energy.free_is_forward:
            return super().exact_gradients(network, x, y)
        with torch.no_grad():
            y, free = check_batch(x, y), self.free_phase(network, x, None, can_sync(x))
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
        """Of the first nudged phase, and of the complex one that one more pass moves most."""
        first, residuals = None, []
        crossing: list[float] = []
        for term in (term for term in self._terms if term.nudge):
            if first is not None and not isinstance(term.nudge, complex):
                continue
            phase = self.nudged_phase(problem, settled, term, None, first)
            crossing = crossing or phase.kink_crossing(settled)
            residuals.append(self._relaxation.one_more(phase, problem.generator))
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
        # On a circle of nudges whatever is inside counts: there the states must be a function of β.
        uphill = self.beta if self._is_complex else max(0.0, *(term.uphill for term in self._terms))
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
        return ErrorSweeps() if self._energy.free_is_forward and self.output_nudge != "clamped" else Blocks()

    @property
    def _dynamics(self) -> Dynamics:
        update, step_size = self._relaxation.update, self._relaxation.step_size
        return Dynamics(self._energy, self.loss, self.output_nudge, update, step_size)

    @property
    def _terms(self) -> tuple[Term, ...]:
        """The phases to run: not the free one where its energy has no gradient."""
        terms = self._estimator.terms(self.beta)
        return tuple(term for term in terms if term.nudge != 0 or not self._energy.free_is_forward)

    @property
    def _is_complex(self) -> bool:
        """Whether some states are complex."""
        return any(isinstance(term.nudge, complex) for term in self._terms)

    @property
    def needs_generator(self) -> bool:
        order = self._relaxation.order
        return self._estimator.is_random or (order is not None and order.is_random)

    @property
    def predicts_by_equilibrium(self) -> bool:
        return not self._energy.free_is_forward


def _add(total: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        total[name] = total[name].add_(gradient) if name in total else gradient
