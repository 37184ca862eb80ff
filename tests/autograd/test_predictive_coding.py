"""Predictive coding against gradient descent of its energy by autograd, and where it is
back-propagation."""

import itertools
import math

import pytest
import torch
from comparison import assert_same, cosine, distance
from networks import autograd_gradients, batch, conv_net, images, mean_loss, mlp
from torch import nn

import dualprop as dp

SETTLED = {"steps": 300, "step_size": 0.2, "momentum": 0.5}
EXACT = {"step_size": 1.0, "momentum": 0.0}


def layers_of(model):
    """The modules from one activation to the next, as functions of the state below: h_k's
    predictions, the output's last."""
    parts, current = [], []
    for module in model:
        current.append(module)
        if isinstance(module, nn.ReLU | nn.Tanh | nn.Sigmoid | nn.LeakyReLU):
            parts.append(nn.Sequential(*current))
            current = []
    return [*parts, nn.Sequential(*current)]


def energy(parts, states, y, beta, loss):
    """E summed over the batch, in PyTorch's words; `states` h_0…h_{L-1}."""
    total = beta * len(y) * mean_loss(loss, parts[-1](states[-1]), y)
    for part, below, h in zip(parts[:-1], states[:-1], states[1:], strict=True):
        total = total + (h - part(below)).square().sum() / 2
    return total


