"""Whose memory a tensor has, and what is asked to keep what autograd saves."""

from __future__ import annotations

from typing import Any

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


def saved_tensors_hooks() -> tuple[Any, Any] | None:
    """The saved-tensor hooks in force, pack and unpack."""
    hooks: tuple[Any, Any] | None = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks
