"""What runs amount to (`analysis.report`), and evidence that rules are right (`analysis.check`)."""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.analysis.evidence import Check, CheckOptions, Evidence, check
    from dualprop.analysis.reports import Report, report

__all__ = ["Check", "CheckOptions", "Evidence", "Report", "check", "report"]

# Where each name lives. They are fetched when first used.
_HOMES = {
    **dict.fromkeys(("Check", "CheckOptions", "Evidence", "check"), "evidence"),
    **dict.fromkeys(("Report", "report"), "reports"),
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
