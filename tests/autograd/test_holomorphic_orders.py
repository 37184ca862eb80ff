"""Holomorphic EP: exact at finite β as N grows, its error falling as β^N. By the implicit gradient
of the free equilibrium."""

import math

import pytest
import torch
from comparison import assert_same, distance, report
from networks import autograd_gradients, batch, conv_net, drawn, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.softmax import SoftmaxPool2d

SETTLED = {"energy": "hopfield", "free_schedule": "even_odd(600)", "relaxation": "blocks(even_odd(400))", "tolerance": 1e-13}
# How the output is pulled; the last two are one equilibrium, reached in other ways.
NUDGES = {
    "cross-entropy": {"loss": "cross_entropy"},
    "squared error": {"loss": "squared_error"},
    "squared error, exact": {"loss": "squared_error", "output_nudge": "exact"},
}


def pooled(pool, place="before", activation=nn.Sigmoid, seed=0, dtype=torch.float64):
    """Images (N, 2, 6, 6) to 3 logits through two convolutions and a pool."""

    def make():
        block = [nn.Conv2d(3, 4, 3, padding=1), *((pool, activation()) if place == "before" else (activation(), pool))]
        first, last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(36, 3)
        return nn.Sequential(first, activation(), *block, nn.Flatten(), last)

    return drawn(make, seed, dtype)


def scaled(model, factor):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


NETWORKS = {
    "mlp": lambda: (mlp("sigmoid"), batch(n=6)),
    "mlp tanh": lambda: (scaled(mlp("tanh"), 0.6), batch(n=6)),
    "mlp softmax": lambda: (mlp("softmax"), batch(n=6)),
    "conv": lambda: (conv_net("sigmoid", "none"), images(4)),
    "conv, average pool": lambda: (pooled(nn.AvgPool2d(2)), images(4)),
    "conv, average pool after": lambda: (pooled(nn.AvgPool2d(2), "after"), images(4)),
    "conv, softmax pool": lambda: (pooled(SoftmaxPool2d(2)), images(4)),
    "conv, cold softmax pool after": lambda: (pooled(SoftmaxPool2d(2, 0.5), "after"), images(4)),
    "sequences": lambda: (drawn(lambda: nn.Sequential(
        nn.Linear(5, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3))), batch((3, 5), 3)),
    "two maps in a row": lambda: (drawn(lambda: nn.Sequential(
        nn.Linear(5, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 4))), batch()),
    "circular and strided": lambda: (drawn(lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Sigmoid(), nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.Sigmoid(), nn.ZeroPad2d(1), nn.Flatten(), nn.Linear(64, 3))), images(4)),
    "several sources": lambda: (drawn(lambda: dp.Layered([
        (nn.Sigmoid(), {0: nn.Linear(5, 6)}), (nn.Tanh(), {1: nn.Linear(6, 6), 0: nn.Linear(5, 6)}),
        (None, {2: nn.Linear(6, 4), 1: nn.Linear(6, 4, bias=False)})])), batch()),
}  # fmt: skip


def gradients(network, x, y, points, beta, **settings):
    rule = dp.EquilibriumPropagation(**{**SETTLED, "estimator": f"holomorphic({points})", "beta": beta, **settings})
    out = rule.gradients(network, x, y)
    assert out.status.ok, out.status
    return out.gradients


def error(found, expected):
    return max(distance(found[n], expected[n]) for n in expected)


CASES = [(name, "cross-entropy") for name in NETWORKS]
CASES += [(name, nudge) for name in ("mlp", "conv, softmax pool", "several sources") for nudge in NUDGES if "squared" in nudge]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "nudge"), CASES)
def test_the_error_at_a_finite_beta_falls_as_beta_to_the_number_of_points(name, nudge):
    """What it is for: were a conjugate or a bias wrong, more points would be no better than two.
    Only the order tells."""
    model, (x, y) = NETWORKS[name]()
    network = dp.Network.from_module(model)
    expected = dp.EquilibriumPropagation(**SETTLED, **NUDGES[nudge]).exact_gradients(network, x, y)
    errors = {}
    for points in (2, 3, 4, 6):
        far, near = (error(gradients(network, x, y, points, beta, **NUDGES[nudge]), expected) for beta in (0.2, 0.1))
        errors[points] = near
        # Below this it is rounding, by the displacements' own size, and the oracle's.
        if near > 1e-7:
            assert 0.75 < math.log2(far / near) / points < 1.25, f"N = {points}: {far:.3g} at 0.2, {near:.3g} at 0.1"
    assert errors[2] > 1e-4, "the case can't tell"
    assert errors[6] < errors[2] / 500, errors
    assert errors[6] < errors[4] < errors[3] < errors[2], errors
    assert error(autograd_gradients(model, x, y, NUDGES[nudge]["loss"]), expected) > 0.01, "back-propagation would do"


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize(
    "settings", [{}, {"tolerance": None, "relaxation": "blocks(even_odd(5))"}], ids=["settled", "five passes"]
)
def test_two_points_are_centered_ep_to_the_last_bit(activation, settings):
    """And ask for no more of the network: rectifiers and max-pools too."""
    model, (x, y) = conv_net(activation, "before"), images()
    network = dp.Network.from_module(model)
    common = {**SETTLED, "beta": 0.3, "loss": "squared_error", "output_nudge": "exact", **settings}
    outcomes = [
        dp.EquilibriumPropagation(**common, estimator=name).gradients(network, x, y) for name in ("centered", "holomorphic(2)")
    ]
    assert all(torch.equal(outcomes[1].gradients[n], g) for n, g in outcomes[0].gradients.items())
    assert outcomes[0].diagnostics == outcomes[1].diagnostics


