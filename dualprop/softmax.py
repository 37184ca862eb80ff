"""Softmax: of complex numbers too, as a neuron under further pulls, and as a pool.

Pulled units settle at the solution of one convex problem on the simplex, solved exactly:

    settle(u, c, w) = argmin Σ s log s + (c/2) ‖s‖² - s·u - Σ w log s

over s ≥ 0, Σ s = 1, for c > -1 and w ≥ 0.

With q = log s and the multiplier μ of the constraint, each unit obeys
φ(q) = q + c·e^q - w·e^-q = u - μ, and φ rises on q ≤ 0. So there is one q for each μ, and the sum Σ
e^q falls as μ rises. Two nested Newton iterations find the μ at which it is 1. Both run inside
brackets that shrink, and in log s: there no digit is lost where a unit all but vanishes.

The pool gives Σ_i z_i softmax(z/T)_i over each window z_1…z_n. That is the maximum as T → 0, the
average as T → ∞, differentiable everywhere and holomorphic (Laborieux & Zenke 2022). N batch, C
channels, H×W space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError

_MOST_STEPS = 200  # bisection alone would need fewer


def softmax(a: Tensor, dim: int) -> Tensor:
    """e^a / Σ e^a along `dim`, of complex numbers too, which PyTorch's softmax refuses."""
    if not a.is_complex():
        return a.softmax(dim)
    # Any shift that is the same along `dim` changes nothing; this one keeps e^a in range.
    weights = (a - a.real.detach().amax(dim, keepdim=True)).exp()
    return weights / weights.sum(dim, keepdim=True)


def settle(u: Tensor, scale: float | Tensor, pull: float | Tensor, dim: int) -> Tensor:
    """The minimiser above with c = `scale` and w = `pull`, along `dim`; shape and dtype of u.

    It is exact to rounding.
    """
    scale, pull = (torch.as_tensor(value, dtype=u.dtype, device=u.device) for value in (scale, pull))
    kind, count = torch.finfo(u.dtype), u.shape[dim]
    # Shifted, the units that hold the mass have all their digits. A drive of -inf turns a unit off.
    u = (u - u.amax(dim, keepdim=True)).clamp_min(kind.min / 4)
    # At `low` the strongest unit alone is 1; at `high` none is above 1/K.
    low = (u - scale + pull).amax(dim, keepdim=True)
    high = (u + math.log(count) - scale / count + pull * count).amax(dim, keepdim=True)
    mu = torch.minimum(torch.maximum(u.logsumexp(dim, keepdim=True), low), high)
    # φ is convex for c > 0, else concave. From these ends Newton's method runs to q one way.
    q, previous = torch.where(scale > 0, 0.0, -torch.inf).expand_as(u), torch.full_like(mu, torch.inf)
    for _ in range(_MOST_STEPS):
        q = _log_state(u - mu, scale, pull, q)
        s, rise = q.exp(), _rise(q, scale, pull)
        total = s.sum(dim, keepdim=True)
        excess, slope = total.log(), (s / rise).sum(dim, keepdim=True) / total
        # A nan is done too.
        done = ~(excess.abs() > 16 * kind.eps * (1 + slope * (1 + mu.abs())))
        if bool(done.all()):
            break
        low, high = torch.where(excess > 0, mu, low), torch.where(excess < 0, mu, high)
        mu = torch.where(done, mu, _step(mu + excess / slope, low, high, excess, previous))
        previous = excess.abs()
    # μ is known only to its rounding, and at c near -1 a unit near 1 moves by far more. So the last
    # step is taken in q itself.
    return (q - excess / (slope * rise)).softmax(dim)


class SoftmaxPool2d(nn.Module):
    """(N, C, H, W), real or complex, to (N, C, H // kernel, W // kernel): a pool over windows.

    Windows are kernel × kernel and do not overlap. What fills none is left out, as in
    `nn.MaxPool2d`.

    Args:
        kernel_size: the side of a window.
        temperature: T > 0.

    Raises:
        SettingError: either out of range.
    """

    # `holomorphic` asks this of a module that is not affine: its forward has a complex derivative.
    is_holomorphic = True

    def __init__(self, kernel_size: int = 2, temperature: float = 1.0) -> None:
        super().__init__()
        if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1:
            raise SettingError(f"kernel_size must be a whole number of at least 1, got {kernel_size!r}.")
        if not 0 < temperature < math.inf:
            raise SettingError(f"temperature must be positive and finite, got {temperature:g}. For T = 0 use nn.MaxPool2d.")
        self.kernel_size, self.temperature = kernel_size, temperature

    def forward(self, z: Tensor) -> Tensor:
        side = self.kernel_size
        # (N, C, H // k, W // k, k²)
        windows = z.unfold(-2, side, side).unfold(-2, side, side).flatten(-2)
        return (windows * softmax(windows / self.temperature, -1)).sum(-1)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, temperature={self.temperature:g}"


def _log_state(t: Tensor, scale: Tensor, pull: Tensor, start: Tensor) -> Tensor:
    """q ≤ 0 with φ(q) = t in every unit."""
    positive = scale.clamp_min(0)
    # w e^-q = q + c e^q - t is at most `upper`, and at least w.
    upper = torch.maximum(positive - t, pull).clamp_min(torch.finfo(t.dtype).tiny)
    low, high = torch.maximum(t - positive, pull.log() - upper.log()).clamp_max(0), torch.zeros_like(t)
    q, previous = torch.maximum(start, low), torch.full_like(t, torch.inf)
    tolerance = 4 * torch.finfo(t.dtype).eps
    for _ in range(_MOST_STEPS):
        quadratic, logarithmic = scale * q.exp(), _weighted(pull, q)
        excess = q + quadratic - logarithmic - t
        # The rounding of q returns |q| times as large in e^-q.
        done = ~(excess.abs() > tolerance * (1 + t.abs() + quadratic.abs() + (1 + q.abs()) * logarithmic))
        if bool(done.all()):
            break
        low, high = torch.where(excess < 0, q, low), torch.where(excess > 0, q, high)
        newton = q - excess / (1 + quadratic + logarithmic)
        q, previous = torch.where(done, q, _step(newton, low, high, excess, previous)), excess.abs()
    return q


def _rise(q: Tensor, scale: Tensor, pull: Tensor) -> Tensor:
    """φ'(q)."""
    return 1 + scale * q.exp() + _weighted(pull, q)


def _weighted(pull: Tensor, q: Tensor) -> Tensor:
    """w e^-q, and 0 without a pull, even where e^-q is infinite."""
    return torch.where(pull > 0, pull * (-q).exp(), 0.0)


def _step(newton: Tensor, low: Tensor, high: Tensor, excess: Tensor, previous: Tensor) -> Tensor:
    """Newton's step, if inside the bracket and the last one halved the excess; else bisection."""
    trusted = (newton >= low) & (newton <= high) & (excess.abs() <= previous / 2)
    return torch.where(trusted, newton, (low + high) / 2)
