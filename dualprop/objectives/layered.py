"""The scalar objectives of a layered network behind the rules, one number per example.

They are differentiable in states and parameters.

Layer k has the energy E_k(s, s') = G_k(s) - s·a_k(s'). Here s is its state, s' the state below, a_k
the drive, and G_k the potential of its activation f_k: f_k(a_k) = argmin_s E_k. The first four are
made of E_k:

    dyadic       α ℓ(s_L⁺) + ᾱ ℓ(s_L⁻) + Σ_k (1/β_k) [E_k(s_k⁺, s̄_{k-1}) - E_k(s_k⁻, s̄_{k-1})]
    lagrangian   ℓ(s_L) + Σ_k d_k·(f_k⁻¹(s_k) - a_k(s_{k-1}))
    lifted       ℓ(s_L) + Σ_k (1/β_k) [G_k(s_k) + G_k*(a_k(s_{k-1})) - s_k·a_k(s_{k-1})]
    hopfield     Σ_k E_k(s_k, s_{k-1})
    predictive   Σ_k ½‖s_k - f_k(a_k(s_{k-1}))‖²

with ᾱ = 1 - α, s̄ = α s⁺ + ᾱ s⁻, s_0 = x. N batch; nothing is averaged over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dualprop import losses
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network import Network
from dualprop.network.states import Dyads
from dualprop.neurons import AbstractNeuron, Identity, LeakyReLU, Sigmoid, Tanh
from dualprop.settings import beta_per_layer, checked_beta


def layer_energy(network: Network, k: int, s: Tensor, below: Tensor | Sequence[Tensor]) -> Tensor:
    """E_k = G_k(s) - s·a_k(below), shape (N,), least at s = f_k(a_k).

    Its gradient in the parameters is -sᵀ ∂a_k/∂θ.

    Args:
        k: the layer, in 1…L.
        s: its state, of the drive's shape (N, …). Outside its activation's range E_k is infinite.
        below: the state that the layer reads, (N, …), or all states s_0, s_1, …

    Raises:
        SettingError: no such layer, or a state that does not fit it.
    """
    _check_layer(network, k)
    if isinstance(below, Tensor) and len(network.into(k).sources) > 1:
        raise SettingError(f"layer {k} reads layers {network.into(k).sources}: pass all states s_0, s_1, … as below.")
    a = _drive(network, k, s, {network.into(k).sources[0]: below} if isinstance(below, Tensor) else below)
    return _sum(network.into(k).neuron.potential(s) - s * a)


def hopfield(network: Network, states: Sequence[Tensor]) -> Tensor:
    """Σ_k E_k(s_k, s_{k-1}), shape (N,): the energy of a layered Hopfield network.

    Every layer is pulled from both sides.

    Its Hessian holds G_k″ ≥ 1 on the diagonal and -W_k beside it. It is strongly convex where
    ‖W_k‖ + ‖W_{k+1}‖ < 1 in spectral norm for every layer; W_1, which reads the input, does not
    count.

    Args:
        states: s_0…s_L, s_0 = x the input.

    Raises:
        SettingError: not L + 1 states, or one that does not fit.
    """
    _check_count(states, network.depth + 1, "states", "s_0…s_L")
    return _total(
        [layer_energy(network, k, states[k], states) for k in range(1, network.depth + 1)],
    )


def predictive_coding(network: Network, states: Sequence[Tensor]) -> Tensor:
    """Σ_k ½‖s_k - f_k(a_k(s_{k-1}))‖², shape (N,): the energy of a predictive coding network.

    (Kerjan et al. 2026, eq. 10.)

    It is least, 0, at the forward pass. Arguments and errors as for `hopfield`.
    """
    _check_count(states, network.depth + 1, "states", "s_0…s_L")
    terms = []
    for k in range(1, network.depth + 1):
        predicted = network.into(k).neuron.f(_drive(network, k, states[k], states))
        terms.append(_sum((states[k] - predicted).square() / 2))
    return _total(terms)


def dyadic(
    network: Network,
    dyads: Dyads,
    y: Tensor,
    loss: AbstractLoss | str,
    beta: float | tuple[float, ...],
    linearized_at: Tensor | None = None,
) -> Tensor:
    """L_α, the objective of dual propagation, shape (N,).

        L_α = α ℓ(s_L⁺) + ᾱ ℓ(s_L⁻) + Σ_k (1/β_k) [E_k(s_k⁺, s̄_{k-1}) - E_k(s_k⁻, s̄_{k-1})]

    DP takes its min over s⁺ and max over s⁻ (Høier et al. 2023, §3; Høier & Zach 2024, §4). With
    linear synapses, every update of `DualPropagation(coupling="original")` solves it for that
    layer's dyad. With any synapses, its gradient in the parameters at the inferred dyads, averaged
    over the batch, is the rule's.

    In (s̄, δ) the layers' terms are G_k(s̄ + ᾱ δ) - G_k(s̄ - α δ) - δ·a_k(s̄_{k-1}). They nearly
    cancel: values have a rounding error of eps/β. A state beyond its activation's range by such
    rounding counts as at its end; further out is infinite.

    Args:
        dyads: with `alpha`; the means and differences may require gradients.
        y: (N,) class indices or (N, K) target vectors, or what the loss reads.
        loss: a loss or its name, with a value per example.
        beta: > 0, for all layers or one per layer 1…L.
        linearized_at: an output p (N, K), held fixed. ℓ is then replaced by ℓ(p) + ∇ℓ(p)·(s - p),
            which is what output_nudge="linearized" descends.

    Raises:
        SettingError: states, targets or betas that do not fit the network.
    """
    depth, alpha = network.depth, dyads.alpha
    _check_count(dyads.means, depth + 1, "means", "s̄_0…s̄_L")
    ell, betas = losses.from_name(loss), beta_per_layer(checked_beta(beta), depth)
    plus, minus, terms = dyads.means[0], dyads.means[0], []
    for k in range(1, depth + 1):
        neuron, mean, delta = network.into(k).neuron, dyads.mean(k), dyads.difference(k)
        a = _drive(network, k, mean, dyads.means)
        reach = mean.detach().abs() + delta.detach().abs()
        plus = _within_range(neuron, mean + (1 - alpha) * delta, reach)
        minus = _within_range(neuron, mean - alpha * delta, reach)
        terms.append(_sum(neuron.potential(plus) - neuron.potential(minus) - delta * a) / betas[k - 1])
    if linearized_at is None:
        return alpha * _loss(ell, plus, y) + (1 - alpha) * _loss(ell, minus, y) + _total(terms)
    # α ℓ(s⁺) + ᾱ ℓ(s⁻) of a linear ℓ is ℓ(s̄).
    point = linearized_at.detach()
    _check_shape(point, plus, "linearized_at")
    y = ell.batch_targets(y, len(point), point.dtype)
    return _loss(ell, point, y) + _sum(ell.gradient(point, y) * (dyads.mean(depth) - point)) + _total(terms)


def lagrangian(
    network: Network, means: Sequence[Tensor], multipliers: Sequence[Tensor], y: Tensor, loss: AbstractLoss | str
) -> Tensor:
    """ℓ(s_L) + Σ_k d_k·(f_k⁻¹(s_k) - a_k(s_{k-1})), shape (N,): LeCun's Lagrangian (1988).

    Its stationary point is BP.

    Stationary in d_k: s_k = f_k(a_k), the forward pass. Stationary in s_k: d_k = f_k′ ∘ W_{k+1}ᵀ
    d_{k+1} and d_L = -f_L′ ∘ ∇ℓ, minus BP's errors ∂ℓ/∂a_k. The gradient in the parameters is then
    BP's. For linear units d_k = δ_k/β_k turns L_½ into it, but for the curvature of ℓ.

    Args:
        means: s_0…s_L, inside the ranges of the activations.
        multipliers: d_1…d_L, of the shapes of s_1…s_L.
        y, loss: as for `dyadic`.

    Raises:
        SettingError: an activation without an inverse, or states that do not fit.
    """
    _check_count(means, network.depth + 1, "means", "s_0…s_L")
    _check_count(multipliers, network.depth, "multipliers", "d_1…d_L")
    terms = [_loss(losses.from_name(loss), means[-1], y)]
    for k, d in enumerate(multipliers, start=1):
        a = _drive(network, k, means[k], means)
        _check_shape(d, a, f"the multiplier of layer {k}")
        terms.append(_sum(d * (inverse(network.into(k).neuron, means[k]) - a)))
    return _total(terms)


def lifted(
    network: Network, states: Sequence[Tensor], y: Tensor, loss: AbstractLoss | str, beta: float | tuple[float, ...]
) -> Tensor:
    """LPOM's objective, shape (N,) (Li, Fang & Lin 2019; Zach 2021).

        ℓ(X_L) + Σ_k (1/β_k) [G_k(X_k) + G_k*(a_k) - X_k·a_k]

    The brackets are Fenchel-Young gaps E_k(X_k, X_{k-1}) - min_s E_k(s, X_{k-1}) ≥ 0, zero exactly
    where X_k = f_k(a_k). So the objective is at least ℓ(X_L); at the forward pass it is the loss.
    Its gradient in W_k is -(1/β_k)(X_k - f_k(a_k)) X_{k-1}ᵀ.

    Args:
        states: X_0…X_L, X_0 = x. Outside an activation's range the value is infinite.
        y, loss, beta: as for `dyadic`.

    Raises:
        SettingError: states, targets or betas that do not fit the network.
    """
    _check_count(states, network.depth + 1, "states", "X_0…X_L")
    terms = [_loss(losses.from_name(loss), states[-1], y)]
    for k, beta_k in enumerate(beta_per_layer(checked_beta(beta), network.depth), start=1):
        neuron, s = network.into(k).neuron, states[k]
        a = _drive(network, k, s, states)
        terms.append(_sum(neuron.potential(s) + conjugate(neuron, a) - s * a) / beta_k)
    return _total(terms)


def conjugate(neuron: AbstractNeuron, a: Tensor) -> Tensor:
    """G*(a) = max_s s·a - G(s) = a f(a) - G(f(a)), per unit; its derivative is f."""
    return _Conjugate.apply(a, neuron)


def inverse(neuron: AbstractNeuron, s: Tensor) -> Tensor:
    """f⁻¹(s) per unit. Raises SettingError where f has none.

    ReLU and the hard sigmoid map many drives to one state.
    """
    match neuron:
        case Identity():
            return s
        case LeakyReLU():
            return torch.where(s >= 0, s, s / neuron.slope)
        case Sigmoid():
            return s.logit()
        case Tanh():
            return s.atanh()
    raise SettingError(
        f"{type(neuron).__name__} has no inverse, which the Lagrangian needs. Use LeakyReLU, Sigmoid, Tanh or no activation, "
        "or the dyadic objective."
    )


class _Conjugate(torch.autograd.Function):
    """G*, with f for its derivative: exact where f saturates, and differentiable again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, neuron: AbstractNeuron) -> Tensor:
        ctx.save_for_backward(a)
        ctx.neuron = neuron
        s = neuron.f(a)
        return a * s - neuron.potential(s)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.neuron.f(ctx.saved_tensors[0]), None


