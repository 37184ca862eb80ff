"""Lets torchvision be imported beside the CPU build of torch, where its compiled operators do not
load.

timm imports torchvision, and torchvision describes two of its operators to torch at import. Here
they are declared, without code: whoever calls one is told that it has none. A torchvision that is
not installed stays so.
"""

from __future__ import annotations

import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# What is declared lives as long as this object.
_LIBRARY: list[torch.library.Library] = []


def declare_torchvision_operators() -> None:
    """Call before the first import of timm or torchvision. Further calls do nothing."""
    if _LIBRARY:
        return
    _LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in OPERATORS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            _LIBRARY[0].define(schema)
