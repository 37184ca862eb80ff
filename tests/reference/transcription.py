"""DP, DP⊤ and damped DP from their formulas, slowly: every quantity anew at every update, all by
autograd of one scalar.

The φ trick of the code of Høier & Zach (2024): with φ_k(s_below, signal) = <a_k(s_below), signal>,

    a_k = ∇_signal φ_k(s̄_{k-1}, ·)      Δ_{k-1} = ∇_s φ_k(s̄_{k-1}, δ_k)
    gradient = -∇_θ φ_k(s̄_{k-1}, δ_k) / (β_k N)

Pool switches and every other linearisation are those of the mean s̄. Both states of every dyad are
held as they are, nothing is reused, and nothing of the package is used: networks are explicit
functions of explicit tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


def leaky(a: Tensor) -> Tensor:
    return torch.where(a > 0, a, 0.2 * a)


F_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "relu": lambda a: torch.where(a > 0, a, torch.zeros_like(a)),
    "leaky_relu": leaky,
    "hard_sigmoid": lambda a: torch.minimum(torch.maximum(a, torch.zeros_like(a)), torch.ones_like(a)),
    "sigmoid": lambda a: 1 / (1 + torch.exp(-a)),
    "tanh": torch.tanh,
    "softmax": lambda a: torch.exp(a) / torch.exp(a).sum(1, keepdim=True),
}


def settle(f: Callable[[Tensor], Tensor], u: Tensor, scale: float) -> Tensor:
    """argmin_s G(s) + scale/2 s² - s u by bisection: s = f(t) where t + scale f(t) = u; t - u lies
    within scale·|s|."""
    reach = scale * (1 + u.abs())
    low, high = u - reach, u + reach
    for _ in range(200):
        middle = (low + high) / 2
        below = middle + scale * f(middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return f((low + high) / 2)


@dataclass
class Stage:
    """One layer: its drive as a function of (state below, parameters), its activation's name, its
    named parameters."""

    drive: Callable[..., Tensor]
    activation: str
    parameters: dict[str, Tensor]


@dataclass
class Setting:
    coupling: str = "original"  # or "transposed"
    alpha: float = 0.5
    betas: Sequence[float] = ()
    groups: Sequence[Sequence[int]] = ()
    arrival: int = 0  # the first that many groups leave the output un-nudged
    start: str = "forward"
    exact: bool = False
    at_forward: bool = False
    damping: Sequence[float] | None = None
    loss: str = "cross_entropy"


@dataclass
class Result:
    plus: list[Tensor]
    minus: list[Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)


def phi(stage: Stage, below: Tensor, signal: Tensor) -> Tensor:
    return (stage.drive(below, **stage.parameters) * signal).sum()


def loss_sum(name: str, s: Tensor, target: Tensor) -> Tensor:
    if name == "squared_error":
        return (s - target).pow(2).sum() / 2
    if name == "log_loss":
        return -(target * torch.log(s)).sum()
    return -(target * F.log_softmax(s, 1)).sum() if name == "cross_entropy" else torch.zeros(())


def loss_gradient(name: str, s: Tensor, target: Tensor) -> Tensor:
    s = s.detach().requires_grad_()
    return torch.autograd.grad(loss_sum(name, s, target), s)[0]


def exactly_nudged(name: str, a: Tensor, target: Tensor, c: float) -> Tensor:
    """argmin ½‖s‖² - s·a + c ℓ(s) for a linear output: in closed form, or by plain gradient descent
    to the last digits."""
    if name == "squared_error":
        return (a + c * target) / (1 + c)
    s, rate = a.clone(), 1 / (1 + max(c, 0.0) / 2)
    for _ in range(5000):
        step = rate * (s - a + c * (s.softmax(1) - target))
        s = s - step
        if float(step.abs().max()) < 1e-16:
            break
    return s


def transcribe(stages: Sequence[Stage], setting: Setting, x: Tensor, target: Tensor, previous: Result | None = None) -> Result:
    """States and gradients after the groups of the setting; `target` are vectors (N, K)."""
    depth, alpha = len(stages), setting.alpha
    up, down = (alpha, 1 - alpha) if setting.coupling == "original" else (1 - alpha, alpha)
    betas = setting.betas

    def mean(k: int) -> Tensor:
        return alpha * plus[k] + (1 - alpha) * minus[k]

    def drive(k: int, below: Tensor) -> Tensor:
        below = below.detach()
        shape = stages[k - 1].drive(below, **stages[k - 1].parameters).shape
        signal = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
        return torch.autograd.grad(phi(stages[k - 1], below, signal), signal)[0].detach()

    def feedback(k: int) -> Tensor:
        at = mean(k).detach().requires_grad_()
        return torch.autograd.grad(phi(stages[k], at, (plus[k + 1] - minus[k + 1]).detach()), at)[0].detach()

    forward = [x]
    for k in range(1, depth + 1):
        forward.append(F_OF[stages[k - 1].activation](drive(k, forward[-1])))
    at_prediction = loss_gradient(setting.loss, forward[-1], target)

    if setting.start == "previous" and previous is not None:
        plus, minus = [x, *previous.plus[1:]], [x, *previous.minus[1:]]
    elif setting.start == "zeros":
        plus = [x, *(torch.zeros_like(s) for s in forward[1:])]
        minus = list(plus)
    else:
        plus, minus = list(forward), list(forward)

    for number, group in enumerate(setting.groups):
        new = {}
        for k in group:
            a, f = drive(k, mean(k - 1)), F_OF[stages[k - 1].activation]
            if k < depth:
                pull = betas[k - 1] / betas[k] * feedback(k)
                if setting.damping is not None and setting.damping[k - 1] > 0:
                    constant = setting.damping[k - 1]
                    new[k] = (
                        settle(f, a + up * pull + constant * plus[k], constant),
                        settle(f, a - down * pull + constant * minus[k], constant),
                    )
                else:
                    new[k] = f(a + up * pull), f(a - down * pull)
            elif setting.start == "zeros" and number < setting.arrival:
                new[k] = f(a), f(a)
            elif setting.exact:
                new[k] = (
                    exactly_nudged(setting.loss, a, target, up * betas[-1]),
                    exactly_nudged(setting.loss, a, target, -down * betas[-1]),
                )
            else:
                g = at_prediction if setting.at_forward else loss_gradient(setting.loss, f(a), target)
                new[k] = f(a - up * betas[-1] * g), f(a + down * betas[-1] * g)
        for k, (new_plus, new_minus) in new.items():
            plus[k], minus[k] = new_plus, new_minus

    result = Result(plus, minus)
    for k in range(1, depth + 1):
        leaves = {name: p.detach().requires_grad_() for name, p in stages[k - 1].parameters.items()}
        stage = Stage(stages[k - 1].drive, "", leaves)
        found = torch.autograd.grad(phi(stage, mean(k - 1), plus[k] - minus[k]), list(leaves.values()))
        for name, gradient in zip(leaves, found, strict=True):
            result.gradients[f"{name}{k}"] = -gradient / (betas[k - 1] * len(x))
    return result


def linear(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return s.flatten(1) @ weight.T + bias


def conv(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(s, weight, bias, padding=1)


def conv_then_pool(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(conv(s, weight, bias), 2)


def pool_then_linear(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear(F.max_pool2d(s, 2), weight, bias)


def pool_then_conv(s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv(F.max_pool2d(s, 2), weight, bias)
