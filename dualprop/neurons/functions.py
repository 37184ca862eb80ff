"""Activations that are no proximal map of a potential that is known: functions of their drive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.neurons.units import AbstractNeuron, Scale, Sigmoid, in_float64


@dataclass(frozen=True)
class Function(AbstractNeuron):
    """Any elementwise function of a drive (GELU, SiLU, …), without a potential.

    Its dyads are differences of the function itself. What needs a potential, as damping does, is
    refused.

    Attributes:
        name: for messages.
        call: the function.
        slope: f'(a) per unit. None: autograd's.
        takes_float64: if not, float32's dyads lose the digits that its two states share.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor] | None = None
    takes_float64: bool = True

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        return in_float64(self.f, low, span) if self.takes_float64 else self.f(low + span) - self.f(low)

    def f(self, a: Tensor) -> Tensor:
        return self.call(a)

    def f_(self, a: Tensor) -> Tensor:
        return self.call(a)

    def derivative(self, a: Tensor) -> Tensor:
        return self.pull(a, torch.ones_like(a)) if self.slope is None else self.slope(a)

    def pull(self, a: Tensor, signal: Tensor) -> Tensor:
        return self.f_and_pull(a, signal)[1] if self.slope is None else self.slope(a) * signal

    def f_and_pull(self, a: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        if self.slope is not None:
            return self.call(a), self.slope(a) * signal
        with torch.enable_grad():
            leaf = a.detach().requires_grad_()
            state = self.call(leaf)
            return state.detach(), torch.autograd.grad(state, leaf, signal.to(a.dtype))[0]

    def potential(self, s: Tensor) -> Tensor:
        raise SettingError(f"{self.name} is no proximal map of a potential that is known. Use ReLU, Tanh or Sigmoid.")

    def prox(self, u: Tensor, scale: Scale) -> Tensor:
        raise SettingError(f"{self.name} is no proximal map of a potential that is known. Use no damping and no exact nudge.")


@dataclass(frozen=True)
class GELU(Function):
    """x times the normal distribution function of x."""

    name: str = "gelu"
    call: Callable[[Tensor], Tensor] = nn.functional.gelu
    in_c = (3, 0.0, 0.0)

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        # p Φ(p) - q Φ(q) = span Φ(p) + q (Φ(p) - Φ(q)), and this by its series about the middle.
        high, d = low + span, span.square()
        m = (low + span / 2).clamp(-20, 20)  # the density is 0 from there on
        m2 = m.square()
        series = 1 + d * ((m2 - 1) / 24 + d * ((m2 * (m2 - 6) + 3) / 1920 + d * (m2 * (m2 * (m2 - 15) + 45) - 15) / 322560))
        density = (-m2 / 2).exp() * (1 / math.sqrt(2 * math.pi))
        near = span * torch.special.ndtr(high) + low * span * density * series
        reach = 0.05 if span.dtype == torch.float64 else 0.25  # of the series, to rounding
        return torch.where(span.abs() < reach, near, self.f(high) - (self.f(low) if state is None else state))


@dataclass(frozen=True)
class SiLU(Function):
    """x times the sigmoid of x."""

    name: str = "silu"
    call: Callable[[Tensor], Tensor] = nn.functional.silu

    def rise(self, low: Tensor, span: Tensor, state: Tensor | None = None) -> Tensor:
        # p σ(p) - q σ(q) = span σ(p) + q (σ(p) - σ(q))
        return torch.addcmul(span * (low + span).sigmoid(), low, Sigmoid().rise(low, span))
