"""One model for all passes of a step, though each of them runs it again.

What random numbers the first pass draws (dropout, drop path), later passes draw again. What buffers
and attributes it changes (BatchNorm's statistics, spectral norm's vectors, counters), it alone
changes.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import dualprop.captures as captures
from dualprop.errors import SettingError
from dualprop.network import inputs
from dualprop.network.snapshots import Snapshot
from dualprop.reading.mode import mark


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
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        check_leaves(self.parameters)
        # By id, the name of each trainable parameter.
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._before = Snapshot(model, copied=True)
        self._after, self._changed = self._before, list[int]()
        # A model may write over its inputs. It does so once.
        self._given = inputs.copied(self.x)
        self._versions = inputs.versions(self.x)
        self._random = _random_state(_devices(inputs.tensors(x) + list(self.parameters.values())))

    def run(self, mode: contextlib.AbstractContextManager[Any]) -> Any:
        """The model's output, run inside `mode`."""
        if self.is_first:
            with mode:
                output = inputs.called(self.model, self.x)
            self.is_first = False
            self._after = Snapshot(self.model, also=[container for container, _ in self._before.containers.values()])
            self._changed = self._before.changed(self._after)
            return output
        x = self.x
        if self._versions != inputs.versions(x):
            x = inputs.copied(self._given)
            mark(x)
        now = _random_state(self._random.keys() - {"python", "numpy"})
        try:
            self._before.put_copies(self._changed)
            with mode:
                _set_random_state(self._random)
                return inputs.called(self.model, x)
        finally:
            _set_random_state(now)
            self._after.put_back(self._after.containers if self._changed else ())

    def again(self) -> None:
        """Make the next pass the first one, after a first pass that was broken off."""
        self._before.put_contents()
        for value, content in zip(inputs.tensors(self.x), inputs.tensors(self._given), strict=True):
            value.data.copy_(content)
        _set_random_state(self._random)


@contextlib.contextmanager
def unnoticed(model: nn.Module | None, x: Any) -> Iterator[None]:
    """Inside, the model may be run on x: what it remembers, and the generators that it may draw
    from, are put back as they were."""
    before = None if model is None else Snapshot(model, copied=True)
    drawn = _random_state(_devices(inputs.tensors(x)))
    try:
        yield
    finally:
        if before is not None:
            before.put_contents()
        _set_random_state(drawn)


def check_leaves(parameters: Mapping[str, Tensor]) -> None:
    """Raise SettingError where a parameter was replaced by a tensor that is computed of others."""
    for name, parameter in parameters.items():
        if not parameter.is_leaf:
            raise SettingError(
                f"'{name}' was replaced by a tensor that is computed of others, as by torch.func.functional_call, but a rule's "
                "gradients are of parameters. Load the values into the model, or use dp.dualize(model)."
            )


def _devices(tensors: Iterable[Tensor]) -> set[Any]:
    return {tensor.device for tensor in tensors if tensor.is_cuda}


def _random_state(devices: Any) -> dict[Any, Any]:
    """The states of the random number generators that a forward pass may draw from, by device."""
    is_on_cuda = any(isinstance(device, torch.device) for device in devices)
    if captures.is_recording() or (is_on_cuda and torch.cuda.is_current_stream_capturing()):
        raise SettingError(
            "a network that is read by running it sets random states, which a captured step can't. Train without capture."
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
