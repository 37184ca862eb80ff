"""Finding and replacing the activations of any module: its activation modules and functional calls.

First everything is read and judged, then everything is changed. So a refusal leaves the model as it
was. A forward that the user wrote is read by torch.fx, one module at a time, with its children
opaque. It is rewritten only if it calls an activation. What is linear, structural or a
normalisation stays with autograd, which is exact for it. What is neither that nor a listed
activation is refused by name, since it may hide an activation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from dualprop import neurons
from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.fused.activations import (
    ACTIVATION_FUNCTIONS,
    ACTIVATION_MODULES,
    CONTAINERS,
    EXACT_FUNCTIONS,
    EXACT_MODULES,
    UNREAD_MODULES,
    Elementwise,
)
from dualprop.kernels import Activation

Make = Callable[[Activation, str, int], nn.Module]


_RANDOM = (
    "random",
    "rand",
    "randn",
    "randint",
    "randperm",
    "rand_like",
    "randn_like",
    "bernoulli",
    "normal",
    "choice",
    "uniform",
)


@dataclass(frozen=True)
class _Site:
    """One activation: a child to replace, or a call in a rewritten forward.

    `site` says where, for messages.
    """

    parent: nn.Module
    key: str
    activation: Activation
    description: str
    node: fx.Node | None = None


@dataclass(frozen=True)
class _Forward:
    module: nn.Module
    graph: fx.Graph


def replace_activations(model: nn.Module, make: Make, leave: tuple[str, ...], num_expected: int | None) -> nn.Module:
    """Replace every activation of `model` by make(f, description, index).

    See `dualprop.fused.dyadic.dualize`.
    """
    leave = (leave,) if isinstance(leave, str) else leave
    unused = set(leave)
    root = nn.Module()
    root.add_module("model", model)
    places: list[_Site] = []
    forwards: list[_Forward] = []
    left: list[str] = []
    for parent, key, child, name in _walk(root, "", set()):
        if any(name.startswith(f"{other}.") for other in left):
            continue
        if {name.removeprefix("model."), type(child).__name__} & set(leave) or isinstance(child, UNREAD_MODULES):
            left.append(name)
        _judge(parent, key, child, name.removeprefix("model").removeprefix(".") or "model", unused, leave, places, forwards)
    if unused:
        raise SettingError(f"leave names {', '.join(sorted(map(repr, unused)))}, which the model does not hold. Remove it.")
    if not places:
        raise UnsupportedModuleError("the model holds no activation to convert: it is linear, or all of it is in leave=.")
    if num_expected is not None and num_expected != len(places):
        raise SettingError(f"beta lists {num_expected} values, but the model has {len(places)} activations. Give one each.")
    for index, place in enumerate(places):
        dyadic = make(place.activation, place.description, index)
        if place.node is None:
            place.parent._modules[place.key] = dyadic
        else:
            place.parent.add_module(place.key, dyadic)
            place.node.op, place.node.target = "call_module", place.key
            place.node.args, place.node.kwargs = (_operand(place.node),), {}
    for forward in forwards:
        rewritten = fx.GraphModule(forward.module, forward.graph)
        forward.module.forward = _RewrittenForward(forward.module, type(rewritten).forward)
    converted = root._modules["model"]
    assert converted is not None
    return converted


def _walk(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
    """(parent, key, child, dotted name) of all modules, once; of activations, once per place."""
    for key, child in module._modules.items():
        if child is None or (id(child) in seen and type(child) not in ACTIVATION_MODULES):
            continue
        seen.add(id(child))
        child_name = f"{name}.{key}" if name else key
        yield module, key, child, child_name
        yield from _walk(child, child_name, seen)


def _judge(
    parent: nn.Module,
    key: str,
    child: nn.Module,
    name: str,
    unused: set[str],
    leave: tuple[str, ...],
    places: list[_Site],
    forwards: list[_Forward],
) -> None:
    """Note down what is to be done with one module, or refuse it."""
    kind = type(child)
    if nn.utils.parametrize.is_parametrized(child):
        kind = kind.__bases__[0]
    left = {name, kind.__name__} & set(leave)
    if left:
        unused -= left
        return
    if kind in ACTIVATION_MODULES:
        if child._forward_hooks or child._forward_pre_hooks:
            raise UnsupportedModuleError(f"'{name}' has forward hooks, which would be lost. Register them after dualize.")
        try:
            activation = ACTIVATION_MODULES[kind](child)
        except SettingError as error:
            raise UnsupportedModuleError(f"'{name}' is {child}: {error}") from None
        places.append(_Site(parent, key, activation, repr(child)))
        return
    if isinstance(child, UNREAD_MODULES) or kind in EXACT_MODULES or (kind in CONTAINERS and "forward" not in vars(child)):
        return
    if isinstance(child, nn.Sequential) and kind.forward is nn.Sequential.forward and "forward" not in vars(child):
        return
    if kind.__name__ == "Dyadic":
        raise UnsupportedModuleError(f"'{name}' is dyadic already. Dualize a fresh copy of the model.")
    if kind.__module__.startswith("torch.nn") or isinstance(child, torch.jit.ScriptModule):
        raise UnsupportedModuleError(
            f"'{name}' is {kind.__name__}, which holds or may hold an activation that can't be converted. Replace it, or "
            f"leave it to back-propagation with leave=('{kind.__name__}',)."
        )
    calls, graph = _judge_forward(child, name, unused, leave)
    if calls:
        places.extend(calls)
        forwards.append(_Forward(child, graph))


def _judge_forward(module: nn.Module, name: str, unused: set[str], leave: tuple[str, ...]) -> tuple[list[_Site], fx.Graph]:
    """The activations that a user's forward calls, and its graph."""
    _check_readable(module, name)
    graph = _trace(module, name)
    places: list[_Site] = []
    for node in graph.nodes:
        _check_in_place(module, name, node)
        if node.op not in ("call_function", "call_method"):
            continue
        function = _function_name(node)
        if function in leave:
            unused.discard(function)
        elif function in ACTIVATION_FUNCTIONS or function.rstrip("_") in ACTIVATION_FUNCTIONS:
            places.append(_call_place(module, name, node, function, len(places)))
        elif function not in EXACT_FUNCTIONS or _squares(node):
            raise UnsupportedModuleError(
                f"the forward of '{name}' calls {function}{' as a nonlinear product' if _squares(node) else ''}, which may "
                f"be an activation and is not known. Use a known one, or leave it to autograd with leave=('{function}',)."
            )
    return places, graph


