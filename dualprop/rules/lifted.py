"""Lifted networks (LPOM: Li, Fang & Lin, 2019; Zach, 2021): the states are variables of their own, held to the network by gaps.

One state X_k a neuron, X_0 the input, a_k the drive from X_{k-1}. Per example, with f(a) = argmin_s G(s) - s·a and G* = ∫f,

    J(X, W) = ℓ(X_L, y) + Σ_k (1/β_k) [ G_k(X_k) + G_k*(a_k) - X_k·a_k ]        each gap ≥ 0, and 0 only at X_k = f(a_k)

Inference starts from the forward pass and sweeps down, one block at a time. With ε_k = X_k - f(a_k), r = β_k/β_{k+1} and
T_k = r J_{k+1}ᵀ ε_{k+1} at the present states:

    X_L ← argmin_s G(s) - s·a_L + β_L ℓ(s, y)
    X_k ← f(a_k + T_k)                        "fixed_point", the papers' update: the fixed points are J's stationary points
    X_k ← prox(a_k + T_k + c X_k, c)          "majorized": the same fixed points; c = r ‖W_{k+1}‖² bounds the curvature

The gap above has curvature ‖W_{k+1}‖² / β_{k+1} at most, since f is 1-Lipschitz, and the block's own gap 1/β_k at least. So a
majorized update lowers J by (1 + 2c - r‖W‖²)/(2β_k) ‖move‖² or more: even at half of ‖W‖², which power iteration is sure to
reach. (No bound holds past a max-pool, whose switches flip, past a pool of windows that overlap, or with feedback weights other
than W, whose T is no gradient.)

The gradient of layer k's parameters is -(1/β_k) Σ ε_kᵀ ∂a_k/∂W at X_{k-1}, averaged over the batch. As β → 0 it is BP's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop import losses
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network, spectra
from dualprop.network.states import Activations, Dyads, residual
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_targets, check_wide
from dualprop.settings import beta_per_layer, check_choices, check_numbers, checked_beta

_CHOICES = {"update": ("majorized", "fixed_point"), "output_nudge": ("exact", "linearized")}


@dataclass(frozen=True, kw_only=True)
class Lifted(AbstractRule):
    """Lifted networks (LPOM): states settle by block-wise sweeps of a penalised objective.

    Attributes:
        beta: how far the loss may pull the states, per example, > 0; one for all layers, or one per layer 1…L. The papers' μ_k
            is 1/beta_k.
        update: "majorized", under which the objective never rises (but see the head of this file), or "fixed_point", faster
            where it settles at all.
        max_sweeps: the most sweeps over the layers, at least 1.
        tolerance: settled when a sweep moves the states by less than this share of their displacement from the forward pass;
            each sweep then waits for the device. 0 makes all sweeps, unchecked.
        output_nudge: "exact", or "linearized" along ∇ℓ at the forward prediction.
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, `LogLoss()` behind a softmax, or a loss's name.

    Raises:
        SettingError: a value out of its range.
    """

    beta: float | tuple[float, ...] = 0.05
    update: Literal["majorized", "fixed_point"] = "majorized"
    max_sweeps: int = 20
    tolerance: float = 1e-3
    output_nudge: Literal["exact", "linearized"] = "exact"
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        check_numbers(self)
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        object.__setattr__(self, "beta", checked_beta(self.beta))
        if self.max_sweeps < 1:
            raise SettingError(f"max_sweeps must be at least 1, got {self.max_sweeps}.")
        if not 0 <= self.tolerance < 1:
            raise SettingError(f"tolerance must be in [0, 1), got {self.tolerance:g}. 0 makes all sweeps, unchecked.")

    def infer(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Dyads:
        """The states after the last sweep, as dyads with alpha = 1: `mean(k)` is X_k, `difference(k)` ε_k, `minus` f(a_k)."""
        with torch.no_grad():
            return self._settled(network, x, y).dyads()

    @property
    def capture_obstacle(self) -> str:
        return "with a tolerance each batch takes as many sweeps as it needs" if self.tolerance else ""

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Settle, then -(1/β_k) ε_kᵀ ∂a_k/∂W averaged over the batch, for every layer. `state` and `generator` are not used.

        Raises:
            SettingError: x or y of the wrong shape, settings that don't fit the network, or, for update="majorized", a synapse
                that is not affine between its pools.
        """
        with torch.no_grad():
            return self._settled(network, x, y).outcome()

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """ "residual" of one more sweep, and "kink_crossing" per layer: see `AbstractRule.statistics`."""
        with torch.no_grad():
            blocks = self._settled(network, x, y)
            crossing, displacements = blocks.kink_crossing(), blocks.displacements()
            return {"residual": residual(blocks.sweep(), displacements), "kink_crossing": crossing}

    def _settled(self, network: Network, x: Tensor, y: Tensor) -> _Blocks:
        y = check_batch(x, y)
        check_output(network, self.loss)
        check_wide(x, "lifted inference loses ε")
        blocks = _Blocks(self, network, x, y)
        blocks.settle()
        return blocks

    def betas(self, depth: int) -> tuple[float, ...]:
        """β_1…β_L. Raises SettingError where a list has another length."""
        return beta_per_layer(self.beta, depth)


