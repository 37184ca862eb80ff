"""The learning rules, one file each; `RULES` is the explicit table of their names."""

from dualprop.errors import SettingError, closest
from dualprop.rules.backprop import Backprop
from dualprop.rules.base import AbstractRule
from dualprop.rules.contrastive_hebbian import ContrastiveHebbian
from dualprop.rules.direct_feedback_alignment import DirectFeedbackAlignment
from dualprop.rules.dual_propagation import DualPropagation
from dualprop.rules.equilibrium_propagation import EquilibriumPropagation
from dualprop.rules.lifted import Lifted
from dualprop.rules.nudging import choose_beta
from dualprop.rules.outcome import Outcome, Status
from dualprop.rules.predictive_coding import PredictiveCoding
from dualprop.rules.target_propagation import TargetPropagation

RULES: dict[str, type[AbstractRule]] = {
    "backprop": Backprop,
    "contrastive_hebbian": ContrastiveHebbian,
    "direct_feedback_alignment": DirectFeedbackAlignment,
    "dual_propagation": DualPropagation,
    "equilibrium_propagation": EquilibriumPropagation,
    "lifted": Lifted,
    "predictive_coding": PredictiveCoding,
    "target_propagation": TargetPropagation,
}

# By what papers call them; most are names of variants too.
SHORT = {
    "bp": "backprop", "backpropagation": "backprop", "dp": "dual_propagation", "ep": "equilibrium_propagation",
    "pc": "predictive_coding", "chl": "contrastive_hebbian", "dfa": "direct_feedback_alignment",
    "dtp": "target_propagation", "lpom": "lifted",
}  # fmt: skip


def from_name(name: str) -> type[AbstractRule]:
    """The rule class of that name. Raises SettingError for an unknown one."""
    if name not in RULES:
        meant = SHORT.get(name.lower())
        told = closest(name, list(RULES)) if meant is None else f" Did you mean '{meant}'?"
        raise SettingError(f"unknown rule '{name}'.{told} `dualprop list rules` shows them all: {', '.join(RULES)}.")
    return RULES[name]


__all__ = [
    "RULES",
    "AbstractRule",
    "Backprop",
    "ContrastiveHebbian",
    "DirectFeedbackAlignment",
    "DualPropagation",
    "EquilibriumPropagation",
    "Lifted",
    "Outcome",
    "PredictiveCoding",
    "Status",
    "TargetPropagation",
    "choose_beta",
]
