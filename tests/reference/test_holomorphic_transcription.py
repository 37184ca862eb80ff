"""Holomorphic EP against a slow transcription: all N phases, every derivative by PyTorch's complex
autograd, nothing reused."""

import cmath
import math

import pytest
import torch
from comparison import assert_same
from networks import batch, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp


def naive(model, x, y, points, beta, loss, passes):
    """All N phases, conjugates and all, in a transcription of Laborieux & Zenke (2022): real
    parameters made complex, every derivative by PyTorch's complex autograd, dense layers and
    sigmoids alone; nothing of the library's."""
    parts = [(m.weight.detach() + 0j, m.bias.detach() + 0j) for m in model if isinstance(m, nn.Linear)]
    weights = [tuple(p.requires_grad_() for p in pair) for pair in parts]
    depth = len(weights)
    target = F.one_hot(y, weights[-1][0].shape[0]).to(torch.complex128)

    def total(states):
        """Σ s_k · a_k, without a conjugate."""
        return sum(((below @ w.T + b) * s).sum() for (w, b), below, s in zip(weights, states, states[1:], strict=False))

    def derivatives(value, wanted):
        # Of the real part of a holomorphic function PyTorch gives the conjugate of the derivative.
        return [g.conj() for g in torch.autograd.grad(value.real, wanted)]

    def settled(start, nudge):
        states = [s.clone() for s in start]
        for _ in range(passes):
            for k in range(1, depth + 1):
                leaf = states[k].clone().requires_grad_()
                (pull,) = derivatives(total([*states[:k], leaf, *states[k + 1 :]]), [leaf])
                if k == depth:
                    s = states[k]
                    slope = s.exp() / s.exp().sum(1, keepdim=True) - target if loss == "cross_entropy" else s - target
                    states[k] = pull - nudge * slope
                else:
                    states[k] = 1 / (1 + (-pull).exp())
        return states

    zeros = [x + 0j, *(torch.zeros(len(x), w.shape[0], dtype=torch.complex128) for w, _ in weights)]
    free, estimate = settled(zeros, 0.0), None
    parameters = [p for pair in weights for p in pair]
    for m in range(points):
        nudge = beta * cmath.exp(2j * math.pi * m / points)
        found = [-g / (points * nudge * len(x)) for g in derivatives(total(settled(free, nudge)), parameters)]
        estimate = found if estimate is None else [one + two for one, two in zip(estimate, found, strict=True)]
    assert max(float(g.imag.abs().max()) for g in estimate) < 1e-10, "conjugate phases must cancel"
    return dict(zip((n for n, _ in model.named_parameters()), (g.real for g in estimate), strict=True))


@pytest.mark.parametrize("points", [2, 3, 4, 5])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_half_of_the_phases_say_what_all_of_them_do(points, loss):
    """By conjugate symmetry, at a β so large that the gradient is not yet the exact one."""
    model, (x, y) = mlp("sigmoid", (5, 6, 5, 4)), batch(n=3)
    network = dp.Network.from_module(model)
    settings = {"free_schedule": "even_odd(60)", "relaxation": "blocks(even_odd(60))", "tolerance": None}
    rule = dp.EquilibriumPropagation(energy="hopfield", estimator=f"holomorphic({points})", beta=0.5, loss=loss, **settings)
    found = rule.gradients(network, x, y).gradients
    expected = naive(model, x, y, points, 0.5, loss, 60)
    assert_same({n: found[n] for n in expected}, expected, 1e-8, f"N = {points}")
