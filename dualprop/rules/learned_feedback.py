"""Learned feedback maps G, and the local loss that trains each alone (L-DRL: Ernoult et al., 2022).

Layer k maps the state x below it to F(x) = f(P(W E x + b)). E and P are the reshapes and pools
before and behind its weights W. Back goes

    G(t) = Eᵀ Bᵀ Pᵀ h(t),    h'(f(a)) = f'(a)    so that J_G = J_Fᵀ wherever B = W,

B holds the feedback weights, in the shape of W; a convolution's map comes back as a transposed
convolution. Pools come back by their switches in the forward pass; in the authors' code G(F(x+dx))
comes back by the switches at x+dx. G has no bias, since only its differences are used.

The feedback activation h is t - t³/3 for tanh and t²/2 - t³/3 for the sigmoid, on f's range. For
activations with kinks it is linear, f'(a) t, with the mask of the forward pass. With relu(t) a unit
that is off could send down a pull towards on, but not the opposite.

With noise dx, dy ~ σ N(0, I), summed over units, mean over the batch,

    L-DRL = -2 ⟨dx, G(F(x+dx)) - G(F(x))⟩ + ‖G(F(x)+dy) - G(F(x))‖²  ≈  σ² ‖J_G - J_Fᵀ‖² + constant.

Its gradient is local to the layer: products of what enters its weights from either side, see
`FeedbackMap.loss_gradient`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.feedback import AbstractFeedback
from dualprop.network import Layer, Network
from dualprop.network.local_maps import ConvolutionMap, LinearMap, Record, ReshapeMap
from dualprop.network.modules import AFFINE, kind
from dualprop.network.synapses import Tape
from dualprop.neurons import Identity, Sigmoid, Softmax, Tanh


def check_network(network: Network) -> None:
    """Raise where a layer above the first allows no G, or where a neuron couples units.

    The message names the layer.
    """
    for k, layer in enumerate(network.layers, start=1):
        where = f"layer {k} ('{layer.name}')"
        if layer.sources != (k - 1,):
            raise SettingError(
                f"{where} reads layers {layer.sources}, but a target goes back along a chain. Use a model without skips, or "
                "another rule."
            )
        if isinstance(layer.neuron, Softmax):
            raise UnsupportedModuleError(
                f"{where} is a Softmax, whose units are coupled: no target of one unit is its own. End the model in logits, "
                "with loss='cross_entropy'."
            )
        for name, module in layer.synapse.modules.items():
            if isinstance(module, AbstractFeedback):
                raise UnsupportedModuleError(
                    f"layer {k} holds feedback weights of its own ('{name}'), which target propagation would not use: it "
                    "learns others. Give it the plain model, feedback='exact'."
                )
        if k > 1 and not isinstance(layer.synapse.core, LinearMap | ConvolutionMap | ReshapeMap):
            held = ", ".join(f"'{name}'" for name in layer.synapse.modules)
            raise UnsupportedModuleError(
                f"layer {k} holds maps ({held}) that are not one plain Linear or zero-padded convolution between reshapes and "
                "pools, so that no feedback map is known for it. Split them by an activation, nn.Identity() say, or replace "
                "them."
            )


def has_weights(layer: Layer) -> bool:
    """Whether the layer's G has weights. A pool alone has none."""
    return isinstance(layer.synapse.core, LinearMap | ConvolutionMap)


def has_switches(layer: Layer) -> bool:
    """Whether the layer's G has weights and goes back by the switches of a pool."""
    return has_weights(layer) and any(kind(module) not in AFFINE for module in layer.synapse.modules.values())


def forward_weight(layer: Layer) -> Tensor:
    """W, detached."""
    assert isinstance(layer.synapse.core, LinearMap | ConvolutionMap)
    return layer.synapse.core.module.weight.detach()


def drawn_weight(layer: Layer, generator: torch.Generator) -> Tensor:
    """A new B, drawn as PyTorch draws W, with its shape, dtype and device."""
    weight = forward_weight(layer)
    drawn = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device)
    return nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator).to(weight.device)


