"""What a step costs: synapse evaluations, compared with a simulation that knows only what was
replaced when."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import batch, conv_net, images, mlp
from torch import nn

import dualprop as dp


def counted(model, x, y, **settings):
    rule = dp.DualPropagation(**{"engine": "explicit", **settings})
    out = rule.gradients(dp.Network.from_module(model), x, y, generator=torch.Generator().manual_seed(0))
    return out.diagnostics["drives"], out.diagnostics["feedbacks"], out.diagnostics["gradients"]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_one_sweep_costs_one_bp_step_wherever_synapses_are_single_maps(alpha, coupling, activation):
    """L drives, L-1 feedbacks, L gradients. More is time lost without a change in any number."""
    for more in ({}, {"output_nudge": "exact", "beta": 0.5}, {"loss": "squared_error"}):
        assert counted(mlp(activation), *batch(), alpha=alpha, coupling=coupling, **more) == (4, 3, 4)
        assert counted(conv_net(activation, "none"), *images(), alpha=alpha, coupling=coupling, **more) == (4, 3, 4)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("schedule", ["alternating_sweeps(1)", "bottom_up(16)", "up_down(8)", "synchronous(12)"])
@pytest.mark.parametrize("pool", ["before", "after"])
def test_transposed_dp_at_alpha_zero_or_one_always_costs_one_bp_step(alpha, schedule, pool):
    """The papers' sixteen passes cost eleven BP steps; nothing in them changes after each layer's
    error arrived."""
    for model, (x, y) in ((conv_net("tanh", pool), images()), (mlp("relu"), batch())):
        assert counted(model, x, y, coupling="transposed", alpha=alpha, schedule=schedule) == (4, 3, 4)


def test_layers_with_normalisation_or_two_maps_cost_one_bp_step_too_where_the_mean_is_free():
    """DP⊤ at α ∈ {0, 1}: s̄ stays f(a), so that no synapse is driven again."""
    model = nn.Sequential(
        nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)
    ).double()
    x, y = batch()
    assert counted(model, x, y, coupling="transposed", alpha=1.0, schedule="bottom_up(9)") == (3, 2, 3)


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_the_counts_follow_the_depth(depth):
    """A count of one layer for all depths would pass every test above."""
    model = mlp("tanh", (5, *[5] * (depth - 1), 4))
    assert counted(model, *batch()) == (depth, depth - 1, depth)
    out = dp.Backprop().gradients(dp.Network.from_module(model), *batch())
    assert tuple(out.diagnostics[n] for n in ("drives", "feedbacks", "gradients")) == (depth, depth - 1, depth)


class Ledger:
    """Which evaluations are unavoidable if a value is kept until something that it read is
    replaced.

    Versions stand for values. `state_dependent[k]`: the synapse into k must be driven at the
    present mean to be linearised.
    """

    def __init__(self, depth, state_dependent, mean_is_free):
        self.depth, self.state_dependent, self.mean_is_free = depth, state_dependent, mean_is_free
        self.fresh = itertools.count(1).__next__
        self.mean, self.delta = [self.fresh() for _ in range(depth + 1)], [None] * (depth + 1)
        self.drives, self.feedbacks, self.settled = {}, {}, {}
        self.num_drives = self.num_feedbacks = 0
        for k in range(1, depth + 1):  # the forward pass
            self.drive(k)
            self.mean[k] = self.fresh()

    def drive(self, k):
        if self.drives.get(k, (None,))[0] != self.mean[k - 1]:
            self.drives[k] = self.mean[k - 1], self.fresh()
            self.num_drives += 1
        return self.drives[k][1]

    def feedback(self, k):
        if self.delta[k + 1] is None:
            return None
        reads = (self.delta[k + 1], self.mean[k] if self.state_dependent[k + 1] else None)
        if self.feedbacks.get(k, (None,))[0] != reads:
            if self.state_dependent[k + 1]:
                self.drive(k + 1)
            self.feedbacks[k] = reads, self.fresh()
            self.num_feedbacks += 1
        return self.feedbacks[k][1]

    def step(self, layers):
        new = []
        for k in layers:
            a = self.drive(k)
            reads = a, (self.feedback(k) if k < self.depth else "nudge")
            if self.settled.get(k) == reads:
                continue
            keeps_mean = self.mean_is_free and self.settled.get(k, (None,))[0] == a
            silent = reads[1] is None
            new.append((k, self.mean[k] if keeps_mean else self.fresh(), None if silent else self.fresh()))
            self.settled[k] = reads
        for k, mean, delta in new:
            self.mean[k], self.delta[k] = mean, delta

    def learn(self):
        learning = [k for k in range(1, self.depth + 1) if self.delta[k] is not None]
        for k in learning:
            if self.state_dependent[k]:
                self.drive(k)
        return self.num_drives, self.num_feedbacks, len(learning)


def simulated(schedule, depth, state_dependent, mean_is_free, start):
    ledger = Ledger(depth, state_dependent, mean_is_free)
    for k in range(1, depth + 1):
        if start == "forward":
            ledger.settled[k] = ledger.drives[k][1], None
        else:
            ledger.mean[k] = ledger.fresh()
    for step in dp.schedules.parse(schedule).steps(depth, torch.Generator().manual_seed(0)):
        ledger.step(step.layers)
    return ledger.learn()


ORDERS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4, unique=True), min_size=1, max_size=14)


@settings(max_examples=60)
@given(
    order=ORDERS,
    coupling=st.sampled_from(["original", "transposed"]),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    start=st.sampled_from(["forward", "zeros"]),
    kind=st.sampled_from(["mlp", "normed"]),
)
def test_longer_schedules_cost_only_what_changed(order, coupling, alpha, start, kind):
    """Neither more (work twice) nor less (a stale value reused, which would be wrong) than the
    simulation's count."""
    model, (x, y) = mlp("tanh"), batch(n=2)
    if kind == "normed":
        modules = [nn.Sequential(m, nn.LayerNorm(m.out_features)) if isinstance(m, nn.Linear) else m for m in model]
        model = nn.Sequential(*modules).double()
    dependent = [kind == "normed"] * 5
    expected = simulated(order, 4, dependent, coupling == "transposed" and alpha in (0, 1), start)
    assert counted(model, x, y, coupling=coupling, alpha=alpha, schedule=order, start=start) == expected


