"""The wrappers that train a model on several processes: which a model is in, and which can't be.

Rules work on the model inside. What a wrapper must do around a forward pass, it does around the
rule's inference (`rules.delivery`).
"""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dualprop.errors import SettingError, UnsupportedModuleError

MARK = "dualprop: the wrappers that hold this parameter"
REMEDY = "Use DistributedDataParallel, or dp.dualize(model) and its own loss."


def unwrapped(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The model inside and its DistributedDataParallel, if any. Other wrappers are refused."""
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)[0], model
    if isinstance(model, DataParallel):
        raise UnsupportedModuleError("nn.DataParallel copies the model at each call. Use DistributedDataParallel.")
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None and isinstance(model, sharding.FullyShardedDataParallel):
        raise UnsupportedModuleError(f"{type(model).__name__} shards parameters. {REMEDY}")
    check_parameters(model)
    return model, None


def check_parameters(model: nn.Module) -> None:
    """Raise UnsupportedModuleError, naming a parameter of which this process holds but a part."""
    tensors: Any = sys.modules.get("torch.distributed.tensor")  # no parameter is sharded where none has loaded it
    for name, parameter in model.named_parameters() if tensors is not None else ():
        if isinstance(parameter, tensors.DTensor):
            raise UnsupportedModuleError(f"'{name}' is sharded over processes (fully_shard). {REMEDY}")


def wrapper_to_run(module: nn.Module, known: nn.Module | None) -> DistributedDataParallel | None:
    """The wrapper whose forward must surround work on `module`.

    None where there is none, or where its forward is running already. `known` is the wrapper that
    the module was read from.

    Raises SettingError where two hold the module, or the wrapper computes in other numbers.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    check_parameters(module)
    active = DistributedDataParallel._get_active_ddp_module()
    if active is not None and _holds(active, module):
        return None
    wrapper = known if isinstance(known, DistributedDataParallel) else _wrapper_around(module)
    if wrapper is not None and wrapper.mixed_precision is not None:
        raise SettingError("DistributedDataParallel's mixed_precision converts parameters for one pass. Use torch.autocast.")
    return wrapper


def _wrapper_around(module: nn.Module) -> DistributedDataParallel | None:
    """The living wrapper that holds the module.

    A module does not know its wrappers, and looking for one among all objects takes a tenth of a
    second. But a wrapper holds its parameters' accumulators, which else live as long as a graph
    does. A mark on one therefore tells whether there is anything to look for, and keeps the answer.
    """
    parameter = next((p for p in module.parameters() if p.requires_grad and not hasattr(p, "_ddp_ignored")), None)
    if parameter is None:
        return None
    _marks(parameter).setdefault(MARK, None)
    marks = _marks(parameter)
    if MARK not in marks:
        return None
    if marks[MARK] is None or not all(reference() for reference in marks[MARK]):
        wrappers = _wrappers_around(module)
        if len(wrappers) > 1:
            gc.collect()  # One that was dropped may live on in a cycle.
            wrappers = _wrappers_around(module)
        if len(wrappers) > 1:
            raise SettingError("the model is in two DistributedDataParallel. Read the one that is meant: from_module(wrapper).")
        marks[MARK] = [weakref.ref(wrapper) for wrapper in wrappers]
    return marks[MARK][0]() if marks[MARK] else None


def _marks(parameter: Tensor) -> dict[str, Any]:
    """What Python has noted on the node that accumulates the parameter's gradient."""
    node: Any = get_gradient_edge(parameter).node
    return node.metadata


def _wrappers_around(module: nn.Module) -> list[DistributedDataParallel]:
    kind = DistributedDataParallel
    return [held for held in gc.get_objects() if issubclass(type(held), kind) and _holds(held, module)]


def _holds(wrapper: DistributedDataParallel, module: nn.Module) -> bool:
    return any(part is module for part in wrapper.modules())
