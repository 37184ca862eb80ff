"""The scalar objectives behind the rules, one number per example.

They are differentiable in states and parameters.

Layer k has the energy E_k(s, s') = G_k(s) - s·a_k(s'). Here s is its state, s' the state below, a_k
the drive, and G_k the potential of its activation f_k: f_k(a_k) = argmin_s E_k. Objectives of a
layered network, the first four made of E_k:

    dyadic       α ℓ(s_L⁺) + ᾱ ℓ(s_L⁻) + Σ_k (1/β_k) [E_k(s_k⁺, s̄_{k-1}) - E_k(s_k⁻, s̄_{k-1})]
    lagrangian   ℓ(s_L) + Σ_k d_k·(f_k⁻¹(s_k) - a_k(s_{k-1}))
    lifted       ℓ(s_L) + Σ_k (1/β_k) [G_k(s_k) + G_k*(a_k(s_{k-1})) - s_k·a_k(s_{k-1})]
    hopfield     Σ_k E_k(s_k, s_{k-1})
    predictive   Σ_k ½‖s_k - f_k(a_k(s_{k-1}))‖²

with ᾱ = 1 - α, s̄ = α s⁺ + ᾱ s⁻, s_0 = x. `rovr`, `arovr` and `sprovr` relax the bilevel programme
min ℓ(s*), s* = argmin E, for any energy E. N batch, D units of all layers together; nothing is
averaged over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

Scalar = Callable[[Tensor], Tensor]


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
        y: (N,) class indices or (N, K) target vectors.
        loss: a loss or its name.
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


@dataclass(frozen=True)
class Relaxation:
    """The optimum of a relaxed bilevel programme, per example.

    Attributes:
        value: J, shape (N,). The states in it are held fixed. By the envelope theorem its gradient
            in the energy's parameters is then that of J, (1/β)(∂E(s⁺) - ∂E(s⁻)).
        plus, minus, free: s⁺, s⁻ and s* = argmin E, shapes (N, D).
    """

    value: Tensor
    plus: Tensor
    minus: Tensor
    free: Tensor


def rovr(loss: Scalar, energy: Scalar, beta: float, start: Tensor) -> Relaxation:
    """ROVR: J_β = min_s ℓ(s) + (E(s) - E(s*))/β, the relaxed optimal-value reformulation.

    (Høier & Zach 2024, §4.)

    It is at most ℓ(s*), its limit as β → 0. `minus` is s*. Arguments and errors as for `arovr`.
    """
    return arovr(loss, energy, 1.0, beta, start)


def arovr(loss: Scalar, energy: Scalar, alpha: float, beta: float, start: Tensor) -> Relaxation:
    """AROVR (Høier & Zach 2024, §4): two relaxations, weighted by α and ᾱ. With E* = min E it is

        α min_s [ℓ(s) + (E(s) - E*)/(αβ)] + ᾱ max_s [ℓ(s) - (E(s) - E*)/(ᾱβ)].

    The first bracket is at most ℓ(s*), the second at least. At α = 1 and 0 the other has no weight
    and its state is s*. For ℓ ≥ 0, J falls with α and β·J grows with β (Proposition 4.1), and
    J = ℓ(s*) + (β/2)(1-2α) ∇ℓᵀ(∇²E)⁻¹∇ℓ + O(β²).

    Args:
        loss, energy: functions of states (N, D), each example apart, to (N,), twice differentiable.
            In a network's energy, units must be linear, sigmoid or tanh. The energy must be
            strongly convex, the loss convex.
        alpha: in [0, 1].
        beta: > 0.
        start: states (N, D) of finite energy, where the search for s* begins; D up to about a
            hundred (dense Hessians).

    Raises:
        SettingError: where Newton's method passes, the energy or the downhill problem is not
            convex, or the uphill problem not concave; or it does not converge. The uphill problem
            needs ᾱβ ∇²ℓ < ∇²E.
    """
    free, plus, minus = _optima(loss, energy, alpha, beta, start)
    # α and ᾱ are multiplied in. The bracket absent at α = 1 or 0 has s*, no gap, and value 0.
    floor = energy(free)
    downhill = alpha * loss(plus) + (energy(plus) - floor) / beta
    uphill = (1 - alpha) * loss(minus) - (energy(minus) - floor) / beta
    value = downhill + uphill
    return Relaxation(value, plus, minus, free)


def sprovr(loss: Scalar, energy: Scalar, alpha: float, beta: float, start: Tensor) -> Relaxation:
    """SPROVR: min_{s⁺} max_{s⁻} α ℓ(s⁺) + ᾱ ℓ(s⁻) + (E(s⁺) - E(s⁻))/β (Høier & Zach 2024, §4).

    The problem separates, and E* cancels: it equals AROVR. Arguments and errors as for `arovr`.
    """
    free, plus, minus = _optima(loss, energy, alpha, beta, start)
    value = alpha * loss(plus) + (1 - alpha) * loss(minus) + (energy(plus) - energy(minus)) / beta
    return Relaxation(value, plus, minus, free)


def _optima(loss: Scalar, energy: Scalar, alpha: float, beta: float, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s*, s⁺ and s⁻: the minima of E, of E + αβ ℓ and of E - ᾱβ ℓ."""
    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha must be in [0, 1], got {alpha:g}.")
    checked_beta(beta)
    if start.dim() != 2 or not start.dtype.is_floating_point:
        raise SettingError(f"start must be floating point of shape (N, D), got {start.dtype} of {tuple(start.shape)}.")
    free = _minimum(energy, start, "the energy", "convex", "Use smaller weights, or start elsewhere.")
    plus = minus = free
    if alpha > 0:
        plus = _minimum(lambda s: energy(s) + alpha * beta * loss(s), free, "the downhill problem", "convex", "Lower beta.")
    if alpha < 1:
        strength = (1 - alpha) * beta
        remedy = f"Lower beta, or move alpha towards 1: (1-alpha)·beta = {strength:g} is too large."
        minus = _minimum(lambda s: energy(s) - strength * loss(s), free, "the uphill problem", "concave", remedy)
    return free, plus, minus


