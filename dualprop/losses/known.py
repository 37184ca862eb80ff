"""The losses known by name: value, gradient, and the exact (proximal) nudge.

N batch, K classes or output units. Everything is per example, never averaged: β is a per-example
quantity, and the rule takes the mean over the batch, once. An output compartment
with drive a is nudged to

    nudge(a, y, c) = argmin_s G(s) - s·a + c ℓ(s, y)

c > 0 is downhill (s⁺). c < 0 is uphill (s⁻), which is well posed only for c > -`concave_limit`. At
c = 0 it is f(a).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from dualprop import softmax
from dualprop.errors import SettingError
from dualprop.losses.base import AbstractLoss, targets, wide
from dualprop.neurons import AbstractNeuron, Identity, Sigmoid, Softmax
from dualprop.settings import conform


@dataclass(frozen=True)
class SquaredError(AbstractLoss):
    """ℓ = ½‖s - y‖², summed over output units; class indices become one-hot vectors.

    Nudge: prox of G at a + c·y.
    """

    name = "squared_error"
    concave_limit = 1.0
    is_holomorphic = True

    def value(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        return (s - targets(y, s)).square().flatten(1).sum(1) / 2

    def gradient(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        return s - targets(y, s)

    def prepared(self, y: Tensor, outputs: Tensor) -> Tensor:
        return targets(y, wide(outputs))

    def check_targets(self, y: Tensor, outputs: Tensor) -> None:
        # Vectors may have any shape (N, …), and the sum runs over all of an example's units.
        if outputs.dim() == 2 or y.shape != outputs.shape:
            super().check_targets(y, outputs)

    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Tensor, c: float) -> Tensor:
        a = wide(a)
        return neuron.prox(a + c * targets(y, a), c)


@dataclass(frozen=True)
class CrossEntropy(AbstractLoss):
    """ℓ = -Σ t log softmax(s) on logits, t = (1 - ε) y + ε/K.

    Its Hessian is at most ½, so the uphill nudge needs |c| < 2.

    Attributes:
        label_smoothing: ε, what is taken from the targets and spread over all K classes.
        class_weights: w, one a class; an example's loss is w_y ℓ. Empty for 1 each.
    """

    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    class_weights: tuple[Annotated[float, Interval(ge=0)], ...] = ()

    name = "cross_entropy"
    is_holomorphic = True

    def __post_init__(self) -> None:
        conform(self)

    def __str__(self) -> str:
        return f"{self.name}({self.label_smoothing!r})" if self.label_smoothing else self.name

    @property
    def concave_limit(self) -> float:  # type: ignore[override]
        """2, by the largest weight."""
        return 2.0 / max(self.class_weights, default=1.0)

    def value(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        target = y.to(s.dtype) if y.dtype.is_floating_point else y
        values = F.cross_entropy(s, target, reduction="none", label_smoothing=self.label_smoothing)
        return values * self._weights(y, s)[:, 0] if self.class_weights else values

    def gradient(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        target = self._targets(y, s)
        p = softmax.softmax(s, 1)
        is_of_sum_one = not (y.dtype.is_floating_point or self.class_weights)
        return p - target if is_of_sum_one else p * target.sum(1, keepdim=True) - target

    def check_output(self, neuron: AbstractNeuron) -> None:
        if isinstance(neuron, Softmax):
            raise SettingError(
                "the cross_entropy loss takes logits, but the output neuron is Softmax. Use losses.LogLoss(), or remove the "
                "model's last activation."
            )

    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Tensor, c: float) -> Tensor:
        self.check_output(neuron)
        if not isinstance(neuron, Identity):
            raise SettingError(
                f"an exact cross-entropy nudge acts on logits, but the output neuron is {type(neuron).__name__}. "
                "Remove the model's last activation, or use output_nudge='linearized'."
            )
        a = wide(a)
        return _nudge_logits(a, self._targets(y, a), c)

    def _targets(self, y: Tensor, like: Tensor) -> Tensor:
        """Target vectors (N, K), each times its example's weight."""
        target = targets(y, like)
        if self.label_smoothing:
            target = torch.lerp(target, target.new_tensor(1 / target.shape[1]), self.label_smoothing)
        return target * self._weights(y, like).to(target.dtype) if self.class_weights else target

    def _weights(self, y: Tensor, like: Tensor) -> Tensor:
        """The weight of each example, (N, 1): that of its class, or of its share in each."""
        weights = torch.tensor(self.class_weights, dtype=like.real.dtype, device=like.device)
        if len(weights) != like.shape[1]:
            raise SettingError(f"class_weights must hold {like.shape[1]} numbers, one a class, got {len(weights)}.")
        return (y.to(weights.dtype) * weights).sum(1, keepdim=True) if y.dtype.is_floating_point else weights[y][:, None]


