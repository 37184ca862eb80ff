"""What a model remembers between its passes, and how to put it back.

That is the attributes and buffers of its modules, and what is in their lists, dicts, sets and
tuples, modules and random number generators among it. What other objects, closures and globals
hold is not seen.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_DICTS = (dict, OrderedDict, defaultdict)
_MANY = (list, set, deque)
# What most attributes are, and holds nothing.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device})


class Snapshot:
    """The contents of all that a model remembers.

    Args:
        model: the module to begin with.
        also: further containers to look into.
        copied: keep the contents of tensors too, which the model may write over. Those that ask for
            a gradient are not its memory.
    """

    def __init__(self, model: nn.Module, also: Iterable[Any] = (), copied: bool = False) -> None:
        # By id: a container and what it holds; a tensor and a copy; a generator and its state.
        self.containers: dict[int, tuple[Any, Any]] = {}
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self.generators: dict[int, tuple[Any, Any]] = {}
        stack: list[Any] = [*also, model]
        while stack:
            each = stack.pop()
            if type(each) in _ATOMS:
                continue
            if isinstance(each, Tensor):
                if copied and not each.requires_grad and id(each) not in self.tensors:
                    self.tensors[id(each)] = each, each.detach().clone()
            elif type(each) is tuple:
                stack.extend(each)
            elif id(each) in self.containers or id(each) in self.generators:
                continue
            elif isinstance(each, nn.Module):
                content = {name: value for name, value in vars(each).items() if name not in _INTERNAL}
                self.containers[id(each)] = each, content
                stack += [each._buffers, *each._modules.values(), *content.values()]
            elif type(each) in _DICTS:
                self.containers[id(each)] = each, dict(each)
                stack.extend(each.values())
            elif type(each) in _MANY:
                self.containers[id(each)] = each, list(each)
                stack.extend(each)
            elif (state := _generator_state(each)) is not None:
                self.generators[id(each)] = each, state

    def put_back(self, only: Iterable[int] | None = None) -> None:
        """Give the containers what they held, and generators their states. `only`: of these ids."""
        for key in self.containers if only is None else only:
            _fill(*self.containers[key])
        for generator, state in self.generators.values():
            _set_generator_state(generator, state)

    def put_copies(self, only: Iterable[int]) -> None:
        """The same, with new copies of the tensors that were kept."""
        copies: dict[int, Tensor] = {}
        for key in only:
            container, content = self.containers[key]
            if isinstance(content, dict):
                _fill(container, {name: self._copy(value, copies) for name, value in content.items()})
            else:
                _fill(container, [self._copy(value, copies) for value in content])
        self.put_back(())

    def put_contents(self) -> None:
        """Put all back as it was, the tensors' contents too."""
        self.put_back()
        for tensor, content in self.tensors.values():
            tensor.data.copy_(content)

    def changed(self, after: Snapshot) -> list[int]:
        """The containers that hold something else afterwards, or a tensor that was kept."""
        return [
            key
            for key, (_, content) in self.containers.items()
            if not _same(content, after.containers[key][1]) or any(self._is_kept(value) for value in _values(content))
        ]

    def _is_kept(self, value: Any) -> bool:
        return any(map(self._is_kept, value)) if type(value) is tuple else id(value) in self.tensors

    def _copy(self, value: Any, copies: dict[int, Tensor]) -> Any:
        if type(value) is tuple:
            return tuple(self._copy(part, copies) for part in value)
        if not isinstance(value, Tensor) or id(value) not in self.tensors:
            return value
        if id(value) not in copies:
            copies[id(value)] = self.tensors[id(value)][1].clone()
        return copies[id(value)]


def _values(content: Any) -> Iterable[Any]:
    return content.values() if isinstance(content, dict) else content


def _same(one: Any, other: Any) -> bool:
    if len(one) != len(other):
        return False
    if isinstance(one, dict) and list(one) != list(other):
        return False
    return all(a is b for a, b in zip(_values(one), _values(other), strict=True))


def _fill(container: Any, content: Any) -> None:
    if isinstance(container, nn.Module):
        present = vars(container)
        for name in [name for name in present if name not in _INTERNAL and name not in content]:
            del present[name]
        present.update(content)
    elif isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.extend(content) if isinstance(container, deque) else container.update(content)


def _numpy_bits(value: Any) -> Any:
    """The bit generator of a NumPy generator, else None."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.random.Generator, numpy.random.RandomState)):
        return None
    return value.bit_generator if isinstance(value, numpy.random.Generator) else value._bit_generator


def _generator_state(value: Any) -> Any:
    """The state of a random number generator; None of anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    bits = _numpy_bits(value)
    return None if bits is None else bits.state


def _set_generator_state(value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, random.Random):
        value.setstate(state)
    else:
        _numpy_bits(value).state = state
