"""Activations that write over their input: whose memory that is."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_of_its_own(a: Tensor) -> Tensor | None:
    """`a.data`, if nothing but this tensor holds that memory: no view, nothing that autograd saved.

    Then the tensor may be given other memory, and what lies in this one lives on.
    """
    if type(a) is not Tensor or a._base is not None or a.layout != torch.strided:
        return None
    data = a.data
    return data if _uses(a) <= _USES_OF_ITS_OWN else None


def _uses(a: Tensor) -> int:
    uses: int = torch._C._storage_Use_Count(a.untyped_storage()._cdata)
    return uses


def _fewest_uses() -> int:
    a = torch.empty(1)
    data = a.data
    uses = _uses(a)
    del data
    return uses


# By the tensor, by its `data`, and by the storage that is asked.
_USES_OF_ITS_OWN = _fewest_uses()
