"""Train PyTorch networks without back-propagation: dual propagation (DP) and its relatives on the user's own model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualprop import feedback, kernels, losses, neurons, objectives, schedules, softmax
    from dualprop.equilibrium import energies, estimators, relaxations
    from dualprop.errors import DualpropError, SettingError, UnsupportedModuleError
    from dualprop.fused import dualize
    from dualprop.network import Layer, Layered, Network
    from dualprop.network.states import Dyads
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
    "energies", "estimators", "feedback", "kernels", "losses", "neurons", "objectives", "relaxations", "schedules", "softmax",
    # Errors
    "DualpropError", "SettingError", "UnsupportedModuleError",
]  # fmt: skip

# Where each name lives. They are fetched when first used: importing torch takes a second, and
# `dualprop --help` should not.
_MODULES = {
    "energies": "equilibrium.energies", "estimators": "equilibrium.estimators", "relaxations": "equilibrium.relaxations",
    **{name: name for name in ("feedback", "kernels", "losses", "neurons", "objectives", "rules", "schedules", "softmax")},
}  # fmt: skip
_HOMES = {
    **dict.fromkeys(("Network", "Layer", "Layered"), "network"),
    **dict.fromkeys(("AbstractRule", "Backprop", "ContrastiveHebbian", "DualPropagation", "EquilibriumPropagation"), "rules"),
    **dict.fromkeys(("Lifted", "PredictiveCoding", "TargetPropagation", "RULES", "Outcome", "Status"), "rules"),
    **dict.fromkeys(("DualpropError", "SettingError", "UnsupportedModuleError"), "errors"),
    "Dyads": "network.states", "dualize": "fused",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = import_module(f"dualprop.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(import_module(f"dualprop.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'dualprop' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
