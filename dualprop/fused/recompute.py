"""Keep one of drive and state: a dyadic activation's backward needs a, the map above it f(a).

Back-propagation keeps f(a) alone. Here a alone is kept. Wherever autograd saves f(a), for a
convolution, a product or a pool, it is given a handle, and f(a) is computed again when it asks for
it. That costs one elementwise pass a layer and halves what is held.

Both are kept outside `recomputing()`, inside other saved-tensor hooks (checkpointing, offloading),
and under torch.compile, which decides for itself what to compute again.

PyTorch does not check tensors that hooks keep for changes in place. So the hooks here do.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualprop.kernels import Activation
from dualprop.reading.memory import saved_tensors_hooks

_AUTOGRAD: Any = torch._C._autograd


@dataclass(frozen=True)
class _Computed:
    """A state that was just computed, while it lives unchanged, and its activation and drive."""

    state: weakref.ref[Tensor]
    version: int
    drive: Tensor
    activation: Activation


class _Kept:
    """A tensor as it was saved."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, 0 if tensor.is_inference() else tensor._version

    def unchanged(self) -> Tensor:
        if not self.tensor.is_inference() and self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self.tensor.type()} {list(self.tensor.shape)}] is at version {self.tensor._version}; expected version "
                f"{self.version} instead. Change a copy of it, or (for the drive of an activation) use "
                "dp.dualize(…, recompute_states=False) and do not change it at all."
            )
        return self.tensor


class _Handle:
    """In place of a saved view of f(drive)."""

    __slots__ = ("activation", "drive", "offset", "size", "stride")

    def __init__(self, drive: Tensor, activation: Activation, view: Tensor) -> None:
        self.drive, self.activation = _Kept(drive), activation
        self.size, self.stride, self.offset = view.size(), view.stride(), view.storage_offset()

    def view(self) -> Tensor:
        with torch.no_grad():
            state = self.activation.f(self.drive.unchanged().detach())
        return state.as_strided(self.size, self.stride, self.offset)


class Saved:
    """The hooks of one forward pass and the states that it has computed, by memory address."""

    def __init__(self) -> None:
        self.states: dict[int, _Computed] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, _unpack)

    def pack(self, tensor: Tensor) -> _Kept | _Handle:
        if tensor.layout != torch.strided or not self.states:
            return _Kept(tensor)
        computed = self.states.get(_address(tensor))
        state = None if computed is None else computed.state()
        # The state was written over since, or another tensor has come to lie at its address.
        if computed is None or state is None or state._version != computed.version or tensor.numel() != state.numel():
            return _Kept(tensor)
        if _address(state) != _address(tensor) or tensor.dtype != state.dtype:
            return _Kept(tensor)
        return _Handle(computed.drive, computed.activation, tensor)


def _unpack(saved: _Kept | _Handle) -> Tensor:
    return saved.unchanged() if isinstance(saved, _Kept) else saved.view()


_PASSES = threading.local()


def _stack() -> list[Saved]:
    if not hasattr(_PASSES, "stack"):
        _PASSES.stack = []
    stack: list[Saved] = _PASSES.stack
    return stack


def is_ours(hooks: tuple[Any, Any]) -> bool:
    """Whether these hooks are of this module."""
    return hooks[1] is _unpack


def is_free() -> bool:
    """Whether hooks are allowed, and no others are in force that ours would displace."""
    return _AUTOGRAD._saved_tensors_hooks_is_enabled() and saved_tensors_hooks() is None


def enter() -> Saved:
    """Begin a forward pass whose states are to be computed again; `leave` ends it."""
    saved = Saved()
    saved.hooks.__enter__()
    _stack().append(saved)
    return saved


def leave(saved: Saved) -> None:
    """End a forward pass, whatever other hooks were left over above its own."""
    if saved not in _stack():
        return
    _stack().remove(saved)
    above = []
    while (hooks := saved_tensors_hooks()) is not None:
        _AUTOGRAD._pop_saved_tensors_default_hooks()
        if hooks[0] == saved.pack:
            break
        above.append(hooks)
    for hooks in reversed(above):
        _AUTOGRAD._push_saved_tensors_default_hooks(*hooks)
    # The hooks and their object hold each other: without this, drives wait for the collector.
    saved.states.clear()


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Inside, states of dyadic activations are not kept for the backward pass but recomputed."""
    if not is_free():
        yield
        return
    saved = enter()
    try:
        yield
    finally:
        leave(saved)


def register(state: Tensor, drive: Tensor, activation: Activation) -> None:
    """Note that `state` is activation.f(drive), in separate memory, inside `recomputing()`."""
    if torch.compiler.is_compiling() or not _stack():
        return
    # The state must be laid out as its drive: what is computed again then lies as what was saved.
    if state.stride() == drive.stride() and state.storage_offset() == 0 and _address(state) != _address(drive):
        computed = _Computed(weakref.ref(state), state._version, drive.detach(), activation)
        _stack()[-1].states[_address(state)] = computed


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
