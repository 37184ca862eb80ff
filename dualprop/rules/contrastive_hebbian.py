"""Contrastive Hebbian learning (CHL: Xie & Seung, 2003): two phases of a network whose feedback is weak.

A Hopfield network in which each layer counts γ times as much as the one below, so that what comes back down is discounted by γ:

    E = Σ_k γ^{k-L} [ G_k(s_k) - s_k·a_k ]          s_k = f( a_k + γ J_{k+1}ᵀ s_{k+1} )

settles twice: free, š, and with its output clamped, ŝ_L = š_L - ∇ℓ by the drive (for squared error and for softmax neurons: at
the targets). The difference that the clamp makes has lost a factor γ at each layer on its way down, and learning gives it back:

    gradient of layer k = -γ^{k-L} [ ŝ_kᵀ ∂a_k/∂θ at ŝ - š_kᵀ ∂a_k/∂θ at š ]          averaged over the batch

As γ → 0 it is back-propagation's, at order γ. What the network predicts is its free equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualprop import losses, schedules
from dualprop.equilibrium import implicit_gradient
from dualprop.equilibrium.energies import DiscountedHopfield
from dualprop.equilibrium.relaxations import Nudge, Phase, Report, Settings, diagnostics, may_wait, rounded
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy, SquaredError, targets
from dualprop.network import Network
from dualprop.network.states import Activations
from dualprop.neurons import Identity
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_targets, check_wide
from dualprop.schedules import AnySchedule
from dualprop.settings import check_numbers

# A last pass that still moves the states by more than this share of their displacement has not settled them.
MOST_MOVED = 0.01


@dataclass(frozen=True)
class FreeAndClamped:
    """The states of layers 0…L that the two phases settled at, shapes (N, …)."""

    free: tuple[Tensor, ...]
    clamped: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ContrastiveHebbian(AbstractRule):
    """Contrastive Hebbian learning with discounted feedback.

    Attributes:
        gamma: the discount γ of feedback, in (0, 1]: the smaller, the nearer to back-propagation, and the fewer digits are
            left of γ^{L-1}, the clamp's effect on layer 1. States settle while γ times the squared norm of the weights is
            below about 1; with ReLU they grow for ever beyond.
        schedule: the order of block updates in either phase, and their number.
        tolerance: settle until a pass moves the states by no more than this share of their displacement from where the phase
            began; schedule is then the most. None runs it all, and says so where the last pass still moved them by a hundredth.
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, `LogLoss()` behind a softmax, or a loss's name.

    Raises:
        SettingError: a value out of its range.
    """

    gamma: float = 0.02
    schedule: AnySchedule | str = schedules.alternating_sweeps(10)
    tolerance: float | None = None
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_numbers(self)
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        object.__setattr__(self, "schedule", schedules.parse(self.schedule))
        if not 0 < self.gamma <= 1:
            raise SettingError(f"gamma must be in (0, 1], got {self.gamma:g}.")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise SettingError(f"tolerance must be in (0, 1), got {self.tolerance:g}. Use None to run all passes.")
        if self._order.is_random:
            raise SettingError(f"a prediction needs a fixed order, got schedule={self.schedule}. Use 'alternating_sweeps(10)'.")
        if self.tolerance is not None and isinstance(self.schedule, schedules.ExplicitOrder):
            raise SettingError(
                f"tolerance needs a schedule of passes over all layers, got {self.schedule}. Use alternating_sweeps(50), say."
            )

    @property
    def _order(self) -> AnySchedule:
        assert isinstance(self.schedule, schedules.AbstractSchedule)
        return self.schedule

    @property
    def capture_obstacle(self) -> str:
        return "with a tolerance each batch takes as many passes as it needs" if self.tolerance is not None else ""

    predicts_by_equilibrium = True

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The output of the free equilibrium, (N, K)."""
        with torch.no_grad():
            return self._free(network, x, is_measured=False).activations.means[-1]

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The implicit gradient of the loss at the free equilibrium, see `implicit`; back-propagation's as γ → 0."""
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y)
        return implicit_gradient.gradients(network, free.activations.means, y, self.loss, discount=self.gamma)

    def infer(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> FreeAndClamped:
        """The states of both phases. See `gradients` for the arguments and errors."""
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y)
            return FreeAndClamped(tuple(free.activations.means), tuple(self._clamped(network, free, y).activations.means))

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Settle freely, clamp the output and settle again; the difference of γ^{k-L} sᵀ ∂a/∂θ, averaged over the batch.
        `state` and `generator` are not used.

        Raises:
            SettingError: x or y of the wrong shape, or settings that don't fit the network.
        """
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y)
            clamped = self._clamped(network, free, y)
            depth, logits = network.depth, free.activations.means[-1]
            found = clamped.contrast(free, tuple(self.gamma ** (k - depth) / len(y) for k in range(1, depth + 1)))
            reports = [Report.of(free), Report.of(clamped)]
        trouble = _unsettled("free", reports[0]) or _unsettled("clamped", reports[1]) or _lost(free, clamped)
        return Outcome(
            gradients={name: found[name] for name in network.parameters},
            loss=self.loss.value(logits, y).mean(),
            logits=logits,
            diagnostics=diagnostics(reports),
            unsettled=trouble,
        )

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """ "residual": how far one more pass of the clamped phase would move its states."""
        with torch.no_grad():
            y, free = self._settled_freely(network, x, y)
            return {"residual": self._clamped(network, free, y).one_more(self._order, None)}

    def _settled_freely(self, network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, Phase]:
        y = check_batch(x, y)
        check_output(network, self.loss)
        output = network.into(network.depth).neuron
        if isinstance(self.loss, SquaredError) and not isinstance(output, Identity):
            raise SettingError(
                f"clamping descends squared error where the output is linear, and this one is {type(output).__name__}. Remove "
                "the model's last activation, or use losses.LogLoss() behind nn.Softmax(dim=1)."
            )
        free = self._free(network, x, is_measured=may_wait(x))
        check_targets(y, free.activations.means[-1])
        return y, free

    def _free(self, network: Network, x: Tensor, is_measured: bool) -> Phase:
        """The settled free phase, from the forward pass."""
        DiscountedHopfield(self.gamma).check(network, "auto")
        check_wide(x, "contrastive Hebbian learning loses its differences")
        # Of what layer k sends down, a layer further below than the next counts γ less for each.
        activations = Activations(network, x, tuple(self.gamma**-k for k in range(1, network.depth + 1)))
        activations.forward()
        for k in range(1, network.depth + 1):
            activations.set(k, activations.means[k], activations.means[k])
        return self._settle(Phase(self._settings(), network, activations, None), is_measured)

    def _clamped(self, network: Network, free: Phase, y: Tensor) -> Phase:
        """The settled clamped phase, from the free states."""
        output = free.activations.means[-1]
        # By the drive, also where the output is a softmax.
        pull = -self.loss.gradient(output, y) if isinstance(self.loss, CrossEntropy) else targets(y, output) - output
        phase = Phase(
            self._settings(), network, free.activations.fork(), Nudge(y, 1.0), clamped=(output + pull).to(output.dtype)
        )
        return self._settle(phase, may_wait(output))

    def _settle(self, phase: Phase, is_measured: bool) -> Phase:
        phase.settle_by_blocks(self._order, None, is_measured, self.tolerance if is_measured else None)
        return phase

    def _settings(self) -> Settings:
        energy = DiscountedHopfield(self.gamma)
        return Settings(energy=energy, update="auto", step_size=1.0, output_nudge="clamped", loss=self.loss)


def _unsettled(name: str, report: Report) -> str:
    """Why the phase has not settled, and what to do; empty where it has, or was not measured."""
    told = report.trouble
    if not told and report.residual is not None and not report.residual <= MOST_MOVED:
        told = (
            f"the {name} states have not settled: the last pass still moved them by {report.residual:.2g} of their displacement"
        )
    return f"{told}. Raise the number of schedule, or lower gamma." if told else ""


def _lost(free: Phase, clamped: Phase) -> str:
    """Where the clamp's effect on a layer is lost in rounding, and what to do; empty where it is not, or can't be asked."""
    told = rounded(free, clamped, "clamp")
    return f"{told}. Raise gamma, or use float64." if told else ""
