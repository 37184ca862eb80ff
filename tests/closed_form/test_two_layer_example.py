"""A network of two layers, worked out with fractions; squared error, exact nudge."""

from fractions import Fraction as Q

import pytest
import torch
from torch import nn

import dualprop as dp

# x = (1, 2); a_1 = W_1 x + b_1 = (1, 2); a_2 = W_2 ReLU(a_1) + b_2 = (1, 3); target (2, 1).
X, TARGET = [[1.0, 2.0]], [[2.0, 1.0]]
W1, B1 = [[1.0, 0.0], [1.0, 1.0]], [0.0, -1.0]
W2, B2 = [[1.0, 0.0], [0.5, 1.0]], [0.0, 0.5]


def network():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    for parameter, value in zip(model.parameters(), (W1, B1, W2, B2), strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float64)
    return dp.Network.from_module(model)


def inferred(**settings):
    rule = dp.DualPropagation(loss="squared_error", engine="explicit", **settings)
    out = rule.gradients(network(), torch.tensor(X).double(), torch.tensor(TARGET).double())
    return out.state, out.gradients


def assert_is(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_one_sweep_at_alpha_one_half_is_the_example_worked_out_by_hand():
    """β = 1: s_2⁺ = (a + ½y)/1.5, s_2⁻ = (a - ½y)/½; δ_2 = (4/3, -8/3); Δ_1 = W_2ᵀ δ_2 = (0, -8/3)
    = δ_1."""
    state, gradients = inferred(output_nudge="exact")
    assert_is(state.plus[2], [[4 / 3, 7 / 3]])
    assert_is(state.minus[2], [[0.0, 5.0]])
    assert_is(state.plus[1], [[1.0, 2 / 3]])
    assert_is(state.minus[1], [[1.0, 10 / 3]])
    assert_is(gradients["0.weight"], [[0.0, 0.0], [8 / 3, 16 / 3]])  # -δ_1 xᵀ
    assert_is(gradients["0.bias"], [0.0, 8 / 3])
    assert_is(gradients["2.weight"], [[-4 / 3, -8 / 3], [8 / 3, 16 / 3]])  # -δ_2 s̄_1ᵀ
    assert_is(gradients["2.bias"], [-4 / 3, 8 / 3])


def relu(v):
    return max(v, Q(0))


@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [Q(0), Q(1, 4), Q(1, 2), Q(1)])
@pytest.mark.parametrize("betas", [(Q(1, 2), Q(1, 2)), (Q(1, 4), Q(3, 4)), (Q(4), Q(1, 2)), (Q(40), Q(1, 2))])
def test_one_sweep_is_the_papers_formulas_in_fractions(coupling, alpha, betas):
    """Swapped α and ᾱ, an inverted ratio β_1/β_2 or a missing 1/β_k shows here as another fraction.

    With β_1/β_2 = 80 units cross their kink, so the ReLU's two sides differ as well.
    """
    up, down = (alpha, 1 - alpha) if coupling == "original" else (1 - alpha, alpha)
    beta_1, beta_2 = betas
    a_1, a_2, y, x = (Q(1), Q(2)), (Q(1), Q(3)), (Q(2), Q(1)), (1, 2)
    plus_2 = [(a + up * beta_2 * t) / (1 + up * beta_2) for a, t in zip(a_2, y, strict=True)]
    minus_2 = [(a - down * beta_2 * t) / (1 - down * beta_2) for a, t in zip(a_2, y, strict=True)]
    delta_2 = [p - m for p, m in zip(plus_2, minus_2, strict=True)]
    # In one formula: δ_L = β (y - a) / ((1 + up β)(1 - down β)).
    assert delta_2 == [beta_2 * (t - a) / ((1 + up * beta_2) * (1 - down * beta_2)) for a, t in zip(a_2, y, strict=True)]
    pull = [delta_2[0] + Q(1, 2) * delta_2[1], delta_2[1]]
    ratio = beta_1 / beta_2
    plus_1 = [relu(a + up * ratio * d) for a, d in zip(a_1, pull, strict=True)]
    minus_1 = [relu(a - down * ratio * d) for a, d in zip(a_1, pull, strict=True)]
    mean_1 = [alpha * p + (1 - alpha) * m for p, m in zip(plus_1, minus_1, strict=True)]
    delta_1 = [p - m for p, m in zip(plus_1, minus_1, strict=True)]

    state, gradients = inferred(output_nudge="exact", coupling=coupling, alpha=float(alpha), beta=tuple(map(float, betas)))
    as_floats = lambda values: [float(v) for v in values]  # noqa: E731
    tolerance = {"rtol": 1e-13, "atol": 1e-13}
    for found, expected in (
        (state.plus[2][0], plus_2), (state.minus[2][0], minus_2), (state.plus[1][0], plus_1),
        (state.minus[1][0], minus_1), (state.mean(1)[0], mean_1), (state.difference(1)[0], delta_1),
        (gradients["0.bias"], [-d / beta_1 for d in delta_1]), (gradients["2.bias"], [-d / beta_2 for d in delta_2]),
        (gradients["0.weight"].flatten(), [-d * s / beta_1 for d in delta_1 for s in x]),
        (gradients["2.weight"].flatten(), [-d * s / beta_2 for d in delta_2 for s in mean_1]),
    ):  # fmt: skip
        torch.testing.assert_close(found, torch.tensor(as_floats(expected), dtype=torch.float64), **tolerance)


@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_linearised_nudge_has_the_difference_minus_beta_times_the_gradient(coupling, alpha):
    """δ_L = -β g with g = a - y = (-1, 2) for every α; only where s̄_L lies depends on the
    coupling."""
    state, gradients = inferred(coupling=coupling, alpha=alpha, beta=0.5)
    assert_is(state.difference(2), [[0.5, -1.0]])
    shift = (2 * alpha - 1) * 0.5 if coupling == "original" else 0.0
    assert_is(state.mean(2), [[1.0 + shift, 3.0 - 2 * shift]])
    assert_is(gradients["2.bias"], [-1.0, 2.0])
