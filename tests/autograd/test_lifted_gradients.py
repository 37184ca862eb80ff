"""Lifted networks against autograd through their objective, brute force, dual propagation's fixed
point, and BP."""

import pytest
import torch
from comparison import assert_same, distance
from lifted_objective import SOFTMAX, forward_states, layers, objective, reach
from networks import ACTIVATIONS, autograd_gradients, batch, conv_net, images, mlp

import dualprop as dp

BETAS = (0.3, 0.1, 0.4, 0.2)
each_activation = pytest.mark.parametrize("activation", list(ACTIVATIONS))


def settled(**more):
    return dp.Lifted(**{"max_sweeps": 2000, "tolerance": 1e-11, "beta": BETAS, **more})


@each_activation
@pytest.mark.parametrize("update", ["majorized", "fixed_point"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_settled_states_are_stationary_points_of_the_objective(activation, update, loss):
    """In every block; where a neuron's range ends the gradient may only push against the end."""
    model, (x, y) = mlp(activation), batch()
    out = settled(update=update, loss=loss).gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok
    states = [s.detach().clone().requires_grad_() for s in out.state.means]
    found = torch.autograd.grad(objective(model, states, y, BETAS, loss).sum(), states[1:])
    for k, (gradient, (_, kind)) in enumerate(zip(found, layers(model), strict=True), start=1):
        if kind is SOFTMAX:  # equal for all units is the multiplier of Σ s = 1
            gradient = gradient - gradient.mean(1, keepdim=True)
        projected = ((states[k] - gradient).clamp(*reach(kind)) - states[k]).detach()
        assert float(projected.abs().max()) < 1e-8, f"layer {k}"
        assert distance(out.state.mean(k), forward_states(model, x)[k]) > 1e-4, (
            "the states must have moved for this to mean anything"
        )


@pytest.mark.parametrize("sweeps", [1, 3, 40])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, "none", "before", "after"])
def test_parameter_gradients_are_those_of_the_objective_at_the_states_settled_or_not(sweeps, kind):
    """With ε of the states that went, or at the drive before the last move, the weights descend no
    objective."""
    model, (x, y) = (mlp(kind), batch()) if kind in ACTIVATIONS else (conv_net("tanh", kind), images())
    rule = dp.Lifted(beta=BETAS, max_sweeps=sweeps, tolerance=0)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    named = dict(model.named_parameters())
    value = objective(model, out.state.means, y, BETAS).mean()
    assert_same(out.gradients, dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True)), 1e-9)


def test_the_scalar_chain_settles_at_the_minimum_found_by_brute_force():
    """Nothing but the objective's values: no derivative, no proximal map."""
    for activation, low, high in (("tanh", -0.9999, 0.9999), ("relu", 0.0, 3.0), ("hard_sigmoid", 0.0, 1.0)):
        model = mlp(activation, (1, 1, 1))
        x, y, betas = torch.tensor([[0.7]]).double(), torch.zeros(1, dtype=torch.long), (0.5, 0.8)
        with torch.no_grad():
            for p, value in zip(model.parameters(), (0.9, 0.2, -0.8, 0.1), strict=True):
                p.fill_(value)
            ends = torch.tensor([[low, high], [-3.0, 3.0]]).double()
            for _ in range(25):  # zoom into the best cell of a grid
                hidden, output = torch.meshgrid(*(torch.linspace(*end, 41).double() for end in ends.tolist()), indexing="ij")
                grid = [x.expand(41**2, 1), hidden.reshape(-1, 1), output.reshape(-1, 1)]
                values = objective(model, grid, y.expand(41**2), betas, "squared_error")
                best = torch.stack([hidden.flatten()[values.argmin()], output.flatten()[values.argmin()]])
                half = (ends[:, 1] - ends[:, 0]) / 4
                ends = torch.stack([best - half, best + half], 1)
                ends[0].clamp_(low, high)
        states = settled(beta=betas, loss="squared_error").infer(dp.Network.from_module(model), x, y)
        assert float(states.mean(1)) == pytest.approx(float(best[0]), abs=1e-6), activation
        assert float(states.mean(2)) == pytest.approx(float(best[1]), abs=1e-6), activation


@pytest.mark.sampled(5)
@each_activation
@pytest.mark.parametrize("update", ["majorized", "fixed_point"])
@pytest.mark.parametrize("betas", [(0.2,) * 4, (0.2, 0.1, 0.3, 0.5)])
def test_the_fixed_point_is_that_of_dual_propagation_at_alpha_one(activation, update, betas):
    """s⁺ = X, s⁻ = f(a): two algorithms written apart, with the same states, differences and
    gradients."""
    model, (x, y) = mlp(activation), batch()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.7)
    network = dp.Network.from_module(model)
    dual = dp.DualPropagation(alpha=1.0, beta=betas, output_nudge="exact", schedule="alternating_sweeps(200)")
    expected, lifted = dual.gradients(network, x, y), settled(update=update, beta=betas).gradients(network, x, y)
    for k in range(1, 5):
        assert distance(lifted.state.mean(k), expected.state.mean(k)) < 1e-9
        # Settled to 1e-11 of all displacements, of which those below a softmax are a thousandth.
        assert distance(lifted.state.difference(k), expected.state.difference(k)) < 1e-7
        assert distance(lifted.state.minus[k], expected.state.minus[k]) < 1e-9
    assert_same(lifted.gradients, expected.gradients, 1e-7)


@pytest.mark.parametrize("output_nudge", ["exact", "linearized"])
@pytest.mark.parametrize("update", ["majorized", "fixed_point"])
def test_gradients_become_those_of_back_propagation_in_proportion_to_beta(output_nudge, update):
    """An error of order one would be a wrong factor; one of order β² another algorithm."""
    model, (x, y) = mlp("tanh"), batch()
    expected, far = autograd_gradients(model, x, y), []
    for beta in (4e-3, 2e-3, 1e-3):
        rule = settled(beta=beta, update=update, output_nudge=output_nudge, tolerance=1e-10)
        found = rule.gradients(dp.Network.from_module(model), x, y)
        assert found.status.ok
        far.append(max(distance(found.gradients[n], expected[n]) for n in expected))
    assert far[0] < 0.05
    assert far[0] / far[1] == pytest.approx(2, rel=0.05)
    assert far[1] / far[2] == pytest.approx(2, rel=0.05)


def test_a_linearized_nudge_moves_the_output_along_the_gradient_at_the_forward_prediction():
    model, (x, y) = mlp("tanh"), batch()
    with torch.no_grad():
        states = dp.Lifted(beta=0.3, output_nudge="linearized", max_sweeps=5, tolerance=0).infer(
            dp.Network.from_module(model), x, y
        )
        p = torch.softmax(model(x), 1) - torch.nn.functional.one_hot(y, 4)
    assert distance(states.difference(4), -0.3 * p) > 1e-6, "the last ε is that of the moved drive"
    settled_states = settled(beta=0.3, output_nudge="linearized").infer(dp.Network.from_module(model), x, y)
    assert distance(settled_states.difference(4), -0.3 * p) < 1e-9
