"""One downward sweep of dual propagation inside autograd, on a network's layers."""

from __future__ import annotations

from torch import Tensor

from dualprop.fused import recompute
from dualprop.fused.dyadic import CotangentNudge, dyadic_activation
from dualprop.network import Network
from dualprop.neurons import Identity


def swept(network: Network, x: Tensor, betas: tuple[float, ...], shares: tuple[float, float], terms: float) -> Tensor:
    """The prediction (N, …), with the gradients of a downward sweep from the forward pass.

    Autograd gives them for the mean loss.

    Args:
        betas: β_1…β_L, per term of the loss.
        shares: of the nudge, those of s⁺ and s⁻.
        terms: what the loss's mean divides by. Cotangents times it are those of the sum.
    """
    up, down = shares
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
