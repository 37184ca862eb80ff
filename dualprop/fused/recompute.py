"""Keep one of drive and state: a dyadic activation's backward needs a, the map above it f(a).

Back-propagation keeps f(a) alone. Here a alone is kept. Wherever autograd saves f(a), for a
convolution, a product or a pool, it is given a handle, and f(a) is computed again when it asks for
it. That costs one elementwise pass a layer and halves what is held.

Both are kept outside `recomputing()`, inside other saved-tensor hooks (checkpointing, offloading),
and under torch.compile, which decides for itself what to compute again.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.kernels import Activation


@dataclass(frozen=True)
class _Computed:
    """A state that was just computed, while it lives unchanged, and its activation and drive."""

    state: weakref.ref[Tensor]
    version: int
    drive: Tensor
    activation: Activation


@dataclass(frozen=True)
class _Handle:
    """In place of a saved view of f(drive)."""

    drive: Tensor
    activation: Activation
    size: torch.Size
    stride: tuple[Any, ...]
    offset: Any


class _Saved:
    """The hooks of one forward pass and the states that it has computed, by memory address."""

    def __init__(self) -> None:
        self.states: dict[int, _Computed] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, _unpack)

    def pack(self, tensor: Tensor) -> Tensor | _Handle:
        if tensor.layout != torch.strided:
            return tensor
        computed = self.states.get(_address(tensor))
        state = None if computed is None else computed.state()
        # The state was written over since, or another tensor has come to lie at its address.
        if computed is None or state is None or state._version != computed.version or tensor.numel() != state.numel():
            return tensor
        if _address(state) != _address(tensor) or tensor.dtype != state.dtype:
            return tensor
        return _Handle(computed.drive, computed.activation, tensor.size(), tensor.stride(), tensor.storage_offset())


def _unpack(saved: Tensor | _Handle) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    with torch.no_grad():
        state = saved.activation.f(saved.drive.detach())
    return state.as_strided(saved.size, saved.stride, saved.offset)


_PASSES = threading.local()


def _stack() -> list[_Saved]:
    if not hasattr(_PASSES, "stack"):
        _PASSES.stack = []
    stack: list[_Saved] = _PASSES.stack
    return stack


def is_free() -> bool:
    """Whether hooks are allowed, and no others are in force that ours would displace."""
    autograd: Any = torch._C._autograd
    return autograd._saved_tensors_hooks_is_enabled() and autograd._top_saved_tensors_default_hooks(False) is None


def enter() -> None:
    """Begin a forward pass whose states are to be computed again; `leave` ends it."""
    saved = _Saved()
    saved.hooks.__enter__()
    _stack().append(saved)


def leave() -> None:
    """End the forward pass that was begun last."""
    saved = _stack().pop()
    saved.hooks.__exit__()
    # The hooks and their object hold each other: without this, drives wait for the collector.
    saved.states.clear()


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Inside, states of dyadic activations are not kept for the backward pass but recomputed."""
    if not is_free():
        yield
        return
    enter()
    try:
        yield
    finally:
        leave()


def register(state: Tensor, drive: Tensor, activation: Activation) -> None:
    """Note that `state` is activation.f(drive), in separate memory, inside `recomputing()`."""
    if torch.compiler.is_compiling() or not _stack():
        return
    # The state must be laid out as its drive: what is computed again then lies as what was saved.
    if state.stride() == drive.stride() and state.storage_offset() == 0 and _address(state) != _address(drive):
        computed = _Computed(weakref.ref(state), state._version, drive.detach(), activation)
        _stack()[-1].states[_address(state)] = computed


def attach(model: nn.Module) -> None:
    """Have every forward pass of `model` run as inside `recomputing()`."""
    model.register_forward_pre_hook(_before)
    model.register_forward_hook(_after, always_call=True)


def _before(module: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if module in _entered():
        # After an interrupt from the keyboard, for which no hook is called.
        while _entered().pop() is not module:
            leave()
        leave()
    if is_free():
        enter()
        _entered().append(module)


def _after(module: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling() and _entered() and _entered()[-1] is module:
        _entered().pop()
        leave()


def _entered() -> list[nn.Module]:
    if not hasattr(_PASSES, "entered"):
        _PASSES.entered = []
    entered: list[nn.Module] = _PASSES.entered
    return entered


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
