"""Meeting every call of an activation while a model runs.

PyTorch hands each call of its functions and methods to a `TorchFunctionMode`. Calls that are
activations of data go to `emit`; all others run as they are. An activation is of data where its
drive depends on the model's inputs: what is made of parameters alone is no neuron.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dualprop.neurons import AbstractNeuron
from dualprop.reading.activations import READERS
from dualprop.reading.report import Report

_MARK = "_dualprop_is_data"
# What makes data of nothing: noise that a model draws.
_NOISE = frozenset((torch.rand, torch.randn, torch.randint, torch.normal, torch.randperm))


def mark(values: Any) -> None:
    """Note that these tensors, nested in any way, are data or were made of it."""
    if isinstance(values, Tensor):
        setattr(values, _MARK, True)
    elif isinstance(values, (list, tuple)):
        for value in values:
            mark(value)
    elif values is not None and not isinstance(values, (int, float, str)):
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                setattr(value, _MARK, True)


def is_data(value: Any) -> bool:
    """Whether a tensor, or a list of some, was made of data."""
    if isinstance(value, Tensor):
        return getattr(value, _MARK, False)
    if isinstance(value, (list, tuple)):
        return any(map(is_data, value))
    return isinstance(value, dict) and any(map(is_data, value.values()))


def _is_from_custom_code(args: Any) -> bool:
    """Whether a tensor without a mark comes through an autograd function of the user's.

    PyTorch does not hand its calls to a mode, so that its results bear no mark.
    """
    tensor = args[0] if args else None
    stack = [tensor.grad_fn] if isinstance(tensor, Tensor) and tensor.grad_fn is not None else []
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        below = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= below
        stack.extend(below)
    return False


class Reading(TorchFunctionMode):
    """Runs the model in it, and gives its activations to `emit`.

    Args:
        model: whose modules are named in the report.
        leave: names of functions ("softmax"), and names or types of modules whose calls are left.
        report: to be filled by this run, or None.
    """

    def __init__(self, model: nn.Module | None = None, leave: Iterable[str] = (), report: Report | None = None) -> None:
        self.model, self.leave, self.report = model, frozenset(leave), report
        self.function: Any = None
        # Under torch.compile, which has no marks: what is known to be no data.
        self.constants: list[Tensor] = []

    def emit(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor:
        """The state of a neuron with this drive, which the model goes on with."""
        raise NotImplementedError

    def before(self, func: Any, args: tuple[Any, ...]) -> None:
        """Called before any other call of PyTorch's functions."""

    def with_data(self, args: Any, kwargs: Any) -> bool:
        """Whether a call with these arguments reads data."""
        return is_data(args) or (bool(kwargs) and is_data(tuple(kwargs.values())))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = READERS.get(func)
        if torch.compiler.is_compiling():
            return self._compiled(func, read, args, kwargs)
        with_data = self.with_data(args, kwargs) or func in _NOISE
        if read is not None:
            with_data = with_data or _is_from_custom_code(args)
            if with_data and self._is_neuron(args, kwargs) and not (self.leave and self._is_left(func)):
                result = self._read(func, read, args, kwargs)
                mark(result)
                return result
        self.before(func, args)
        result = func(*args, **kwargs)
        if self.report is not None:
            self.report.meet(func, args, result, self.where, read is not None, with_data)
        if with_data:
            mark(result)
        return result

    def _compiled(self, func: Any, read: Any, args: Any, kwargs: Any) -> Any:
        """The same while torch.compile follows it: what is made of parameters alone is listed."""
        with_data = not self._is_constant(args) or not self._is_constant(tuple(kwargs.values()))
        if read and with_data and self._is_neuron(args, kwargs) and not self._is_left_by_function(func):
            return self._read(func, read, args, kwargs)
        result = func(*args, **kwargs)
        if not with_data and isinstance(result, Tensor):
            self.constants.append(result)
        return result

    def _is_constant(self, args: Any) -> bool:
        for value in args:
            if isinstance(value, (list, tuple)):
                if not self._is_constant(value):
                    return False
            elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                found = False
                for constant in self.constants:
                    if value is constant:
                        found = True
                        break
                if not found:
                    return False
        return True

    def _read(self, func: Any, read: Any, args: Any, kwargs: Any) -> Any:
        self.function = func
        result = read(self.emit, *args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result

    def _is_neuron(self, args: Any, kwargs: Any) -> bool:
        a = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not isinstance(a, Tensor) or "out" in kwargs or not a.is_floating_point():
            return False
        return torch.is_grad_enabled() and a.requires_grad

    def where(self) -> str:
        """The name of the innermost module whose forward is running."""
        return next((name or kind for name, kind in _modules_running(self._names())), "")

    def _names(self) -> dict[int, str]:
        names: dict[int, str] | None = getattr(self, "_names_of_modules", None)
        if names is None:
            names = self._names_of_modules = _names_in(self.model)
        return names

    def _is_left_by_function(self, func: Any) -> bool:
        return bool(self.leave) and getattr(func, "__name__", "").rstrip("_") in self.leave

    def _is_left(self, func: Any) -> bool:
        if self._is_left_by_function(func):
            return True
        return any(name in self.leave or kind in self.leave for name, kind in _modules_running(self._names()))


def running(model: nn.Module | None) -> str:
    """The dotted name of the innermost module of `model` whose forward is running, or its type."""
    return next((name or kind for name, kind in _modules_running(_names_in(model))), "")


def _names_in(model: nn.Module | None) -> dict[int, str]:
    return {} if model is None else {id(module): name for name, module in model.named_modules()}


def _modules_running(names: dict[int, str]) -> Iterable[tuple[str, str]]:
    """Name and type of the modules that are running, from the innermost out."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
        if isinstance(module, nn.Module):
            yield names.get(id(module), ""), type(module).__name__
        frame = frame.f_back  # type: ignore[assignment]
