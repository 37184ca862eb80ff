"""One downward sweep of dual propagation inside autograd, on a network's layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dualprop.errors import SettingError
from dualprop.fused import recompute
from dualprop.fused.dyadic import CotangentNudge, dyadic_activation
from dualprop.network import Network, inputs
from dualprop.neurons import AbstractNeuron, Identity
from dualprop.reading import Reading
from dualprop.reading.mode import mark
from dualprop.settings import beta_per_layer


class _Sweep(Reading):
    """Dyadic activations in a model that is read by running it, β_1, β_2, … in their order."""

    def __init__(self, betas: float | tuple[float, ...], shares: tuple[float, float], terms: float) -> None:
        super().__init__()
        self.betas, self.shares, self.terms = betas, shares, terms
        self.k = 0

    def emit(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor:
        betas = self.betas
        beta = betas[min(self.k, len(betas) - 1)] if isinstance(betas, tuple) else betas
        self.k += 1
        state = dyadic_activation(a.clone() if inplace else a, neuron, CotangentNudge(*self.shares, beta * self.terms))
        return a.copy_(state) if inplace else state


def swept_model(
    network: Network, x: Any, betas: float | tuple[float, ...], shares: tuple[float, float], terms: float
) -> Tensor:
    """`swept` for a network that is read by running it."""
    x = inputs.detached(x)
    mark(x)
    sweep = _Sweep(betas, shares, terms)
    with recompute.recomputing(), sweep:
        output = network.forward(x)
    if isinstance(betas, tuple) and sweep.k != len(betas) - 1:
        raise SettingError(
            f"beta lists {len(betas)} values, but the model ran {sweep.k} activations and an output. Give one each."
        )
    return output


def swept(network: Network, x: Any, betas: float | tuple[float, ...], shares: tuple[float, float], terms: float) -> Tensor:
    """The prediction (N, …), with the gradients of a downward sweep from the forward pass.

    Autograd gives them for the mean loss.

    Args:
        betas: one β per term of the loss, or β_1…β_L. SettingError where a list has another length.
        shares: of the nudge, those of s⁺ and s⁻.
        terms: what the loss's mean divides by. Cotangents times it are those of the sum.
    """
    if network.is_recorded:
        return swept_model(network, x, betas, shares, terms)
    betas, (up, down) = beta_per_layer(betas, network.depth), shares
    with recompute.recomputing():
        states = {0: x}
        for k, layer in enumerate(network.layers, start=1):
            nudge = CotangentNudge(up, down, betas[k - 1] * terms)
            a = layer.forward(states)
            states[k] = a if isinstance(layer.neuron, Identity) else dyadic_activation(a, layer.neuron, nudge)
            del a
            for source in layer.sources:
                if network.out_of(source)[-1] == k:
                    del states[source]  # as plain autograd lets go of what nothing reads any more
    return states.pop(network.depth)
