"""Contrastive Hebbian learning against a slow transcription of its two phases, and its limits as γ
→ 0."""

import math

import pytest
import torch
from comparison import assert_same, distance
from networks import autograd_gradients, batch, conv_net, drawn, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp

SETTLED = "alternating_sweeps(60)"


def gradients(model, x, y, **settings):
    out = dp.ContrastiveHebbian(**{"schedule": SETTLED, **settings}).gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok, out.status.message
    return out.gradients


def squashed(widths=(5, 8, 7, 4)):
    """A net of tanh that ends in softmax."""
    return drawn(lambda: nn.Sequential(*mlp("tanh", widths), nn.Softmax(1)))


def transcribed(model, x, y, gamma, sweeps=200):
    """Free and clamped phase of a tanh MLP on squared error as the paper has them, unit by unit
    equation: all layers together, damped by a half. Returns -γ^{k-L} (ŝ_k ŝ_{k-1}ᵀ - š_k š_{k-1}ᵀ)
    and the same of the biases, means over the batch."""
    maps = [module for module in model if isinstance(module, nn.Linear)]
    weights, biases = [m.weight.detach() for m in maps], [m.bias.detach() for m in maps]
    depth = len(maps)
    phases = []
    for clamp in (False, True):
        s = [x, *(torch.zeros(len(x), len(b), dtype=x.dtype) for b in biases)]
        for _ in range(sweeps):
            if clamp:
                s[depth] = F.one_hot(y, len(biases[-1])).to(x.dtype)
            new = list(s)
            for k in range(1, depth + 1):
                u = s[k - 1] @ weights[k - 1].T + biases[k - 1]
                if k < depth:
                    new[k] = torch.tanh(u + gamma * s[k + 1] @ weights[k]) / 2 + s[k] / 2
                elif not clamp:
                    new[k] = u / 2 + s[k] / 2
            s = new
        phases.append(s)
    free, clamped = phases
    found = {}
    for k, name in enumerate((n for n, m in model.named_children() if isinstance(m, nn.Linear)), start=1):
        scale = -(gamma ** (k - depth)) / len(x)
        found[f"{name}.weight"] = scale * (clamped[k].T @ clamped[k - 1] - free[k].T @ free[k - 1])
        found[f"{name}.bias"] = scale * (clamped[k] - free[k]).sum(0)
    return found


@pytest.mark.parametrize("gamma", [0.3, 0.02])
def test_the_two_phases_are_those_of_the_paper(gamma):
    """Another order of updates, from other states, to the same equilibria."""
    model, (x, y) = mlp("tanh"), batch(n=7)
    expected = transcribed(model, x, y, gamma)
    found = gradients(model, x, y, gamma=gamma, loss="squared_error")
    assert_same(found, expected, 1e-14 / gamma**3)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: mlp("tanh"), "squared_error"),
        (lambda: mlp("tanh"), "cross_entropy"),
        (lambda: mlp("sigmoid"), "cross_entropy"),
        (lambda: conv_net("tanh", "before"), "cross_entropy"),
        (lambda: conv_net("tanh", "after"), "squared_error"),
        (squashed, "log_loss"),
    ],
    ids=["squared error", "cross-entropy", "sigmoid", "pool before", "pool after", "softmax"],
)
def test_it_tends_to_back_propagation_at_order_gamma(make, loss):
    """Xie & Seung's theorem; at another power of γ in the learning rule the layers would still
    learn, at rates of their own."""
    model = make()
    x, y = images(6) if any(isinstance(m, nn.Conv2d) for m in model) else batch(n=6)
    if loss == "log_loss":
        parameters = dict(model.named_parameters())
        value = F.nll_loss(model(x).log(), y)
        expected = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
    else:
        expected = autograd_gradients(model, x, y, loss)
    far, near = (
        max(distance(found[n], expected[n]) for n in expected)
        for found in (gradients(model, x, y, gamma=gamma, loss=loss) for gamma in (2e-3, 1e-3))
    )
    assert near < 0.05
    assert 0.9 < math.log2(far / near) < 1.1, (far, near)


def test_predictions_and_loss_are_of_the_free_equilibrium():
    """Its accuracy is what the network would show, feedback and all; and it is stationary there."""
    model, (x, y) = mlp("tanh"), batch(n=7)
    network, rule = dp.Network.from_module(model), dp.ContrastiveHebbian(gamma=0.4, schedule=SETTLED)
    out, states = rule.gradients(network, x, y), rule.infer(network, x, y)
    assert torch.equal(out.logits, states.free[-1])
    torch.testing.assert_close(rule.predict(network, x), out.logits, rtol=0, atol=0)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, y))
    assert float((out.logits - model(x).detach()).norm()) > 1e-3
    for states_of_phase in (states.free, states.clamped):
        for k in range(1, network.depth):
            above = model[2 * k].weight.detach()
            u = model[2 * k - 2](states_of_phase[k - 1]) + 0.4 * states_of_phase[k + 1] @ above
            torch.testing.assert_close(states_of_phase[k], torch.tanh(u).detach(), rtol=1e-10, atol=1e-10)
    clamp = F.one_hot(y, 4) - out.logits.softmax(1)
    torch.testing.assert_close(states.clamped[-1] - states.free[-1], clamp, rtol=1e-12, atol=1e-12)


