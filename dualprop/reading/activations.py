"""The table of what is an activation, for both engines.

A module, a function or a method that applies an activation ends in a call of one of these
functions. A reader is given `emit(neuron, a, inplace)`, which returns the state of a neuron with
the drive a, and the call's arguments. It returns what the call returns, made of states, or
NotImplemented where such a call is no activation (a clamp between tensors, say).

What has parameters of its own is read as plain neurons whose states the parameters weigh:

    prelu(a, w) = relu(a) - w relu(-a)          glu(a) = a₁ sigmoid(a₂)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dualprop.errors import SettingError
from dualprop.neurons import GELU, AbstractNeuron, Function, HardSigmoid, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Tanh


class Emit(Protocol):
    """The state of a neuron with the drive a, in the shape of a; in place: written over a."""

    def __call__(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor: ...


Reader = Callable[..., Any]


def add(function: Callable[..., Tensor], derivative: Callable[[Tensor], Tensor] | None = None) -> None:
    """Let both engines take `function` (torch.sin, say) for an activation, in the whole process.

    Args:
        function: elementwise, of one tensor. It must be one that PyTorch can override: a function
            of torch or a method of Tensor. Wrap your own by `torch.overrides.wrap_torch_function`.
        derivative: f'(a) per unit, by which equilibrium propagation and predictive coding send
            errors down. None: autograd's.

    Raises:
        SettingError: it is one already.
    """
    if function in READERS:
        raise SettingError(f"{_name(function)} is an activation already. Nothing needs to be added.")

    def read(emit: Emit, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call = partial(function, **kwargs) if not args else lambda a: function(a, *args, **kwargs)
        return emit(Function(_name(function), call, derivative, takes_float64=False), input)

    READERS[function] = read


def remove(function: Callable[..., Tensor]) -> None:
    """Take an added activation out again. SettingError where there is none."""
    if READERS.pop(function, None) is None:
        raise SettingError(f"{_name(function)} is no activation. Nothing can be removed.")


def can_be_left(name: Any) -> bool:
    """Whether this is the name of a function of PyTorch, or of an activation."""
    if not isinstance(name, str):
        return False
    known = any(hasattr(home, name) for home in (torch, Tensor, F))
    return known or any(_name(function).rstrip("_") == name for function in READERS)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _neuron(neuron: AbstractNeuron, inplace: bool = False) -> Reader:
    always = inplace

    def read(emit: Emit, input: Tensor, inplace: bool = False) -> Tensor:
        return emit(neuron, input, inplace or always)

    return read


def _function(function: Callable[..., Tensor], *names: str, inplace: bool = False) -> Reader:
    """Of an activation without a potential, with settings of these names after its tensor."""
    always = inplace

    def read(emit: Emit, input: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
        if len(args) > len(names):
            *args, inplace = args  # type: ignore[assignment]
        settings = dict(zip(names, args, strict=False)) | kwargs
        if any(isinstance(value, Tensor) for value in settings.values()):
            return NotImplemented
        call = partial(function, **settings) if settings else function
        return emit(Function(_name(function), call), input, inplace or always)

    return read


def _clipped(emit: Emit, a: Tensor, low: Any, high: Any, inplace: bool) -> Any:
    if any(isinstance(bound, Tensor) for bound in (low, high)):
        return NotImplemented
    if low == 0 and high is None:
        return emit(ReLU(), a, inplace)
    if low is None or high is None:
        return emit(Function("clamp", partial(torch.clamp, min=low, max=high)), a, inplace)
    return emit(HardSigmoid(float(low), float(high)), a, inplace)


def _hardtanh(emit: Emit, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return _clipped(emit, input, min_val, max_val, inplace)


def _clamp(emit: Emit, input: Tensor, min: Any = None, max: Any = None, inplace: bool = False) -> Any:
    return _clipped(emit, input, min, max, inplace)


def _leaky_relu(emit: Emit, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    if isinstance(negative_slope, Tensor):
        return NotImplemented
    if negative_slope == 0:
        return emit(ReLU(), input, inplace)
    if 0 < negative_slope <= 1:
        return emit(LeakyReLU(negative_slope), input, inplace)
    return emit(Function("leaky_relu", partial(F.leaky_relu, negative_slope=negative_slope)), input, inplace)


def _prelu(emit: Emit, input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1:
        weight = weight.reshape(1, -1, *[1] * (input.dim() - 2))
    return emit(ReLU(), input) - weight * emit(ReLU(), -input)


def _glu(emit: Emit, input: Tensor, dim: int = -1) -> Tensor:
    values, gates = input.chunk(2, dim)
    return values * emit(Sigmoid(), gates)


def _gelu(emit: Emit, input: Tensor, approximate: str = "none") -> Tensor:
    call = partial(F.gelu, approximate=approximate)
    return emit(GELU() if approximate == "none" else Function("gelu", call), input)


def _softmax(emit: Emit, input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    # The first dimension holds the examples, which nothing may couple.
    if not isinstance(dim, int) or not (0 < dim < input.dim() or -input.dim() < dim < 0):
        return NotImplemented
    return emit(Softmax(dim), input if dtype is None else input.to(dtype))


def _tensor_softmax(emit: Emit, input: Tensor, dim: int | None = None, dtype: Any = None) -> Any:
    return _softmax(emit, input, dim, dtype=dtype)


READERS: dict[Any, Reader] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _neuron(ReLU())),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _neuron(ReLU(), inplace=True)),
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh), _neuron(Tanh())),
    **dict.fromkeys((torch.tanh_, Tensor.tanh_), _neuron(Tanh(), inplace=True)),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit), _neuron(Sigmoid())),
    **dict.fromkeys((torch.sigmoid_, Tensor.sigmoid_), _neuron(Sigmoid(), inplace=True)),
    F.relu6: _neuron(HardSigmoid(0.0, 6.0)),
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clip, Tensor.clip), _clamp),
    **dict.fromkeys((torch.clamp_, Tensor.clamp_, torch.clip_, Tensor.clip_), partial(_clamp, inplace=True)),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), lambda emit, input, min: _clamp(emit, input, min)),
    **dict.fromkeys((torch.clamp_max, Tensor.clamp_max), lambda emit, input, max: _clamp(emit, input, None, max)),
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: partial(_leaky_relu, inplace=True),
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), _prelu),
    F.glu: _glu,
    F.gelu: _gelu,
    F.silu: _neuron(SiLU()),
    F.mish: _function(F.mish),
    F.hardswish: _function(F.hardswish),
    F.hardsigmoid: _function(F.hardsigmoid),
    F.elu: _function(F.elu, "alpha"),
    F.elu_: _function(F.elu, "alpha", inplace=True),
    **dict.fromkeys((F.selu, torch.selu), _function(F.selu)),
    torch.selu_: _function(F.selu, inplace=True),
    **dict.fromkeys((F.celu, torch.celu), _function(F.celu, "alpha")),
    torch.celu_: _function(F.celu, "alpha", inplace=True),
    F.softplus: _function(F.softplus, "beta", "threshold"),
    F.softsign: _function(F.softsign),
    F.logsigmoid: _function(F.logsigmoid),
    F.tanhshrink: _function(F.tanhshrink),
    F.softshrink: _function(F.softshrink, "lambd"),
    **dict.fromkeys((F.hardshrink, torch.hardshrink, Tensor.hardshrink), _function(torch.hardshrink, "lambd")),
    F.threshold: _function(F.threshold, "threshold", "value"),
    F.softmax: _softmax,
    **dict.fromkeys((torch.softmax, Tensor.softmax), _tensor_softmax),
}

# What these functions end in, which a model may call itself: PyTorch's operators.
_OPERATORS = {
    torch: "relu relu_ tanh tanh_ sigmoid sigmoid_ clamp prelu selu celu hardshrink softmax",
    F: "hardtanh leaky_relu glu gelu silu mish hardswish hardsigmoid softplus softshrink threshold relu6",
}
for _home, _names in _OPERATORS.items():
    for _operator in _names.split():
        _packet = getattr(torch.ops.aten, _operator)
        for _same in (_packet, getattr(_packet, "default", None), getattr(torch._C._nn, _operator, None)):
            if _same is not None:
                READERS.setdefault(_same, READERS[getattr(_home, _operator)])
