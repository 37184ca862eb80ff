"""Lifted networks: the objective falls, inference says how it ended, and what it costs."""

from itertools import pairwise

import pytest
import torch
from comparison import distance
from hypothesis import given, settings
from hypothesis import strategies as st
from lifted_objective import forward_states, layers, objective
from networks import ACTIVATIONS, batch, conv_net, drawn, images, mlp
from torch import nn

import dualprop as dp


def scaled(model, factor):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


def states_after(sweeps, network, x, y, **more):
    return dp.Lifted(max_sweeps=sweeps, tolerance=0, **more).infer(network, x, y).means


@torch.no_grad()
def assert_never_rises(model, x, y, betas, loss, sweeps=4, **more):
    network = dp.Network.from_module(model)
    values = [float(objective(model, forward_states(model, x), y, betas, loss).sum())]
    for n in range(1, sweeps + 1):
        states = states_after(n, network, x, y, beta=betas, loss=loss, **more)
        values.append(float(objective(model, states, y, betas, loss).sum()))
    rises = [(before, after) for before, after in pairwise(values) if not after <= before + 1e-10 * abs(before)]
    assert not rises, values
    assert values[-1] < values[0]


@settings(max_examples=25, deadline=None)
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    betas=st.tuples(*[st.sampled_from([0.02, 0.1, 1.0, 5.0])] * 3),
    scale=st.sampled_from([0.5, 1.0, 3.0, 6.0]),
    widths=st.tuples(*[st.integers(1, 9)] * 3),
    loss=st.sampled_from(["cross_entropy", "squared_error"]),
    seed=st.integers(0, 99),
)
def test_the_objective_never_rises_under_majorized_sweeps(activation, betas, scale, widths, loss, seed):
    """A constant below the curvature overshoots, at first only where weights or ratios of β are
    large."""
    model = scaled(mlp(activation, (*widths, 3), seed), scale)
    assert_never_rises(model, *batch(widths[:1], 3, seed=seed), betas, loss)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_objective_never_rises_in_convolutional_networks(activation, scale):
    assert_never_rises(scaled(conv_net(activation, "none"), scale), *images(), (0.1, 0.3, 0.1, 0.2), "cross_entropy")


def test_the_objective_never_rises_with_an_output_activation():
    """A squared error may stand on any neuron."""
    for activation in ("relu", "sigmoid", "hard_sigmoid", "tanh"):
        model = drawn(lambda name=activation: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), ACTIVATIONS[name]()))
        assert_never_rises(scaled(model, 2.0), *batch((4,), 3), (0.2, 1.0), "squared_error")


def test_the_fixed_point_update_overshoots_where_the_majorized_one_does_not():
    """The reason for the default; and the test above would be idle on networks where both fall."""
    model, (x, y) = scaled(mlp("relu"), 4.0), batch()
    with pytest.raises(AssertionError):
        assert_never_rises(model, x, y, (0.5,) * 4, "squared_error", update="fixed_point")
    assert_never_rises(model, x, y, (0.5,) * 4, "squared_error")


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh"])
@torch.no_grad()
def test_one_sweep_through_two_layers_written_out(name):
    """Each formula of the rule's first lines, with the norm from the singular values."""
    model, (x, y) = mlp(name, (5, 6, 4)), batch()
    x, y = x, torch.nn.functional.one_hot(y, 4).double()
    f, first, second = ACTIVATIONS[name](), model[0], model[2]
    free = f(first(x))
    output = (second(free) + 0.4 * y) / 1.4
    pull = (0.2 / 0.4) * (output - second(free)) @ second.weight
    settings_ = {"beta": (0.2, 0.4), "loss": "squared_error"}
    fixed = states_after(1, dp.Network.from_module(model), x, y, update="fixed_point", **settings_)
    assert distance(fixed[2], output) < 1e-12
    assert distance(fixed[1], f(first(x) + pull)) < 1e-12
    majorized = states_after(1, dp.Network.from_module(model), x, y, **settings_)[1]
    c = 0.5 * torch.linalg.svdvals(second.weight)[0] ** 2
    # The state s of least G(s) - s·(a + T) + (c/2)(s - old)² is that with s = f(a + T + c (old -
    # s)).
    assert distance(majorized, f(first(x) + pull + c * (free - majorized))) < 1e-5
    assert distance(majorized, free) > 1e-3