def test_what_it_estimates_is_the_implicit_gradient_of_the_free_equilibrium():
    """Found here by autograd through many sweeps of the free phase."""
    gamma = 0.3
    model, (x, y) = mlp("tanh"), batch(n=5)
    network = dp.Network.from_module(model)
    maps = [m for m in model if isinstance(m, nn.Linear)]
    s = [x, *(torch.zeros(len(x), m.out_features, dtype=x.dtype) for m in maps)]
    for _ in range(80):
        for k in range(1, 5):
            u = maps[k - 1](s[k - 1])
            s[k] = torch.tanh(u + gamma * s[k + 1] @ maps[k].weight) if k < 4 else u
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(F.cross_entropy(s[4], y), list(parameters.values()))
    found = dp.ContrastiveHebbian(gamma=gamma, schedule=SETTLED).exact_gradients(network, x, y)
    assert_same(found, dict(zip(parameters, expected, strict=True)), 1e-8)


def test_layers_that_read_several_are_discounted_by_their_distance():
    """A skip from layer 1 to 3 is one step further than the chain: γ² of what the top sends."""
    gamma = 0.3
    first, second, third, skip, top = (nn.Linear(*shape).double() for shape in ((5, 6), (6, 6), (6, 6), (6, 6), (6, 4)))
    model = dp.Layered([(nn.Tanh(), {0: first}), (nn.Tanh(), {1: second}), (nn.Tanh(), {2: third, 1: skip}), (None, {3: top})])
    x, y = batch(n=4)
    rule = dp.ContrastiveHebbian(gamma=gamma, schedule=SETTLED)
    s = rule.infer(dp.Network.from_module(model), x, y).clamped
    with torch.no_grad():
        pulled = gamma * s[2] @ second.weight + gamma**2 * s[3] @ skip.weight
        torch.testing.assert_close(s[1], torch.tanh(first(x) + pulled), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(s[3], torch.tanh(third(s[2]) + skip(s[1]) + gamma * s[4] @ top.weight), rtol=1e-9, atol=1e-9)


def test_weights_too_large_for_the_feedback_are_a_status_with_the_remedy():
    """ReLU states that feed each other grow for ever; their gradients are finite for long."""
    model, (x, y) = mlp("relu"), batch(n=6)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    out = dp.ContrastiveHebbian(gamma=0.5).gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert "inference did not settle" in out.status.message or "is not finite" in out.status.message
    assert "gamma" in out.status.message or "beta" in out.status.message
    settled = dp.ContrastiveHebbian(gamma=0.5, schedule="alternating_sweeps(300)", tolerance=1e-6)
    with torch.no_grad():
        for p in model.parameters():
            p.div_(8)
    out = settled.gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok
    assert 1 < out.diagnostics["passes"] < 200
    assert out.diagnostics["residual"] <= 1e-6


def test_a_phase_that_is_cut_short_is_told_by_what_is_left_of_its_motion():
    """A twentieth of the displacement, in layers whose signal is a thousandth of it, is no small
    thing."""
    model, (x, y) = mlp("tanh"), batch(n=6)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    out = dp.ContrastiveHebbian(gamma=0.4, schedule="alternating_sweeps(3)").gradients(dp.Network.from_module(model), x, y)
    assert 0.01 < out.diagnostics["residual"] < 0.5
    assert not out.status.ok
    assert "inference did not settle: the free states still move by" in out.status.message
    assert "Raise the number of schedule, or lower gamma" in out.status.message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gamma": 0}, r"gamma must be in \(0, 1\], got 0"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\]"),
        ({"tolerance": 1.0}, "tolerance must be in"),
        ({"schedule": "random_order(9)"}, "a prediction needs a fixed order"),
        ({"schedule": "3,2,1", "tolerance": 0.1}, "tolerance needs a schedule of passes"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(dp.SettingError, match=told):
        dp.ContrastiveHebbian(**settings)


def test_a_difference_that_float32_cannot_hold_is_a_status_with_the_remedy():
    """γ^{L-1} of the output's difference is what layer 1 learns from; its rounding would train it
    just as steadily."""
    x, y = batch(dtype=torch.float32)
    model = mlp("tanh", (5, 8, 8, 8, 8, 8, 4), dtype=torch.float32)
    wide = dp.Network.from_module(mlp("tanh", (5, 8, 8, 8, 8, 8, 4)))
    seen = set()
    for gamma in (0.02, 0.05, 0.1, 0.2, 0.4):
        rule = dp.ContrastiveHebbian(gamma=gamma)
        out = rule.gradients(dp.Network.from_module(model), x, y)
        exact = rule.gradients(wide, x.double(), y).gradients
        error = max(distance(out.gradients[name].double(), gradient) for name, gradient in exact.items())
        seen.add(out.status.ok)
        if out.status.ok:
            assert error < 0.3, gamma
        else:
            assert error > 0.01, gamma
            assert "on layer 1 only rounding is left in torch.float32. Raise gamma" in out.status.message
            assert out.status.is_finite
    assert seen == {True, False}


def test_a_squared_error_behind_an_activation_and_separate_feedback_weights_are_refused():
    """What would be descended then is not the loss that is named."""
    x, y = batch()
    model = drawn(lambda: nn.Sequential(*mlp("tanh"), nn.Sigmoid()))
    with pytest.raises(dp.SettingError, match="clamping descends squared error where the output is linear"):
        dp.ContrastiveHebbian(loss="squared_error").gradients(dp.Network.from_module(model), x, y)
    converted = dp.feedback.convert(mlp("tanh"), "random")
    with pytest.raises(dp.SettingError, match="separate feedback weights has no energy"):
        dp.ContrastiveHebbian().gradients(dp.Network.from_module(converted), x, y)
