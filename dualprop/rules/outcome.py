"""What a rule returns for one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Status:
    """Whether the numbers can be trusted; if not, `message` says what happened and what to do.

    `is_finite` tells two troubles apart. With gradients that are not finite, or so large that their
    squares are not, no step can be taken. Where inference merely did not settle (`ok` false,
    `is_finite` true), one can.
    """

    ok: bool
    message: str = "ok"
    is_finite: bool = True


@dataclass(frozen=True)
class Own:
    """What of an outcome is one stacked model's own: see the fields of `Outcome`."""

    diagnostics: dict[str, float]
    unsettled: str


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of one batch.

    Attributes:
        gradients: by parameter name, for every trainable parameter: estimates of the mean loss's
            gradient.
        loss: of the prediction (`AbstractRule.predict`), the mean over the batch, shape ().
        logits: the prediction itself, shape (N, K), or (N, …) where the loss reads such.
        state: the inferred states, for the next call's `state`; None where the rule keeps none.
        diagnostics: numbers about the inference. "drives", "feedbacks" and "gradients" count
            synapse evaluations. A rule that iterates adds "passes", and "residual" where it was
            measured.
        unsettled: why inference did not settle and what to do; empty where it settled or did not
            iterate.
        remedy: what to do where the loss or a gradient is not finite.
        losses: each model's mean, (num_models,), where several are stacked (`network.stacked`), of
            which `loss` is the sum. Gradients are then (num_models, …), and logits one model's
            after another's; see `of_model`.
        models: what else is each model's own.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    logits: Tensor
    state: Any = None
    diagnostics: dict[str, float] = field(default_factory=dict)
    unsettled: str = ""
    remedy: str = "Lower the learning rate or beta, or check the inputs for extreme values."
    losses: Tensor | None = None
    models: tuple[Own, ...] = ()

    def of_model(self, model: int) -> Outcome:
        """The outcome of one of the stacked models, without a state; itself where there is one."""
        if self.losses is None:
            return self
        own = self.models[model]
        return Outcome(
            gradients={name: gradient[model] for name, gradient in self.gradients.items()},
            loss=self.losses[model],
            logits=self.logits.chunk(len(self.models))[model],
            diagnostics=own.diagnostics,
            unsettled=own.unsettled,
            remedy=self.remedy,
        )

    def unsettled_of(self, model: int) -> str:
        """Why the inference of one of the stacked models did not settle; empty where it did."""
        return self.models[model].unsettled if self.models else self.unsettled

    @cached_property
    def status(self) -> Status:
        """Not ok where the loss or a gradient is not finite, or its square is not, or inference did
        not settle.

        It is computed when first asked for, and waits for the device.
        """
        if not _has_finite_square(self.loss):
            return Status(False, f"the loss is {float(self.loss):g}. {self.remedy}", is_finite=False)
        remedy = f"{self.unsettled[0].upper()}{self.unsettled[1:]}" if self.unsettled else self.remedy
        for name, gradient in self.gradients.items():
            if not _has_finite_square(gradient):
                is_finite = bool(torch.isfinite(gradient).all())
                told = "is so large that its square is not finite" if is_finite else "is not finite"
                return Status(False, f"the gradient of '{name}' {told}. {remedy}", is_finite=False)
        return Status(False, self.unsettled) if self.unsettled else Status(True)


def _has_finite_square(t: Tensor) -> bool:
    """Whether every number's square is finite: in float32, or in float64 where t is."""
    wide = torch.float64 if t.dtype in (torch.float64, torch.complex128) else torch.float32
    limit = math.sqrt(torch.finfo(wide).max)
    # What is not a number is not below any.
    return not t.numel() or float(t.detach().abs().max()) <= limit
