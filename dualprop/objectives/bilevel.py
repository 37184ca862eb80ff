"""Relaxations of the bilevel programme min ℓ(s*), s* = argmin E, for any energy E, solved globally.

`rovr`, `arovr` and `sprovr` (Høier & Zach 2024, §4), by Newton's method for each example. N batch,
D units of all layers together; nothing is averaged over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.settings import checked_beta

Scalar = Callable[[Tensor], Tensor]


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
