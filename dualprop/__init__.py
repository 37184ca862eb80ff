"""Train PyTorch networks without back-propagation: dual propagation (DP) and its relatives."""

from importlib import import_module

# As type checkers know it, without an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from dualprop import feedback, kernels, loggers, losses, neurons, objectives, schedules, sklearn, softmax
    from dualprop.equilibrium import energies, estimators, relaxations
    from dualprop.errors import DualpropError, NudgeWarning, OutOfMemoryError, SettingError, UnsupportedModuleError
    from dualprop.fused.dualization import dualize, dyadic, undualize
    from dualprop.network import Layer, Layered, Network
    from dualprop.network.states import Dyads
    from dualprop.reading import activations, describe
    from dualprop.rules import *
    from dualprop.system.allocation import keep_freed_memory
    from dualprop.trained import load

__version__ = "0.1.0"

# Beside the rules and what they return, all that `dualprop.rules` exports.
_NAMES = [
    # The user's model, read as layers, and the states that rules infer on it
    "Network", "Layer", "Layered", "Dyads",
    # Any module, any training loop
    "dualize", "undualize", "dyadic", "describe", "keep_freed_memory",
    # A run's model, ready for new examples
    "load",
    # Parts
    "activations", "energies", "estimators", "feedback", "kernels", "loggers", "losses", "neurons", "objectives", "relaxations",
    "schedules", "softmax",
    # Errors
    "DualpropError", "NudgeWarning", "OutOfMemoryError", "SettingError", "UnsupportedModuleError",
]  # fmt: skip

# Where each name lives. Names are fetched when first used: importing torch takes a second, which
# `dualprop --help` should not.
_MODULES = {
    "activations": "reading.activations", "energies": "equilibrium.energies",
    "estimators": "equilibrium.estimators", "relaxations": "equilibrium.relaxations",
    **{name: name for name in ("feedback", "kernels", "loggers", "losses", "memory", "neurons", "objectives", "rules")},
    **{name: name for name in ("schedules", "settings", "sklearn", "softmax")},
}  # fmt: skip
_HOMES = {
    **dict.fromkeys(("Network", "Layer", "Layered"), "network"),
    **dict.fromkeys(("DualpropError", "NudgeWarning", "OutOfMemoryError", "SettingError", "UnsupportedModuleError"), "errors"),
    **dict.fromkeys(("dualize", "dyadic", "undualize"), "fused.dualization"),
    "Dyads": "network.states", "describe": "reading", "keep_freed_memory": "system.allocation",
    "load": "trained",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = import_module(f"dualprop.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(import_module(f"dualprop.{_HOMES[name]}"), name)
    elif name == "__all__":
        value = [*_NAMES, *import_module("dualprop.rules").__all__]
    elif not name.startswith("_") and name in import_module("dualprop.rules").__all__:
        value = getattr(import_module("dualprop.rules"), name)
    else:
        raise AttributeError(f"module 'dualprop' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *import_module("dualprop.rules").__all__})
