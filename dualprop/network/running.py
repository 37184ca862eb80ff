"""One model for all passes of a step, though each of them runs it again.

What random numbers the first pass draws (dropout, drop path), later passes draw again. What buffers
and attributes it changes (BatchNorm's statistics, spectral norm's vectors, counters), it alone
changes.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.network import inputs
from dualprop.reading.mode import mark

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}


class OneModel:
    """A model and its inputs, to be run several times as if it ran once.

    Args:
        model: the user's module.
        x: its inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
    """

    def __init__(self, model: nn.Module, x: Any) -> None:
        self.model, self.x = model, inputs.detached(x)
        mark(self.x)
        self.is_first = True
        modules = list(model.modules())
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        # By id, the name of each trainable parameter.
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._before = [(module, _attributes(module)) for module in modules]
        self._after: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        self._random = _random_state(_devices(inputs.tensors(x) + list(self.parameters.values())))

    def run(self, mode: contextlib.AbstractContextManager[Any]) -> Any:
        """The model's output, run inside `mode`."""
        if self.is_first:
            with mode:
                output = self.call()
            self.is_first = False
            self._after = [
                (module, before, after) for module, before in self._before if not _same(before, after := _attributes(module))
            ]
            return output
        now = _random_state(self._random.keys() - {"python", "numpy"})
        with self._as_before(), mode:
            _set_random_state(self._random)
            try:
                return self.call()
            finally:
                _set_random_state(now)

    def again(self) -> None:
        """Make the next pass the first one, after a first pass that was broken off."""
        for module, name, buffer, content in self._buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(content)
        for module, before in self._before:
            _set_attributes(module, before)
        _set_random_state(self._random)

    def call(self) -> Any:
        return inputs.called(self.model, self.x)

    @contextlib.contextmanager
    def _as_before(self) -> Iterator[None]:
        """Inside, buffers and attributes are copies of what they were before the first pass."""
        try:
            for module, name, _, content in self._buffers:
                module._buffers[name] = content.clone()
            for module, old, _ in self._after:
                _set_attributes(module, old)
            yield
        finally:
            for module, name, buffer, _ in self._buffers:
                module._buffers[name] = buffer
            for module, _, new in self._after:
                _set_attributes(module, new)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What the user's forward may have set on a module, lists and dicts copied."""
    return {name: _copied(value) for name, value in vars(module).items() if name not in _INTERNAL}


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict, set) else value


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        value is other[name] or (type(value) in (list, dict, set) and _alike(value, other[name])) for name, value in one.items()
    )


def _alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or len(one) != len(other):
        return False
    parts = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else zip(one, other, strict=True)
    return all(a is b for a, b in parts)


def _set_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    present = vars(module)
    for name in [name for name in present if name not in _INTERNAL and name not in attributes]:
        del present[name]
    present.update({name: _copied(value) for name, value in attributes.items()})


def _devices(tensors: Iterable[Tensor]) -> set[Any]:
    return {tensor.device for tensor in tensors if tensor.is_cuda}


def _random_state(devices: Any) -> dict[Any, Any]:
    """The states of the random number generators that a forward pass may draw from, by device."""
    if any(isinstance(device, torch.device) and torch.cuda.is_current_stream_capturing() for device in devices):
        raise SettingError(
            "a network that is read by running it sets random states, which a captured CUDA graph can't. Train without capture."
        )
    states: dict[Any, Any] = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    return states | {device: torch.cuda.get_rng_state(device) for device in devices if isinstance(device, torch.device)}


def _set_random_state(states: dict[Any, Any]) -> None:
    for source, state in states.items():
        if source == "python":
            random.setstate(state)
        elif source == "cpu":
            torch.set_rng_state(state)
        elif source == "numpy":
            sys.modules["numpy"].random.set_state(state)
        else:
            torch.cuda.set_rng_state(state, source)