def test_inference_that_settles_says_so_and_stops():
    """More sweeps than needed cost time without a change; fewer leave the gradient wrong."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    out = dp.Lifted(tolerance=1e-3, max_sweeps=100).gradients(network, x, y)
    n = out.diagnostics["passes"]
    assert out.status.ok
    assert 1 < n < 100
    trail = [[*forward_states(model, x)], *(states_after(m, network, x, y) for m in range(1, n + 2))]

    def share(m):
        """The move of sweep m relative to the displacement after it (of that before it, for the
        sweep after the last)."""
        move = torch.cat([(a - b).flatten() for a, b in zip(trail[m], trail[m - 1], strict=True)]).norm()
        return move / torch.cat([(a - b).flatten() for a, b in zip(trail[min(m, n)], trail[0], strict=True)]).norm()

    assert out.diagnostics["residual"] == pytest.approx(float(share(n)), rel=1e-9)
    assert share(n) <= 1e-3 < share(n - 1)
    statistics = dp.Lifted(tolerance=1e-3, max_sweeps=100).statistics(network, x, y)
    assert statistics["residual"] == pytest.approx(float(share(n + 1)), rel=1e-9)


def test_without_a_tolerance_every_sweep_is_made_and_none_checked():
    """No sweep waits for the device then."""
    out = dp.Lifted(tolerance=0, max_sweeps=7).gradients(dp.Network.from_module(mlp()), *batch())
    assert out.diagnostics["passes"] == 7
    assert "residual" not in out.diagnostics
    assert out.status.ok


def test_a_fixed_point_update_that_does_not_settle_says_how_far_it_is_and_what_to_do():
    """The gradient of states in mid-swing has any direction."""
    network = dp.Network.from_module(scaled(mlp("relu"), 4.0))
    out = dp.Lifted(update="fixed_point", beta=0.5, max_sweeps=12).gradients(network, *batch())
    assert not out.status.ok
    assert out.status.is_finite
    for part in ("after pass 12", f"{out.diagnostics['residual']:.2g}", "Raise max_sweeps", "lower beta", "update='majorized'"):
        assert part in out.status.message
    out = dp.Lifted(max_sweeps=1).gradients(network, *batch())
    assert "after pass 1" in out.status.message
    assert "majorized" not in out.status.message


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("kind", ["mlp", "conv", "before", "after"])
@pytest.mark.parametrize("update", ["majorized", "fixed_point"])
def test_n_sweeps_cost_a_forward_pass_and_n_times_the_layers_above_the_first(n, kind, update):
    """L + n(L-1) drives, n(L-1) feedbacks, L gradients: the first sweep drives nothing, the
    gradient what has moved."""
    model, (x, y) = (mlp("tanh"), batch()) if kind == "mlp" else (conv_net("tanh", {"conv": "none"}.get(kind, kind)), images())
    out = dp.Lifted(update=update, max_sweeps=n, tolerance=0).gradients(dp.Network.from_module(model), x, y)
    assert out.diagnostics == {"drives": 4 + 3 * n, "feedbacks": 3 * n, "gradients": 4, "passes": n}


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_the_counts_follow_the_depth(depth):
    model = mlp("tanh", (5, *[5] * (depth - 1), 4))
    out = dp.Lifted(max_sweeps=3, tolerance=0).gradients(dp.Network.from_module(model), *batch())
    assert [out.diagnostics[n] for n in ("drives", "feedbacks", "gradients")] == [
        depth + 3 * (depth - 1),
        3 * (depth - 1),
        depth,
    ]


@torch.no_grad()
def test_statistics_count_the_units_whose_pull_crosses_a_kink():
    """There ε is not the derivative times the pull, and the gradient not BP's however well
    inference settled."""
    model, (x, y) = scaled(mlp("relu"), 1.5), batch(n=40)
    network, rule = dp.Network.from_module(model), dp.Lifted(beta=(0.5, 1.0, 0.5, 0.5), max_sweeps=2000, tolerance=1e-9)
    states, expected = rule.infer(network, x, y), []
    for k, (synapse, _) in enumerate(layers(model)[:-1], start=1):
        a, above = synapse(states.means[k - 1]), layers(model)[k][0][0]
        pull = (rule.beta[k - 1] / rule.beta[k]) * states.differences[k + 1] @ above.weight
        expected.append(float(((a > 0) != (a + pull > 0)).double().mean()))
    found = rule.statistics(network, x, y)
    assert max(expected) > 0.01, "some unit must cross for this to mean anything"
    assert found["kink_crossing"] == [*expected, 0.0]
    assert found["residual"] < 1e-9
    assert dp.Lifted().statistics(dp.Network.from_module(mlp("tanh")), *batch())["kink_crossing"] == [0.0] * 4


@torch.no_grad()
def test_statistics_watch_the_kinks_of_the_output_too():
    model = drawn(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.ReLU()))
    x, y = batch((4,), 3, n=40)
    target = torch.nn.functional.one_hot(y, 3)
    for nudge in ("exact", "linearized"):
        rule = dp.Lifted(beta=(1.0, 2.0), loss="squared_error", output_nudge=nudge)
        states = rule.infer(dp.Network.from_module(model), x, y)
        a = model[2](states.means[1])
        pulled = a - 2.0 * ((states.means[2] if nudge == "exact" else model(x)) - target)
        crossing = float(((a > 0) != (pulled > 0)).double().mean())
        assert crossing > 0
        assert rule.statistics(dp.Network.from_module(model), x, y)["kink_crossing"] == [0.0, crossing]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0.0}, "beta must be positive"),
        ({"beta": (0.1, -1.0)}, "beta must be positive"),
        ({"beta": float("nan")}, "beta must be positive"),
        ({"beta": ()}, "beta must be positive"),
        ({"beta": "strong"}, "beta must be 'auto', a number"),
        ({"update": "newton"}, "update must be one of 'majorized', 'fixed_point'"),
        ({"output_nudge": "none"}, "output_nudge must be one of"),
        ({"max_sweeps": 0}, "max_sweeps must be at least 1"),
        ({"max_sweeps": 2.5}, "max_sweeps must be one whole number"),
        ({"max_sweeps": True}, "max_sweeps must be one whole number"),
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\)"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\)"),
        ({"tolerance": float("nan")}, r"tolerance must be in \[0, 1\)"),
        ({"loss": "cross_entropi"}, "Did you mean 'cross_entropy'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(dp.SettingError, match=message):
        dp.Lifted(**wrong)


def test_settings_that_do_not_fit_the_network_or_the_batch_are_refused():
    network, (x, y) = dp.Network.from_module(mlp()), batch()
    with pytest.raises(dp.SettingError, match="beta lists 2 values, but it is of 4 layers"):
        dp.Lifted(beta=(0.1, 0.1)).gradients(network, x, y)
    with pytest.raises(dp.SettingError, match="half precision"):
        dp.Lifted().gradients(dp.Network.from_module(mlp().bfloat16()), x.bfloat16(), y)
    with pytest.raises(dp.SettingError, match="autocast"), torch.autocast("cpu"):
        dp.Lifted().gradients(network, x, y)
    with pytest.raises(dp.SettingError, match="class indices must be in"):
        dp.Lifted().gradients(network, x, y + 4)
    sigmoid_output = dp.Network.from_module(nn.Sequential(mlp(), nn.Sigmoid()))
    with pytest.raises(dp.SettingError, match="output_nudge='linearized'"):
        dp.Lifted().gradients(sigmoid_output, x, y)
    assert dp.Lifted(output_nudge="linearized", max_sweeps=100).gradients(sigmoid_output, x, y).status.ok


def test_normalisation_needs_the_update_without_a_norm():
    """The majorized constant of a layer that is not affine would be a number without a meaning."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4)).double()
    network, (x, y) = dp.Network.from_module(model), batch()
    with pytest.raises(dp.SettingError, match=r"LayerNorm.*is not affine"):
        dp.Lifted().gradients(network, x, y)
    assert dp.Lifted(update="fixed_point", max_sweeps=100).gradients(network, x, y).status.is_finite
