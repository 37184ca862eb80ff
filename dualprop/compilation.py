"""What torch.compile is to leave as it is, said without loading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def run_as_written(*functions: Callable[..., Any]) -> None:
    """Have torch.compile neither compile these nor follow them inside what it compiles.

    It breaks its graph there, and the function runs as in eager, with all that it calls.
    """
    for function in functions:
        function._torchdynamo_disable = True  # type: ignore[attr-defined]
    not_compiled_alone(*functions)


def not_compiled_alone(*functions: Callable[..., Any]) -> None:
    """Have torch.compile follow these inside what it compiles, but compile none as a whole."""
    dynamo = torch._C._dynamo.eval_frame
    skip = dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.SKIP)
    for function in functions:
        dynamo.set_code_exec_strategy(function.__code__, skip)
