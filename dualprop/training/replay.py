"""A step's operations recorded once on the CPU and run again on the same memory, without Python.

A small network's step is mostly PyTorch's and our own bookkeeping between operations. As for a CUDA
graph, what a step computes is the same for every batch, so it is noted once. A replay calls each
operation with tensors that exist already, into memory that exists already. It makes no tensor,
walks no graph and takes no view. The operations are those of the step as it is, on the same
numbers, in the same order: results are the same bit for bit. `verify` takes one step both ways.

    outside     a storage that was there before the step, or that something outlives it in
    inside      any other. Two that are never needed at the same time share their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

import dualprop.captures as captures
from dualprop.training.recorder import Operation, Place, Recorder, ReplayError

aten = torch.ops.aten
# What fills memory with zeros.
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
_PRODUCTS = {aten.mm.default, aten.addmm.default}
# Rows that one weight must be read by before turning it pays.
ROWS = 128
# What gives one tensor and is as well a copy into another, for which PyTorch keeps no other word.
_COPIES = {aten.clone.default, aten._to_copy.default, aten._lazy_clone.default, aten.lift_fresh_copy.default}


class CpuGraph:
    """What `capture.CapturedStep` needs: records a function's operations and repeats them."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.kept: list[Any] = []
        self.written: list[torch.UntypedStorage] = []
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
        written = list(recorder.before)
        self.calls, memory, self.kept, self.num_bytes = program(recorder)
        self.written = [memory[number] for number in written]
        return results

    def replay(self) -> None:
        # Nothing is differentiated: its tensors are of no graph.
        with torch._C._AutoDispatchBelowAutograd():
            for call in self.calls:
                call()

    def verify(
        self, function: Callable[[], Any], tensors: Callable[[Any], Sequence[Tensor]], results: Sequence[Tensor]
    ) -> tuple[Any, bool]:
        """Take one step both ways from the same memory. What the function gives, and whether the
        replay did the same bit for bit: of its `results`, which are compared with the `tensors` of
        what the function gives, and of all that it writes outside.

        The step counts once, as the function takes it.
        """
        before = [storage.clone() for storage in self.written]
        self.replay()
        replayed = [_bits(t) for t in (*map(_whole, self.written), *results)]
        for storage, numbers in zip(self.written, before, strict=True):
            storage.copy_(numbers)
        given = function()
        taken = [_bits(t) for t in (*map(_whole, self.written), *tensors(given))]
        return given, len(taken) == len(replayed) and all(map(torch.equal, taken, replayed))


def _bits(t: Tensor) -> Tensor:
    """A copy of the tensor's memory as bytes: nan is the same as itself."""
    return t.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _whole(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def program(recorder: Recorder) -> tuple[list[Callable[[], Any]], dict[int, torch.UntypedStorage], list[Any], int]:
    """The calls of a replay, the memory of each storage, what they need to be kept alive, and the
    bytes of memory inside."""
    recorder.before.clear()
    memory, kept, num_bytes = _memory(recorder)
    tensors: dict[Any, Tensor] = {}

    def at(place: Any) -> Any:
        if not isinstance(place, Place):
            return place
        if place not in tensors:
            tensors[place] = torch.empty(0, dtype=place.dtype).set_(
                memory[place.storage], place.offset, place.size, place.stride
            )
        return tensors[place]

    calls: list[Callable[[], Any]] = []
    turned = _turned(recorder.operations, {number for number in memory if not recorder.storages[number].reference.expired()})
    for index, operation in enumerate(recorder.operations):
        arguments, named, outputs = tree_map_only(Place, at, (operation.arguments, operation.named, operation.outputs))
        if index in turned:
            first, place = turned[index]
            if first == index:
                tensors[place], call = _turn(arguments[-1], arguments[-2])
                calls += call
            arguments = (*arguments[:-1], tensors[place])
        calls.append(_call(operation, arguments, named, outputs))
    return calls, memory, [kept, list(tensors.values())], num_bytes


def _turned(operations: Sequence[Operation], outside: set[int]) -> dict[int, tuple[int, Any]]:
    """The products s Wᵀ whose weight is worth turning once.

    By operation: the first of its weight, and what stands for the turned weight.

    A product reads a row-major Wᵀ up to twice as fast as a turned W.
    """
    users: dict[Any, list[int]] = {}
    versions: dict[int, int] = {}
    for index, operation in enumerate(operations):
        if not operation.is_native and operation.call in _PRODUCTS:
            s, w = operation.arguments[-2:]
            if w.storage in outside and w.stride == (1, w.size[0]) and w.dtype == s.dtype:
                # By the number of rows, too: on it depends the order in which a product sums.
                users.setdefault((w, versions.get(w.storage, 0), s.size[0]), []).append(index)
        versions |= dict.fromkeys(operation.written, index + 1)
    worth = {key: indices for key, indices in users.items() if key[-1] * len(indices) >= ROWS}
    return {index: (indices[0], key) for key, indices in worth.items() for index in indices}


def _turn(w: Tensor, s: Tensor) -> tuple[Tensor, list[Callable[[], Any]]]:
    """The weight row by row and what copies it there; itself where the product's bits would not be
    the same, since it then sums in another order."""
    rows, probe = w.contiguous(), torch.randn(s.shape, dtype=s.dtype, generator=torch.Generator().manual_seed(0))
    if not (probe @ rows).equal(probe @ w):
        return w, []
    return rows, [lambda: rows.copy_(w)]


def _memory(recorder: Recorder) -> tuple[dict[int, torch.UntypedStorage], list[Any], int]:
    """The memory of each storage, what keeps it alive, and the bytes of all that is inside.

    Inside, a storage takes over memory of its size that nothing later needs.
    """
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
        torch.tensor(value, dtype=tensors[0].dtype)
        if isinstance(value, float | int) and str(parameters[i].type) == "Tensor"
        else value
        for i, value in enumerate(arguments)
    )


def _write(result: Any, outputs: Sequence[Tensor | None]) -> None:
    for out, each in zip(outputs, tree_iter(result), strict=True):
        if out is not None:
            out.copy_(each)


def _into(func: Any) -> tuple[Any, set[str], list[str]] | None:
    """The overload that writes its results into given tensors, with its arguments' names and those
    of its outputs."""
    wanted = [
        (a.name, str(a.type)) for a in func._schema.arguments if a.name not in ("dtype", "layout", "device", "pin_memory")
    ]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        arguments = overload._schema.arguments
        given = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        outputs = [a.name for a in arguments if a.is_out]
        if outputs and len(outputs) == len(func._schema.returns) and [g for g in given if g[0] != "dtype"] == wanted:
            return overload, {name for name, _ in given}, outputs
    return None
