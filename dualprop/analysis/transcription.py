"""Dual propagation once more, written to be obviously right.

Every state is explicit, every product by autograd, and nothing is reused. It is the slow twin that
`dualprop check` and the tests hold the engines against. It follows the papers' formulas term by
term (see rules/dual_propagation.py) and shares only the neurons and losses with the engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualprop.network import Network
from dualprop.rules import DualPropagation
from dualprop.schedules import Step


def transcribe(
    network: Network, rule: DualPropagation, x: Tensor, y: Tensor, steps: Sequence[Step]
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """s⁺, s⁻ of layers 0…L and the gradients, after the steps.

    From a forward or zero start, with a linearized nudge.
    """
    assert rule.output_nudge == "linearized"
    assert rule.start in ("forward", "zeros")
    constants = rule.damping or (0.0,) * (network.depth - 1)
    assert not isinstance(constants, str | float), "give spectral damping's constants as numbers"
    depth, alpha, betas = network.depth, rule.alpha, rule.betas(network.depth)
    to_plus, to_minus = (alpha, 1 - alpha) if rule.coupling == "original" else (1 - alpha, alpha)
    default = "current" if rule.coupling == "original" and rule.damping is None else "forward"
    at = rule.linearize_at or default

    plus = [x]
    for layer in network.layers:
        plus.append(layer.neuron.f(layer.forward(plus)).detach())
    prediction = plus[-1]
    if rule.start == "zeros":
        plus = [x, *(torch.zeros_like(s) for s in plus[1:])]
    minus = list(plus)

    def mean(k: int) -> Tensor:
        return alpha * plus[k] + (1 - alpha) * minus[k]

    def updated(k: int, nudged: bool) -> tuple[Tensor, Tensor]:
        neuron = network.into(k).neuron
        a = network.into(k).forward([mean(j) for j in range(k)]).detach()
        if k == depth:
            s = neuron.f(a) if at == "current" else prediction
            pull = -betas[-1] * rule.loss.gradient(s, y) if nudged else torch.zeros_like(a)
        else:
            s = mean(k).requires_grad_()
            pull = torch.zeros_like(s)
            for j in network.out_of(k):
                product = (network.into(j).synapse_from(k).forward(s) * (plus[j] - minus[j])).sum()
                pull = pull + betas[k - 1] / betas[j - 1] * torch.autograd.grad(product, s)[0]
        damping = constants[k - 1] if k < depth else 0.0
        return (
            neuron.prox(a + to_plus * pull + damping * plus[k], damping),
            neuron.prox(a - to_minus * pull + damping * minus[k], damping),
        )

    for step in steps:
        nudged = not (step.before_arrival and rule.start == "zeros")
        new = {k: updated(k, nudged) for k in step.layers}
        for k, (s_plus, s_minus) in new.items():
            plus[k], minus[k] = s_plus.detach(), s_minus.detach()

    gradients: dict[str, Tensor] = {}
    for k in range(1, depth + 1):
        parameters = network.into(k).parameters
        if not parameters:
            continue
        product = (network.into(k).forward([mean(j) for j in range(k)]) * (plus[k] - minus[k])).sum()
        derivatives = torch.autograd.grad(-product / (betas[k - 1] * len(x)), list(parameters.values()))
        gradients.update(zip(parameters, derivatives, strict=True))
    return plus, minus, gradients