class _Blocks:
    """One inference on one batch. The states X_k are held as `means`, the ε_k of their last update as `differences`."""

    def __init__(self, rule: Lifted, network: Network, x: Tensor, y: Tensor) -> None:
        self.rule, self.network, self.y = rule, network, y
        self.betas = rule.betas(network.depth)
        self.activations = Activations(network, x, self.betas)
        self.activations.forward()
        self.free = tuple(self.activations.means)
        check_targets(y, self.free[-1])
        self.forward_gradient = rule.loss.gradient(self.free[-1], y)
        self.constants = [self._constant(k) for k in range(1, network.depth)] if rule.update == "majorized" else None
        self.passes, self.residual = 0, math.nan

    def _constant(self, k: int) -> Tensor:
        """c_k = Σ_j (β_k/β_j) ‖W_j‖² over the layers j that read layer k, shape ()."""
        total = self.free[k].new_zeros(())
        for j in self.network.out_of(k):
            synapse = self.network.into(j).synapse_from(k)
            v = spectra.start_vector(self.activations.core_shape(j, k), self.free[k].dtype, self.free[k].device)
            for _ in range(spectra.COLD_STEPS):
                v, squared_norm = spectra.power_step(synapse, v)
            total = total + squared_norm * (self.betas[k - 1] / self.betas[j - 1])
        return total

    def _ratio(self, k: int) -> float:
        return self.betas[k - 1] / self.betas[k]

    def settle(self) -> None:
        """Sweep until the states move no more, then bring every ε_k up to date with the state below it."""
        while self.passes < self.rule.max_sweeps:
            moves = self.sweep()
            self.passes += 1
            if self.rule.tolerance > 0:
                self.residual = residual(moves, self.displacements())
                if not self.residual > self.rule.tolerance:
                    break
        for k in range(1, self.network.depth + 1):
            self._set(k, self.activations.means[k])

    def sweep(self) -> list[Tensor]:
        """Update the blocks L…1, each from the present states of its neighbours; how far each moved."""
        before = list(self.activations.means)
        for k in range(self.network.depth, 0, -1):
            self._set(k, self._output() if k == self.network.depth else self._hidden(k))
        return [now - then for now, then in zip(self.activations.means[1:], before[1:], strict=True)]

    def displacements(self) -> list[Tensor]:
        """X_k - f(a_k) of the forward pass."""
        return [now - free for now, free in zip(self.activations.means[1:], self.free[1:], strict=True)]

    def _set(self, k: int, state: Tensor) -> None:
        self.activations.set(k, state, state - self.network.into(k).neuron.f(self.activations.drive(k)))

    def _output(self) -> Tensor:
        depth, beta = self.network.depth, self.betas[-1]
        neuron, a = self.network.into(depth).neuron, self.activations.drive(depth)
        if self.rule.output_nudge == "exact":
            return self.rule.loss.nudge(neuron, a, self.y, beta)
        return neuron.f(torch.add(a, self.forward_gradient, alpha=-beta))

    def _hidden(self, k: int) -> Tensor:
        neuron, u = self.network.into(k).neuron, self._pulled(k)
        if self.constants is None:
            return neuron.f(u)
        constant = self.constants[k - 1]
        return neuron.prox(u + constant * self.activations.means[k], constant)

    def _pulled(self, k: int) -> Tensor:
        """a_k + T_k."""
        feedback = self.activations.feedback(k)
        assert feedback is not None  # the output is nudged before any other block is updated
        return torch.add(self.activations.drive(k), feedback, alpha=self._ratio(k))

    def kink_crossing(self) -> list[float]:
        """Per layer, the share of units whose pull from above reaches from a_k across a kink."""
        crossed = []
        for k in range(1, self.network.depth + 1):
            neuron, a = self.network.into(k).neuron, self.activations.drive(k)
            if k < self.network.depth:
                pulled = self._pulled(k)
            else:
                exact = self.rule.output_nudge == "exact"
                gradient = self.rule.loss.gradient(self.activations.means[k], self.y) if exact else self.forward_gradient
                pulled = torch.add(a, gradient, alpha=-self.betas[-1])
            crossed.append(float(neuron.crosses_kink(a, pulled).double().mean()))
        return crossed

    def dyads(self) -> Dyads:
        return Dyads(tuple(self.activations.means), tuple(self.activations.differences), alpha=1.0)

    def outcome(self) -> Outcome:
        gradients = self.activations.gradients(tuple(-1 / (beta * len(self.y)) for beta in self.betas))
        diagnostics: dict[str, float] = {**self.activations.counts, "passes": self.passes}
        unsettled = ""
        if self.rule.tolerance > 0:
            diagnostics["residual"] = self.residual
            if not self.residual <= self.rule.tolerance:
                another = "" if self.rule.update == "majorized" else ", or use update='majorized'"
                unsettled = (
                    f"the states did not settle: sweep {self.passes} still moved them by {self.residual:.2g} of their "
                    f"displacement (tolerance {self.rule.tolerance:g}). Raise max_sweeps, lower beta{another}."
                )
        return Outcome(
            gradients=gradients,
            loss=self.rule.loss.value(self.free[-1], self.y).mean(),
            logits=self.free[-1],
            state=self.dyads(),
            diagnostics=diagnostics,
            unsettled=unsettled,
        )
