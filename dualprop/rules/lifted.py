"""Lifted networks (LPOM: Li, Fang & Lin, 2019; Zach, 2021): states tied to the network by gaps.

Each neuron has one state X_k, a variable of its own. X_0 is the input, a_k the drive from X_{k-1}.
Per example, with f(a) = argmin_s G(s) - s·a and G* = ∫f,

    J(X, W) = ℓ(X_L, y) + Σ_k (1/β_k) [ G_k(X_k) + G_k*(a_k) - X_k·a_k ]

Each gap […] is ≥ 0, and 0 only at X_k = f(a_k).

Inference starts from the forward pass and sweeps down, one block at a time. With
ε_k = X_k - f(a_k), r = β_k/β_{k+1} and T_k = r J_{k+1}ᵀ ε_{k+1} at the present states:

    X_L ← argmin_s G(s) - s·a_L + β_L ℓ(s, y)
    X_k ← f(a_k + T_k)                   "fixed_point", the papers' update
    X_k ← prox(a_k + T_k + c X_k, c)     "majorized"; c = r ‖W_{k+1}‖² bounds the curvature

The fixed points of both are J's stationary points.

The gap above has curvature ‖W_{k+1}‖² / β_{k+1} at most, since f is 1-Lipschitz; the block's own
gap has 1/β_k at least. So a majorized update lowers J by (1 + 2c - r‖W‖²)/(2β_k) ‖move‖² or more.
That holds even at half of ‖W‖², which power iteration is sure to reach. No bound holds past a
max-pool, whose switches flip, past a pool of overlapping windows, or with feedback weights other
than W, whose T is no gradient.

Layer k's gradient is -(1/β_k) Σ ε_kᵀ ∂a_k/∂W at X_{k-1}, averaged over the batch. As β → 0 it is
back-propagation's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from dualprop import schedules
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network.spectra import gap_curvature
from dualprop.network.states import Dyads, States
from dualprop.rules.base import AbstractRule
from dualprop.rules.problem import Problem
from dualprop.settings import Auto, Count, PerLayer, Remedy, beta_per_layer, number
from dualprop.settling import kink_crossing, largest, motion, residual, settle, update_together


@dataclass(frozen=True, kw_only=True)
class Lifted(AbstractRule["LiftedStates"]):
    """Lifted networks (LPOM): states settle by block-wise sweeps of a penalised objective.

    Attributes:
        beta: how far the loss may pull the states, per example; one for all layers, one per layer
            1…L, or "auto", see `dp.choose_beta`. The papers' μ_k is 1/beta_k.
        update: "majorized": the objective never rises (but see the head of this file); or
            "fixed_point": faster where it settles at all.
        max_sweeps: the most sweeps over the layers.
        tolerance: settled when a sweep moves the states by less than this share of their
            displacement from the forward pass. Each sweep then waits for the device. 0 makes all
            sweeps, unchecked.
        output_nudge: "exact", or "linearized" along ∇ℓ at the forward prediction.
    """

    beta: PerLayer | Auto = 0.05
    update: Literal["majorized", "fixed_point"] = "majorized"
    max_sweeps: Count = 20
    tolerance: Annotated[float, Interval(ge=0, lt=1), Remedy("0 makes all sweeps, unchecked.")] = 1e-3
    output_nudge: Literal["exact", "linearized"] = "exact"
    loss: AbstractLoss = CrossEntropy()

    state_type = Dyads
    precision = "full"
    crosses_kinks = True
    needs_synapses = "the penalties of a lifted network are of synapses that are modules"
    loses = "lifted inference loses ε"

    def conflicts(self) -> Iterator[str]:
        if self.output_nudge == "exact":
            yield from self.loss.exact_conflict()

    def inference(self, problem: Problem) -> LiftedStates:
        """The forward pass, sweeps down until the states settle, and all ε_k brought up to date."""
        states = LiftedStates(problem, self.betas(problem.depth))
        states.forward_gradient = self.loss.gradient(states.forward_means[-1], problem.y)
        if self.update == "majorized":
            states.constants = [None, *(gap_curvature(states, k) for k in range(1, problem.depth)), None]
        passes = schedules.top_down(self.max_sweeps).passes(problem.depth)
        measure, tolerance = (states.moved_since, self.tolerance) if self.tolerance else (None, None)
        progress = settle(states, passes, self.block, measure, tolerance)
        for k in range(1, problem.depth + 1):
            states.set(k, states.means[k], states.means[k] - states.neuron(k).f(states.drive(k)))
        another = "" if self.update == "majorized" else ", or use update='majorized'"
        problem.report(states.counts, progress, f"Raise max_sweeps, lower beta{another}.")
        return states

    def block(self, states: LiftedStates, k: int) -> tuple[Tensor, Tensor]:
        """X_k and ε_k, from the present states of the neighbours."""
        neuron, a = states.neuron(k), states.drive(k)
        if not states.is_output(k):
            state = self.hidden(states, k)
        elif self.output_nudge == "exact":
            state = self.loss.nudge(neuron, a, states.y, states.betas[-1])
        else:
            state = neuron.f(torch.add(a, states.forward_gradient, alpha=-states.betas[-1]))
        return state, state - neuron.f(a)

    def hidden(self, states: LiftedStates, k: int) -> Tensor:
        """f(a_k + T_k), or majorized prox(a_k + T_k + c X_k, c)."""
        neuron, constant = states.neuron(k), states.constants[k]
        if constant is None:
            return neuron.f(states.pulled(k))
        return neuron.prox(states.pulled(k) + constant * states.means[k], constant)

    def gradients_at(self, problem: Problem, settled: LiftedStates) -> dict[str, Tensor]:
        """-(1/β_k) ε_kᵀ ∂a_k/∂W at X_{k-1}, for every layer."""
        return settled.gradients(tuple(-1 / (beta * problem.terms) for beta in settled.betas))

    def states_at(self, problem: Problem, settled: LiftedStates) -> Dyads:
        """As dyads with alpha = 1: `mean(k)` is X_k, `difference(k)` ε_k, `minus` f(a_k)."""
        return Dyads(tuple(settled.means), tuple(settled.differences), alpha=1.0)

    def statistics_at(self, problem: Problem, settled: LiftedStates) -> dict[str, Any]:
        """The residual and the crossings. A unit crosses where T_k takes a_k across a kink."""
        crossing = []
        for k in range(1, problem.depth + 1):
            a = settled.drive(k)
            if settled.is_output(k):
                is_exact = self.output_nudge == "exact"
                gradient = self.loss.gradient(settled.means[k], problem.y) if is_exact else settled.forward_gradient
                pulled = torch.add(a, gradient, alpha=-settled.betas[-1])
            else:
                pulled = settled.pulled(k)
            crossing.append(kink_crossing(settled.neuron(k), a, pulled))
        before, start = tuple(settled.means), settled.forward_means
        displacements = [now - free for now, free in zip(before[1:], start[1:], strict=True)]
        for step in next(schedules.top_down(1).passes(problem.depth)):
            update_together(settled, step, self.block)
        moves = [now - then for now, then in zip(settled.means[1:], before[1:], strict=True)]
        return {"residual": largest(residual(moves, displacements)), "kink_crossing": crossing}

    @property
    def stacking_obstacle(self) -> str:
        return "a majorizing constant is of all weights" if self.update == "majorized" else super().stacking_obstacle

    def betas(self, depth: int) -> tuple[float, ...]:
        """β_1…β_L. Raises SettingError where a list has another length."""
        return beta_per_layer(number(self.beta), depth)


class LiftedStates(States):
    """The states of one batch.

    `means` are the X_k, `differences` the ε_k of their last update. Where updates are majorized,
    c_k is kept by layer.
    """

    def __init__(self, problem: Problem, betas: tuple[float, ...]) -> None:
        super().__init__(problem.network, problem.x, betas)
        self.betas: tuple[float, ...] = betas
        self.forward()
        problem.predicted(self.means[-1])
        self.y, self.forward_means = problem.y, tuple(self.means)
        self.forward_gradient = self.means[-1]
        self.constants: list[Tensor | None] = [None] * (problem.depth + 1)

    def pulled(self, k: int) -> Tensor:
        """a_k + T_k."""
        feedback = self.feedback(k)
        assert feedback is not None  # the output is nudged before any other block is updated
        return torch.add(self.drive(k), feedback, alpha=self.betas[k - 1] / self.betas[k])

    def moved_since(self, before: Sequence[Tensor]) -> list[float]:
        """Each model's move of the states by the last sweep, by their displacement from the forward
        pass."""
        return motion(self.means, before, self.forward_means, self.network.num_models)