def both(model, x, y, beta, **settings):
    """By estimator the gradients in float32, and those in float64."""
    found = {}
    for name in ("centered", "holomorphic(3)", "holomorphic(4)"):
        wide = gradients(dp.Network.from_module(model.double()), x, y, 4, beta, estimator=name, **settings)
        narrow = gradients(dp.Network.from_module(model.float()), x.float(), y, 4, beta, estimator=name, **settings)
        assert all(g.dtype == torch.float32 for g in narrow.values())
        found[name] = (narrow, wide)
    return found


@pytest.mark.parametrize("name", ["mlp", "conv, softmax pool", "conv, average pool after"])
def test_gradients_keep_their_digits_in_float32(name):
    """∂E/∂θ / β is many times the gradient: summed over the phases as it stands, digits would go
    that the states still have. How many these have is eps by their displacement, which is small in
    the first layers."""
    settings = {"tolerance": None, "relaxation": "blocks(even_odd(40))", "free_schedule": "even_odd(60)"}
    model, (x, y) = NETWORKS[name]()
    found = both(model, x, y, 2e-2, **settings)
    for narrow, wide in found.values():
        assert error(narrow, wide) < 3e-3, report(narrow, wide)
        *_, weight, bias = wide
        assert max(distance(narrow[n], wide[n]) for n in (weight, bias)) < 1e-5, report(narrow, wide)


def test_large_states_and_a_small_pull_cost_no_digits_either():
    """As in `test_contrast`: sums over many positions that differ in their last digits."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), SoftmaxPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 64, 10)]
    scaled(layers[-1], 0.05)
    x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(10, (8,))
    settings = {
        "tolerance": None,
        "relaxation": "blocks(even_odd(20))",
        "free_schedule": "even_odd(40)",
        "loss": "squared_error",
    }
    for narrow, wide in both(nn.Sequential(*layers), x, y, 2e-3, **settings).values():
        assert error(narrow, wide) < 0.08, report(narrow, wide)
        assert max(distance(narrow[n], wide[n]) for n in ("4.weight", "4.bias")) < 1e-5, report(narrow, wide)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["mlp", "conv, softmax pool"])
def test_what_is_frozen_has_no_gradient_and_the_rest_the_same(name, frozen):
    model, (x, y) = NETWORKS[name]()
    whole = gradients(dp.Network.from_module(model), x, y, 4, 0.2)
    for n, p in model.named_parameters():
        p.requires_grad_(not n.endswith(frozen))
    found = gradients(dp.Network.from_module(model), x, y, 4, 0.2)
    assert set(found) == {n for n in whole if not n.endswith(frozen)}
    assert_same(found, {n: whole[n] for n in found}, 1e-12)


def test_softmax_pools_lie_between_the_average_and_the_maximum():
    """Σ z softmax(z/T) over each window, also of complex numbers, and the derivative of it by
    autograd."""
    z = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SoftmaxPool2d(2, 1e6)(z), F.avg_pool2d(z, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(SoftmaxPool2d(2, 1e-3)(z), F.max_pool2d(z, 2), rtol=1e-5, atol=1e-5)
    window = z[1, 2, 2:4, 4:6].flatten()
    wanted = sum(v * math.exp(v / 0.7) for v in window.tolist()) / sum(math.exp(v / 0.7) for v in window.tolist())
    assert float(SoftmaxPool2d(2, 0.7)(z)[1, 2, 1, 2]) == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(SoftmaxPool2d(2, 0.7)(z + 0j), SoftmaxPool2d(2, 0.7)(z) + 0j, rtol=1e-12, atol=1e-12)
    # f(z + iε) = f(z) + iε f'(z): the derivative along the imaginary axis is that along the real
    # one.
    leaf, step = z.clone().requires_grad_(), 1e-7
    SoftmaxPool2d(2)(leaf).sum().backward()
    moved = SoftmaxPool2d(2)(torch.complex(z, torch.full_like(z, step))).imag / step
    torch.testing.assert_close(moved.sum(), leaf.grad.sum(), rtol=1e-9, atol=1e-9)
    assert SoftmaxPool2d(3)(z).shape == F.max_pool2d(z, 3).shape
    for wrong in ({"kernel_size": 0}, {"temperature": 0.0}, {"kernel_size": 2.0}):
        with pytest.raises(dp.SettingError, match="must be"):
            SoftmaxPool2d(**wrong)
