"""What a rule returns for one batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Status:
    """Whether the numbers can be trusted; if not, `message` says what happened and what to do.

    `is_finite` tells two troubles apart. With gradients that are not finite no step can be taken.
    Where inference merely did not settle (`ok` false, `is_finite` true), one can.
    """

    ok: bool
    message: str = "ok"
    is_finite: bool = True


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
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    logits: Tensor
    state: Any = None
    diagnostics: dict[str, float] = field(default_factory=dict)
    unsettled: str = ""
    remedy: str = "Lower the learning rate or beta, or check the inputs for extreme values."

    @cached_property
    def status(self) -> Status:
        """Not ok where the loss or a gradient is not finite, or inference did not settle.

        It is computed when first asked for, and waits for the device.
        """
        if not bool(torch.isfinite(self.loss)):
            return Status(False, f"the loss is {float(self.loss)}. {self.remedy}", is_finite=False)
        remedy = f"{self.unsettled[0].upper()}{self.unsettled[1:]}" if self.unsettled else self.remedy
        for name, gradient in self.gradients.items():
            if not bool(torch.isfinite(gradient).all()):
                return Status(False, f"the gradient of '{name}' is not finite. {remedy}", is_finite=False)
        return Status(False, self.unsettled) if self.unsettled else Status(True)
