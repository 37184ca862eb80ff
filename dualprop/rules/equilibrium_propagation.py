"""Equilibrium propagation (EP: Scellier & Bengio, 2017), on Hopfield and predictive coding networks (PCN).

States settle at a minimum h⁰ of an energy E(θ, x, h), the free phase, and with the loss pulling at the output at minima h^β of
E + β ℓ(h_L, y). The difference of the energy's gradients estimates that of the loss at h⁰:

    centered    (1/2β) [ ∂E/∂θ(h^β) - ∂E/∂θ(h^{-β}) ]        error O(β²)

The rule is an energy (`equilibria`) × a relaxation (`relaxation`) × an estimator (`estimators`), each replaceable. On a PCN
(Kerjan, Høier & Scellier, 2026) the free phase is the forward pass and as β → 0 the gradient is back-propagation's; on a
Hopfield network it is the implicit gradient of its free equilibrium, which is also what it predicts by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop import losses, schedules
from dualprop.equilibrium import energies, estimators, holomorphic, implicit_gradient
from dualprop.equilibrium.energies import AbstractEnergy, Update
from dualprop.equilibrium.estimators import AbstractEstimator, Term
from dualprop.equilibrium.relaxations import Nudge, Phase, Report, Settings, diagnostics, largest, may_wait, rounded
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy, SquaredError, targets
from dualprop.network import Network
from dualprop.network.states import Activations
from dualprop.rules import equilibrium_settings
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_targets, check_wide
from dualprop.schedules import AnySchedule
from dualprop.settings import check_choices, check_numbers

# Examples that a prediction by free equilibrium takes at a time.
PREDICTED_TOGETHER = 100

_CHOICES = {
    "relaxation": ("auto", "error_sweeps", "blocks"),
    "start": ("zeros", "forward"),
    "update": ("auto", "mod_pgd", "pgd"),
    "jacobians": ("current", "free"),
    "output_nudge": ("linearized", "exact", "clamped"),
}


@dataclass(frozen=True)
class Equilibria:
    """The states of layers 0…L that inference settled at: free, and by nudge β_m. At the conjugate of a complex nudge they are
    the conjugates, and not listed."""

    free: tuple[Tensor, ...]
    nudged: tuple[tuple[complex | Tensor, tuple[Tensor, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class EquilibriumPropagation(AbstractRule):
    """Equilibrium propagation: energy × relaxation × estimator.

    Attributes:
        energy: "predictive_coding" or "hopfield".
        estimator: "centered", "forward", "backward", "random_sign", or "holomorphic(N)": N points on a circle of nudges
            (Hopfield networks of holomorphic activations and average or softmax pools; N = 2 is centered, on any).
        beta: the nudging strength, per example, > 0.
        relaxation: how nudged states settle: "error_sweeps", passes down for the errors and up for the states (predictive
            coding), or "blocks", layer by layer in the order of `schedule`. "auto" takes the first where the energy has it and
            the output is not clamped.
        pairs: of error sweeps, at least 1.
        schedule: the order of block updates in a nudged phase, and their number: "even_odd(10)" (papers: K = 10).
        free_schedule: the same of the free phase, where it is not the forward pass.
        start: of that free phase: "zeros" or the "forward" pass.
        tolerance: settle until a pass moves the states by no more than this share of their displacement from where the phase
            began (waiting for the device each time); schedule or pairs are then the most. None runs them all, and only says
            so where the last pass still moved the states by half of it.
        update: of a block in predictive coding: "mod_pgd", f(a + T), or "pgd", f(a) + T projected; "auto" takes the first for
            activations that are projections (ReLU, hard sigmoid, none) and the second for others.
        step_size: how far a block moves to where it would settle, in (0, 1].
        jacobians: "current", or those of the "free" states: activations' masks and pools' switches are then held there, the
            network is linear in its displacements, nothing flips, and centered EP is back-propagation but for the loss's
            own curvature (predictive coding; block updates of one Linear or convolution a synapse).
        output_nudge: "linearized", by ∇ℓ at the present output (papers), the "exact" minimum, or "clamped" to
            (1-β) h_L⁰ + β y (predictive coding, squared error, block updates). A clamped output does not follow what moves
            below it, so that this is no gradient of the loss as β → 0, but one through (I + J Jᵀ)⁻¹ at the output.
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, or a loss's name.

    Raises:
        SettingError: a value out of its range, or settings that don't go together.
    """

    energy: AbstractEnergy | str = energies.PredictiveCoding()
    estimator: AbstractEstimator | str = estimators.Centered()
    beta: float = 0.02
    relaxation: Literal["auto", "error_sweeps", "blocks"] = "auto"
    pairs: int = 1
    schedule: AnySchedule | str = schedules.even_odd(10)
    free_schedule: AnySchedule | str = schedules.even_odd(60)
    start: Literal["zeros", "forward"] = "zeros"
    tolerance: float | None = None
    update: Update = "auto"
    step_size: float = 1.0
    jacobians: Literal["current", "free"] = "current"
    output_nudge: Literal["linearized", "exact", "clamped"] = "linearized"
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_numbers(self)
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        object.__setattr__(self, "energy", energies.from_name(self.energy))
        object.__setattr__(self, "estimator", estimators.from_name(self.estimator))
        object.__setattr__(self, "schedule", schedules.parse(self.schedule))
        object.__setattr__(self, "free_schedule", schedules.parse(self.free_schedule))
        if not 0 < self.beta < math.inf:
            raise SettingError(f"beta must be one positive, finite number, got {self.beta:g}.")
        if self.pairs < 1:
            raise SettingError(f"pairs must be at least 1, got {self.pairs}.")
        if not 0 < self.step_size <= 1:
            raise SettingError(f"step_size must be in (0, 1], got {self.step_size:g}.")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise SettingError(f"tolerance must be in (0, 1), got {self.tolerance:g}. Use None to run all passes.")
        equilibrium_settings.check_combination(self)

    @property
    def _energy(self) -> AbstractEnergy:
        assert isinstance(self.energy, AbstractEnergy)
        return self.energy

    @property
    def _estimator(self) -> AbstractEstimator:
        assert isinstance(self.estimator, AbstractEstimator)
        return self.estimator

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
    def uses_error_sweeps(self) -> bool:
        if self.relaxation == "auto":
            return self._energy.free_is_forward and self.output_nudge != "clamped"
        return self.relaxation == "error_sweeps"

    @property
    def needs_generator(self) -> bool:
        return self._estimator.is_random or any(schedule.is_random for schedule in self._orders)

    @property
    def _orders(self) -> tuple[schedules.AbstractSchedule, ...]:
        """The schedules in use."""
        assert isinstance(self.schedule, schedules.AbstractSchedule)
        assert isinstance(self.free_schedule, schedules.AbstractSchedule)
        nudged = () if self.uses_error_sweeps else (self.schedule,)
        return nudged if self._energy.free_is_forward else (*nudged, self.free_schedule)

    @property
    def capture_obstacle(self) -> str:
        if self.tolerance is not None:
            return "with a tolerance each batch takes as many passes as it needs"
        if self.output_nudge == "exact" and not isinstance(self.loss, SquaredError):
            return f"an exact {self.loss.name} nudge is found by iteration"
        return "signs or orders are drawn anew for each batch" if self.needs_generator else ""

    @property
    def predicts_by_equilibrium(self) -> bool:
        return not self._energy.free_is_forward

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The output of the free equilibrium, (N, K): of a predictive coding network its forward pass."""
        if self._energy.free_is_forward:
            return network.forward(x)
        with torch.no_grad():
            # In parts: a phase holds all that it computes of its examples, where a forward pass does not.
            return torch.cat(
                [self._free(network, part, None, False).activations.means[-1] for part in x.split(PREDICTED_TOGETHER)]
            )

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of a Hopfield network the implicit gradient at its free equilibrium, see `implicit`; not a number where that is
        not found."""
        if self._energy.free_is_forward:
            return super().exact_gradients(network, x, y)
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y, None)
        return implicit_gradient.gradients(network, free.activations.means, y, self.loss)

    def infer(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Equilibria:
        """The free and the nudged states. See `gradients` for the arguments and errors."""
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y, generator)
            signs, nudged = self._signs(x, generator), []
            for term in self._terms:
                if term.nudge:
                    phase = self._phase(network, free, y, term, signs, generator, None)
                    assert phase.nudge is not None
                    nudged.append((phase.nudge.strength, tuple(phase.activations.means)))
            return Equilibria(tuple(free.activations.means), tuple(nudged))

    def _signs(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        return estimators.signs(len(x), generator).to(x.device, x.dtype) if self._estimator.is_random else None

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Settle freely, then under each nudge, and Σ_m w_m ∂E/∂θ(h^{β_m}) averaged over the batch. `state` is not used.

        Args:
            x: (N, …) in the dtype of the parameters.
            y: (N,) class indices or (N, K) target vectors.
            generator: draws signs and orders, where the settings draw any.

        Raises:
            SettingError: x or y of the wrong shape, or settings that don't fit the network.
        """
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y, generator)
            logits, signs = free.activations.means[-1], self._signs(x, generator)
            total: dict[str, Tensor] = {}
            reports, lost = [Report.of(free)], ""
            if self._energy.free_is_forward:
                for term in self._terms:
                    assert not isinstance(term.weight, complex)
                    phase = self._phase(network, free, y, term, signs, generator, None)
                    _add(total, phase.gradients(term.weight / len(y)))
                    reports.append(Report.of(phase))
                    del phase  # its states: the next phase has its own
            else:
                # ∂E/∂θ is not small here, and its differences are. The weights' real parts sum to zero, so that it is taken
                # relative to the first phase, which is real.
                term, *others = self._terms
                first = self._phase(network, free, y, term, signs, generator, None)
                for other in others:
                    phase = self._phase(network, free, y, other, signs, generator, first.passes)
                    if isinstance(other.weight, complex):
                        _add(total, phase.contrast(first, (other.weight / len(y),) * network.depth))
                    else:
                        _add(total, first.contrast(phase, (-other.weight / len(y),) * network.depth))
                    reports.append(Report.of(phase))
                    lost = lost or rounded(first, phase, "nudge")
                    del phase
                reports.insert(1, Report.of(first))
        trouble = self._trouble(reports) or (f"{lost}. Raise beta, or use float64." if lost else "")
        return Outcome(
            gradients={name: total[name] for name in network.parameters},
            loss=self.loss.value(logits, y).mean(),
            logits=logits,
            diagnostics=diagnostics(reports),
            unsettled=trouble,
            **({"remedy": trouble[0].upper() + trouble[1:]} if trouble else {}),
        )

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """ "residual": how far one more pass of the first nudged phase would move its states, or of the complex one that it
        moves most; "kink_crossing": see `AbstractRule.statistics`."""
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y, generator)
            first, *others = (term.nudge for term in self._terms if term.nudge)
            phase = self._nudged(network, free, Nudge(y, first), generator, None)
            crossing = phase.kink_crossing(free)
            order = None if self.uses_error_sweeps else self._order(self.schedule)
            passes, residuals = phase.passes, [phase.one_more(order, generator)]
            for strength in (nudge for nudge in others if isinstance(nudge, complex)):
                phase = self._nudged(network, free, Nudge(y, strength), generator, passes)
                residuals.append(phase.one_more(order, generator))
            return {"residual": largest(residuals), "kink_crossing": crossing}

    def _phase(
        self,
        network: Network,
        free: Phase,
        y: Tensor,
        term: Term,
        signs: Tensor | None,
        generator: torch.Generator | None,
        passes: int | None,
    ) -> Phase:
        """The settled phase of one term, its signals with their signs. A free term goes on from the free states for as many
        passes as the phase before it took: what is left of the free states' own motion is then in both, and cancels."""
        sign = signs if term.is_signed else None
        nudge = Nudge(y, term.nudge if sign is None else term.nudge * sign) if term.nudge else None
        phase = self._nudged(network, free, nudge, generator, passes)
        if sign is not None:
            phase.weigh(sign)
        return phase

    def _settled_freely(
        self, network: Network, x: Tensor, y: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Phase]:
        """The targets and the free phase, both checked."""
        y = self._checked(network, x, y)
        free = self._free(network, x, generator, may_wait(x))
        check_targets(y, free.activations.means[-1])
        return y, free

    def _checked(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        y = check_batch(x, y)
        check_output(network, self.loss)
        self._energy.check(network, self.update)
        if self._is_complex:
            holomorphic.check(network, self.loss, self.output_nudge)
        check_wide(x, "equilibrium propagation loses its displacements")
        return y

    def _settings(self) -> Settings:
        return Settings(
            energy=self._energy,
            update=self.update,
            step_size=self.step_size,
            output_nudge=self.output_nudge,
            loss=self.loss,
        )

    def _free(self, network: Network, x: Tensor, generator: torch.Generator | None, is_measured: bool) -> Phase:
        """The settled free phase."""
        activations = Activations(network, x)
        activations.forward()
        if self._energy.free_is_forward:
            return Phase(self._settings(), network, activations, None)
        for k in range(1, network.depth + 1):
            mean = activations.means[k]
            activations.set(k, *((torch.zeros_like(mean), None) if self.start == "zeros" else (mean, mean)))
        phase = Phase(self._settings(), network, activations, None)
        # Nudged states are displaced by about β of the free ones' size, and that is what motion must be small against.
        tolerance = None if self.tolerance is None else self.tolerance * min(1.0, self.beta)
        phase.settle_by_blocks(self._order(self.free_schedule), generator, is_measured, tolerance)
        return phase

    def _nudged(
        self, network: Network, free: Phase, nudge: Nudge | None, generator: torch.Generator | None, passes: int | None
    ) -> Phase:
        """A settled phase from the free states. After another of `passes` passes one of a Hopfield network takes as many; in a
        holomorphic estimate no fewer, and goes on until it has settled: what else is wrong with that is of a high order."""
        frozen = self.jacobians == "free"
        clamped = None
        if nudge is not None and self.output_nudge == "clamped":
            output = free.activations.means[-1]
            clamped = output + nudge.strength_like(output) * (targets(nudge.y, output) - output)
        is_complex = nudge is not None and nudge.is_complex
        activations = holomorphic.counterpart(free.activations) if is_complex else free.activations.fork(frozen)
        phase = Phase(self._settings(), network, activations, nudge, frozen, clamped)
        is_measured = may_wait(free.start[0]) and nudge is not None
        if self.uses_error_sweeps:
            phase.settle_by_error_sweeps(self.pairs, is_measured, self.tolerance)
        elif passes is None or self._energy.free_is_forward:
            phase.settle_by_blocks(self._order(self.schedule), generator, is_measured, self.tolerance)
        elif self._is_complex:
            phase.settle_by_blocks(self._order(self.schedule), generator, is_measured, self.tolerance, least=passes)
        else:
            phase.settle_by_blocks(self._order(self.schedule), generator, is_measured, None, passes)
        return phase

    def _order(self, schedule: AnySchedule | str) -> AnySchedule:
        assert isinstance(schedule, schedules.AbstractSchedule)
        return schedule

    def _trouble(self, reports: Sequence[Report]) -> str:
        """What the first phase that did not settle says, and what to do."""
        free, *nudged = reports
        if free.trouble:
            return (
                f"{free.trouble}. Raise the number of free_schedule, or shrink the weights: with ReLU states may grow for ever."
            )
        told = next((report.trouble for report in nudged if report.trouble), "")
        return f"{told}. {equilibrium_settings.remedy(self)}" if told else ""


def _add(total: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, gradient in found.items():
        total[name] = total[name].add_(gradient) if name in total else gradient
