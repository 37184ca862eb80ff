"""Equilibrium propagation: what it costs, what it says where states do not settle, and what it refuses."""

import math

import pytest
import torch
from comparison import assert_same, cosine, distance
from networks import autograd_gradients, batch, conv_net, images, mlp
from torch import nn

import dualprop as dp

F32 = torch.float32


def counted(out):
    return tuple(out.diagnostics[n] for n in ("drives", "feedbacks", "gradients"))


@pytest.mark.parametrize("depth", [2, 4, 6])
@pytest.mark.parametrize(("estimator", "phases"), [("centered", 2), ("random_sign", 1), ("forward", 1)])
@pytest.mark.parametrize("pairs", [1, 2])
def test_a_pair_of_error_sweeps_costs_what_the_design_counts(depth, estimator, phases, pairs):
    """L drives once; a phase L-1 drives and L-1 feedbacks a pair, and L gradients: 7/3 BP steps, 4/3 for one."""
    network = dp.Network.from_module(mlp("relu", (5, *[6] * (depth - 1), 4)))
    rule = dp.EquilibriumPropagation(estimator=estimator, pairs=pairs)
    out = rule.gradients(network, *batch(), generator=torch.Generator().manual_seed(0))
    each = phases * pairs * (depth - 1)
    assert counted(out) == (depth + each, each, phases * depth)


def test_max_pools_do_not_drive_twice():
    """The tape of the pass up is that of the gradient, and the free phase's that of the pass down."""
    network = dp.Network.from_module(conv_net("relu", "before"))
    assert counted(dp.EquilibriumPropagation().gradients(network, *images())) == (4 + 2 * 3, 2 * 3, 2 * 4)


def test_block_updates_reuse_what_did_not_change():
    """The papers' K = 10 iterations of even and odd layers: each drive and feedback at most once a pass."""
    network = dp.Network.from_module(mlp("relu"))
    rule = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(10)", estimator="forward")
    drives, feedbacks, gradients = counted(rule.gradients(network, *batch()))
    assert gradients == 4
    assert drives <= 4 + 3 * 10 + 1
    assert feedbacks <= 3 * 10