def _call_place(module: nn.Module, name: str, node: fx.Node, function: str, index: int) -> _Site:
    target, following = ACTIVATION_FUNCTIONS[function.rstrip("_")]
    settings = dict(zip(following, node.args[1:], strict=False))
    settings |= {k: v for k, v in node.kwargs.items() if k in following}
    if any(isinstance(value, fx.Node) for value in settings.values()):
        raise UnsupportedModuleError(f"the forward of '{name}' calls {function} with settings that it computes. Fix them.")
    key = f"dyadic_{index}"
    if hasattr(module, key):
        raise UnsupportedModuleError(f"'{name}' has an attribute '{key}' already. Rename it.")
    activation = target if isinstance(target, neurons.AbstractNeuron) else Elementwise(partial(target, **settings))
    return _Site(module, key, activation, function, node)


def _check_readable(module: nn.Module, name: str) -> None:
    """Refuse a forward of which torch.fx would read one case alone.

    It follows one branch, and draws random numbers once.
    """
    code = type(module).forward.__code__
    suspicious = [word for word in ("isinstance", "hasattr", *_RANDOM) if word in code.co_names]
    if suspicious:
        raise UnsupportedModuleError(
            f"the forward of '{name}' uses {suspicious[0]}, on which it may branch or vary by the call, so activations in "
            f"it may not be found. Rewrite it, or leave it to back-propagation with leave=('{type(module).__name__}',)."
        )
    optional = {
        parameter.name: parameter.default
        for parameter in inspect.signature(type(module).forward).parameters.values()
        if parameter.default is not parameter.empty
    }
    if optional:
        given, absent = (_calls(_trace(module, name, concrete)) for concrete in (None, optional))
        if given != absent:
            raise UnsupportedModuleError(
                f"the forward of '{name}' branches on its optional argument {' or '.join(map(repr, optional))}, and only one "
                f"branch can be converted. Split it in two modules, or leave it with leave=('{type(module).__name__}',)."
            )


