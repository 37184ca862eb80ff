"""One batch for one rule: checked once, and what the rule's phases report of it.

N batch, K classes. `x` is (N, …); `y` is (N,) class indices or (N, K) target vectors, or what else
the loss reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.losses import AbstractLoss
from dualprop.network import Network, inputs
from dualprop.network.hooks import gradients_by
from dualprop.network.states import States
from dualprop.rules.checks import check_batch
from dualprop.rules.outcome import Outcome, Own
from dualprop.settling import Settling, apart, can_sync, largest


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
        network, x, y: y as int64 indices (N,) or floating-point vectors (N, K), or as the
            loss reads it.
        criterion: the loss that the rule descends.
        state: of an earlier call, or None.
        generator: draws what the rule draws, or None.
        for_states: whether the states are asked for, and not the gradients alone. What states read
            may then not be written over.
        logits: of the prediction, (N, K), once there is one.
        reports: of the phases, in their order.
        num_models: that are stacked in the network; the batch holds as many examples for each.
    """

    def __init__(
        self, network: Network, x: Tensor, y: Any, criterion: AbstractLoss, state: Any, generator: torch.Generator | None,
        for_states: bool,
    ) -> None:  # fmt: skip
        self.network, self.x, self.y = network, x, check_batch(network, x, y, criterion)
        self.criterion = criterion
        self.state, self.generator, self.for_states = state, generator, for_states
        self.logits: Tensor | None = None
        self.losses: Tensor | None = None
        self.reports: list[Report] = []
        self.num_models = network.num_models
        self._doubts = [""] * self.num_models
        self._unread: frozenset[str] = frozenset()

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their name in the model."""
        return self.network.parameters

    @cached_property
    def terms(self) -> float:
        """What the loss's mean divides by: examples, valid tokens, sums of class weights …

        Inference descends the sum, and what it learns is divided by this and by β. Of stacked
        models each descends its own mean, of its share of the batch.
        """
        return self.criterion.terms(self.y, len(inputs.first(self.x))) / self.num_models

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return self.network.depth

    @property
    def known_depth(self) -> int | None:
        """L, where it is known without running the model."""
        return None if self.network.is_recorded else self.network.depth

    @property
    def is_measured(self) -> bool:
        """Whether states may be measured: not while a step is captured."""
        return can_sync(inputs.first(self.x))

    def forward(self, betas: tuple[float, ...] | None = None) -> States:
        """The states of the forward pass, whose output is the prediction. Their counts are for the
        rule to report."""
        states = States(self.network, self.x, betas)
        states.forward()
        self.predicted(states.means[-1])
        return states

    def predicted(self, logits: Tensor) -> None:
        """Keep these outputs as the prediction. Raises SettingError unless the targets fit."""
        self.criterion.check_targets(self.y, logits)
        self.logits = logits

    def mean_loss(self, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean loss of predict(x), shape (), in autograd's graph; counted as BP."""
        with torch.enable_grad():
            # Counting may run the model, which must not write over what this run keeps.
            self.reports.append(Report(self.network.counts_of_backprop(self.x)))
            logits = predict(self.x)
            self.predicted(logits.detach())
            means = self._means(logits)
            self.losses = means.detach()
            return means if means.dim() == 0 else means.sum()

    def outcome(self, gradients: dict[str, Tensor], state: Any, remedy: str) -> Outcome:
        """What a rule gives back. `remedy` is for numbers that are not finite."""
        assert self.logits is not None
        losses = self._means(self.logits) if self.losses is None else self.losses
        is_stack = losses.dim() > 0
        return Outcome(
            gradients={name: gradients[name] for name in self.parameters},
            loss=losses.sum() if is_stack else losses,
            logits=self.logits,
            state=state,
            diagnostics=self.diagnostics(),
            unsettled=self.trouble(),
            remedy=remedy,
            losses=losses if is_stack else None,
            models=tuple(Own(self.diagnostics(m), self.trouble(m)) for m in range(self.num_models)) if is_stack else (),
        )

    def _means(self, logits: Tensor) -> Tensor:
        """The mean loss, shape (); of each of several models, (num_models,)."""
        if self.num_models == 1:
            return self.criterion.mean(logits, self.y)
        return apart(self.criterion.value(logits, self.y), self.num_models).sum(1) / self.terms

    def gradients_of(self, loss: Tensor) -> dict[str, Tensor]:
        """Autograd's gradients of every trainable parameter; zero where it has no effect."""
        parameters = self.parameters
        gradients = dict(zip(parameters, gradients_by(loss, list(parameters.values()), allow_unused=True), strict=True))
        self._unread = frozenset(name for name, gradient in gradients.items() if gradient is None)
        return gradients | {name: torch.zeros_like(parameters[name]) for name in self._unread}

    @property
    def learning(self) -> dict[str, nn.Parameter]:
        """The trainable parameters that the prediction depends on. Others get no gradient, as by
        BP: an optimizer leaves them alone, where a gradient of zero would decay them."""
        unread = self._unread | self.network.unread
        return {name: p for name, p in self.parameters.items() if name not in unread}

    def report(self, counts: dict[str, int], settling: Settling | None = None, remedy: str = "", each: int = 1) -> None:
        """Keep a phase's `counts`, which may still grow, how it settled, and the remedy if not.

        An evaluation counts as `each`.
        """
        self.reports.append(Report(counts, settling, remedy, each))

    def doubt(self, troubles: Sequence[str], remedy: str) -> None:
        """Keep why the numbers can't be trusted though all phases have settled, if so; one for each
        model."""
        self._doubts = [
            before or (f"{trouble}. {remedy}" if trouble else "")
            for before, trouble in zip(self._doubts, troubles, strict=True)
        ]

    def trouble(self, model: int | None = None) -> str:
        """The trouble and remedy of the first unsettled phase, else the first doubt, else ''. Of
        all models, or of one."""
        for report in self.reports:
            if report.settling is not None and (trouble := report.settling.of_model(model).trouble):
                return f"{trouble}. {report.remedy}"
        return next(filter(None, self._doubts), "") if model is None else self._doubts[model]

    def diagnostics(self, model: int | None = None) -> dict[str, float]:
        """Counts over all phases, passes of those that iterate, the largest measured residual. Of
        all models, or of one."""
        numbers: dict[str, float] = {
            kind: sum(report.each * report.counts[kind] for report in self.reports)
            for kind in ("drives", "feedbacks", "gradients")
        }
        settlings = [report.settling.of_model(model) for report in self.reports if report.settling is not None]
        if settlings:
            numbers["passes"] = sum(settling.passes for settling in settlings)
        residuals = [settling.residual for settling in settlings if settling.residual is not None]
        return {**numbers, "residual": largest(residuals)} if residuals else numbers
