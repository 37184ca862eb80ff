"""The operations of a step as they run, and the storages that they read and write.

storage     memory that tensors share, known by its identity
place       where in a storage a tensor lies, and its form
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten
# What makes memory without writing to it.
_EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
          aten.new_empty_strided.default}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its storage, by number, and its form there."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass
class Storage:
    """A storage of the recorded step: held weakly, so that we learn which outlive it.

    `first` and `last` are the operations between which it is needed.
    """

    reference: StorageWeakRef
    num_bytes: int
    is_older: bool
    first: int
    last: int


@dataclass
class Operation:
    """An operation with the places of its tensors: `call(*arguments, **named)`, its results to
    be written to `outputs`; or a native kernel's. `written` are the storages that it changes."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[Place | None, ...] = ()
    written: frozenset[int] = frozenset()
    is_native: bool = False


class ReplayError(RuntimeError):
    """A step that can't be replayed; the message says why."""


class Recorder(TorchDispatchMode):
    """The operations that run inside, and the storages that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.storages: dict[int, Storage] = {}
        # Of storages that were written to: themselves, and their numbers before.
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.constants: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **named)
        _check(func)
        if func is aten._lazy_clone.default:
            # Its memory becomes its own at the first write, which a replay would not see.
            func, named = aten.clone.default, {}
        before = [t for t in tree_iter((args, named)) if isinstance(t, Tensor)]
        for t in before:
            self._place(t, is_older=True)
        schema = func._schema
        for t in _written(schema, args, named):
            self._keep(t)
        result = func(*args, **named)
        # None where a result was not asked for.
        given = list(tree_iter(result))
        if not all(each is None or isinstance(each, Tensor) for each in given):
            raise ReplayError(f"{schema.name} gives a number, for which it waits")
        index = len(self.operations)
        known = {t.untyped_storage()._cdata for t in before}
        fresh = [t for t in given if t is not None and t.untyped_storage()._cdata not in known]
        places = tuple(None if t is None else self._place(t, is_older=False) for t in given)
        if func is aten.lift_fresh.default:
            self.constants += given  # a number in the code, of memory of its own
        if not (schema.is_mutable or fresh) or func in _EMPTY:
            return result  # a view, or memory that is still to be written
        arguments, by_name = tree_map_only(Tensor, partial(self._place, is_older=False), (tuple(args), named))
        outputs = places if fresh else ()
        written = {t.untyped_storage()._cdata for t in (*_written(schema, args, named), *fresh)}
        self.operations.append(Operation(func, arguments, by_name, outputs, frozenset(written)))
        self._used((*tree_iter((arguments, by_name)), *places), index)
        return result

    def note_native(self, call: Callable[..., Any], arguments: Sequence[Any], written: Sequence[Tensor]) -> None:
        """A native kernel that is about to run."""
        for t in written:
            self._place(t, is_older=True)
            self._keep(t)
        places = tuple(self._place(a, is_older=True) if isinstance(a, Tensor) else a for a in arguments)
        numbers = frozenset(t.untyped_storage()._cdata for t in written)
        self.operations.append(Operation(call, places, written=numbers, is_native=True))
        self._used(places, len(self.operations) - 1)

    def undo(self) -> None:
        """Give what is older than the recording the numbers that it had."""
        for storage, numbers in self.before.values():
            storage.copy_(numbers)

    def _place(self, t: Tensor, is_older: bool) -> Place:
        if t.device.type != "cpu" or t.layout != torch.strided or type(t) not in (Tensor, torch.nn.Parameter):
            raise ReplayError(f"it computes with a {type(t).__name__} on {t.device}")
        storage, index = t.untyped_storage(), len(self.operations)
        number = storage._cdata
        if number not in self.storages:
            self.storages[number] = Storage(StorageWeakRef(storage), storage.nbytes(), is_older, index, index)
        return Place(number, t.dtype, tuple(t.shape), t.stride(), int(t.storage_offset()))

    def _keep(self, t: Tensor) -> None:
        """Keep the numbers of a storage older than the recording, before its first write."""
        storage = t.untyped_storage()
        if any(storage._cdata == constant.untyped_storage()._cdata for constant in self.constants):
            raise ReplayError("it writes to a number in its code")
        if self.storages[storage._cdata].is_older and storage._cdata not in self.before:
            self.before[storage._cdata] = storage, storage.clone()

    def _used(self, values: Sequence[Any], index: int) -> None:
        for place in values:
            if isinstance(place, Place):
                self.storages[place.storage].last = index


def _written(schema: Any, args: Sequence[Any], named: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes to."""
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else named.get(argument.name)
            yield from (t for t in tree_iter(value) if isinstance(t, Tensor))


def _check(func: Any) -> None:
    """Raise ReplayError for what differs from batch to batch."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise ReplayError(f"{func._schema.name} draws random numbers")
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        raise ReplayError(f"{func._schema.name} waits for a number of the batch")