@dataclass(frozen=True)
class LogLoss(AbstractLoss):
    """ℓ = -Σ y log s on probabilities, the states of softmax neurons.

    Uphill its exact nudge has no argmin: s⁻ must be free.
    """

    name = "log_loss"
    concave_limit = 0.0

    def value(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        # log tiny at s = 0, and still -y/tiny by autograd, as `gradient` has it; clamping gives 0.
        probability = s + (s.clamp_min(torch.finfo(s.dtype).tiny) - s).detach()
        return -(targets(y, s) * probability.log()).sum(1)

    def gradient(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        return -targets(y, s) / s.clamp_min(torch.finfo(s.dtype).tiny)

    def check_output(self, neuron: AbstractNeuron) -> None:
        if not isinstance(neuron, Softmax):
            raise SettingError(
                f"the log_loss takes probabilities, but the output neuron is {type(neuron).__name__}. End the model with "
                "nn.Softmax(dim=1), or use losses.CrossEntropy() on logits."
            )

    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Tensor, c: float) -> Tensor:
        self.check_output(neuron)
        assert isinstance(neuron, Softmax)
        if c < 0:
            raise SettingError(f"an exact log_loss nudge has no argmin uphill (c = {c:g} < 0). Use output_nudge='linearized'.")
        a = wide(a)
        return neuron.f(a) if c == 0 else neuron.nudged(a, c * targets(y, a))


@dataclass(frozen=True)
class BinaryCrossEntropy(AbstractLoss):
    """ℓ = Σ_k log(1 + exp s_k) - y_k s_k on logits: K labels, each 0 or 1 and by itself.

    Its Hessian is at most ¼, so the uphill nudge needs |c| < 4. Class indices become one-hot
    vectors.
    """

    name = "binary_cross_entropy"
    concave_limit = 4.0
    is_holomorphic = True

    def value(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        return (F.softplus(s) - targets(y, s) * s).sum(1)

    def gradient(self, s: Tensor, y: Tensor) -> Tensor:
        s = wide(s)
        return s.sigmoid() - targets(y, s)

    def prepared(self, y: Tensor, outputs: Tensor) -> Tensor:
        return targets(y, wide(outputs))

    def check_output(self, neuron: AbstractNeuron) -> None:
        if isinstance(neuron, Sigmoid | Softmax):
            raise SettingError(
                f"the binary_cross_entropy loss takes logits, but the output neuron is {type(neuron).__name__}. Remove the "
                "model's last activation."
            )

    def nudge(self, neuron: AbstractNeuron, a: Tensor, y: Tensor, c: float) -> Tensor:
        self.check_output(neuron)
        if not isinstance(neuron, Identity):
            raise SettingError(
                f"an exact binary_cross_entropy nudge acts on logits, but the output neuron is {type(neuron).__name__}. "
                "Remove the model's last activation, or use output_nudge='linearized'."
            )
        a = wide(a)
        return _nudge_labels(a, targets(y, a), c)


def _nudge_labels(a: Tensor, y: Tensor, c: float, steps: int = 100) -> Tensor:
    """Solve s - a + c (σ(s) - y) = 0 for each unit: by Newton's method, or where that leaves the
    interval in which the root is, by halving it. The left side rises for c > -4."""
    lowest, highest = a - abs(c), a + abs(c)
    tolerance = 4 * torch.finfo(a.dtype).eps * (1 + a.abs() + abs(c))
    s = a
    for _ in range(steps):
        p = s.sigmoid()
        residual = s - a + c * (p - y)
        if bool((residual.abs() <= tolerance).all()):
            break
        highest = torch.where(residual > 0, s, highest)
        lowest = torch.where(residual > 0, lowest, s)
        new = s - residual / (1 + c * p * (1 - p))
        s = torch.where((new > lowest) & (new < highest), new, (lowest + highest) / 2)
    return s


def _nudge_logits(a: Tensor, y: Tensor, c: float, steps: int = 100) -> Tensor:
    """Solve s - a + c (softmax(s) - y) = 0 per example by damped Newton steps. a, y, s: (N, K).

    s minimises the strongly convex φ(s) = ½‖s - a‖² + c ℓ(s, y) (modulus min(1, 1 + c/2)). A step
    is halved until φ falls.
    """

    def phi(s: Tensor) -> Tensor:
        # ℓ for soft targets too: Σy logsumexp(s) - s·y.
        cross_entropy = y.sum(1) * s.logsumexp(1) - (s * y).sum(1)
        return (s - a).square().sum(1) / 2 + c * cross_entropy

    mass = y.sum(1, keepdim=True)
    tolerance = 8 * torch.finfo(a.dtype).eps * (1 + a.abs().amax(1))
    # What rounding alone does to φ. Below it no decrease shows, and the full Newton step is right.
    noise = 16 * torch.finfo(a.dtype).eps * (1 + abs(c)) * (1 + a.abs().amax(1)) ** 2
    s, value = a, phi(a)
    for _ in range(steps):
        p = s.softmax(1)
        residual = s - a + c * (mass * p - y)
        if bool((residual.abs().amax(1) <= tolerance).all()):
            break
        step = _newton_step(residual, p, c * mass)
        length = torch.ones_like(value)
        slope = (step * residual).sum(1)  # -dφ/dt along -step, positive: φ is strongly convex
        for _ in range(30):
            new = s - length.unsqueeze(1) * step
            new_value = phi(new)
            # Near the minimum φ shows no decrease any more; there the full Newton step is right.
            accepted = new_value <= value - 0.1 * length * slope + noise
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, length / 2)
        s, value = new, new_value
    return s


def _newton_step(residual: Tensor, p: Tensor, c: Tensor) -> Tensor:
    """H⁻¹·residual for H = I + c (diag p - p pᵀ), shapes (N, K), c (N, 1).

    H is positive definite. Its diagonal part 1 + c·p is not, for the largest p where c < -1. That
    one coordinate is eliminated apart. The others have p ≤ ½, so the rest is a positive diagonal
    minus a rank-one term.
    """
    top = p.argmax(1, keepdim=True)
    rest = torch.ones_like(p).scatter_(1, top, 0.0)
    q, r = p * rest, residual * rest
    p_top, r_top = p.gather(1, top), residual.gather(1, top)
    diagonal = 1 + c * q
    coupling = -c * p_top * q

    def solve(w: Tensor) -> Tensor:
        w = w / diagonal
        scaled = q / diagonal
        return w + c * scaled * (q * w).sum(1, keepdim=True) / (1 - c * (q * scaled).sum(1, keepdim=True))

    solved_r, solved_coupling = solve(r), solve(coupling)
    schur = 1 + c * p_top * (1 - p_top) - (coupling * solved_coupling).sum(1, keepdim=True)
    step_top = (r_top - (coupling * solved_r).sum(1, keepdim=True)) / schur
    return (solved_r - solved_coupling * step_top).scatter(1, top, step_top)