def descended(model, x, y, beta, loss, steps, step_size, momentum):
    """States after gradient steps on E by autograd, and dE/dθ there, the mean over the batch, by
    1/β."""
    parts = layers_of(model)
    states = [x]
    for part in parts[:-1]:
        states.append(part(states[-1]).detach())
    velocities = [torch.zeros_like(h) for h in states]
    for _ in range(steps):
        leaves = [states[0], *(h.detach().requires_grad_() for h in states[1:])]
        forces = torch.autograd.grad(energy(parts, leaves, y, beta, loss), leaves[1:])
        for k, force in enumerate(forces, start=1):
            velocities[k] = momentum * velocities[k] - step_size * force
            states[k] = states[k] + velocities[k]
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(energy(parts, states, y, beta, loss) / (beta * len(y)), list(parameters.values()))
    return states[1:], dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: mlp("relu"), batch),
        (lambda: mlp("tanh"), batch),
        (lambda: conv_net("sigmoid", "before"), images),
        (lambda: conv_net("leaky_relu", "after"), images),
    ],
    ids=["relu", "tanh", "pool before", "pool after"],
)
def test_states_and_weights_descend_the_energy(make, data, loss, steps):
    """With momentum, all layers together; every force and every gradient from the same energy."""
    model, (x, y) = make(), data()
    settings = {"beta": 0.7, "steps": steps, "step_size": 0.3, "momentum": 0.6}
    states, gradients = descended(model, x, y, loss=loss, **settings)
    rule, network = dp.PredictiveCoding(loss=loss, **settings), dp.Network.from_module(model)
    values = rule.infer(network, x, y)
    for found, expected in zip(values.states, states, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert_same(rule.gradients(network, x, y).gradients, gradients, 1e-11)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(
    ("make", "data"), [(lambda: mlp("tanh"), batch), (lambda: conv_net("leaky_relu", "before"), images)], ids=["mlp", "conv"]
)
def test_learning_alongside_states_and_weights_descend_one_gradient(make, data, loss):
    """pcx's published incremental runs: one gradient of E by states and weights, then both step.
    Written out with autograd and plain SGD over several updates; gradients at the new states would
    train too, and be another algorithm."""
    model, written, (x, y) = make(), make(), data()
    beta, step_size, momentum, rate = 0.7, 0.3, 0.6, 0.2
    rule = dp.PredictiveCoding(
        loss=loss, beta=beta, step_size=step_size, momentum=momentum, steps=1, start="previous", learn="alongside"
    )
    network, state, parts = dp.Network.from_module(model), None, layers_of(written)
    states = [x]
    for part in parts[:-1]:
        states.append(part(states[-1]).detach())
    velocities = [torch.zeros_like(h) for h in states]
    parameters = dict(written.named_parameters())
    for update in range(4):
        out = rule.gradients(network, x, y, state=state)
        leaves = [states[0], *(h.requires_grad_() for h in states[1:])]
        value = energy(parts, leaves, y, beta, loss)
        both = torch.autograd.grad(value, [*leaves[1:], *parameters.values()])
        forces, learned = both[: len(leaves) - 1], both[len(leaves) - 1 :]
        expected = {name: g / (beta * len(y)) for name, g in zip(parameters, learned, strict=True)}
        for k, force in enumerate(forces, start=1):
            velocities[k] = momentum * velocities[k] - step_size * force
            states[k] = (states[k] + velocities[k]).detach()
        assert_same(out.gradients, expected, 1e-10, f"update {update}")
        assert bool(out.gradients["0.weight"].any()) == (update >= len(parts) - 1), "an error descends a layer a step"
        for found, wanted in zip(out.state.states, states[1:], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
        state = out.state
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(out.gradients[name], alpha=rate)
                parameters[name].sub_(expected[name], alpha=rate)


def test_learning_alongside_is_learning_a_step_earlier():
    """So it is refused where it would be another name for a step less."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    fewer = dp.PredictiveCoding(steps=4, start="previous").gradients(network, x, y)
    alongside = dp.PredictiveCoding(steps=5, start="previous", learn="alongside").gradients(network, x, y)
    assert_same(alongside.gradients, fewer.gradients, 0.0)
    with pytest.raises(dp.SettingError, match=r"learn='alongside' is of incremental PC\. Use start='previous'"):
        dp.PredictiveCoding(learn="alongside")
    more = dp.PredictiveCoding(start="previous", learn="alongside")
    usual = dp.PredictiveCoding(start="previous")
    assert more.statistics(network, x, y) == usual.statistics(network, x, y), (
        "the residual is of errors of before the last step"
    )
    # The drives after the last step are made by no one who could need them.
    counts = [rule.gradients(network, x, y).diagnostics for rule in (usual, more)]
    assert counts[0]["drives"] - counts[1]["drives"] == network.depth - 1
    assert counts[0]["gradients"] == counts[1]["gradients"]


@pytest.mark.parametrize("pool", ["before", "none"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_settled_it_tends_to_back_propagation_at_order_beta(loss, pool):
    """Whittington & Bogacz's limit: errors small against the curvature of the predictions."""
    model, (x, y) = conv_net("tanh", pool), images()
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y, loss)
    far, near = (
        max(distance(found[n], expected[n]) for n in expected)
        for found in (
            dp.PredictiveCoding(beta=beta, loss=loss, **SETTLED).gradients(network, x, y).gradients for beta in (2e-3, 1e-3)
        )
    )
    assert near < 0.05
    assert 0.9 < math.log2(far / near) < 1.1, (far, near)


@pytest.mark.parametrize("beta", [1.0, 0.01])
@pytest.mark.parametrize("settings", [{"predictions": "fixed"}, {"learn": "arrival"}], ids=["fixed", "arrival"])
@pytest.mark.parametrize("kind", ["relu", "tanh", "conv"])
def test_the_published_exact_cases_are_back_propagation(kind, settings, beta):
    """To rounding, after a step for each layer below the output; and not a step sooner."""
    model, (x, y) = (conv_net("tanh", "before"), images()) if kind == "conv" else (mlp(kind), batch())
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    steps = network.depth - 1
    rule = dp.PredictiveCoding(beta=beta, steps=steps, **EXACT, **settings)
    out = rule.gradients(network, x, y)
    assert_same(out.gradients, expected, 1e-13 / beta)
    if "predictions" in settings:
        fewer = dp.PredictiveCoding(beta=beta, steps=steps - 1, **EXACT, **settings).gradients(network, x, y)
        assert not bool(fewer.gradients["0.weight"].any())
        more = dp.PredictiveCoding(beta=beta, steps=3 * steps, **EXACT, **settings).gradients(network, x, y)
        assert_same(more.gradients, expected, 1e-13 / beta)


def test_the_standard_clamp_is_not_back_propagation():
    """So that no label says it were: large errors move the states that the weights learn from."""
    model, (x, y) = mlp("tanh"), batch(n=32)
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    out = dp.PredictiveCoding(beta=1.0, **SETTLED).gradients(network, x, y)
    assert out.status.ok
    assert min(cosine(out.gradients[n], expected[n]) for n in expected) < 0.95


def test_fixed_predictions_are_back_propagation_where_layers_read_several():
    """Errors come down by every path; by skips sooner."""
    first, second, third, skip, top = (nn.Linear(*shape).double() for shape in ((5, 6), (6, 6), (6, 6), (6, 6), (6, 4)))
    model = dp.Layered([(nn.Tanh(), {0: first}), (nn.ReLU(), {1: second}), (nn.Tanh(), {2: third, 1: skip}), (None, {3: top})])
    x, y = batch()
    network = dp.Network.from_module(model)
    out = dp.PredictiveCoding(predictions="fixed", steps=3, **EXACT).gradients(network, x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), 1e-12)
    with pytest.raises(dp.SettingError, match=r"learn='arrival' is of chains.*Use predictions='fixed'"):
        dp.PredictiveCoding(learn="arrival", steps=3, **EXACT).gradients(network, x, y)