class FeedbackMap:
    """G of one layer at one forward pass.

    `tape` and `drive` are its synapse's at the state `below`; `state` is f(a).
    """

    def __init__(self, layer: Layer, below: Tensor, drive: Tensor, tape: Tape, state: Tensor) -> None:
        self.layer, self.below, self.drive, self.tape, self.state = layer, below, drive, tape, state

    def activation(self) -> Tensor:
        """h(s) at the layer's state s."""
        neuron, s = self.layer.neuron, self.state
        if isinstance(neuron, Tanh):
            return s - s**3 / 3
        if isinstance(neuron, Sigmoid):
            return s.square() / 2 - s**3 / 3
        return s if isinstance(neuron, Identity) else neuron.derivative(self.drive) * s

    def activation_difference(self, change: Tensor) -> Tensor:
        """h(s + change) - h(s) at the layer's state s, without subtracting near equals."""
        neuron, s = self.layer.neuron, self.state
        if isinstance(neuron, Identity):
            return change
        if isinstance(neuron, Tanh | Sigmoid):
            low, high = neuron.reach
            d = torch.minimum(torch.maximum(change, low - s), high - s)
            if isinstance(neuron, Tanh):
                return d * (1 - s.square() - d * s - d.square() / 3)
            return d * (s * (1 - s) + d * (0.5 - s) - d.square() / 3)
        return neuron.derivative(self.drive) * change

    def back(self, difference: Tensor, weight: Tensor | None) -> Tensor:
        """Eᵀ Bᵀ Pᵀ of a difference of h: the difference of G.

        `weight` is B, and None where the layer has none.
        """
        synapse, (entered, left, exited) = self.layer.synapse, self.tape.records
        signal = synapse.exit.pull(exited, difference)
        if isinstance(synapse.core, LinearMap | ConvolutionMap):
            signal = synapse.core.pull(left, signal, weight)
        return synapse.entry.pull(entered, signal)

    def target_difference(self, change: Tensor, weight: Tensor | None) -> Tensor:
        """G(s + change) - G(s): the layer below's difference target less its state."""
        return self.back(self.activation_difference(change), weight)

    def loss_gradient(self, weight: Tensor, dx: Tensor, dy: Tensor, is_noisy: bool = False) -> Tensor:
        """∂/∂B of the loss for this noise, in the shape of B.

        With v = h(F(x)+dy) - h(F(x)) and u = h(F(x+dx)) - h(F(x)) it is

            (2/N) Σ [ Pᵀv (E EᵀBᵀPᵀv)ᵀ - Pᵀu (E dx)ᵀ ].

        It takes one drive, one feedback and two gradients of the synapse. If `is_noisy`, h(F(x+dx))
        comes back by the pools' switches at x+dx: the last term is Pᵀh (E dx)ᵀ there less that at
        x, and takes two gradients of its own.
        """
        layer, (entered, _, exited) = self.layer, self.tape.records
        synapse = layer.synapse
        assert isinstance(synapse.core, LinearMap | ConvolutionMap)
        drive, noisy = synapse.drive(self.below + dx)
        u, v = self.activation_difference(layer.neuron.f(drive) - self.state), self.activation_difference(dy)
        reconstructed = synapse.entry.push(entered, self.back(v, weight))
        scale = 2 / len(dx)
        gradient = synapse.core.weight_gradient(Record(reconstructed, None), synapse.exit.pull(exited, v), scale)
        if not is_noisy:
            return gradient.sub_(self._noise_gradient(self.tape, u, dx, scale))
        h = self.activation()
        gradient.sub_(self._noise_gradient(noisy, h + u, dx, scale))
        return gradient.add_(self._noise_gradient(self.tape, h, dx, scale))

    def _noise_gradient(self, tape: Tape, signal: Tensor, dx: Tensor, scale: float) -> Tensor:
        """scale · Σ Pᵀ signal (E dx)ᵀ, by the switches of this tape."""
        synapse, (entered, _, exited) = self.layer.synapse, tape.records
        assert isinstance(synapse.core, LinearMap | ConvolutionMap)
        noise = Record(synapse.entry.push(entered, dx), None)
        return synapse.core.weight_gradient(noise, synapse.exit.pull(exited, signal), scale)

    def stable_rate(self, noise: float) -> float:
        """1/(σ² (M + D/N)): the scale of stable learning rates of B.

        At a share r of it learning is stable, and B settles at a relative error of about √(r/2).

        M is the number of places at which each weight is used, D the inputs and outputs that one
        place connects, N the examples. The noise in ⟨dx, …⟩ grows with M, the largest curvature of
        ‖…‖² with D/N.
        """
        weight, state = forward_weight(self.layer), self.state
        places = state[0].numel() / weight.shape[0]
        connected = weight.numel() / weight.shape[0] + weight.numel() / weight.shape[1]
        return 1 / (noise**2 * (places + connected / len(state)))