def _calls(graph: fx.Graph) -> list[str]:
    """The calls of a graph, in order, without torch.fx's assertions about fixed arguments."""
    calls = [
        _function_name(node) if node.op != "call_module" else str(node.target) for node in graph.nodes if "call" in node.op
    ]
    return [call for call in calls if call not in ("assert", "assert_is_none", "eq")]


def _check_in_place(module: nn.Module, name: str, node: fx.Node) -> None:
    """Refuse an activation that writes over a tensor which is used again.

    The converted one does not write over it.
    """
    if node.op == "call_module":
        writes = _writes_over_input(module.get_submodule(str(node.target)))
    else:
        is_listed = node.op in ("call_function", "call_method") and _function_name(node).rstrip("_") in ACTIVATION_FUNCTIONS
        writes = is_listed and (
            _function_name(node).endswith("_") or node.kwargs.get("inplace") is True or any(a is True for a in node.args[1:])
        )
    if not writes:
        return
    order = {other: position for position, other in enumerate(node.graph.nodes)}
    operand = _operand(node)
    used_again = isinstance(operand, fx.Node) and any(order[user] > order[node] for user in operand.users)
    if used_again or not node.users:
        raise UnsupportedModuleError(
            f"the forward of '{name}' writes an activation over a tensor ({node.name}) that it uses again; that can't be "
            "converted. Use the activation's result, without inplace=True."
        )


def _writes_over_input(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return len(module) > 0 and _writes_over_input(module[0])
    return type(module) in ACTIVATION_MODULES and bool(getattr(module, "inplace", False))


def _operand(node: fx.Node) -> Any:
    """The tensor that an activation call reads."""
    return node.args[0] if node.args else node.kwargs["input"]


def _squares(node: fx.Node) -> bool:
    """A tensor times itself, or a division by a tensor: nonlinear without an activation's name."""
    arguments = [*node.args, *node.kwargs.values()]
    factors = [arg for arg in arguments if isinstance(arg, fx.Node)]
    function = _function_name(node)
    if function in ("div", "truediv", "itruediv", "true_divide"):
        return len(arguments) > 1 and isinstance(arguments[1], fx.Node)
    return function in ("mul", "imul", "matmul", "mm", "bmm", "einsum") and len(factors) != len(set(factors))


def _function_name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target).strip("_") if str(node.target).startswith("__") else str(node.target)
    return getattr(node.target, "__name__", str(node.target)).removeprefix("_")


class _OwnForward(fx.Tracer):
    """Traces one forward with every child opaque; `self.training` is a value read at run time."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if attr == "training":
            return self.create_proxy("get_attr", "training", (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _RewrittenForward:
    """The converted forward of one module.

    A copy of the module gets a forward of the copy. Pickle would lose it, so it refuses.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.module, self.function = module, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _RewrittenForward:
        return _RewrittenForward(copy.deepcopy(self.module, memo), self.function)

    def __reduce__(self) -> Any:
        raise UnsupportedModuleError(
            f"{type(self.module).__name__} holds converted functional activations, which can't be pickled. Save its "
            "state_dict(), and dualize the model after loading."
        )


def _trace(module: nn.Module, name: str, concrete: dict[str, Any] | None = None) -> fx.Graph:
    # torch.fx would bake in the present value of `self.training`, and with it a functional dropout.
    # Among the buffers the attribute passes through the tracer, which then records the read.
    training = vars(module).pop("training")
    module._buffers["training"] = training
    try:
        tracer = _OwnForward()
        graph = tracer.trace(module, concrete)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedModuleError(
            f"the forward of '{name}' ({type(module).__name__}) can't be read by torch.fx, so activations in it can't be "
            f"found: {reason}. Make it traceable, or leave it to back-propagation with leave=('{type(module).__name__}',)."
        ) from error
    finally:
        del module._buffers["training"]
        module.training = training
    made = [constant for constant in vars(module) if constant.startswith("_tensor_constant")]
    for constant in made:
        delattr(module, constant)
    if made:
        raise UnsupportedModuleError(
            f"the forward of '{name}' makes a tensor of its own, which a converted forward would keep for good. Register it as "
            f"a buffer, or leave it to back-propagation with leave=('{type(module).__name__}',)."
        )
    return graph