def _within_range(neuron: AbstractNeuron, s: Tensor, reach: Tensor) -> Tensor:
    """s, moved onto the activation's range where rounding put it beyond.

    `reach` is the size of the terms of the sum that was rounded.
    """
    with torch.no_grad():
        back = s.clamp(*neuron.reach) - s
        back = torch.where(back.abs() <= 8 * torch.finfo(s.dtype).eps * reach, back, 0)
    return s + back


def _check_layer(network: Network, k: int) -> None:
    if not 1 <= k <= network.depth:
        raise SettingError(f"the network has layers 1 to {network.depth}, got {k}.")


def _drive(network: Network, k: int, s: Tensor, states: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
    """a_k at the states, checked against the state s of layer k."""
    a = network.into(k).forward(states)
    _check_shape(s, a, f"the state of layer {k}")
    return a


def _loss(loss: AbstractLoss, s: Tensor, y: Tensor) -> Tensor:
    """ℓ(s, y) per example, checked: a target of one example would broadcast to all."""
    y = loss.batch_targets(y, len(s), s.dtype)
    loss.check_targets(y, s)
    return loss.value(s, y)


def _sum(per_unit: Tensor) -> Tensor:
    """Over the units of each example, shape (N,)."""
    return per_unit.flatten(1).sum(1)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def _check_count(given: Sequence[Any], count: int, what: str, which: str) -> None:
    if len(given) != count:
        raise SettingError(f"{what} must hold {count} tensors, {which}, got {len(given)}.")


def _check_shape(given: Tensor, expected: Tensor, what: str) -> None:
    if given.shape != expected.shape:
        raise SettingError(f"{what} must have shape {tuple(expected.shape)}, got {tuple(given.shape)}.")
