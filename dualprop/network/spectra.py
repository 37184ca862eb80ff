"""Spectral norms of synapses by power iteration on WᵀW, W the linear part of a synapse's core.

    u = W v,  w = Wᵀ u,  ‖W‖² ≈ ‖w‖,  v ← w / ‖w‖

v is a unit vector, in the shape of one example at the core.

The estimate never exceeds ‖W‖², and never falls under plain steps. After q steps it is at least
‖W‖² |v₀·e|^(1/q), with e the leading right singular vector. For a Gaussian v₀ in n dimensions it is
less than half of ‖W‖² with a probability of at most 0.8 √n 2^(-q), whatever the spectrum. With
separate feedback weights B for Wᵀ it is the gain of the loop B W, and none of this is sure.

Wide random matrices have many singular values near the largest. A plain step parts them slowly: of
1000×1000 the estimate is still 1 % short after 100. With momentum (De Sa et al. 2018; a Chebyshev
polynomial of WᵀW in the limit),

    v ← WᵀW v - (0.99 ‖w‖/2)² v_before,      both divided by the size of the new one,

a part that lies 1 % below the largest falls behind by 15 % a step. So one step for each training
step is enough to follow the weights.

Wᵀ is the synapse's own pull-back. Its parameter-free entry and exit are left out, see
`Synapse.linear_part`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.network.states import States
from dualprop.network.synapses import Synapse

# Momentum holds back eigenvalues of WᵀW below this share of the largest.
MOMENTUM = 0.99
# Cold start: short of half of ‖W‖² with a probability < 0.8 √n 2⁻³⁰, 1e-6 for a million units.
COLD_STEPS = 30


def start_vector(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """A Gaussian unit vector of this shape, the same on every device and in every call.

    A generator, if given, draws it instead.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    v = torch.randn(tuple(shape), dtype=torch.float64, device=generator.device, generator=generator)
    return (v / v.norm()).to(device=device, dtype=dtype)


@torch.no_grad()
def power_step(synapse: Synapse, v: Tensor) -> tuple[Tensor, Tensor]:
    """One step of power iteration: (the next unit vector, ‖Wᵀ W v‖), the second of shape ().

    Nothing waits for the device.

    Args:
        v: a unit vector, in the shape of one example entering the core (`States.core_shape` after a
            drive). Where W v is zero or not finite v is returned as it is: a vector kept between
            steps survives both.

    Raises:
        SettingError: the core is not affine, or can't read v.
    """
    forward, transpose = synapse.linear_part(v.unsqueeze(0))
    w = transpose(forward).squeeze(0)
    squared_norm = torch.linalg.vector_norm(w)
    usable = (squared_norm > 0) & torch.isfinite(squared_norm)
    return torch.where(usable, w / squared_norm, v), squared_norm


def started(synapse: Synapse, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A pair for `accelerated_step` after `COLD_STEPS`. The fixed start alone would be far off."""
    v = start_vector(shape, dtype, device)
    pair = torch.stack([v, torch.zeros_like(v)])
    for _ in range(COLD_STEPS):
        pair, _ = accelerated_step(synapse, pair)
    return pair


@torch.no_grad()
def accelerated_step(synapse: Synapse, pair: Tensor) -> tuple[Tensor, Tensor]:
    """One step of power iteration with momentum: (the next pair, ‖Wᵀ W v‖).

    It costs what `power_step` costs.

    Args:
        pair: (2, …): a unit vector v, and the vector of the step before, scaled alike; zero before
            the first. It is kept between training steps. Where the step is zero or not finite it is
            returned as it is.

    Raises:
        SettingError: the core is not affine, or can't read v.
    """
    v, before = pair.unbind(0)
    forward, transpose = synapse.linear_part(v.unsqueeze(0))
    w = transpose(forward).squeeze(0)
    squared_norm = torch.linalg.vector_norm(w)
    after = w - (MOMENTUM / 2 * squared_norm).square() * before
    size = torch.linalg.vector_norm(after)
    usable = (size > 0) & torch.isfinite(size)
    return torch.where(usable, torch.stack([after, v]) / size, pair), squared_norm


def contraction_constants(
    states: States, factor: float, directions: Sequence[Tensor | None]
) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """factor · max(0, r‖W_{k+1}‖² - 1)/2 of the hidden layers, and the vectors to go on from.

    Here r = β_k/β_{k+1}.

    Damped by that, the loop s_k → a_{k+1} → δ_{k+1} → Δ_k contracts (Høier & Zach 2024). One step
    of power iteration a call follows the weights. Without the `directions` of an earlier call it
    starts with `COLD_STEPS`.

    Raises:
        SettingError: a layer that several read, or a synapse that is not affine.
    """
    network, betas = states.network, states.betas
    assert betas is not None
    after: list[Tensor | None] = [None] * network.depth
    constants: list[Tensor] = []
    for k in range(1, network.depth):
        if len(network.out_of(k)) > 1:
            raise SettingError(
                f"spectral damping follows one synapse out of a layer, but layers {network.out_of(k)} read layer {k}. "
                "Give the constants yourself, damping=(…)."
            )
        (above,) = network.out_of(k)
        shape = states.core_shape(above, k)
        pair, synapse = directions[k] if k < len(directions) else None, network.into(above).synapse_from(k)
        if pair is None or tuple(pair.shape[1:]) != shape:
            pair = started(synapse, shape, states.means[k].dtype, states.means[k].device)
        after[k], squared_norm = accelerated_step(synapse, pair)
        ratio = betas[k - 1] / betas[above - 1]
        constants.append((squared_norm * ratio - 1).clamp(min=0) * (factor / 2))
    return constants, tuple(after)


def gap_curvature(states: States, k: int) -> Tensor:
    """c_k = Σ_j (β_k/β_j) ‖W_j‖² over the layers j that read layer k, shape ().

    It bounds the curvature of the gaps above layer k of a lifted network. Power iteration is from
    the fixed start, short of half of ‖W‖² by bad luck alone.

    Raises SettingError where a synapse is not affine.
    """
    network, betas = states.network, states.betas
    assert betas is not None
    mean = states.means[k]
    total = mean.new_zeros(())
    for j in network.out_of(k):
        synapse = network.into(j).synapse_from(k)
        v = start_vector(states.core_shape(j, k), mean.dtype, mean.device)
        for _ in range(COLD_STEPS):
            v, squared_norm = power_step(synapse, v)
        total = total + squared_norm * (betas[k - 1] / betas[j - 1])
    return total


def spectral_norm(synapse: Synapse, example_shape: Sequence[int], iterations: int = 1000) -> Tensor:
    """‖W‖, shape (), by power iteration from the fixed start.

    It stops when the estimate moves no more, or after `iterations` steps.

    Args:
        example_shape: of one example entering the core, (D,) or (C, H, W) say.

    Raises:
        SettingError: the core is not affine, or can't read that shape.
    """
    like = next((p for module in synapse.modules.values() for p in module.parameters()), torch.empty(0))
    v = start_vector(example_shape, like.dtype, like.device)
    squared_norm = torch.zeros((), dtype=like.dtype, device=like.device)
    for _ in range(iterations):
        before = squared_norm
        v, squared_norm = power_step(synapse, v)
        if abs(float(squared_norm - before)) <= 4 * torch.finfo(like.dtype).eps * float(squared_norm):
            break
    return squared_norm.sqrt()
