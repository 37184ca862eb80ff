"""Contrastive Hebbian learning (CHL: Xie & Seung, 2003): two phases with weak feedback.

In this Hopfield network each layer counts γ times as much as the one below. What comes back down is
therefore discounted by γ:

    E = Σ_k γ^{k-L} [ G_k(s_k) - s_k·a_k ]          s_k = f( a_k + γ J_{k+1}ᵀ s_{k+1} )

It settles twice: free, š, and clamped, ŝ. The clamp holds the output at ŝ_L = š_L - ∇ℓ, with ∇ℓ by
the drive; for squared error and for softmax neurons these are the targets. The difference that the
clamp makes loses a factor γ at each layer on its way down. Learning gives it back:

    gradient of layer k = -γ^{k-L} [ ŝ_kᵀ ∂a_k/∂θ at ŝ - š_kᵀ ∂a_k/∂θ at š ]

averaged over the batch. As γ → 0 it is back-propagation's, at order γ. The network predicts by its
free equilibrium.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt, Interval, Lt
from torch import Tensor

from dualprop import schedules
from dualprop.equilibrium import implicit_gradient
from dualprop.equilibrium.energies import DiscountedHopfield
from dualprop.equilibrium.phases import Dynamics, Nudge, Phase, Stop
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy, LogLoss, SquaredError, targets
from dualprop.network import Network
from dualprop.network.states import States
from dualprop.neurons import Identity
from dualprop.rules.base import AbstractRule
from dualprop.rules.checks import check_batch
from dualprop.rules.problem import Problem
from dualprop.schedules import AbstractSchedule, AnySchedule
from dualprop.settings import Remedy
from dualprop.settling import can_sync, fixed_passes, largest, lost_in_rounding, update_together

# States that the last pass moves by more than this share of their displacement aren't settled.
MOST_MOVED = 0.01
REMEDY = "Raise the number of schedule, or lower gamma."


@dataclass(frozen=True)
class FreeAndClamped:
    """The states of layers 0…L that the two phases settled at, shapes (N, …)."""

    free: tuple[Tensor, ...]
    clamped: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ContrastiveHebbian(AbstractRule[Phase]):
    """Contrastive Hebbian learning with discounted feedback.

    Attributes:
        gamma: the discount γ of feedback. A smaller one is nearer to back-propagation, but leaves
            fewer digits of γ^{L-1}, the clamp's effect on layer 1. States settle while γ times the
            squared norm of the weights is below about 1; beyond, with ReLU, they grow for ever.
        schedule: the order of block updates in either phase, and their number.
        tolerance: settle until a pass moves the states by no more than this share of their
            displacement from where the phase began, or schedule ends. None runs all of schedule,
            and says so where the last pass still moved them by a hundredth.
    """

    gamma: Annotated[float, Interval(gt=0, le=1)] = 0.02
    schedule: AnySchedule | str = schedules.alternating_sweeps(10)
    tolerance: Annotated[float, Gt(0), Lt(1), Remedy("Use None to run all passes.")] | None = None
    loss: AbstractLoss = CrossEntropy()

    precision = "full"
    needs_synapses = "contrastive Hebbian learning contrasts the phases of synapses that are modules"
    loses = "contrastive Hebbian learning loses its differences"

    def inference(self, problem: Problem) -> Phase:
        """The free phase."""
        free = self.free_phase(problem.network, problem.x, problem.is_measured)
        problem.predicted(free.states.means[-1])
        problem.report(free.states.counts, free.settling, REMEDY)
        return free

    def free_phase(self, network: Network, x: Tensor, is_measured: bool) -> Phase:
        """š, settled from the forward pass."""
        # A layer further below than the next counts γ less for each layer between.
        states = States(network, x, tuple(self.gamma**-k for k in range(1, network.depth + 1)))
        states.forward()
        for k in range(1, network.depth + 1):
            states.set(k, states.means[k], states.means[k])
        return self._settled(Phase(self._dynamics, states, None), is_measured)

    def clamped_phase(self, problem: Problem, free: Phase) -> Phase:
        """ŝ, settled from the free states with ŝ_L = š_L - ∇ℓ held."""
        output = free.states.means[-1]
        clamped = (output - self.output_error(problem, free)).to(output.dtype)
        phase = Phase(self._dynamics, free.states.fork(), Nudge(problem.y, 1.0), clamped=clamped)
        return self._settled(phase, problem.is_measured)

    def output_error(self, problem: Problem, free: Phase) -> Tensor:
        """∂ℓ/∂a_L at the free output, the shape of that."""
        output, neuron, y = free.states.means[-1], problem.network.into(problem.depth).neuron, problem.y
        if isinstance(self.loss, LogLoss):  # of a softmax: less the targets
            target = targets(y, output)
            return output * target.sum(1, keepdim=True) - target
        gradient = self.loss.gradient(output, y)
        if isinstance(neuron, Identity):
            return gradient
        with torch.enable_grad():
            a = free.states.drive(problem.depth).detach().requires_grad_()
            return torch.autograd.grad(neuron.f(a), a, gradient)[0]

    def gradients_at(self, problem: Problem, settled: Phase) -> dict[str, Tensor]:
        """-γ^{k-L} (ŝ_kᵀ ∂a_k/∂θ at ŝ - š_kᵀ ∂a_k/∂θ at š) for every layer k, the batch's mean."""
        depth, clamped = problem.depth, self.clamped_phase(problem, settled)
        problem.report(clamped.states.counts, clamped.settling, REMEDY)
        lost = lost_in_rounding(settled.states.means, clamped.states.means, "clamp", problem.num_models)
        problem.doubt(lost, "Raise gamma, or use float64.")
        scales = tuple(self.gamma ** (k - depth) / problem.terms for k in range(1, depth + 1))
        return clamped.contrast(settled, scales)

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The output of the free equilibrium, (N, K)."""
        with torch.no_grad():
            return self.free_phase(network, x, is_measured=False).states.means[-1]

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The implicit gradient of the loss at the free equilibrium (see `implicit_gradient`).

        As γ → 0 it is back-propagation's.
        """
        with torch.no_grad():
            y, free = check_batch(network, x, y, self.loss), self.free_phase(network, x, can_sync(x))
        return implicit_gradient.gradients(network, free.states.means, y, self.loss, discount=self.gamma)

    def states_at(self, problem: Problem, settled: Phase) -> FreeAndClamped:
        """The states of both phases."""
        clamped = self.clamped_phase(problem, settled)
        return FreeAndClamped(tuple(settled.states.means), tuple(clamped.states.means))

    def statistics_at(self, problem: Problem, settled: Phase) -> dict[str, Any]:
        """The numbers of the clamped phase."""
        phase = self.clamped_phase(problem, settled)
        before = phase.positions()
        for step in next(iter(self._order.passes(problem.depth))):
            update_together(phase, step, Phase.block)
        return {"residual": largest(phase.moved_since(before))}

    def check(self, network: Network) -> None:
        output = network.into(network.depth).neuron
        if isinstance(self.loss, SquaredError) and not isinstance(output, Identity):
            raise SettingError(
                f"clamping descends squared error where the output is linear, and this one is {type(output).__name__}. Remove "
                "the model's last activation, or use losses.LogLoss() behind nn.Softmax(dim=1)."
            )
        DiscountedHopfield(self.gamma).check(network)

    def conflicts(self) -> Iterator[str]:
        if self._order.is_random:
            yield f"a prediction needs a fixed order, got schedule={self.schedule}. Use 'alternating_sweeps(10)'."
        if self.tolerance is not None:
            yield from fixed_passes(self._order, "alternating_sweeps(50)")

    @property
    def predicts_by_equilibrium(self) -> bool:
        return True

    @property
    def _order(self) -> AbstractSchedule:
        return AbstractSchedule.as_part(self.schedule)

    @property
    def _dynamics(self) -> Dynamics:
        return Dynamics(DiscountedHopfield(self.gamma), self.loss, output_nudge="clamped")

    def _settled(self, phase: Phase, is_measured: bool) -> Phase:
        tolerance = self.tolerance if is_measured else None
        phase.settle(self._order.passes(phase.network.depth), Stop(is_measured, tolerance, limit=MOST_MOVED))
        return phase