def deep(activation="relu", pool=nn.MaxPool2d, seed=0):
    """Six 3×3 convolutions with three pools, float32, weights drawn so that the signal keeps its size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, channels = [], 3
        for number, width in enumerate((16, 16, 24, 24, 32, 32), start=1):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
            layers += [conv, *([pool(2)] if number % 2 == 0 else []), nn.ReLU()]
            channels = width
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 10))


def pixels(n=16, seed=0):
    return batch((3, 16, 16), 10, n, seed, F32)


def test_one_pair_is_as_good_as_sixty_iterations_of_the_papers():
    """What makes the method several times cheaper: were the pair worse, it would only be another approximation."""
    model, (x, y) = deep(), pixels()
    network, exact = dp.Network.from_module(model), autograd_gradients(model, x, y)
    paper = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(60)", beta=0.02).gradients(network, x, y)
    pair = dp.EquilibriumPropagation(beta=0.02).gradients(network, x, y)
    for name in exact:
        assert cosine(pair.gradients[name], exact[name]) > 0.999, name
        assert cosine(pair.gradients[name], exact[name]) > cosine(paper.gradients[name], exact[name]) - 1e-3, name


def test_max_pooling_makes_the_even_odd_iteration_cycle_and_it_says_so():
    """Switches flip for ever: a residual that is measured against the states would call it settled."""
    model, (x, y) = deep(), pixels()
    rule = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(60)", tolerance=1e-3)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert out.status.is_finite
    assert "the nudged states cycle: pass 60 still moved them by" in out.status.message
    assert "error_sweeps" in out.status.message
    assert "\n" not in out.status.message


def test_with_average_pools_the_same_iteration_settles():
    """The cycling is the switches', not the order's."""
    model, (x, y) = deep(pool=nn.AvgPool2d), pixels()
    rule = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(60)", tolerance=1e-3)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok, out.status
    assert out.diagnostics["residual"] <= 1e-3
    assert out.diagnostics["passes"] < 2 * 60


def test_jacobians_of_the_free_state_stop_the_cycling():
    """Nothing can flip any more: the network is linear in its displacements, and centered EP of it is back-propagation."""
    model, (x, y) = deep(), pixels()
    network = dp.Network.from_module(model)
    settings = {"relaxation": "blocks", "schedule": "even_odd(60)", "tolerance": 1e-3}
    out = dp.EquilibriumPropagation(jacobians="free", **settings).gradients(network, x, y)
    assert out.status.ok, out.status
    exact = autograd_gradients(model, x, y)
    assert min(cosine(out.gradients[n], exact[n]) for n in exact) > 0.9999
    for pool in ("before", "after"):
        # Kinks and switches that β = 0.4 reaches across make no difference: to rounding.
        small, (x, y) = conv_net("relu", pool), images()
        pair = dp.EquilibriumPropagation(jacobians="free", beta=0.4).gradients(dp.Network.from_module(small), x, y)
        assert_same(pair.gradients, autograd_gradients(small, x, y), 1e-11, pool)


BAD = {
    "synchronous updates": {"relaxation": "blocks", "schedule": "synchronous(12)", "beta": 0.5},
    "PGD with few iterations": {"relaxation": "blocks", "schedule": "even_odd(2)", "update": "pgd", "beta": 0.5},
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_are_known_to_fail_end_in_a_status_with_a_remedy(name):
    """Kerjan et al. 2026, §3.2: the paper saw NaN about epoch 50."""
    model, (x, y) = deep(), pixels()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    out = dp.EquilibriumPropagation(**BAD[name]).gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert "Use relaxation='error_sweeps'" in out.status.message or "Lower the learning rate or beta" in out.status.message
    assert "\n" not in out.status.message


def test_states_that_grow_without_bound_are_called_diverged():
    """A residual that is not a number compares false with everything."""
    model, (x, y) = mlp("identity"), batch()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e30)
    rule = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(40)", loss="squared_error", beta=0.9)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert not out.status.is_finite or "diverged" in out.status.message


def test_a_free_phase_that_has_not_settled_is_told():
    """The prediction is then no equilibrium, whatever the nudged phases do."""
    network = dp.Network.from_module(mlp("tanh"))
    out = dp.EquilibriumPropagation(energy="hopfield", free_schedule="even_odd(2)", tolerance=1e-8).gradients(network, *batch())
    assert "the free states have not settled: pass 2" in out.status.message


def test_a_tolerance_saves_passes_and_keeps_the_gradient():
    network, (x, y) = dp.Network.from_module(mlp("tanh")), batch()
    settings = {"energy": "hopfield", "free_schedule": "even_odd(400)", "schedule": "even_odd(400)"}
    with torch.no_grad():
        for p in network.parameters.values():
            p.mul_(0.7)
    full = dp.EquilibriumPropagation(**settings).gradients(network, x, y)
    early = dp.EquilibriumPropagation(**settings, tolerance=1e-9).gradients(network, x, y)
    assert early.diagnostics["drives"] < full.diagnostics["drives"] / 3
    assert_same(early.gradients, full.gradients, 1e-6)


def test_a_smaller_step_reaches_the_same_equilibrium():
    model, (x, y) = mlp("relu"), batch()
    network = dp.Network.from_module(model)
    whole = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(100)").gradients(network, x, y)
    half = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(200)", step_size=0.5).gradients(network, x, y)
    assert_same(half.gradients, whole.gradients, 1e-8)
    one = dp.EquilibriumPropagation(relaxation="blocks", schedule="even_odd(4)", step_size=0.5).gradients(network, x, y)
    assert max(distance(one.gradients[n], whole.gradients[n]) for n in whole.gradients) > 1e-3


def test_a_rule_that_draws_signs_repeats_them_from_its_generator():
    network, (x, y) = dp.Network.from_module(mlp("tanh")), batch(n=16)
    rule = dp.EquilibriumPropagation(estimator="random_sign", beta=0.2)
    assert rule.needs_generator

    def drawn(seed):
        return rule.gradients(network, x, y, generator=torch.Generator().manual_seed(seed)).gradients

    assert_same(drawn(1), drawn(1), 0.0)
    # Layer 1 reads x and the pass down is odd in the sign: there it makes no difference.
    assert distance(drawn(1)["4.weight"], drawn(2)["4.weight"]) > 1e-4
    with pytest.raises(dp.SettingError, match=r"draws a sign per example: pass generator=torch\.Generator"):
        rule.gradients(network, x, y)


REFUSED = [
    ({"energy": "ising"}, "unknown energy 'ising'"),
    ({"estimator": "centred"}, "unknown estimator 'centred'. Did you mean 'centered'?"),
    ({"beta": 0.0}, "beta must be one positive, finite number, got 0"),
    ({"beta": math.inf}, "beta must be one positive"),
    ({"beta": (0.1, 0.2)}, "beta must be one positive"),
    ({"pairs": 0}, "pairs must be a whole number of at least 1, got 0"),
    ({"step_size": 0.0}, r"step_size must be in \(0, 1\], got 0"),
    ({"step_size": 0.5}, "step_size is of block updates"),
    ({"tolerance": 0.1}, "a tolerance stops between pairs of error sweeps, and there is one"),
    ({"relaxation": "blocks", "pairs": 2}, "pairs are of error sweeps"),
    ({"energy": "hopfield", "free_schedule": "random_order(9)"}, "a prediction needs a fixed order"),
    ({"tolerance": 1.0, "pairs": 2}, r"tolerance must be in \(0, 1\), got 1"),
    ({"relaxation": "sweeps"}, "relaxation must be one of 'auto', 'error_sweeps', 'blocks'"),
    ({"jacobians": "frozen"}, "jacobians must be one of 'current', 'free'"),
    ({"energy": "hopfield", "relaxation": "error_sweeps"}, "error sweeps are of predictive coding"),
    ({"energy": "hopfield", "update": "pgd"}, "update='pgd' is of predictive coding"),
    ({"energy": "hopfield", "jacobians": "free"}, "jacobians='free' is of predictive coding"),
    ({"output_nudge": "clamped"}, "pulls the output of a predictive coding network to its targets"),
    ({"energy": "hopfield", "output_nudge": "clamped", "loss": "squared_error"}, "pulls the output of a predictive"),
    (
        {"output_nudge": "exact", "loss": "squared_error", "beta": 1.0},
        "an exact squared_error nudge uphill needs beta < 1, got 1",
    ),
    ({"schedule": "even_odds(3)"}, "unknown schedule 'even_odds'. Did you mean"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_mean_nothing_are_refused_with_the_remedy(settings, message):
    with pytest.raises(dp.SettingError, match=message) as refusal:
        dp.EquilibriumPropagation(**settings)
    assert "\n" not in str(refusal.value)


def test_an_uphill_nudge_is_no_trouble_where_none_is_made():
    dp.EquilibriumPropagation(output_nudge="exact", loss="squared_error", beta=1.0, estimator="forward")


def test_networks_that_the_energy_is_not_defined_on_are_refused():
    x, y = batch()
    softmax = dp.Network.from_module(mlp("softmax"))
    with pytest.raises(dp.SettingError, match=r"layer '0' has Softmax\. Use logits with losses\.CrossEntropy"):
        dp.EquilibriumPropagation().gradients(softmax, x, y)
    with pytest.raises(dp.SettingError, match=r"update='mod_pgd' needs activations that are projections .* has Tanh"):
        dp.EquilibriumPropagation(update="mod_pgd").gradients(dp.Network.from_module(mlp("tanh")), x, y)


def test_half_precision_is_refused():
    """A displacement of 1e-3 is not there in a state of bfloat16; the gradient would be that of the free states alone."""
    network, (x, y) = dp.Network.from_module(mlp("relu", dtype=F32)), batch(dtype=F32)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(dp.SettingError, match="loses its displacements in half precision"),
    ):
        dp.EquilibriumPropagation().gradients(network, x, y)
