"""One downward sweep of dual propagation inside autograd, on a network's layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dualprop.fused import recompute
from dualprop.fused.dualization import dyadic_pass
from dualprop.fused.dyadic import CotangentNudge, dyadic_activation
from dualprop.fused.passes import Dualization
from dualprop.network import Network, inputs
from dualprop.neurons import Identity
from dualprop.settings import beta_per_layer


def swept_model(
    network: Network, x: Any, betas: float | tuple[float, ...], shares: tuple[float, float], terms: float
) -> Tensor:
    """`swept` for a network that is read by running it."""
    # The output has no activation: its β is that of the loss, which is nudged linearly.
    beta = betas[:-1] if isinstance(betas, tuple) else betas
    settings = Dualization("original", shares[0], beta, terms, 1.0, network.leave, recompute_states=True, strict=False)
    with dyadic_pass(settings, None, network.module):
        return network.forward(inputs.detached(x))


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
