"""Train PyTorch networks without back-propagation: dual propagation (DP) and its relatives on the user's own model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualprop import energies, feedback, losses, neurons, pooling, schedules
    from dualprop.dyadic import dualize
    from dualprop.errors import DualpropError, SettingError, UnsupportedModuleError
    from dualprop.layered import Layered
    from dualprop.network import Layer, Network
    from dualprop.rules import (
        RULES,
        AbstractRule,
        Backprop,
        ContrastiveHebbian,
        DualPropagation,
        EquilibriumPropagation,
        Lifted,
        Outcome,
        PredictiveCoding,
        Status,
        TargetPropagation,
    )
    from dualprop.states import Dyads

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 — grouped by what they are
    # The user's model, read as layers
    "Network", "Layer", "Layered",
    # Learning rules, and what they return
    "AbstractRule", "Backprop", "ContrastiveHebbian", "DualPropagation", "EquilibriumPropagation", "Lifted",
    "PredictiveCoding", "TargetPropagation", "RULES", "Outcome", "Status", "Dyads",
    # Any module, any training loop
    "dualize",
    # Parts
    "energies", "feedback", "losses", "neurons", "pooling", "schedules",
    # Errors
    "DualpropError", "SettingError", "UnsupportedModuleError",
]  # fmt: skip

# Where each name lives. They are fetched when first used: importing torch takes a second, and `dualprop --help` should not.
_HOMES = {
    "Network": "network", "Layer": "network", "Layered": "layered", "AbstractRule": "rules", "Backprop": "rules",
    "ContrastiveHebbian": "rules", "DualPropagation": "rules", "EquilibriumPropagation": "rules", "Lifted": "rules",
    "PredictiveCoding": "rules", "RULES": "rules", "Outcome": "rules", "Status": "rules",
    "TargetPropagation": "rules", "Dyads": "states", "dualize": "dyadic",
    "DualpropError": "errors", "SettingError": "errors", "UnsupportedModuleError": "errors",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in ("energies", "feedback", "losses", "neurons", "pooling", "schedules"):
        return import_module(f"dualprop.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'dualprop' has no attribute '{name}'")
    value = getattr(import_module(f"dualprop.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