def _minimum(objective: Scalar, start: Tensor, what: str, shape: str, remedy: str, max_steps: int = 100) -> Tensor:
    """argmin of a convex objective per example, (N, D) → (N, D), by Newton steps.

    A step is halved until the objective falls.
    """
    s, eps = start.detach(), torch.finfo(start.dtype).eps
    settled = torch.zeros(len(s), dtype=torch.bool, device=s.device)
    for _ in range(max_steps):
        value, gradient, hessian = _second_order(objective, s)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if bool(failed.any()):
            count = int((failed != 0).sum())
            raise SettingError(f"{what} is not strictly {shape} for {count} of {len(s)} examples. {remedy}")
        step = torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)
        length = _step_length(objective, s, step, value, gradient, eps)
        s = torch.where(settled.unsqueeze(1), s, s - length.unsqueeze(1) * step)
        # Convergence is quadratic: a full step this small leaves an error below rounding.
        settled = settled | ((length == 1) & (step.abs().amax(1) <= eps**0.6 * (1 + s.abs().amax(1))))
        if bool(settled.all()):
            return s
    raise SettingError(f"{what} did not converge in {max_steps} Newton steps. Both loss and energy must be smooth. {remedy}")


def _second_order(objective: Scalar, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (N,), gradient (N, D) and Hessian (N, D, D) of an objective of separate examples."""
    with torch.enable_grad():
        leaf = s.detach().requires_grad_()
        value = objective(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        rows = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).unsqueeze(1).expand(-1, len(s), -1)
        (hessian,) = torch.autograd.grad(gradient, leaf, rows, is_grads_batched=True)
    return value.detach(), gradient.detach(), hessian.transpose(0, 1)


def _step_length(objective: Scalar, s: Tensor, step: Tensor, value: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """The largest of 1, ½, ¼, … by which the objective falls along -step, shape (N,); else zero."""
    slope = (gradient * step).sum(1)
    # What rounding alone does to the value. Below it no decrease shows, and the full step is right.
    noise = 64 * eps * (1 + value.abs())
    length = torch.ones_like(value)
    with torch.no_grad():
        for _ in range(60):
            # Not a number, or infinite: beyond the range of an activation.
            accepted = objective(s - length.unsqueeze(1) * step) <= value - 0.1 * length * slope + noise
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, length / 2)
    return length


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
    if s.dim() != 2 or (y.shape != s.shape if y.dtype.is_floating_point else y.shape != s.shape[:1]):
        raise SettingError(
            f"the targets must be (N,) class indices or (N, K) vectors for outputs (N, K), got {y.dtype} of {tuple(y.shape)} "
            f"for outputs of {tuple(s.shape)}. Pass one target per example."
        )
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
