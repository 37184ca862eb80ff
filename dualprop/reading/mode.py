"""Meeting every call of an activation while a model runs.

PyTorch hands each call of its functions and methods to a `TorchFunctionMode`. Calls that are
activations of data go to `emit`; all others run as they are. What is made of parameters, buffers
and constants alone is no data, and its activations are no neurons.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dualprop.errors import UnsupportedModuleError
from dualprop.neurons import AbstractNeuron
from dualprop.reading.activations import READERS
from dualprop.reading.report import Report
from dualprop.reading.sight import JIT, Sight, number

# Set on what is made in a pass of parameters and constants alone.
CONSTANT = "_dualprop_is_constant"
# Makes data of nothing: noise that a model draws.
_NOISE = frozenset((torch.rand, torch.randn, torch.randint, torch.normal, torch.randperm))


def mark(values: Any) -> None:
    """Note that these tensors, nested in any way, are data, whatever they were made of."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and hasattr(value, CONSTANT):
            delattr(value, CONSTANT)


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
        # Parameters that are inputs, and so data; and buffers, which are not. These are held: else
        # what is made in place of one that the model replaces may have its id.
        self.given: frozenset[int] = frozenset()
        self.buffers = self.present_buffers()
        # Under torch.compile, which takes no marks: what is known to be no data.
        self.constants: list[Tensor] = []
        # None in what torch.compile follows: calls are met while it is compiled.
        self.sight: Sight | None = None if torch.compiler.is_compiling() else Sight()
        # The first activation that ran out of sight: its name, where, and in what.
        self.hidden: tuple[str, str, str] | None = None
        # Whether the model was never run so before.
        self.is_first = report is not None

    def present_buffers(self) -> dict[int, Tensor]:
        """By id, the buffers that the model has now."""
        return {} if self.model is None else {id(buffer): buffer for buffer in self.model.buffers() if not buffer.requires_grad}

    def emit(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor:
        """The state of a neuron with this drive, which the model goes on with."""
        raise NotImplementedError

    def before(self, func: Any, args: tuple[Any, ...]) -> None:
        """Called before any other call of PyTorch's functions."""

    def is_data(self, value: Any) -> bool:
        """Whether a tensor, or one of a list, is data or made of it."""
        kind = type(value)
        if kind is Tensor:
            return not (hasattr(value, CONSTANT) or id(value) in self.buffers)
        if kind is nn.Parameter:
            return id(value) in self.given
        if kind in _PLAIN:
            return False
        if isinstance(value, Tensor):
            return not (isinstance(value, nn.Parameter) or hasattr(value, CONSTANT) or id(value) in self.buffers)
        if isinstance(value, (list, tuple)):
            return any(map(self.is_data, value))
        return isinstance(value, dict) and any(map(self.is_data, value.values()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = READERS.get(func)
        if torch.compiler.is_compiling():
            return self._compiled(func, read, args, kwargs)
        sight = self.sight
        if sight is None:
            return self._met(func, read, args, kwargs)
        if sight.number != number():
            sight.note(self.where() if self.is_first else "")
        if sight.gaps:
            self._look_at(sight, (args, kwargs))
        result = self._met(func, read, args, kwargs)
        sight.number = number()
        return result

    def _look_at(self, sight: Sight, values: Any) -> None:
        """Note which activations made these out of sight, and tell of the user's own Functions."""
        for name, is_activation, place in sight.under(values):
            if is_activation and name not in self.leave and (name != JIT or self.is_first):
                self.hides(name, place, "a function of torch.jit or of C++")
            elif self.report is not None:
                self.report.leaves(name, place, name in self.leave or self._is_left_at(place))

    def hides(self, name: str, place: str, what: str) -> None:
        """An activation ran out of sight."""
        self.hidden = self.hidden or (name, place, what)

    def look_at_output(self, outputs: Any) -> None:
        """After a pass: raise UnsupportedModuleError where activations ran out of sight in it."""
        if self.sight is None:
            return
        if self.sight.number != number():
            self.sight.note("")
        if self.sight.gaps:
            self._look_at(self.sight, tree_leaves(outputs))
        if self.hidden is None or _holds_script(self.model):
            return
        name, place, what = self.hidden
        where = f", in or before '{place}'" if place else ""
        leave = "" if name == JIT else f", or leave it to exact derivatives: leave=({name!r},)"
        raise UnsupportedModuleError(
            f"{name} runs inside {what}{where}, which hides it. Call the function itself (PYTORCH_JIT=0 has torch.jit do "
            f"so){leave}."
        )

    def _met(self, func: Any, read: Any, args: Any, kwargs: Any) -> Any:
        with_data = False
        for value in args:
            if self.is_data(value):
                with_data = True
                break
        with_data = with_data or (bool(kwargs) and self.is_data(kwargs)) or func in _NOISE
        if read is not None and with_data and self._is_neuron(args, kwargs) and not self._is_left(func):
            return self._read(func, read, args, kwargs)
        if read is not None and with_data and _is_transformed(args, kwargs) and not self._is_left(func):
            self.hides(getattr(func, "__name__", str(func)), self.where(), "a transform of torch.func (vmap, say)")
        self.before(func, args)
        result = func(*args, **kwargs)
        if self.report is not None:
            self.report.meet(func, (*args, *kwargs.values()), result, self.where, read is not None, with_data, self._is_left)
        if not with_data:
            if not (args and result is args[0]):
                self._mark_constant(result)
        elif args and hasattr(args[0], CONSTANT):
            _was_written(func, args[0])
        return result

    def _mark_constant(self, result: Any) -> None:
        if isinstance(result, Tensor):
            setattr(result, CONSTANT, True)
        elif isinstance(result, (list, tuple)):
            for each in result:
                self._mark_constant(each)

    def _compiled(self, func: Any, read: Any, args: Any, kwargs: Any) -> Any:
        """The same while torch.compile follows it: what is made of parameters alone is listed."""
        with_data = not self._is_constant(args) or not self._is_constant(tuple(kwargs.values())) or func in _NOISE
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
        a = _drive(args, kwargs)
        if not isinstance(a, Tensor) or "out" in kwargs or not a.is_floating_point():
            return False
        return torch.is_grad_enabled() and a.requires_grad

    def where(self) -> str:
        """The name of the innermost module whose forward is running."""
        return next((name or kind for name, kind in _modules_running(self._names())), "")

    def places(self) -> list[str]:
        """The names of the modules whose forward is running, from the innermost out."""
        return [name for name, _ in _modules_running(self._names()) if name]

    def _names(self) -> dict[int, str]:
        names: dict[int, str] | None = getattr(self, "_names_of_modules", None)
        if names is None:
            names = self._names_of_modules = _names_in(self.model)
        return names

    def _is_left_by_function(self, func: Any) -> bool:
        return bool(self.leave) and getattr(func, "__name__", "").rstrip("_") in self.leave

    def _is_left_at(self, place: str) -> bool:
        modules = {} if self.model is None else dict(self.model.named_modules())
        around = [name for name in modules if name == "" or place == name or place.startswith(f"{name}.")]
        return any(name in self.leave or type(modules[name]).__name__ in self.leave for name in around)

    def _is_left(self, func: Any) -> bool:
        if not self.leave:
            return False
        if self._is_left_by_function(func):
            return True
        return any(name in self.leave or kind in self.leave for name, kind in _modules_running(self._names()))


def _is_transformed(args: Any, kwargs: Any) -> bool:
    """Whether the drive is held by a transform of torch.func, with a gradient inside."""
    a = _drive(args, kwargs)
    if not isinstance(a, Tensor) or not _functorch.is_functorch_wrapped_tensor(a):
        return False
    while _functorch.is_functorch_wrapped_tensor(a) and not a.requires_grad:
        a = _functorch.get_unwrapped(a)
    return a.requires_grad and torch.is_grad_enabled()


def _drive(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


_functorch: Any = torch._C._functorch
_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, slice))


def _was_written(func: Any, tensor: Tensor) -> None:
    """Data was written over a constant, or over a view of one, which then is none."""
    name = getattr(func, "__name__", "")
    if name == "__setitem__" or (name.startswith("__i") and name.endswith("__")) or (name.endswith("_") and name[:2] != "__"):
        mark([tensor, tensor._base])


def _holds_script(model: nn.Module | None) -> bool:
    """Whether a ScriptModule was left to exact derivatives: another would have been refused."""
    return model is not None and any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


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
