"""Engine "auto": fused only where it finds what explicit inference finds, whatever the settings."""

import pytest
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import batch, conv_net, images, mlp

import dualprop as dp

SCHEDULES = ["alternating_sweeps(1)", "alternating_sweeps(2)", "up_down(1)", "bottom_up(3)", "bottom_up(4)", "odd_even(2)",
             "odd_even(3)", "even_odd(3)", "synchronous(3)", "synchronous(4)", [4, 3, 2, 1], [4, 3, 1, 2]]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    architecture=st.sampled_from(["mlp", "before", "after"]),
    activation=st.sampled_from(["relu", "tanh", "hard_sigmoid"]),
    coupling=st.sampled_from(["original", "transposed"]),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    schedule=st.sampled_from(SCHEDULES),
    start=st.sampled_from(["forward", "zeros"]),
    linearize_at=st.sampled_from([None, "current", "forward"]),
    seed=st.integers(0, 5),
)
def test_auto_finds_what_explicit_inference_finds(architecture, activation, seed, **same):
    """Too few passes, or a mean that moves, and one backward pass is another algorithm."""
    model = mlp(activation, seed=seed) if architecture == "mlp" else conv_net(activation, architecture, seed=seed)
    x, y = batch(n=3, seed=seed) if architecture == "mlp" else images(2, seed)
    network = dp.Network.from_module(model)
    same["beta"] = 2.0
    auto = dp.DualPropagation(**same).gradients(network, x, y)
    explicit = dp.DualPropagation(**same, engine="explicit").gradients(network, x, y)
    assert_same(auto.gradients, explicit.gradients, 1e-10)
    assert (auto.state is None) == (dp.DualPropagation(**same).chosen_engine(4) == "fused")


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({}, "fused"),
        ({"alpha": 1.0, "schedule": "bottom_up(4)"}, "fused"),
        ({"schedule": "bottom_up(3)"}, "explicit"),
        ({"alpha": 0.5}, "explicit"),
        ({"coupling": "original"}, "explicit"),
        ({"tolerance": 0.1, "schedule": "bottom_up(9)"}, "explicit"),
        ({"start": "previous"}, "explicit"),
        ({"output_nudge": "exact", "loss": "squared_error", "beta": 0.5}, "explicit"),
        ({"damping": (0.5, 0.5, 0.5)}, "explicit"),
        ({"schedule": "random_order(500)"}, "explicit"),
        ({"engine": "explicit"}, "explicit"),
    ],
)
def test_the_fused_engine_is_chosen_where_one_sweep_is_the_fixed_point(changes, engine):
    """Left to explicit inference, VGG16's sixteen passes would cost more than they need."""
    rule = dp.DualPropagation(**{"coupling": "transposed", "alpha": 0.0, **changes})
    assert rule.chosen_engine(4) == engine
