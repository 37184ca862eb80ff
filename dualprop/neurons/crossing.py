"""Units that a nudge takes across a kink of their activation: from which share of a layer on a user
is told, which β is small enough, and in what words.

The difference of a unit's two states is there no derivative. The share of such units grows about as
β does, and with it the angle to back-propagation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

# From which largest share of a layer's units, and which largest angle of a layer's gradient to
# back-propagation's in degrees, a user is told. Recipes of the papers are below (LOG.md,
# 2026-11-29).
LARGE_SHARE, LARGE_ANGLE = 0.15, 15.0
# "auto" takes the largest β whose share is below this, of a default and these multiples of it.
SMALL_SHARE = 0.02
FACTORS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def advice(shares: Sequence[float], angles: Iterable[float | None], beta: float, default: float, is_bent: bool = False) -> str:
    """What to tell of the shares of layers 1, 2, … and of the angles of layers, with the remedy;
    empty where all is well.

    `beta` is the largest in use, `default` the rule's. `is_bent`: the rule is off back-propagation
    for another reason too, DP at α ≠ ½.
    """
    worst = max(shares, default=0.0)
    angle = max((each for each in angles if each is not None and not math.isnan(each)), default=0.0)
    remedy = lower(beta, default, worst if worst > LARGE_SHARE else 1.0)
    remedy += ", or use coupling='transposed' or alpha=0.5" if is_bent else ""
    if worst > LARGE_SHARE:
        said = f"{100 * worst:.0f} % of layer {list(shares).index(worst) + 1}'s units cross a kink of their activation"
        near = f" (angle to back-propagation {angle:.0f}°)" if angle > LARGE_ANGLE else ""
        return f"{said}, where the difference of states is no derivative{near}: {remedy}"
    return f"a layer's gradient is {angle:.0f}° off back-propagation's: {remedy}" if angle > LARGE_ANGLE else ""


def chosen(beta: float, share: float, largest: float, share_at_largest: float) -> str:
    """What to tell of a β that was chosen, beside the largest that was tried."""
    beside = "" if beta == largest else f", and {100 * share_at_largest:.2g} % at {largest:g}"
    return f"beta={beta:g} chosen: at most {100 * share:.2g} % of a layer's units cross a kink{beside}"


def lower(beta: float, default: float, share: float) -> str:
    """The remedy of a smaller β, where this share crosses at β."""
    fitting = [default * c for c in FACTORS if default * c * share <= SMALL_SHARE * beta]
    return f"lower beta from {beta:g}, to {fitting[0]:g} say" if fitting else f"lower beta from {beta:g}"


def caller() -> int:
    """The stacklevel of a warning for the first caller outside of this library and PyTorch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("dualprop", "torch"):
        frame, level = frame.f_back, level + 1
    return level
