"""A dyad written out in PyTorch: what the eager kernel runs, and what any compiler is given.

Nothing is the difference of two states that are nearly equal. An activation says how far it rises
from one drive to another (`rise`), with all digits of what is between them. So β may be as small as
one likes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualprop.kernels.activation import HALF, Activation


def dyad(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Mean and difference of f(a + up·delta) and f(a - down·delta), in the dtype and shape of a."""
    dtype = a.dtype
    if dtype in HALF:
        mean, rise = dyad(neuron, a.float(), delta.float(), up, down, alpha)
        return mean.to(dtype), rise.to(dtype)
    low = _shifted(a, delta, -down)
    state = neuron.f(low)
    rise = neuron.rise(low, (up + down) * delta, state)
    return state + alpha * rise, rise


def difference(neuron: Activation, a: Tensor, delta: Tensor, up: float, down: float, scale: float) -> Tensor:
    """scale · (f(a + up·delta) - f(a - down·delta)), in the dtype and shape of a.

    It is taken in float32 or wider.
    """
    dtype = a.dtype
    if dtype in HALF:
        a, delta = a.float(), delta.float()
    if torch.is_grad_enabled() and (a.requires_grad or delta.requires_grad):
        # The backward pass is being differentiated, and a rise picks its pieces by comparing.
        rise = neuron.f(_shifted(a, delta, up)) - neuron.f(_shifted(a, delta, -down))
    else:
        rise = neuron.rise(_shifted(a, delta, -down), (up + down) * delta)
    return (scale * rise).to(dtype)


def one_sided_difference(neuron: Activation, a: Tensor, delta: Tensor, strength: float, free: Tensor) -> Tensor:
    """f(a + strength·delta) - f(a), or its negative where strength < 0; `free` is f(a)."""
    dtype = a.dtype
    if dtype in HALF:
        return neuron.rise(a.float(), strength * delta.float()).mul_(1 if strength > 0 else -1).to(dtype)
    rise = neuron.rise(a, strength * delta, free)
    return rise if strength > 0 else -rise


def _shifted(a: Tensor, delta: Tensor, strength: float) -> Tensor:
    """a + strength·delta, in new memory."""
    # Not torch.add: where delta is a matrix product that nothing else reads, inductor folds an
    # addition with `alpha` into addmm and forgets the alpha (torch 2.13).
    return a + strength * delta
