"""Oracles that hold for every β: networks whose units are linear, or whose units stay on one side
of their kink."""

from pathlib import Path

import pytest
import torch
from comparison import assert_same, distance, report, rounding
from networks import ACTIVATIONS, autograd_gradients, batch, conv_net, drawn, images, mlp
from torch import nn

import dualprop as dp

ALPHAS = [0.0, 0.3, 0.5, 1.0]
BETAS = [1e-3, 0.1, 1.0, 10.0]
LOSSES = ["cross_entropy", "squared_error"]


def found(model, x, y, **settings):
    return dp.DualPropagation(**{"engine": "explicit", **settings}).gradients(dp.Network.from_module(model), x, y).gradients


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_transposed_dp_equals_backprop_on_linear_networks_for_every_alpha_and_beta(alpha, beta, loss):
    """DP⊤'s means are the forward pass there and its differences BP's errors; any wrong share or
    scale breaks the equality."""
    model, (x, y) = mlp("identity"), batch()
    expected = autograd_gradients(model, x, y, loss)
    gradients = found(model, x, y, coupling="transposed", alpha=alpha, beta=beta, loss=loss)
    assert_same(gradients, expected, rounding(beta))


@pytest.mark.parametrize("pool", ["before", "after", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_transposed_dp_equals_backprop_on_linear_convolutions_with_max_pooling(alpha, pool):
    """Pool switches must be those of the mean, here the forward pass; those of s⁺ would differ at β
    = 10."""
    model, (x, y) = conv_net("identity", pool), images()
    gradients = found(model, x, y, coupling="transposed", alpha=alpha, beta=10.0)
    assert_same(gradients, autograd_gradients(model, x, y), rounding(1.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", BETAS)
def test_dp_equals_backprop_on_linear_networks_at_alpha_one_half(beta, loss):
    """At ½ the mean does not move, whatever β."""
    model, (x, y) = mlp("identity"), batch()
    gradients = found(model, x, y, beta=beta, loss=loss)
    assert_same(gradients, autograd_gradients(model, x, y, loss), rounding(beta))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_dp_off_one_half_equals_backprop_in_the_first_layer_alone(alpha):
    """s̄_k = f(a_k) + (2α-1) Δ_k: the first layer reads the input, the others a mean that moved in
    proportion to β.

    On a linear network the gradient's error is exactly linear in β and odd in α - ½. Were the
    gradient taken at the forward state instead of at s̄, or s̄ with the wrong weights, this would
    be another number.
    """
    model, (x, y) = mlp("identity"), batch()
    expected = autograd_gradients(model, x, y)

    def errors(alpha, beta):
        gradients = found(model, x, y, alpha=alpha, beta=beta)
        first = {name: gradients[name] for name in expected if name.startswith("0.") or name.endswith("bias")}
        assert_same(first, {name: expected[name] for name in first}, rounding(beta), "first layer, and every bias")
        return {n: gradients[n] - expected[n] for n in expected if n.endswith("weight") and not n.startswith("0.")}

    one = errors(alpha, 1.0)
    assert all(distance(expected[n] + one[n], expected[n]) > 1e-3 for n in one), "the mean did not move"
    assert_same({n: 4 * e for n, e in errors(alpha, 0.25).items()}, one, rounding(0.25) * 100, "linear in β")
    assert_same({n: -e for n, e in errors(1 - alpha, 1.0).items()}, one, rounding(1.0) * 100, "odd in α - ½")


def far_from_kinks(activation):
    """A network whose hidden units sit far from every kink: biases of ±4 (or the middle of the hard
    sigmoid)."""

    def make():
        model = nn.Sequential(
            nn.Linear(5, 8), ACTIVATIONS[activation](), nn.Linear(8, 6), ACTIVATIONS[activation](), nn.Linear(6, 4)
        )
        for index in (0, 2):
            linear = model[index]
            linear.weight.data.mul_(0.2)
            signs = torch.ones(linear.out_features)
            signs[::3] = -1
            linear.bias.data = 0.5 + 3 * (1 - signs) if activation == "hard_sigmoid" else 4 * signs
        return model

    return drawn(make, seed=2)


def assert_no_unit_crosses_its_kink(network, dyads, kinks_of):
    """Both states of every hidden unit, and so its drive, lie in one linear piece: their slopes
    agree."""
    for k in range(1, network.depth):
        neuron, below = network.into(k).neuron, dyads.mean(k - 1)
        a = network.into(k).synapse.forward(below)
        for state in (dyads.plus[k], dyads.minus[k]):
            for kink in kinks_of:
                on_the_same_side = (state > kink) == (neuron.f(a) > kink)
                assert bool(on_the_same_side.all()), f"a unit of layer {k} crosses the kink at {kink}"


PIECEWISE_LINEAR = [("relu", (0.0,)), ("leaky_relu", (0.0,)), ("hard_sigmoid", (0.0, 1.0 - 1e-12))]


@pytest.mark.parametrize(("activation", "kinks"), PIECEWISE_LINEAR)
@pytest.mark.parametrize("beta", BETAS[:3])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_transposed_dp_equals_backprop_while_no_unit_crosses_its_kink(activation, kinks, alpha, beta):
    """The claim on ReLU networks that every published experiment rests on."""
    model, (x, y) = far_from_kinks(activation), batch()
    network = dp.Network.from_module(model)
    rule = dp.DualPropagation(coupling="transposed", alpha=alpha, beta=beta, engine="explicit")
    assert_no_unit_crosses_its_kink(network, rule.infer(network, x, y), kinks)
    active = (rule.infer(network, x, y).difference(1) != 0).any(0)
    assert bool(active.any()), "every unit is silent: the precondition would hold of nothing"
    assert_same(rule.gradients(network, x, y).gradients, autograd_gradients(model, x, y), rounding(beta))


@pytest.mark.parametrize(("activation", "kinks"), PIECEWISE_LINEAR)
@pytest.mark.parametrize("beta", BETAS[:3])
@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_dp_at_one_half_equals_backprop_in_both_engines_while_no_unit_crosses_its_kink(activation, kinks, beta, engine):
    """And with it fused = explicit at ½ for piecewise linear units."""
    model, (x, y) = far_from_kinks(activation), batch()
    network = dp.Network.from_module(model)
    assert_no_unit_crosses_its_kink(network, dp.DualPropagation(beta=beta).infer(network, x, y), kinks)
    assert_same(found(model, x, y, beta=beta, engine=engine), autograd_gradients(model, x, y), rounding(beta))


def test_dp_off_one_half_errs_in_proportion_to_beta_also_where_no_unit_crosses_its_kink():
    """As docs/rules/dual_propagation.md says: a page said that all variants are BP at small β."""
    model, (x, y) = mlp("relu"), batch(n=32)
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    errors = {}
    for alpha in (0.0, 0.25, 0.75, 1.0):
        for beta in (1e-2, 1e-4):
            rule = dp.DualPropagation(alpha=alpha, beta=beta, engine="explicit")
            assert max(rule.statistics(network, x, y)["kink_crossing"]) == 0
            gradients = rule.gradients(network, x, y).gradients
            errors[alpha, beta] = max(distance(gradients[name], expected[name]) for name in expected) / beta
    quarter, end = (f"{errors[alpha, 1e-2]:.1f}" for alpha in (0.25, 1.0))
    for (alpha, _), error in errors.items():
        assert f"{error:.1f}" == (quarter if alpha in (0.25, 0.75) else end), errors
    page = " ".join((Path(__file__).parents[2] / "docs/rules/dual_propagation.md").read_text().split())
    assert f"that is {quarter} β at α = ¼ and ¾, and {end} β at α = 0 and 1" in page


def test_crossing_a_kink_does_change_the_gradient():
    """Were it otherwise, the two tests above would prove nothing about the difference that is being
    taken."""
    model, (x, y) = mlp("relu"), batch()
    gradients, expected = found(model, x, y, beta=10.0), autograd_gradients(model, x, y)
    assert distance(gradients["0.weight"], expected["0.weight"]) > 1e-2, report(gradients, expected)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
@pytest.mark.parametrize("schedule", ["alternating_sweeps(1)", "up_down(2)", "random_order(20)"])
def test_the_two_couplings_are_one_at_alpha_one_half(activation, schedule):
    """At ½ the shares are equal; with the same point of linearisation nothing distinguishes DP from
    DP⊤."""
    model, (x, y) = mlp(activation), batch()
    network, settings = dp.Network.from_module(model), {"beta": 2.0, "schedule": schedule, "linearize_at": "forward"}
    outs = [
        dp.DualPropagation(coupling=coupling, engine="explicit", **settings).gradients(
            network, x, y, generator=torch.Generator().manual_seed(1)
        )
        for coupling in ("original", "transposed")
    ]
    for k in range(network.depth + 1):
        assert torch.equal(outs[0].state.plus[k], outs[1].state.plus[k]), f"layer {k}"
    assert_same(outs[0].gradients, outs[1].gradients, 0.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_backprop_is_loss_backward(loss):
    """The twin that every comparison is held against must be PyTorch's own gradient of the mean
    loss."""
    for model, (x, y) in ((mlp(), batch()), (conv_net(), images())):
        expected = autograd_gradients(model, x, y, loss)
        out = dp.Backprop(loss=loss).gradients(dp.Network.from_module(model), x, y)
        assert_same(out.gradients, expected, 4 * torch.finfo(x.dtype).eps)
        torch.testing.assert_close(out.logits, model(x).detach())
        assert all(p.grad is None for p in model.parameters())
