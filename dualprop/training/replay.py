"""A step's operations recorded once on the CPU and run again on the same memory, without Python.

A small network's step is mostly PyTorch's and our own bookkeeping between operations. As for a CUDA
graph, what a step computes is the same for every batch, so it is noted once. A replay calls each
operation with tensors that exist already, into memory that exists already. It makes no tensor,
walks no graph and takes no view. The operations are those of the step as it is, on the same
numbers, in the same order: results are the same bit for bit.

    storage     memory that tensors share, known by its identity
    outside     a storage that was there before, or that something outlives the step in
    inside      any other. Two that are never needed at the same time share their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

import dualprop.captures as captures

aten = torch.ops.aten
# What makes memory without writing to it.
_EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
          aten.new_empty_strided.default}  # fmt: skip
# What fills memory with zeros.
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
# What gives one tensor and is as well a copy into another, for which PyTorch keeps no other word.
_COPIES = {aten.clone.default, aten._to_copy.default, aten._lazy_clone.default, aten.lift_fresh_copy.default}


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
    be written to `outputs`; or a native kernel's."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[Place | None, ...] = ()
    is_native: bool = False


class ReplayError(RuntimeError):
    """A step that can't be replayed; the message says why."""


class CpuGraph:
    """What `capture.CapturedStep` needs: records a function's operations and repeats them."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.kept: list[Any] = []
        self.num_bytes = 0

    def warm_up(self, function: Callable[[], Any]) -> Any:
        return function()

    def capture(self, function: Callable[[], Any]) -> Any:
        """Record the function, and undo what it wrote to memory that was there before."""
        recorder = Recorder()
        try:
            with recorder, captures.recording(recorder.note_native):
                results = function()
        finally:
            recorder.undo()
        self.calls, self.kept, self.num_bytes = program(recorder)
        return results

    def replay(self) -> None:
        # Nothing is differentiated: its tensors are of no graph.
        with torch._C._AutoDispatchBelowAutograd():
            for call in self.calls:
                call()


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
        arguments, by_name = tree_map_only(Tensor, self._place, (tuple(args), named))
        outputs = places if fresh else ()
        self.operations.append(Operation(func, arguments, by_name, outputs))
        self._used((*tree_iter((arguments, by_name)), *places), index)
        return result

    def note_native(self, call: Callable[..., Any], arguments: Sequence[Any], written: Sequence[Tensor]) -> None:
        """A native kernel that is about to run."""
        for t in written:
            self._place(t, is_older=True)
            self._keep(t)
        places = tuple(self._place(a) if isinstance(a, Tensor) else a for a in arguments)
        self.operations.append(Operation(call, places, is_native=True))
        self._used(places, len(self.operations) - 1)

    def undo(self) -> None:
        """Give what is older than the recording the numbers that it had."""
        for storage, numbers in self.before.values():
            storage.copy_(numbers)

    def _place(self, t: Tensor, is_older: bool = True) -> Place:
        if t.device.type != "cpu" or t.layout != torch.strided or type(t) not in (Tensor, torch.nn.Parameter):
            raise ReplayError(f"it computes with a {type(t).__name__} on {t.device}")
        storage, index = t.untyped_storage(), len(self.operations)
        number = storage._cdata
        if number not in self.storages:
            self.storages[number] = Storage(StorageWeakRef(storage), storage.nbytes(), is_older, index, index)
        return Place(number, t.dtype, tuple(t.shape), t.stride(), t.storage_offset())

    def _keep(self, t: Tensor) -> None:
        """Keep the numbers of a storage that is older than the recording, before its first write."""
        storage = t.untyped_storage()
        if any(storage._cdata == constant.untyped_storage()._cdata for constant in self.constants):
            raise ReplayError("it writes to a number in its code")
        if self.storages[storage._cdata].is_older and storage._cdata not in self.before:
            self.before[storage._cdata] = storage, storage.clone()

    def _used(self, values: Sequence[Any], index: int) -> None:
        for place in values:
            if isinstance(place, Place):
                self.storages[place.storage].last = index


def program(recorder: Recorder) -> tuple[list[Callable[[], Any]], list[Any], int]:
    """The calls of a replay, what they need to be kept alive, and the bytes of memory inside."""
    recorder.before.clear()
    memory, kept, num_bytes = _memory(recorder)
    tensors: dict[Place, Tensor] = {}

    def at(place: Any) -> Any:
        if not isinstance(place, Place):
            return place
        if place not in tensors:
            tensors[place] = torch.empty(0, dtype=place.dtype).set_(
                memory[place.storage], place.offset, place.size, place.stride
            )  # type: ignore[call-overload]
        return tensors[place]

    calls: list[Callable[[], Any]] = []
    for operation in recorder.operations:
        arguments, named, outputs = tree_map_only(Place, at, (operation.arguments, operation.named, operation.outputs))
        calls.append(_call(operation, arguments, named, outputs))
    return calls, [kept, list(tensors.values())], num_bytes


def _memory(recorder: Recorder) -> tuple[dict[int, torch.UntypedStorage], list[Any], int]:
    """The memory of each storage, and that inside: by first need, the smallest free one that fits."""
    memory: dict[int, torch.UntypedStorage] = {}
    outside = {number: each.reference for number, each in recorder.storages.items() if not each.reference.expired()}
    for number, reference in outside.items():
        memory[number] = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    inside = sorted((each.first, each.last, number) for number, each in recorder.storages.items() if number not in outside)
    blocks: list[tuple[int, torch.UntypedStorage]] = []  # with the last operation that needs each
    for first, last, number in inside:
        needed = recorder.storages[number].num_bytes
        if recorder.storages[number].is_older:
            raise ReplayError("it reads what it then lets go of")
        fitting = [i for i, (until, block) in enumerate(blocks) if until < first and block.nbytes() == needed]
        if fitting:
            i = fitting[-1]
            memory[number] = blocks[i][1]
            blocks[i] = last, blocks[i][1]
        else:
            memory[number] = torch.empty(needed, dtype=torch.uint8).untyped_storage()
            blocks.append((last, memory[number]))
    return memory, [*memory.values(), *outside.values(), recorder.constants], sum(block.nbytes() for _, block in blocks)


def _call(operation: Operation, arguments: Any, named: Any, outputs: tuple[Any, ...]) -> Callable[[], Any]:
    """One operation as a function without arguments."""
    func, arguments = operation.call, _prepared(operation.call, arguments, outputs)
    if operation.is_native:
        values = [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]
        return lambda: func(*values)
    if not outputs:
        return lambda: func(*arguments, **named)
    if func in _COPIES:
        (out,), source = outputs, arguments[0]
        return lambda: out.copy_(source)
    if func in _ZEROS:
        return outputs[0].zero_
    if func is aten.relu.default:
        # As PyTorch's relu is computed.
        func, arguments = aten.clamp_min.default, (*arguments, 0)
    into = _into(func)
    if into is None or any(out is None for out in outputs):
        return lambda: _write(func(*arguments, **named), outputs)
    overload, names, results = into
    with_outputs = {name: value for name, value in named.items() if name in names} | dict(zip(results, outputs, strict=True))
    return lambda: overload(*arguments, **with_outputs)


def _prepared(func: Any, arguments: Any, outputs: tuple[Any, ...]) -> Any:
    """The arguments, numbers that PyTorch would make a tensor of at each call as such tensors.

    It computes with them in the dtype of the tensors beside them, where these have a dimension.
    """
    tensors = [t for t in tree_iter((arguments, outputs)) if isinstance(t, Tensor)]
    is_plain = len({t.dtype for t in tensors}) == 1 and all(t.dim() and t.is_floating_point() for t in tensors)
    if not isinstance(func, torch._ops.OpOverload) or not is_plain:
        return arguments
    parameters = func._schema.arguments
    return tuple(
        torch.tensor(value, dtype=tensors[0].dtype) if isinstance(value, float | int) and str(parameters[i].type) == "Tensor" else value
        for i, value in enumerate(arguments)
    )


def _write(result: Any, outputs: Sequence[Tensor | None]) -> None:
    for out, each in zip(outputs, tree_iter(result), strict=True):
        if out is not None:
            out.copy_(each)


def _into(func: Any) -> tuple[Any, set[str], list[str]] | None:
    """The overload that writes its results into given tensors, with its arguments' names and those
    of its outputs."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments if a.name not in ("dtype", "layout", "device", "pin_memory")]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        arguments = overload._schema.arguments
        given = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        outputs = [a.name for a in arguments if a.is_out]
        if outputs and len(outputs) == len(func._schema.returns) and [g for g in given if g[0] != "dtype"] == wanted:
            return overload, {name for name, _ in given}, outputs
    return None


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
