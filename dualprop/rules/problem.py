"""One batch for one rule: checked once, and what the rule's phases report of it.

N batch, K classes. `x` is (N, …); `y` is (N,) class indices or (N, K) target vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network import Network
from dualprop.network.hooks import gradients_by
from dualprop.network.states import States
from dualprop.settling import Settling, can_sync, largest

# Inference is safe in any numbers, in float32 with bfloat16 products, or in float32 or wider alone.
Precision = Literal["any", "half_products", "full"]


@dataclass(frozen=True)
class Report:
    """What is kept of a phase: its counts, still growing, and how it settled, if it iterated."""

    counts: dict[str, int]
    settling: Settling | None = None
    remedy: str = ""
    each: int = 1


class Problem:
    """A batch that a rule works on, with the results so far.

    Attributes:
        network, x, y: y as int64 indices (N,) or floating-point vectors (N, K).
        state: of an earlier call, or None.
        generator: draws what the rule draws, or None.
        for_states: whether the states are asked for, and not the gradients alone. What states read
            may then not be written over.
        logits: of the prediction, (N, K), once there is one.
        reports: of the phases, in their order.
    """

    def __init__(
        self, network: Network, x: Tensor, y: Tensor, state: Any, generator: torch.Generator | None, for_states: bool
    ) -> None:
        self.network, self.x, self.y = network, x, check_batch(x, y)
        self.state, self.generator, self.for_states = state, generator, for_states
        self.logits: Tensor | None = None
        self.loss: Tensor | None = None
        self.reports: list[Report] = []
        self._doubt = ""

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their name in the model."""
        return self.network.parameters

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return self.network.depth

    @property
    def is_measured(self) -> bool:
        """Whether states may be measured: not while a CUDA graph is captured."""
        return can_sync(self.x)

    def forward(self, betas: tuple[float, ...] | None = None) -> States:
        """The states of the forward pass, whose output is the prediction. Their counts are for the
        rule to report."""
        states = States(self.network, self.x, betas)
        states.forward()
        self.predicted(states.means[-1])
        return states

    def predicted(self, logits: Tensor) -> None:
        """Keep these outputs as the prediction. Raises SettingError unless the targets fit."""
        check_targets(self.y, logits)
        self.logits = logits

    def mean_loss(self, predict: Callable[[Tensor], Tensor], loss: AbstractLoss) -> Tensor:
        """The mean loss of predict(x), shape (), in autograd's graph; counted as BP."""
        with torch.enable_grad():
            logits = predict(self.x)
            self.predicted(logits.detach())
            self.reports.append(Report(self.network.counts_of_backprop(self.x)))
            mean = loss.value(logits, self.y).mean()
            self.loss = mean.detach()
            return mean

    def gradients_of(self, loss: Tensor) -> dict[str, Tensor]:
        """Autograd's gradients of every trainable parameter; zero where it has no effect."""
        parameters = self.parameters
        gradients = gradients_by(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(parameters, gradients, strict=True))

    def report(self, counts: dict[str, int], settling: Settling | None = None, remedy: str = "", each: int = 1) -> None:
        """Keep a phase's `counts`, which may still grow, how it settled, and the remedy if not.

        An evaluation counts as `each`.
        """
        self.reports.append(Report(counts, settling, remedy, each))

    def doubt(self, trouble: str) -> None:
        """Keep why the numbers can't be trusted though all phases have settled, if so."""
        self._doubt = self._doubt or trouble

    @property
    def trouble(self) -> str:
        """The trouble and remedy of the first unsettled phase, else the first doubt, else ''."""
        for report in self.reports:
            if report.settling is not None and report.settling.trouble:
                return f"{report.settling.trouble}. {report.remedy}"
        return self._doubt

    @property
    def diagnostics(self) -> dict[str, float]:
        """Counts over all phases, passes of those that iterate, the largest measured residual."""
        numbers: dict[str, float] = {
            kind: sum(report.each * report.counts[kind] for report in self.reports)
            for kind in ("drives", "feedbacks", "gradients")
        }
        settlings = [report.settling for report in self.reports if report.settling is not None]
        if settlings:
            numbers["passes"] = sum(settling.passes for settling in settlings)
        residuals = [settling.residual for settling in settlings if settling.residual is not None]
        return {**numbers, "residual": largest(residuals)} if residuals else numbers


def check_batch(x: Tensor, y: Tensor) -> Tensor:
    """The targets as int64 indices (N,) or floating-point vectors (N, K).

    Raises SettingError unless x and y are a batch: as many targets as examples, at least one.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise SettingError(f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}. Use torch.as_tensor.")
    if x.dim() < 2 or x.shape[0] == 0:
        raise SettingError(f"x must hold a batch of at least one example, shape (N, …), got {tuple(x.shape)}.")
    if not x.dtype.is_floating_point:
        raise SettingError(f"x must be floating point, got {x.dtype}. Convert it, x.float() say.")
    if y.shape[:1] != x.shape[:1]:
        raise SettingError(f"x holds {x.shape[0]} examples but y has shape {tuple(y.shape)}. They must agree.")
    if y.dim() == 1 and (y.dtype.is_floating_point or y.dtype == torch.bool):
        raise SettingError(f"class indices y must be integers, got {y.dtype}. Convert them, y.long() say.")
    if y.dtype.is_floating_point:
        return y
    return y.long() if y.dim() == 1 else y.to(x.dtype)


def check_precision(parameters: Mapping[str, Tensor], x: Tensor, precision: Precision, loses: str) -> None:
    """Raise SettingError where inference would lose small differences, or parameters their updates.

    Half precision belongs to the products alone, under bfloat16 autocast: float16 has no room for
    differences of 1e-8. `loses` is what a rule of full precision would lose in half.
    """
    half = (torch.float16, torch.bfloat16)
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if precision == "full" and (x.dtype in half or autocast is not None):
        raise SettingError(f"{loses} in half precision. Give it float32, outside autocast.")
    if precision != "half_products":
        return
    if autocast == torch.float16:
        raise SettingError(
            "explicit inference would lose its differences in float16. Use autocast in bfloat16, or engine='fused'."
        )
    if any(p.dtype in half for p in parameters.values()) or (x.dtype in half and autocast is None):
        raise SettingError(
            "explicit inference needs parameters and inputs of float32 or wider. For bfloat16 products use "
            "torch.autocast(device, torch.bfloat16)."
        )


def check_output(network: Network, loss: AbstractLoss) -> None:
    """Raise SettingError where the loss does not read what the output neuron gives.

    An output neuron gives logits or probabilities.
    """
    loss.check_output(network.into(network.depth).neuron)


def check_targets(y: Tensor, logits: Tensor) -> None:
    """Raise SettingError where targets don't fit outputs (N, K).

    Index ranges are checked on the CPU, where it is free.
    """
    if logits.dim() != 2:
        raise SettingError(f"the network's outputs must have shape (N, K), got {tuple(logits.shape)}. Add nn.Flatten().")
    if y.dim() > 1 and y.shape != logits.shape:
        raise SettingError(f"target vectors y have shape {tuple(y.shape)} but the outputs {tuple(logits.shape)}.")
    if y.dim() == 1 and y.device.type == "cpu":
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= logits.shape[1]:
            raise SettingError(
                f"class indices must be in 0…{logits.shape[1] - 1}, got {low}…{high}. Give the model an output per class."
            )
