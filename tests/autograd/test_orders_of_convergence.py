"""How fast the gradients approach back-propagation's as β falls, layer by layer.

By Taylor's expansion of a smooth f the relative error of δ is ½(α²-ᾱ²) f'' Δ (DP; the opposite for
DP⊤) plus O(β²), and the mean moves by (2α-1) f' Δ for DP and by ½αᾱ f'' Δ² for DP⊤. Closeness alone
could not tell β from β².
"""

import math

import pytest
import torch
from comparison import distance, rounding
from networks import autograd_gradients, batch, conv_net, images, mlp

import dualprop as dp

BETA = 0.01


def orders(model, x, y, loss, **settings):
    """log₂ of the error's fall when β halves, by parameter; inf where it is gone already."""
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y, loss)
    errors = []
    for beta in (BETA, BETA / 2):
        gradients = (
            dp.DualPropagation(**{"beta": beta, "loss": loss, "engine": "explicit", **settings})
            .gradients(network, x, y)
            .gradients
        )
        errors.append({name: distance(gradients[name], expected[name]) for name in expected})
    gone = rounding(BETA / 2)
    return {n: math.inf if errors[1][n] <= gone else math.log2(errors[0][n] / errors[1][n]) for n in expected}


def assert_orders(found, hidden, last):
    names = list(found)
    for name, order in found.items():
        is_last = name in names[-2:]
        wanted = last if is_last else hidden
        if is_last and name.endswith("bias"):
            wanted = math.inf  # δ_L = -β g exactly, and a bias reads no mean
        # The next power of β shifts the measured order by about β times a ratio of coefficients.
        near = order == wanted if math.isinf(wanted) else abs(order - wanted) < 0.2
        assert near, f"{name}: order {order:.3f} instead of {wanted}; all: {found}"


MODELS = {
    "mlp": lambda activation: (mlp(activation), *batch()),
    "conv": lambda activation: (conv_net(activation, "before"), *images()),
}
smooth = pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
each_loss = pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
each_model = pytest.mark.parametrize("kind", MODELS)


@smooth
@each_loss
@each_model
@pytest.mark.parametrize("coupling", ["original", "transposed"])
def test_at_alpha_one_half_the_error_falls_as_the_square_of_beta(activation, loss, kind, coupling):
    """The second order is what the symmetric dyad buys; asymmetry anywhere would leave a
    first-order error."""
    assert_orders(orders(*MODELS[kind](activation), loss, coupling=coupling), hidden=2, last=2)


@smooth
@each_loss
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_off_one_half_the_error_of_dp_falls_as_beta(activation, loss, alpha):
    """Faster would mean that α is not used, slower that something else is wrong. The mean moves, so
    the last layer too."""
    assert_orders(orders(*MODELS["mlp"](activation), loss, alpha=alpha), hidden=1, last=1)


@smooth
@each_loss
@pytest.mark.parametrize(("alpha", "last"), [(0.0, math.inf), (0.3, 2), (1.0, math.inf)])
def test_off_one_half_the_error_of_transposed_dp_falls_as_beta_but_its_mean_hardly_moves(activation, loss, alpha, last):
    """At α ∈ {0, 1} s̄ = f(a) exactly, so the last layer is BP's; between them its mean moves by
    β²."""
    found = orders(*MODELS["mlp"](activation), loss, alpha=alpha, coupling="transposed")
    assert_orders(found, hidden=1, last=last)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(("alpha", "order"), [(0.5, 2), (0.0, 1), (1.0, 1)])
def test_an_exact_nudge_approaches_backprop_too(loss, alpha, order):
    """δ_L = β(y-a)/((1+αβ)(1-ᾱβ)) has the relative error (1-2α)β + O(β²), and the cross-entropy's
    is of the same order."""
    model, (x, y) = mlp("tanh"), batch()
    found = orders(model, x, y, loss, alpha=alpha, coupling="transposed", output_nudge="exact")
    for name, value in found.items():
        assert abs(value - order) < 0.2, f"{name}: order {value:.3f} instead of {order}; all: {found}"


@smooth
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_fused_engine_has_the_same_orders(activation, alpha):
    """Its means are the forward pass's: the last layer is exactly BP's for every α."""
    found = orders(*MODELS["mlp"](activation), "cross_entropy", alpha=alpha, engine="fused")
    assert_orders(found, hidden=2 if alpha == 0.5 else 1, last=math.inf)


def test_per_layer_betas_below_scale_only_their_own_layer():
    """β_k/β_{k+1} in the nudge and 1/β_k in the gradient cancel to first order; one without the
    other is a factor."""
    model, (x, y) = mlp("tanh"), batch()
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    rule = dp.DualPropagation(beta=(1e-3, 4e-3, 5e-4, 2e-3))
    gradients = rule.gradients(network, x, y).gradients
    for name in expected:
        # Second order at ½, with β at most 4e-3 and curvature and drives of order one.
        assert distance(gradients[name], expected[name]) < 1e-4, name
        ratio = float(gradients[name].norm() / expected[name].norm())
        assert abs(ratio - 1) < 1e-4, f"{name}: norm ratio {ratio}"
    assert torch.is_tensor(gradients["0.weight"])
