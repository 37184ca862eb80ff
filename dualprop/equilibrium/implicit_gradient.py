"""The gradient of the loss at a free equilibrium, by the implicit function theorem.

It is what equilibrium propagation estimates.

At an equilibrium h = Φ(h, θ) of the block updates Φ_k = f(a_k(h_{k-1}) + T_k(h_{k+1})),

    dℓ/dθ = vᵀ ∂Φ/∂θ,      v = ∇ℓ + (∂Φ/∂h)ᵀ v

(Almeida 1987; Pineda 1987). v is swept layer by layer, as the states are. At a strict minimum of
the energy that converges, since the Hessian is positive definite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dualprop.losses import AbstractLoss
from dualprop.network import Network
from dualprop.network.hooks import gradients_by


def hopfield_updates(network: Network, states: Sequence[Tensor], discount: float = 1.0) -> list[Tensor]:
    """Φ_1…Φ_L: where each layer of a Hopfield network would settle between its neighbours.

    `states` are s_0…s_L; the result is in their graph. Each layer counts `discount` times as much
    as the one below it.
    """
    drives = [network.into(k).forward(states) for k in range(1, network.depth + 1)]
    # E without potentials is -Σ γ^k s_k·a_k. Its derivative in s_k is -γ^k (a_k + T_k).
    terms = (discount**k * (a * s).sum() for k, (a, s) in enumerate(zip(drives, states[1:], strict=True), start=1))
    coupling = sum(terms, torch.zeros((), device=states[0].device))
    pulls = torch.autograd.grad(coupling, list(states[1:]), create_graph=True)
    # The derivative in s_k holds γ^k a_k as well as the pull from above.
    return [network.into(k).neuron.f(pull * discount**-k) for k, pull in enumerate(pulls, start=1)]


def gradients(
    network: Network,
    states: Sequence[Tensor],
    y: Tensor,
    loss: AbstractLoss,
    most_sweeps: int = 500,
    discount: float = 1.0,
) -> dict[str, Tensor]:
    """dℓ/dθ of the mean loss at a Hopfield network's equilibrium, for every trainable parameter.

    `states` are that equilibrium, s_0…s_L. The gradient is not a number where v does not converge,
    as where the states are no minimum.

    Args:
        states: settled. What is left of their motion is an error of the result.
        discount: of the layers, see `hopfield_updates`.
        most_sweeps: v is swept until it moves by less than a tenth of √eps of its norm.
            At most so many sweeps.
    """
    parameters, tolerance = network.parameters, 0.1 * torch.finfo(states[-1].dtype).eps ** 0.5
    with torch.enable_grad():
        held = [states[0], *(s.detach().requires_grad_() for s in states[1:])]
        updated = hopfield_updates(network, held, discount)
        source = [torch.zeros_like(s) for s in held[1:-1]] + [loss.gradient(held[-1].detach(), y) / loss.terms(y, len(held[0]))]
        v, moved, size = list(source), math.inf, 0.0
        for _ in range(most_sweeps):
            moved = 0.0
            for k, s in reversed(list(enumerate(held[1:]))):
                (pulled,) = torch.autograd.grad(updated, s, v, retain_graph=True, allow_unused=True, materialize_grads=True)
                new = pulled + source[k]
                moved += float((new - v[k]).square().sum())
                v[k] = new
            size = sum(float(part.square().sum()) for part in v)
            if not moved > tolerance**2 * size:
                break
        derivatives = gradients_by(updated, list(parameters.values()), v, allow_unused=True, materialize_grads=True)
    if not moved <= tolerance**2 * size:
        derivatives = tuple(torch.full_like(g, math.nan) for g in derivatives)
    return dict(zip(parameters, derivatives, strict=True))
