"""Complex states on a real network, for holomorphic EP (Laborieux & Zenke 2022).

A holomorphic function of real states has one continuation to complex ones. Weights and inputs stay
real, so a map acts on real and imaginary parts alike. The two are stacked along the batch, (2N, …),
in one call of the user's module; the bias belongs to the real part alone. Nothing here takes a
complex conjugate:

    feedback    Jᵀ σ         (PyTorch's complex autograd gives Jᴴ v: both sides are conjugated)
    gradient    Re(w σᵀ s) = Re(wσ)ᵀ Re s - Im(wσ)ᵀ Im s

`counterpart` makes complex states of the free states of a Hopfield network, on synapses that do
this with its modules.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network import Layer, Network
from dualprop.network.hooks import gradients_by
from dualprop.network.local_maps import (
    AbstractLocalMap,
    ConvolutionMap,
    LinearMap,
    Modules,
    Record,
    ReshapeMap,
    TapedMap,
)
from dualprop.network.modules import AFFINE, kind
from dualprop.network.states import States
from dualprop.network.synapses import Synapse
from dualprop.neurons import Identity


def check(network: Network, loss: AbstractLoss, output_nudge: str) -> None:
    """Raise SettingError where the network or the nudge has no complex counterpart."""
    if not loss.is_holomorphic:
        raise SettingError(f"the {loss.name} takes no complex outputs. Use loss='cross_entropy', or estimator='centered'.")
    output = network.into(network.depth).neuron
    if output_nudge == "exact" and not isinstance(output, Identity):
        raise SettingError(
            f"an exact complex nudge is of linear outputs, but the output neuron is {type(output).__name__}. Use "
            "output_nudge='linearized'."
        )
    for layer in network.layers:
        if not layer.neuron.is_holomorphic:
            raise SettingError(
                f"layer '{layer.name}' has {type(layer.neuron).__name__}, which is not holomorphic: complex states need "
                "Sigmoid, Tanh or Softmax. Use one, or estimator='centered'."
            )
        for name, module in ((name, module) for synapse in layer.synapses for name, module in synapse.modules.items()):
            if not (kind(module) in AFFINE or getattr(module, "is_holomorphic", False)):
                raise SettingError(
                    f"layer '{layer.name}' holds {type(module).__name__} ('{name}'), which is not holomorphic. Use average "
                    "pooling, softmax.SoftmaxPool2d, or estimator='centered'."
                )


def counterpart(free: States) -> States:
    """The same states, complex, on the same modules. Nothing else is kept; counts start at 0."""
    network = Network([Layer(tuple(map(_complex_synapse, layer.synapses)), layer.neuron, layer.sources)
                       for layer in free.network.layers])  # fmt: skip
    other = States(network, torch.complex(free.means[0], torch.zeros_like(free.means[0])))
    for k in range(1, network.depth + 1):
        state = torch.complex(free.means[k], torch.zeros_like(free.means[k]))
        # The signal of a Hopfield network is its state.
        other.set(k, state, state)
    return other


class HolomorphicMap(AbstractLocalMap):
    """One Linear or convolution: real products on stacked parts."""

    depends_on_state = False

    def __init__(self, real: LinearMap | ConvolutionMap) -> None:
        self.real = real
        # Features are the last dimension of a Linear's output (N, …, D), the second of a
        # convolution's (N, C, …).
        self.is_linear = isinstance(real, LinearMap)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.real.parameters

    def run(self, s: Tensor) -> Record:
        output, bias = self.real.linear(_stacked(s)).output, self.real.module.bias
        assert output is not None
        re, im = output.chunk(2)
        if bias is not None:
            re = re + (bias if self.is_linear else bias.reshape(-1, *[1] * (re.dim() - 2)))
        return Record(s, torch.complex(re, im))

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        return _unstacked(self.real.pull(Record(_stacked(record.input), None), _stacked(signal)))

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        """Re w (σᵀs - τᵀt) = Re (w δσ)ᵀ s + τᵀ Re (w δs), in one stacked product.

        τ and t are the real signal and state of `other`.
        """
        s, t = record.input.detach(), other.input.detach()
        change, moved = scale * (signal - other_signal), (scale * (s - t)).real
        signals, states = [change.real, -change.imag, other_signal], [s.real, s.imag, moved]
        gradients = self.real.gradient(Record(torch.cat(states), None), torch.cat(signals), 1.0, is_biased=False)
        for name in self.parameters.keys() - gradients.keys():
            features = change.real.movedim(-1 if self.is_linear else 1, 0)
            gradients[name] = features.flatten(1).sum(1)
        return gradients


class HolomorphicTape(AbstractLocalMap):
    """Any affine or holomorphic modules in a row, on a complex tape."""

    depends_on_state = True

    def __init__(self, real: TapedMap) -> None:
        self.modules: Modules = real.modules
        self.real = real

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.real.parameters

    def run(self, s: Tensor) -> Record:
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            output = leaf
            for module in self.modules.values():
                output = _applied(module, output)
            return Record(leaf, output)

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        assert record.output is not None
        (pulled,) = torch.autograd.grad(record.output, record.input, signal.conj(), retain_graph=True)
        return pulled.conj().resolve_conj()

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        assert record.output is not None
        assert other.output is not None
        parameters = self.parameters
        pairs = ((record.output, (scale * signal).conj()), (other.output, scale.real * other_signal))
        gradients, less = (
            gradients_by(output, list(parameters.values()), weighted, retain_graph=True) for output, weighted in pairs
        )
        return {name: one - two for name, one, two in zip(parameters, gradients, less, strict=True)}


def _complex_synapse(real: Synapse) -> Synapse:
    """The same synapse on complex states; modules and parameters are shared."""
    other = copy.copy(real)
    other.entry, other.core, other.exit = map(_complex_map, (real.entry, real.core, real.exit))
    return other


def _complex_map(real: AbstractLocalMap) -> AbstractLocalMap:
    if isinstance(real, LinearMap | ConvolutionMap):
        return HolomorphicMap(real)
    if isinstance(real, TapedMap):
        return HolomorphicTape(real)
    assert isinstance(real, ReshapeMap)
    return real


def _applied(module: nn.Module, z: Tensor) -> Tensor:
    """The module at complex z, inside the graph that z belongs to."""
    if kind(module) not in AFFINE:
        return module(z)
    re, im = module(_stacked(z)).chunk(2)
    if next(module.parameters(), None) is not None:
        # An affine map less its value at zero is its linear part.
        im = im - module(torch.zeros_like(z.real[:1]))
    return torch.complex(re, im)


def _stacked(z: Tensor) -> Tensor:
    """Real and imaginary parts along the batch, (2N, …)."""
    return torch.cat([z.real, z.imag])


def _unstacked(parts: Tensor) -> Tensor:
    return torch.complex(*parts.chunk(2))
