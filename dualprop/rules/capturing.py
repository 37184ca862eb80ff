"""Why a step by a rule can't be captured and replayed as it is."""

from __future__ import annotations

from typing import Protocol

from dualprop.losses import AbstractLoss, SquaredError


class Rule(Protocol):
    """`base.AbstractRule`."""

    @property
    def loss(self) -> AbstractLoss: ...
    @property
    def needs_generator(self) -> bool: ...


def obstacle(rule: Rule) -> str:
    """The reason; empty where there is none."""
    if getattr(rule, "tolerance", None):
        return "with a tolerance each batch takes as many passes as it needs"
    if getattr(rule, "output_nudge", "") == "exact" and not isinstance(rule.loss, SquaredError):
        return f"an exact {rule.loss.name} nudge is found by iteration"
    if rule.loss.counts_targets:
        return f"what the mean of the loss '{rule.loss}' divides by is counted in each batch"
    return "what is random in it is drawn anew for each batch" if rule.needs_generator else ""
