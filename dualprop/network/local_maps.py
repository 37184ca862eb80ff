"""Local maps: modules in a row, from which synapses are made.

Reshapes, one Linear and one convolution are direct formulas. Anything else goes by autograd on a
tape of these modules alone. N batch, C channels, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dualprop.feedback import backward_weight
from dualprop.network.hooks import end_here, gradients_by
from dualprop.network.modules import AFFINE, MAPS, RESHAPES, kind

Modules = dict[str, nn.Module]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Record(NamedTuple):
    """One local map at one point: its input and, where it was run, its output."""

    input: Tensor
    output: Tensor | None


class AbstractLocalMap(ABC):
    """Modules in a row as local maps. `depends_on_state`: the pull-back varies with the point."""

    depends_on_state: bool

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by their name in the model."""
        return {}

    @abstractmethod
    def run(self, s: Tensor) -> Record:
        """The output at s."""

    @abstractmethod
    def pull(self, record: Record, signal: Tensor) -> Tensor:
        """Jᵀ signal, J = ∂output/∂s at the record."""

    def linear(self, s: Tensor) -> Record:
        """The linear part of an affine map at s."""
        raise NotImplementedError

    def push(self, record: Record, change: Tensor) -> Tensor:
        """J change at the record."""
        raise NotImplementedError

    def gradient(self, record: Record, signal: Tensor, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of signalᵀ ∂output/∂parameter, for every trainable parameter.

        It is taken at the record. Empty where there is none.
        """
        return {}

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        """`gradient` less that of another signal at another record, see `Synapse.contrast`."""
        raise NotImplementedError


class ReshapeMap(AbstractLocalMap):
    """Reshapes alone: the pull-back is a reshape, at any point."""

    depends_on_state = False

    def __init__(self, modules: Modules) -> None:
        self.modules = modules

    def run(self, s: Tensor) -> Record:
        return Record(s, through(self.modules, s))

    def linear(self, s: Tensor) -> Record:
        return self.run(s)

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        return signal.reshape(record.input.shape)

    def push(self, record: Record, change: Tensor) -> Tensor:
        return through(self.modules, change)


class TapedMap(AbstractLocalMap):
    """Any differentiable modules: pull-back and gradient by autograd on their own tape."""

    depends_on_state = True

    def __init__(self, modules: Modules) -> None:
        self.modules = modules

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return trainable(self.modules)

    def run(self, s: Tensor) -> Record:
        with torch.enable_grad():
            # Of integers there is no derivative; only the input may be such.
            leaf = s.detach().requires_grad_(s.is_floating_point())
            if leaf.requires_grad:
                end_here(leaf)
            return Record(leaf, through(self.modules, leaf))

    def linear(self, s: Tensor) -> Record:
        record = self.run(s)
        with torch.enable_grad():
            return Record(record.input, output_of(record) - output_of(self.run(torch.zeros_like(s))).detach())

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        output = output_of(record)
        return torch.autograd.grad(output, record.input, signal.to(output.dtype), retain_graph=True)[0]

    def push(self, record: Record, change: Tensor) -> Tensor:
        # J change is the derivative along `change` of u ↦ Jᵀ u, which is linear in u.
        with torch.enable_grad():
            output = output_of(record)
            u = torch.zeros_like(output).requires_grad_()
            (pulled,) = torch.autograd.grad(output, record.input, u, create_graph=True)
        return torch.autograd.grad(pulled, u, change)[0]

    def gradient(self, record: Record, signal: Tensor, scale: float) -> dict[str, Tensor]:
        parameters, output = self.parameters, output_of(record)
        if not parameters:
            return {}
        gradients = gradients_by(output, list(parameters.values()), (signal * scale).to(output.dtype), retain_graph=True)
        return dict(zip(parameters, gradients, strict=True))

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        if not all(kind(module) in AFFINE for module in self.modules.values()):
            gradients, less = self.gradient(record, signal, _real(scale)), self.gradient(other, other_signal, _real(scale))
            return {name: gradient - less[name] for name, gradient in gradients.items()}
        # If modules are affine in s, so is a held signal's gradient: g(s) - g(t) = g(s - t) - g(0).
        gradients = self.gradient(record, signal - other_signal, _real(scale))
        change = record.input.detach() - other.input.detach()
        moved, still = (self.gradient(self.run(s), other_signal, _real(scale)) for s in (change, torch.zeros_like(change)))
        return {name: gradient.add_(moved[name] - still[name]) for name, gradient in gradients.items()}


class LinearMap(AbstractLocalMap):
    """One `nn.Linear`: a = s Wᵀ + b.

    So Jᵀ signal = signal W, wherever s is, and the gradient is signalᵀ s.

    Here and in a convolution, the signal comes back through the module's feedback weights where it
    has them, or through a given `weight` of that shape.
    """

    depends_on_state = False

    def __init__(self, name: str, module: nn.Linear) -> None:
        self.name, self.module = name, module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return trainable({self.name: self.module})

    def run(self, s: Tensor) -> Record:
        return Record(s, self.module(s))

    def linear(self, s: Tensor) -> Record:
        return Record(s, nn.functional.linear(s, self.module.weight))

    def pull(self, record: Record, signal: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is not None:
            return signal @ weight
        return signal @ backward_weight(self.module)

    def weight_gradient(self, record: Record, signal: Tensor, scale: float) -> Tensor:
        signal, s = signal.flatten(0, -2), record.input.flatten(0, -2)
        # The matrix product applies the scale for free; beta=0 makes its first argument a
        # placeholder.
        return torch.addmm(signal.new_zeros(1), signal.T, s, beta=0, alpha=scale)

    def gradient(self, record: Record, signal: Tensor, scale: float, is_biased: bool = True) -> dict[str, Tensor]:
        parameters = self.parameters
        weight, bias = learning(parameters)
        of_weight = self.weight_gradient(record, signal, scale) if weight else None
        signal = signal.flatten(0, -2)
        of_bias = signal.sum(0, dtype=self.module.weight.dtype).mul_(scale) if bias and is_biased else None
        # Under autocast the product is of half precision, as in BP; what an optimizer reads is not.
        return by_name(parameters, None if of_weight is None else of_weight.to(self.module.weight.dtype), of_bias)

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        return contrasted(self, record, signal, other, other_signal, scale)


class ConvolutionMap(AbstractLocalMap):
    """One zero-padded convolution: Jᵀ signal is its transposed convolution.

    The gradient is a correlation with s.
    """

    depends_on_state = False

    def __init__(self, name: str, module: Convolution, padding: list[int]) -> None:
        self.name, self.module, self.padding = name, module, padding

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return trainable({self.name: self.module})

    def run(self, s: Tensor) -> Record:
        return Record(s, self.module(s))

    def linear(self, s: Tensor) -> Record:
        return Record(s, self.module._conv_forward(s, self.module.weight, None))

    def pull(self, record: Record, signal: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = backward_weight(self.module) if weight is None else weight
        pulled = self._backward(record, signal, weight, [True, False, False])[0]
        assert pulled is not None
        return pulled

    def weight_gradient(self, record: Record, signal: Tensor, scale: float) -> Tensor:
        gradient = self._backward(record, signal, self.module.weight, [False, True, False])[1]
        assert gradient is not None
        return gradient.mul_(scale)

    def gradient(self, record: Record, signal: Tensor, scale: float, is_biased: bool = True) -> dict[str, Tensor]:
        parameters = self.parameters
        weight, bias = learning(parameters)
        mask = [False, weight, bias and is_biased]
        dtype = self.module.weight.dtype
        gradients = self._backward(record, signal, self.module.weight, mask)[1:]
        return by_name(parameters, *(None if g is None else g.to(dtype).mul_(scale) for g in gradients))

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        return contrasted(self, record, signal, other, other_signal, scale)

    def _backward(self, record: Record, signal: Tensor, weight: Tensor, mask: list[bool]) -> list[Tensor | None]:
        conv = self.module
        bias_sizes = None if conv.bias is None else [conv.out_channels]
        signal, s, weight = in_autocast(signal, record.input, weight)
        return torch.ops.aten.convolution_backward(
            signal, s, weight, bias_sizes, conv.stride, self.padding, conv.dilation,
            False, [0] * len(self.padding), conv.groups, mask,
        )  # fmt: skip


def in_autocast(*tensors: Tensor) -> Iterator[Tensor]:
    """The tensors in autocast's dtype where it is on.

    PyTorch's own maps convert them; its bare backward functions don't.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return iter(tensors)
    return (t.to(torch.get_autocast_dtype(device)) for t in tensors)


def through(modules: Modules, s: Tensor) -> Tensor:
    """The modules one after another."""
    for module in modules.values():
        s = module(s)
    return s


def _dotted(name: str, leaf: str) -> str:
    """The parameter's name in the model, also where the model is one module, without a name."""
    return f"{name}.{leaf}" if name else leaf


def output_of(record: Record) -> Tensor:
    """The output of the map at a record where it was run."""
    assert record.output is not None
    return record.output


def trainable(modules: Modules) -> dict[str, nn.Parameter]:
    return {
        _dotted(name, leaf): parameter
        for name, module in modules.items()
        # Mostly a map has no parts, and what `named_parameters` would walk is at hand.
        for leaf, parameter in (module.named_parameters() if module._modules else module._parameters.items())
        if parameter is not None and parameter.requires_grad
    }


def learning(parameters: Iterable[str]) -> tuple[bool, bool]:
    """Whether the weight's gradient is needed, for it or its feedback weight, and the bias's."""
    is_bias = [name.rpartition(".")[2] == "bias" for name in parameters]
    return not all(is_bias), any(is_bias)


def by_name(parameters: Iterable[str], of_weight: Tensor | None, of_bias: Tensor | None) -> dict[str, Tensor]:
    """The gradients that there are, by parameter.

    A feedback weight learns as the weight does, but from another tensor.
    """
    gradients: dict[str, Tensor] = {}
    for name in parameters:
        gradient = of_bias if name.rpartition(".")[2] == "bias" else of_weight
        if gradient is None:
            continue
        gradients[name] = gradient.clone() if any(gradient is other for other in gradients.values()) else gradient
    return gradients


class Affine(Protocol):
    """A map whose bias's gradient can be left out."""

    def gradient(self, record: Record, signal: Tensor, scale: float, is_biased: bool = True) -> dict[str, Tensor]: ...


def contrasted(core: Affine, one: Record, u: Tensor, other: Record, v: Tensor, scale: complex) -> dict[str, Tensor]:
    s, t, scale = one.input.detach(), other.input.detach(), _real(scale)
    gradients = core.gradient(Record(torch.lerp(s, t, 0.5), None), u - v, scale)
    # The drive is its bias and a linear map of s. A change of s therefore says nothing of the bias.
    rest = core.gradient(Record(s - t, None), torch.lerp(u, v, 0.5), scale, is_biased=False)
    return {name: gradient.add_(rest[name]) if name in rest else gradient for name, gradient in gradients.items()}


def _real(scale: complex) -> float:
    assert not isinstance(scale, complex), "complex scales are of complex states, see `holomorphic`"
    return scale


def local_map(modules: Modules) -> AbstractLocalMap:
    """A map without parameters."""
    return (ReshapeMap if all(type(module) in RESHAPES for module in modules.values()) else TapedMap)(modules)


def core_map(modules: Modules) -> AbstractLocalMap:
    """The direct formula for one plain Linear or convolution; a tape for anything else.

    Hooks and parametrizations need a tape too.
    """
    if not modules:
        return ReshapeMap(modules)
    name, module = next(iter(modules.items()))
    plain = len(modules) == 1 and not any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )
    if plain and isinstance(module, nn.Linear) and type(module) in MAPS:
        return LinearMap(name, module)
    if plain and isinstance(module, Convolution) and type(module) in MAPS:
        padding = _symmetric_padding(module)
        if padding is not None:
            return ConvolutionMap(name, module, padding)
    return TapedMap(modules)


def _symmetric_padding(conv: Convolution) -> list[int] | None:
    """The zeros on either side of each axis. None for other paddings, which are left to a tape."""
    if conv.padding_mode != "zeros":
        return None
    if isinstance(conv.padding, str):
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if conv.padding == "valid":
            return [0] * len(spans)
        return [span // 2 for span in spans] if all(span % 2 == 0 for span in spans) else None
    return list(conv.padding)
