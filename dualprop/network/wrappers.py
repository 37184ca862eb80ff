"""The wrappers that train a model on several processes: which a model is in, and which can't be.

Rules work on the model inside. What a wrapper must do around a forward pass, it does around the
rule's inference (`rules.delivery`).
"""

from __future__ import annotations

import gc
import sys
import weakref

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dualprop.errors import SettingError, UnsupportedModuleError

# The wrapper of a module that was found outside, or None where there is none.
_found: weakref.WeakKeyDictionary[nn.Module, weakref.ref[DistributedDataParallel] | None] = weakref.WeakKeyDictionary()


def unwrapped(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The model inside and its DistributedDataParallel, if any. Other wrappers are refused."""
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)[0], model
    if isinstance(model, DataParallel):
        raise UnsupportedModuleError("nn.DataParallel copies the model at each call. Use DistributedDataParallel or its .module.")
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None and isinstance(model, sharding.FullyShardedDataParallel):
        raise UnsupportedModuleError(f"{type(model).__name__} shards parameters. {REMEDY}")
    check_parameters(model)
    return model, None


REMEDY = "Use DistributedDataParallel, or dp.dualize(model) and its own loss."


def check_parameters(model: nn.Module) -> None:
    """Raise UnsupportedModuleError, naming a parameter of which this process holds but a part."""
    tensors = sys.modules.get("torch.distributed.tensor")  # no parameter is sharded where none has loaded it
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
    """The living wrapper that holds the module. A module does not know its wrappers, so that all
    objects are searched, once for each module."""
    if module not in _found:
        wrappers = _wrappers_around(module)
        if len(wrappers) > 1:
            gc.collect()  # One that was dropped may live on in a cycle.
            wrappers = _wrappers_around(module)
        if len(wrappers) > 1:
            raise SettingError("the model is in two DistributedDataParallel. Read the one that is meant: from_module(wrapper).")
        _found[module] = weakref.ref(wrappers[0]) if wrappers else None
    reference = _found[module]
    return None if reference is None else reference()


def _wrappers_around(module: nn.Module) -> list[DistributedDataParallel]:
    kind = DistributedDataParallel
    return [held for held in gc.get_objects() if issubclass(type(held), kind) and _holds(held, module)]


def _holds(wrapper: DistributedDataParallel, module: nn.Module) -> bool:
    return any(part is module for part in wrapper.modules())