@pytest.mark.parametrize("schedule", ["alternating_sweeps(3)", "up_down(3)", "bottom_up(6)", "odd_even(4)", "synchronous(9)"])
def test_named_schedules_cost_only_what_changed(schedule):
    """And less than evaluating every layer at every step, or reuse would be idle."""
    found = counted(mlp("tanh"), *batch(), alpha=0.3, schedule=schedule)
    assert found == simulated(schedule, 4, [False] * 5, False, "forward")
    updates = sum(len(step.layers) for step in dp.schedules.parse(schedule).steps(4))
    assert found[0] < 4 + updates
    assert found[1] < updates


def test_start_from_zeros_or_the_previous_states_costs_one_counted_forward_pass():
    """The nudge linearised at the forward prediction needs it; uncounted, the comparison of costs
    would be unfair."""
    model, (x, y) = mlp("relu"), batch()
    # From zeros the order [4] drives the output from a zero state, after the forward pass of four
    # drives.
    assert counted(model, x, y, start="zeros", schedule=[4], coupling="transposed") == (5, 0, 1)


def test_a_layer_whose_error_has_not_arrived_gets_a_zero_gradient_at_no_cost():
    """None, or a missing name, would crash the optimizer's step."""
    model, (x, y) = mlp("tanh"), batch()
    rule = dp.DualPropagation(schedule=[4, 3])
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert out.diagnostics == {"drives": 4, "feedbacks": 1, "gradients": 2}
    assert list(out.gradients) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert bool(out.gradients[name].any()) == (name.split(".")[0] in ("4", "6")), name
        assert out.gradients[name].shape == parameter.shape
