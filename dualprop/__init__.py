"""Train PyTorch networks without back-propagation: dual propagation (DP) and its relatives on the user's own model."""

from dualprop import losses, neurons, schedules
from dualprop.dyadic import dualize
from dualprop.errors import DualpropError, SettingError, UnsupportedModuleError
from dualprop.network import Layer, Network
from dualprop.rules import RULES, AbstractRule, Backprop, DualPropagation, Outcome, Status
from dualprop.states import Dyads

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 — grouped by what they are
    # The user's model, read as layers
    "Network", "Layer",
    # Learning rules, and what they return
    "AbstractRule", "Backprop", "DualPropagation", "RULES", "Outcome", "Status", "Dyads",
    # Any module, any training loop
    "dualize",
    # Parts
    "losses", "neurons", "schedules",
    # Errors
    "DualpropError", "SettingError", "UnsupportedModuleError",
]  # fmt: skip
