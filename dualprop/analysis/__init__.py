"""What runs amount to (`analysis.report`), and evidence that rules are right (`analysis.check`)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualprop.analysis.evidence import Check, CheckOptions, Evidence, check
    from dualprop.analysis.reports import Report, report

__all__ = ["Check", "CheckOptions", "Evidence", "Report", "check", "report"]

# Where each name lives. They are fetched when first used.
_HOMES = {
    **dict.fromkeys(("Check", "CheckOptions", "Evidence", "check"), "evidence"),
    **dict.fromkeys(("Report", "report"), "reports"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dualprop.analysis' has no attribute '{name}'")
    value: object = getattr(import_module(f"dualprop.analysis.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
