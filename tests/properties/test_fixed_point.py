"""DP⊤ at α ∈ {0, 1}: s̄ = f(a) whatever comes down, so every long enough schedule ends where one
downward sweep does."""

import pytest
import torch
from comparison import assert_same, distance, numbered
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import batch, conv_net, images, mlp

import dualprop as dp

ACTIVATIONS = ["relu", "hard_sigmoid", "tanh", "sigmoid", "leaky_relu"]
DIGITS = 1e-12

# Long enough from any start for four layers: the means need a pass up, then the error a pass down.
LONG_ENOUGH = ["up_down(1)", "up_down(3)", "bottom_up(4)", "bottom_up(9)", "odd_even(8)", "even_odd(8)", "synchronous(9)",
               "alternating_sweeps(5)"]  # fmt: skip


def problem(architecture, activation, seed):
    if architecture == "mlp":
        return mlp(activation, seed=seed), *batch(n=3, seed=seed), batch(n=3, seed=seed + 50)
    return conv_net(activation, architecture, seed=seed), *images(2, seed), images(2, seed + 50)


def outcomes(architecture, activation, seed, alpha, beta, start, schedule, generator_seed=0):
    """What one downward sweep from the forward pass finds, and what the schedule finds from
    `start`."""
    model, x, y, (old_x, old_y) = problem(architecture, activation, seed)
    network = dp.Network.from_module(model)
    fixed = {"coupling": "transposed", "alpha": alpha, "beta": beta, "engine": "explicit"}
    generator = torch.Generator().manual_seed(generator_seed)
    swept = dp.DualPropagation(**fixed).gradients(network, x, y)
    rule = dp.DualPropagation(schedule=schedule, start=start, **fixed)
    state = dp.DualPropagation(**fixed).infer(network, old_x, old_y) if start == "previous" else None
    return swept, rule.gradients(network, x, y, state=state, generator=generator)


def assert_one_fixed_point(swept, found, beta):
    assert_same(numbered(found.state.plus, "s+"), numbered(swept.state.plus, "s+"), DIGITS)
    assert_same(numbered(found.state.minus, "s-"), numbered(swept.state.minus, "s-"), DIGITS)
    assert_same(found.gradients, swept.gradients, DIGITS / min(beta, 1))


@settings(max_examples=60)
@given(
    architecture=st.sampled_from(["mlp", "before", "after"]),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 20),
    alpha=st.sampled_from([0.0, 1.0]),
    beta=st.sampled_from([0.01, 1.0, 10.0]),
    start=st.sampled_from(["forward", "zeros", "previous"]),
    schedule=st.sampled_from(LONG_ENOUGH),
)
def test_every_long_enough_schedule_reaches_the_fixed_point_of_one_downward_sweep(
    architecture, activation, seed, alpha, beta, start, schedule
):
    """The sixteen passes of the papers buy nothing: if this failed, one sweep would be another
    algorithm than theirs."""
    assert_one_fixed_point(*outcomes(architecture, activation, seed, alpha, beta, start, schedule), beta)


@settings(max_examples=40)
@given(
    order=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True), max_size=12),
    alpha=st.sampled_from([0.0, 1.0]),
    start=st.sampled_from(["forward", "zeros", "previous"]),
    architecture=st.sampled_from(["mlp", "before", "after"]),
)
def test_no_order_of_updates_before_an_up_and_a_down_sweep_leaves_a_trace(order, alpha, start, architecture):
    """Whatever was stale must be seen as stale: a reused drive or feedback would keep a memory of
    the order."""
    schedule = [*order, [1], [2], [3], [4], [3], [2], [1]]
    assert_one_fixed_point(*outcomes(architecture, "tanh", 1, alpha, 1.0, start, schedule), 1.0)


@pytest.mark.parametrize("start", ["forward", "zeros", "previous"])
def test_random_order_reaches_the_fixed_point_too(start):
    """400 draws hold an up and a down sweep of four layers as a subsequence (seven given layers in
    a row of draws)."""
    schedule, generator = dp.schedules.random_order(400), torch.Generator().manual_seed(3)
    wanted = [1, 2, 3, 4, 3, 2, 1]
    for step in schedule.steps(4, generator):
        wanted = wanted[1:] if wanted and step.layers == (wanted[0],) else wanted
    assert not wanted, "these draws hold no full sweep"
    assert_one_fixed_point(*outcomes("after", "relu", 2, 0.0, 1.0, start, schedule, generator_seed=3), 1.0)


@pytest.mark.parametrize(("coupling", "alpha"), [("original", 0.0), ("original", 1.0), ("transposed", 0.5)])
def test_other_settings_do_move_on_with_longer_schedules(coupling, alpha):
    """If they did not, the tests above would pass for an inference that ignores its schedule."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    short, long = (
        dp.DualPropagation(coupling=coupling, alpha=alpha, schedule=s).gradients(network, x, y).gradients
        for s in ("alternating_sweeps(1)", "alternating_sweeps(4)")
    )
    assert distance(long["0.weight"], short["0.weight"]) > 1e-6


@given(order=st.permutations([1, 2, 3, 4]), start=st.sampled_from(["forward", "zeros"]))
@settings(max_examples=15)
def test_a_group_is_updated_from_the_states_before_the_step_whatever_its_order(order, start):
    """The dyads of a group are updated together; one after another they would see each other's new
    states."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)

    def after(schedule):
        return dp.DualPropagation(alpha=0.3, schedule=schedule, start=start).infer(network, x, y)

    grouped, sorted_group = after([[4], order, order]), after([[4], [1, 2, 3, 4], [1, 2, 3, 4]])
    for k in range(1, 5):
        assert torch.equal(grouped.plus[k], sorted_group.plus[k]), f"layer {k}"
    if start == "forward":
        # After [4] and one group of all, the error has come down by one layer and no further.
        once = after([[4], order])
        assert [bool(once.difference(k).any()) for k in range(1, 5)] == [False, False, True, True]


def test_a_synchronous_error_descends_one_layer_a_step():
    """Gauss-Seidel order inside a step would carry it down to the first layer at once."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    for steps in range(1, 5):
        dyads = dp.DualPropagation(schedule=f"synchronous({steps})").infer(network, x, y)
        reached = [k for k in range(1, 5) if bool(dyads.difference(k).any())]
        assert reached == list(range(5 - steps, 5)), f"after {steps} steps"


def test_from_zeros_the_output_is_nudged_only_once_the_input_has_arrived():
    """P-DP: L-1 steps of plain forward, the nudge at step L, the error at layer 1 at step 2L-1."""
    model, (x, y) = mlp("tanh"), batch()
    network = dp.Network.from_module(model)
    for steps in range(1, 9):
        dyads = dp.DualPropagation(schedule=f"synchronous({steps})", start="zeros").infer(network, x, y)
        reached = [k for k in range(1, 5) if bool(dyads.difference(k).any())]
        assert reached == [k for k in range(1, 5) if steps >= 4 + (4 - k)], f"after {steps} steps"
        if steps <= 4:
            torch.testing.assert_close(dyads.mean(steps), forward_states(model, x)[steps], rtol=1e-12, atol=1e-12)


def forward_states(model, x):
    """The states of layers 0…4 in a forward pass, the linear output last."""
    states = [x, x]
    for module in model:
        x = module(x)
        states.append(x.detach())
    return [*states[1::2], states[-1]]
