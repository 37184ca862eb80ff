"""Neurons: an activation f is the proximal map of a potential G, f(a) = argmin_s G(s) - s·a.

So a neuron pulled from below by a, and from above by a nudge, settles in closed form at
f(a + nudge). No solver is needed (Høier et al. 2023, §3). Everything here keeps shape, dtype and
device, and all but Softmax is elementwise. f is 1-Lipschitz, which is the same as G being
1-strongly convex.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualprop import softmax
from dualprop.errors import SettingError

Scale = float | Tensor
# For Newton's method: far out f is an exponential, and a step moves by one, log(scale) times.
MOST_STEPS = 200


class AbstractNeuron(ABC):
    """An activation with its potential.

    `kinks`: the drives at which f' jumps.
    `is_elementwise`: a unit's state depends on its drive alone.
    `is_projection`: f projects onto its range `reach`, so f' is 0 or 1.
    `is_affine`: f' is the same everywhere.
    `is_of_state`: f' is a function of f(a), so that back-propagation keeps that alone.
    `is_holomorphic`: f is defined for complex drives too, with a complex derivative.
    `piecewise`: how `dyadic.c` writes a piecewise linear f, its kind and constants.
    """

    kinks: tuple[float, ...] = ()
    piecewise: tuple[int, float, float] | None = None
    reach: tuple[float, float] = (-math.inf, math.inf)
    is_elementwise: bool = True
    is_projection: bool = False
    is_affine: bool = False
    is_of_state: bool = False
    is_holomorphic: bool = False

    @property
    def in_c(self) -> tuple[int, float, float] | None:
        """How `kernels` has f in C, its kind and constants; None where it does not."""
        return self.piecewise

    @abstractmethod
    def f(self, a: Tensor) -> Tensor:
        """The activation, f(a) = prox(a, 0)."""

    @abstractmethod
    def f_(self, a: Tensor) -> Tensor:
        """The activation, written over a."""

    @abstractmethod
    def potential(self, s: Tensor) -> Tensor:
        """G(s) per unit; infinite outside the activation's range."""

    @abstractmethod
    def derivative(self, a: Tensor) -> Tensor:
        """f'(a) per unit, the diagonal ∂f_i/∂a_i; at a kink, PyTorch autograd's value."""

    def pull(self, a: Tensor, signal: Tensor) -> Tensor:
        """Jᵀ signal, with J = ∂f/∂a: per unit f'(a) · signal."""
        return self.derivative(a) * signal

    def f_and_pull(self, a: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """f(a), and Jᵀ signal."""
        return self.f(a), self.pull(a, signal)

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        """f(low + span) - f(low), with all digits of span; `state` is f(low), where it is known.

        Here in float64, in which nothing that float32 holds cancels. Not differentiable.
        """
        return in_float64(self.f, low, span)

    def crosses_kink(self, a: Tensor, b: Tensor) -> Tensor:
        """Per unit, whether a kink lies between the drives a and b."""
        crossed = torch.zeros_like(a, dtype=torch.bool)
        for kink in self.kinks:
            crossed |= (a > kink) != (b > kink)
        return crossed

    @abstractmethod
    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        """argmin_s G(s) + (scale/2)‖s‖² - s·u, for scale > -1 (G is 1-strongly convex)."""


@dataclass(frozen=True)
class Identity(AbstractNeuron):
    """Linear unit: G(s) = s²/2."""

    is_projection = is_affine = is_holomorphic = True

    def f(self, a: Tensor) -> Tensor:
        return a

    def f_(self, a: Tensor) -> Tensor:
        return a

    def potential(self, s: Tensor) -> Tensor:
        return s.square() / 2

    def derivative(self, a: Tensor) -> Tensor:
        return torch.ones_like(a)

    def pull(self, a: Tensor, signal: Tensor) -> Tensor:
        return signal

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        return span

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return u / (1 + scale)


@dataclass(frozen=True)
class ReLU(AbstractNeuron):
    """G(s) = s²/2 on s ≥ 0."""

    kinks = (0.0,)
    piecewise = (0, 0.0, 0.0)
    reach = (0.0, math.inf)
    is_projection = is_of_state = True

    def f(self, a: Tensor) -> Tensor:
        return a.relu()

    def f_(self, a: Tensor) -> Tensor:
        return a.relu_()

    def potential(self, s: Tensor) -> Tensor:
        return torch.where(s >= 0, s.square() / 2, torch.inf)

    def derivative(self, a: Tensor) -> Tensor:
        return (a > 0).to(a.dtype)

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        # From above 0 it is span, down to 0 at most; from below what of it is above 0.
        return torch.maximum(span + low.clamp_max(0), -low.clamp_min(0))

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return u.relu() / (1 + scale)


@dataclass(frozen=True)
class LeakyReLU(AbstractNeuron):
    """f(a) = max(a, c·a) with slope 0 < c ≤ 1; G(s) = s²/2 for s ≥ 0 and s²/(2c) below."""

    slope: float = 0.01
    kinks = (0.0,)

    def __post_init__(self) -> None:
        if not 0 < self.slope <= 1:
            raise SettingError(f"the slope of a LeakyReLU must be in (0, 1], got {self.slope:g}. For 0 use ReLU.")

    @property
    def piecewise(self) -> tuple[int, float, float]:  # type: ignore[override]
        return (1, self.slope, 0.0)

    def f(self, a: Tensor) -> Tensor:
        return nn.functional.leaky_relu(a, self.slope)

    def f_(self, a: Tensor) -> Tensor:
        return nn.functional.leaky_relu_(a, self.slope)

    def potential(self, s: Tensor) -> Tensor:
        return torch.where(s >= 0, s.square() / 2, s.square() / (2 * self.slope))

    def derivative(self, a: Tensor) -> Tensor:
        return torch.where(a > 0, torch.ones_like(a), self.slope)

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        return torch.lerp(ReLU().rise(low, span), span, self.slope)

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return torch.where(u >= 0, u / (1 + scale), u * self.slope / (1 + self.slope * scale))


@dataclass(frozen=True)
class HardSigmoid(AbstractNeuron):
    """f(a) = clip(a, low, high), `nn.Hardtanh(low, high)`; G(s) = s²/2 within.

    hard_sigmoid is on [0, 1], hard_tanh on [-1, 1].
    """

    low: float = 0.0
    high: float = 1.0
    is_projection = True

    @property
    def kinks(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.low, self.high)

    @property
    def reach(self) -> tuple[float, float]:  # type: ignore[override]
        return (self.low, self.high)

    @property
    def piecewise(self) -> tuple[int, float, float]:  # type: ignore[override]
        return (2, self.low, self.high)

    def f(self, a: Tensor) -> Tensor:
        return a.clamp(self.low, self.high)

    def f_(self, a: Tensor) -> Tensor:
        return a.clamp_(self.low, self.high)

    def potential(self, s: Tensor) -> Tensor:
        return torch.where((s >= self.low) & (s <= self.high), s.square() / 2, torch.inf)

    def derivative(self, a: Tensor) -> Tensor:
        return ((a > self.low) & (a < self.high)).to(a.dtype)

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        state = self.f(low) if state is None else state
        # low - state is what of the drive is beyond the range.
        return torch.minimum(torch.maximum(span + (low - state), self.low - state), self.high - state)

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return (u / (1 + scale)).clamp(self.low, self.high)


@dataclass(frozen=True)
class Sigmoid(AbstractNeuron):
    """G(s) = s log s + (1-s) log(1-s), the negative entropy of a coin."""

    reach = (0.0, 1.0)
    is_holomorphic = is_of_state = True

    def f(self, a: Tensor) -> Tensor:
        return _complex_sigmoid(a) if a.is_complex() else a.sigmoid()

    def f_(self, a: Tensor) -> Tensor:
        return _complex_sigmoid(a) if a.is_complex() else a.sigmoid_()

    def potential(self, s: Tensor) -> Tensor:
        inside = torch.xlogy(s, s) + torch.xlogy(1 - s, 1 - s)
        return torch.where((s >= 0) & (s <= 1), inside, torch.inf)

    def derivative(self, a: Tensor) -> Tensor:
        return a.sigmoid() * (-a).sigmoid()

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        # p - q = tanh(span/2) (p (1-q) + q (1-p))
        q = self.f(low) if state is None else state
        p = self.f(low + span)
        return (span / 2).tanh() * torch.addcmul(p + q, p, q, value=-2)

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return _settle(u, scale, self).sigmoid()


@dataclass(frozen=True)
class Tanh(AbstractNeuron):
    """G(s) = s artanh s + log(1-s²)/2."""

    reach = (-1.0, 1.0)
    is_holomorphic = is_of_state = True

    def f(self, a: Tensor) -> Tensor:
        return a.tanh()

    def f_(self, a: Tensor) -> Tensor:
        return a.tanh_()

    def potential(self, s: Tensor) -> Tensor:
        # By entropies of (1±s)/2: finite at s = ±1, where artanh is not.
        inside = torch.xlogy(1 + s, 1 + s) / 2 + torch.xlogy(1 - s, 1 - s) / 2
        return torch.where(s.abs() <= 1, inside, torch.inf)

    def derivative(self, a: Tensor) -> Tensor:
        return 1 - a.tanh().square()

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        # p - q = tanh(span) (1 - p q)
        q = self.f(low) if state is None else state
        return span.tanh() * (1 - self.f(low + span) * q)

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return _settle(u, scale, self).tanh()


@dataclass(frozen=True)
class Softmax(AbstractNeuron):
    """G(s) = Σ s log s on the simplex, the negative entropy: its units are coupled.

    On the simplex s ≥ 0 and Σ s = 1 along `dim`.

    `dim` is nn.Softmax's: at least 1, or counted from the end. Dimension 0 holds the examples,
    which nothing may couple.
    """

    dim: int = 1
    is_elementwise = False
    reach = (0.0, 1.0)
    is_holomorphic = is_of_state = True

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim == 0:
            raise SettingError(f"the dim of a Softmax must be 1 or higher, or negative, got {self.dim}. Use nn.Softmax(dim=1).")

    def f(self, a: Tensor) -> Tensor:
        return softmax.softmax(a, self._checked(a))

    def f_(self, a: Tensor) -> Tensor:
        # Not over a: PyTorch does not promise that softmax may write over what it reads.
        return self.f(a)

    def potential(self, s: Tensor) -> Tensor:
        """s log s per unit; infinite outside [0, 1].

        The sum along `dim` is G where Σ s = 1, which a unit alone can't tell.
        """
        return torch.where((s >= 0) & (s <= 1), torch.xlogy(s, s), torch.inf)

    def derivative(self, a: Tensor) -> Tensor:
        """s (1-s), the diagonal alone; the Jacobian is diag s - s sᵀ."""
        s = self.f(a)
        return s * (1 - s)

    def pull(self, a: Tensor, signal: Tensor) -> Tensor:
        s = self.f(a)
        return s * (signal - (s * signal).sum(self._checked(a), keepdim=True))

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        """By what the units' weights grow, e^span - 1, relative to the largest; where they grow by
        very different factors nothing cancels, and the states are subtracted."""
        dim = self._checked(low)
        q = self.f(low) if state is None else state
        span = span - span.amax(dim, keepdim=True)
        growth = span.expm1()
        mean = (q * growth).sum(dim, keepdim=True)
        near = q * (growth - mean) / (1 + mean)
        return torch.where(span.amin(dim, keepdim=True) > -1, near, self.f(low + span) - q)

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        return softmax.settle(u, scale, 0.0, self._checked(u))

    def nudged(self, a: Tensor, pull: Tensor) -> Tensor:
        """argmin_s G(s) - s·a - Σ pull·log s, for pull ≥ 0: what a log-loss nudge settles at."""
        return softmax.settle(a, 0.0, pull, self._checked(a))

    def _checked(self, a: Tensor) -> int:
        """`dim`, if a has it and it is not the examples'."""
        if not (0 < self.dim < a.dim() or -a.dim() < self.dim < 0):
            raise SettingError(
                f"a Softmax over dim {self.dim} can't read a state of shape {tuple(a.shape)}, whose dim 0 holds the examples. "
                "Use nn.Softmax(dim=1)."
            )
        return self.dim


def in_float64(f: Callable[[Tensor], Tensor], low: Tensor, span: Tensor) -> Tensor:
    """f(low + span) - f(low), subtracted in float64."""
    if low.device.type == "mps":  # it has none
        return f(low + span) - f(low)
    wide = low.double()
    return (f(wide + span) - f(wide)).to(low.dtype)


def _complex_sigmoid(a: Tensor) -> Tensor:
    """1/(1 + e^-a). PyTorch's gives nan where e^-a overflows the dtype."""
    is_right = a.real >= 0
    small = torch.where(is_right, -a, a).exp()
    return torch.where(is_right, 1, small) / (1 + small)


def _settle(u: Tensor, scale: Scale, neuron: AbstractNeuron) -> Tensor:
    """The drive t with t + scale·f(t) = u, by Newton's method from t = 0, f's point of inflection.

    Beyond it f is concave, before it convex. So the steps come from one side (for scale < 0, after
    the first), and need no safeguard. Solving for the drive and not for the state keeps full
    precision where f saturates.
    """
    scale = torch.as_tensor(scale, dtype=u.dtype, device=u.device)
    middle = torch.zeros((), dtype=u.dtype, device=u.device)
    t = (u - scale * neuron.f(middle)) / (1 + scale * neuron.derivative(middle))
    # At an infinite drive the excess is no number; the state is the end of the activation's range.
    for _ in range(MOST_STEPS):
        pull = scale * neuron.f(t)
        excess = t + pull - u
        # Rounding of the three terms, relative near t = 0: an absolute one would lose digits of
        # small drives.
        left = excess.abs() > 4 * torch.finfo(u.dtype).eps * (t.abs() + pull.abs() + u.abs())
        if not bool(left.any()):
            break
        t = torch.where(left, t - excess / (1 + scale * neuron.derivative(t)), t)
    return t
