"""What runs amount to (`report`), evidence that rules are right (`check`), one inference step by
step (`show`)."""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.analysis.evidence import Check, CheckOptions, Evidence, check
    from dualprop.analysis.inference import Frame, Inference, ShowOptions
    from dualprop.analysis.reports import Report, beside, report
    from dualprop.analysis.showing import show

__all__ = [
    "Check",
    "CheckOptions",
    "Evidence",
    "Frame",
    "Inference",
    "Report",
    "ShowOptions",
    "beside",
    "check",
    "report",
    "show",
]

# Where each name lives. They are fetched when first used.
_HOMES = {
    **dict.fromkeys(("Check", "CheckOptions", "Evidence", "check"), "evidence"),
    **dict.fromkeys(("Frame", "Inference", "ShowOptions"), "inference"),
    "show": "showing",
    **dict.fromkeys(("Report", "beside", "report"), "reports"),
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