def test_inference_goes_on_from_the_values_of_an_earlier_call():
    """Incremental PC: as many steps in several calls as in one, momentum and all; through a
    checkpoint's tensors too."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    whole = dp.PredictiveCoding(steps=5).gradients(network, x, y)
    rule, state = dp.PredictiveCoding(steps=1, start="previous"), None
    assert rule.keeps_state
    for _ in range(5):
        out = rule.gradients(network, x, y, state=state)
        state = rule.unpack_state(rule.pack_state(out.state))
        assert [torch.equal(a, b) for a, b in zip(state.states, out.state.states, strict=True)] == [True] * 3
    assert_same(out.gradients, whole.gradients, 1e-12)
    assert out.status.ok
    assert dp.PredictiveCoding().pack_state(out.state) == {}
    assert rule.unpack_state({}) is None
    with pytest.raises(dp.SettingError, match=r"previous state has shapes .* Keep the batch size"):
        rule.gradients(network, x[:3], y[:3], state=state)


def test_nothing_is_computed_twice():
    """The error descends a layer a step: what it has not reached is neither driven nor asked for
    feedback."""
    model, (x, y) = mlp("relu"), batch()
    network = dp.Network.from_module(model)
    count = dp.PredictiveCoding(learn="arrival", steps=3, **EXACT).gradients(network, x, y).diagnostics
    # Forward 4; h_3 moves: a_4; h_3 and h_2 move: a_4 and a_3; then all three. Feedback to 3; 3, 2;
    # 3, 2, 1.
    assert (count["drives"], count["feedbacks"], count["gradients"]) == (4 + 1 + 2 + 3, 1 + 2 + 3, 4)
    fixed = dp.PredictiveCoding(predictions="fixed", steps=3, **EXACT).gradients(network, x, y).diagnostics
    # The output's error stays; the others' are what they were once they have arrived, but nobody
    # compares values.
    assert (fixed["drives"], fixed["gradients"]) == (4, 4)
    assert fixed["feedbacks"] <= 1 + 2 + 3


def test_states_that_have_not_settled_are_a_status_with_the_remedy():
    """Steps too large for the weights swing from side to side, each further than the last."""
    model, (x, y) = mlp("tanh"), batch()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    out = dp.PredictiveCoding(step_size=0.9, steps=30).gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert "Raise steps, to L-1 or more, or lower step_size" in out.status.message or "not finite" in out.status.message
    assert dp.PredictiveCoding(steps=1, start="previous").gradients(dp.Network.from_module(model), x, y).status.ok


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 0}, "beta must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": True}, "steps must be one whole number"),
        ({"step_size": 0}, "step_size must be positive"),
        ({"momentum": 1}, r"momentum must be in \[0, 1\)"),
        ({"predictions": "frozen"}, "predictions must be one of"),
        ({"learn": "arrival"}, "learn='arrival' needs step_size=1"),
        ({"start": "zeros"}, "start must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(dp.SettingError, match=told):
        dp.PredictiveCoding(**settings)


def test_networks_that_it_is_not_defined_for_are_refused():
    x, y = batch()
    with pytest.raises(dp.SettingError, match="needs a step for each of the 3 layers below the output, got steps=2"):
        dp.PredictiveCoding(learn="arrival", steps=2, **EXACT).gradients(dp.Network.from_module(mlp()), x, y)


def test_layers_that_the_error_has_not_reached_are_told():
    """They would not learn at all, and the loss would fall all the same; in incremental PC it comes
    with the next calls."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    out = dp.PredictiveCoding(steps=2).gradients(network, x, y)
    assert not bool(out.gradients["0.weight"].any())
    told = "inference did not settle: the error has not reached layer 1 in 2 passes."
    assert out.status.message == f"{told} Raise steps, to L-1 or more, or lower step_size."
    assert dp.PredictiveCoding(steps=3).gradients(network, x, y).gradients["0.weight"].any()
    assert dp.PredictiveCoding(steps=1, start="previous").gradients(network, x, y).status.ok


def test_layers_that_the_error_reaches_last_keep_their_digits_in_float32():
    """Their states move by less than their own last digit: read off the states, their gradient
    would be rounding."""
    torch.manual_seed(0)
    widths = (5, 40, 40, 40, 40, 4)
    layers = [layer for n, m in itertools.pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).double()
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(4, (8,))
    rule = dp.PredictiveCoding(beta=1.0, steps=8, step_size=0.0147, momentum=0.05)
    wanted = rule.gradients(dp.Network.from_module(model), x, y).gradients
    found = rule.gradients(dp.Network.from_module(model.float()), x.float(), y).gradients
    assert float(wanted["0.weight"].norm()) < 1e-5 * float(wanted["8.weight"].norm()), "this network would prove nothing"
    for name, gradient in found.items():
        assert cosine(gradient.double(), wanted[name]) > 0.999, name
