"""The papers' tables and figures, run within a time: what is worth most of them, whole.

    reproduction.reproduce("mnist", minutes=8)     what `dualprop reproduce mnist --minutes 8` does

`items` says what there is, `costs` what a run takes on this device, `plan` what is run in which
order, `running` runs it, and `writing` tells what came out beside the published figures.
"""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.reproduction.items import ITEMS, Figure, Item
    from dualprop.reproduction.options import ReproduceOptions
    from dualprop.reproduction.running import reproduce

__all__ = ["ITEMS", "Figure", "Item", "ReproduceOptions", "reproduce"]

# Where each name lives. They are fetched when first used.
_HOMES = {
    **dict.fromkeys(("ITEMS", "Figure", "Item"), "items"),
    "ReproduceOptions": "options",
    "reproduce": "running",
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
