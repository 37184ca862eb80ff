"""Modules without memory: what a model would hold is counted before it is made."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Unmade(TorchFunctionMode):
    """Inside of it modules are made without memory for their parameters, and nothing is drawn."""

    def __enter__(self) -> Unmade:
        self._meta = torch.device("meta")
        self._meta.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._meta.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changes = func.__name__.endswith("_") and not func.__name__.endswith("__")
        return args[0] if changes and args else func(*args, **(kwargs or {}))
