"""Learned feedback maps G, and the local difference reconstruction loss (L-DRL: Ernoult et al., 2022) that trains each alone.

Layer k maps the state below to F(s) = f(P(W E s + b)); E and P are the reshapes and pools before and behind its weights W.
Back goes

    G(t) = Eᵀ Bᵀ Pᵀ h(t),    h'(f(a)) = f'(a)    so that J_G = J_Fᵀ wherever B = W,

with B the feedback weights, in the shape of W (a convolution's come back as a transposed convolution), and pools by their
switches in the forward pass. The feedback activation h is t - t³/3 for tanh and t²/2 - t³/3 for the sigmoid, on f's range; for
activations with kinks it is linear, f'(a) t with the mask of the forward pass: relu(t) would let a unit that is off send
down a pull towards being on, but not the opposite. G has no bias, as only its differences are used. With noise dx, dy ~
σ N(0, I), summed over units, mean over the batch,

    L-DRL = -2 ⟨dx, G(F(x+dx)) - G(F(x))⟩ + ‖G(F(x)+dy) - G(F(x))‖²  ≈  σ² ‖J_G - J_Fᵀ‖² + constant.

Its gradient is local to the layer: products of what enters its weights from either side (`FeedbackMap.loss_gradient`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.feedback import AbstractFeedback
from dualprop.network import Layer, Network
from dualprop.network.local_maps import ConvolutionStretch, LinearStretch, Record, ReshapeStretch
from dualprop.network.synapses import Tape
from dualprop.neurons import Identity, Sigmoid, Softmax, Tanh


def check_network(network: Network) -> None:
    """Raise where G can't be made of every layer above the first, or a neuron couples units; the message names the layer."""
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
        if k > 1 and not isinstance(layer.synapse.core, LinearStretch | ConvolutionStretch | ReshapeStretch):
            held = ", ".join(f"'{name}'" for name in layer.synapse.modules)
            raise UnsupportedModuleError(
                f"layer {k} holds maps ({held}) that are not one plain Linear or zero-padded convolution between reshapes and "
                "pools, so that no feedback map is known for it. Split them by an activation, nn.Identity() say, or replace "
                "them."
            )


def has_weights(layer: Layer) -> bool:
    """Whether the layer's G has weights: not where it is a pool alone."""
    return isinstance(layer.synapse.core, LinearStretch | ConvolutionStretch)


def forward_weight(layer: Layer) -> Tensor:
    """W, detached."""
    assert isinstance(layer.synapse.core, LinearStretch | ConvolutionStretch)
    return layer.synapse.core.module.weight.detach()


def drawn_weight(layer: Layer, generator: torch.Generator) -> Tensor:
    """A new B, drawn as PyTorch draws W, with its shape, dtype and device."""
    weight = forward_weight(layer)
    drawn = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device)
    return nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator).to(weight.device)


class FeedbackMap:
    """G of one layer at one forward pass: `tape` and `drive` of its synapse at the state `below`, and its `state` f(a)."""

    def __init__(self, layer: Layer, below: Tensor, drive: Tensor, tape: Tape, state: Tensor) -> None:
        self.layer, self.below, self.drive, self.tape, self.state = layer, below, drive, tape, state

    def activation_difference(self, change: Tensor) -> Tensor:
        """h(s + change) - h(s) at the layer's state s, by the difference's own factors: nothing nearly equal is subtracted."""
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
        """Eᵀ Bᵀ Pᵀ of a difference of h: the difference of G. `weight` is B, None where the layer has none."""
        synapse, (entered, left, exited) = self.layer.synapse, self.tape.records
        signal = synapse.exit.pull(exited, difference)
        if isinstance(synapse.core, LinearStretch | ConvolutionStretch):
            signal = synapse.core.pull(left, signal, weight)
        return synapse.entry.pull(entered, signal)

    def target_difference(self, change: Tensor, weight: Tensor | None) -> Tensor:
        """G(s + change) - G(s), which is the difference target of the layer below less its state."""
        return self.back(self.activation_difference(change), weight)

    def loss_gradient(self, weight: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
        """∂/∂B of the loss for this noise, in the shape of B: one drive, one feedback and two gradients of the synapse.

        With v = h(F(x)+dy) - h(F(x)) and u = h(F(x+dx)) - h(F(x)) it is (2/N) Σ [ Pᵀv (E EᵀBᵀPᵀv)ᵀ - Pᵀu (E dx)ᵀ ].
        """
        layer, (entered, _, exited) = self.layer, self.tape.records
        synapse = layer.synapse
        assert isinstance(synapse.core, LinearStretch | ConvolutionStretch)
        moved = layer.neuron.f(synapse.forward(self.below + dx)) - self.state
        u, v = self.activation_difference(moved), self.activation_difference(dy)
        reconstructed = synapse.entry.push(entered, self.back(v, weight))
        scale = 2 / len(dx)
        found = synapse.core.weight_gradient(Record(reconstructed, None), synapse.exit.pull(exited, v), scale)
        noise = synapse.entry.push(entered, dx)
        return found.sub_(synapse.core.weight_gradient(Record(noise, None), synapse.exit.pull(exited, u), scale))

    def stable_rate(self, noise: float) -> float:
        """1/(σ² (M + D/N)): B learned at a share r of it is stable, and settles at a relative error of about √(r/2).

        M is the number of places at which each weight is used, D that of the inputs and outputs that one place connects, N of
        examples: the noise in ⟨dx, …⟩ grows with the former, the largest curvature of ‖…‖² with the latter.
        """
        weight, state = forward_weight(self.layer), self.state
        places = state[0].numel() / weight.shape[0]
        connected = weight.numel() / weight.shape[0] + weight.numel() / weight.shape[1]
        return 1 / (noise**2 * (places + connected / len(state)))
