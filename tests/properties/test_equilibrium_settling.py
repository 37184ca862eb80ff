"""Equilibrium propagation: what it costs, what it says where states do not settle, and what it
refuses."""

import dataclasses
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
def test_a_pair_of_error_sweeps_costs_a_drive_and_a_feedback_a_layer(depth, estimator, phases, pairs):
    """L drives once; a phase L-1 drives and L-1 feedbacks a pair, and L gradients: 7/3 BP steps,
    4/3 for one."""
    network = dp.Network.from_module(mlp("relu", (5, *[6] * (depth - 1), 4)))
    rule = dp.EquilibriumPropagation(estimator=estimator, relaxation=f"error_sweeps({pairs})")
    out = rule.gradients(network, *batch(), generator=torch.Generator().manual_seed(0))
    each = phases * pairs * (depth - 1)
    assert counted(out) == (depth + each, each, phases * depth)


def test_max_pools_do_not_drive_twice():
    """The tape of the pass up is that of the gradient, and the free phase's that of the pass
    down."""
    network = dp.Network.from_module(conv_net("relu", "before"))
    assert counted(dp.EquilibriumPropagation().gradients(network, *images())) == (4 + 2 * 3, 2 * 3, 2 * 4)


def test_block_updates_reuse_what_did_not_change():
    """The papers' K = 10 iterations of even and odd layers: each drive and feedback at most once a
    pass."""
    network = dp.Network.from_module(mlp("relu"))
    rule = dp.EquilibriumPropagation(relaxation="blocks(even_odd(10))", estimator="forward")
    drives, feedbacks, gradients = counted(rule.gradients(network, *batch()))
    assert gradients == 4
    assert drives <= 4 + 3 * 10 + 1
    assert feedbacks <= 3 * 10


def deep(activation="relu", pool=nn.MaxPool2d, seed=0):
    """Six 3×3 convolutions with three pools, float32, weights drawn so that the signal keeps its
    size."""
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
    """What makes the method several times cheaper: were the pair worse, it would only be another
    approximation."""
    model, (x, y) = deep(), pixels()
    network, exact = dp.Network.from_module(model), autograd_gradients(model, x, y)
    paper = dp.EquilibriumPropagation(relaxation="blocks(even_odd(60))", beta=0.02).gradients(network, x, y)
    pair = dp.EquilibriumPropagation(beta=0.02).gradients(network, x, y)
    for name in exact:
        assert cosine(pair.gradients[name], exact[name]) > 0.999, name
        assert cosine(pair.gradients[name], exact[name]) > cosine(paper.gradients[name], exact[name]) - 1e-3, name


def test_max_pooling_makes_the_even_odd_iteration_cycle_and_it_says_so():
    """Switches flip for ever: a residual that is measured against the states would call it
    settled."""
    model, (x, y) = deep(), pixels()
    rule = dp.EquilibriumPropagation(relaxation="blocks(even_odd(60))", tolerance=1e-3)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert out.status.is_finite
    assert "the nudged states cycle: after pass 60 they still move by" in out.status.message
    assert "error_sweeps" in out.status.message
    assert "\n" not in out.status.message


def test_with_average_pools_the_same_iteration_settles():
    """The cycling is the switches', not the order's."""
    model, (x, y) = deep(pool=nn.AvgPool2d), pixels()
    rule = dp.EquilibriumPropagation(relaxation="blocks(even_odd(60))", tolerance=1e-3)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok, out.status
    assert out.diagnostics["residual"] <= 1e-3
    assert out.diagnostics["passes"] < 2 * 60


def test_jacobians_of_the_free_state_stop_the_cycling():
    """Nothing can flip any more: the network is linear in its displacements, and centered EP of it
    is back-propagation."""
    model, (x, y) = deep(), pixels()
    network = dp.Network.from_module(model)
    settings = {"relaxation": "blocks(even_odd(60))", "tolerance": 1e-3}
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
    "synchronous updates": {"relaxation": "blocks(synchronous(12))", "beta": 0.5},
    "PGD with few iterations": {"relaxation": "blocks(even_odd(5), update=pgd)", "beta": 0.5},
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_are_known_to_fail_end_in_a_status_with_a_remedy(name):
    """Kerjan et al. (2026), table 3: the paper saw NaN about epoch 50."""
    model, (x, y) = deep(), pixels()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    out = dp.EquilibriumPropagation(**BAD[name]).gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert "Use relaxation='error_sweeps'" in out.status.message or "Lower the learning rate or beta" in out.status.message
    assert "\n" not in out.status.message


def test_a_nudge_that_float32_cannot_hold_is_told_with_the_layer():
    """Rounding trains as steadily as a signal: layer 1 of a Hopfield network sees little of what
    the output does."""
    model, (x, y) = mlp("sigmoid", dtype=torch.float32), batch(dtype=torch.float32)
    network = dp.Network.from_module(model)
    rule = dp.EquilibriumPropagation(
        energy="hopfield", beta=1e-7, relaxation="blocks(odd_even(40))", free_schedule="odd_even(60)"
    )
    status = rule.gradients(network, x, y).status
    assert not status.ok
    assert status.is_finite
    assert (
        "of the nudge's effect on layer 1 only rounding is left in torch.float32. Raise beta, or use float64." in status.message
    )
    assert dataclasses.replace(rule, beta=0.1).gradients(network, x, y).status.ok
    wide = mlp("sigmoid")
    assert dataclasses.replace(rule, beta=1e-5).gradients(dp.Network.from_module(wide), *batch()).status.ok


def test_states_that_grow_without_bound_are_called_diverged():
    """A residual that is not a number compares false with everything."""
    model, (x, y) = mlp("identity"), batch()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e30)
    rule = dp.EquilibriumPropagation(relaxation="blocks(even_odd(40))", loss="squared_error", beta=0.9)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert not out.status.is_finite or "diverged" in out.status.message


def test_a_free_phase_that_has_not_settled_is_told():
    """The prediction is then no equilibrium, whatever the nudged phases do."""
    network = dp.Network.from_module(mlp("tanh"))
    out = dp.EquilibriumPropagation(energy="hopfield", free_schedule="even_odd(2)", tolerance=1e-8).gradients(network, *batch())
    assert "the free states still move by" in out.status.message


def test_a_tolerance_saves_passes_and_keeps_the_gradient():
    network, (x, y) = dp.Network.from_module(mlp("tanh")), batch()
    settings = {"energy": "hopfield", "free_schedule": "even_odd(400)", "relaxation": "blocks(even_odd(400))"}
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
    whole = dp.EquilibriumPropagation(relaxation="blocks(even_odd(100))").gradients(network, x, y)
    half = dp.EquilibriumPropagation(relaxation="blocks(even_odd(200), step_size=0.5)").gradients(network, x, y)
    assert_same(half.gradients, whole.gradients, 1e-8)
    one = dp.EquilibriumPropagation(relaxation="blocks(even_odd(4), step_size=0.5)").gradients(network, x, y)
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
    ({"beta": 0.0}, "beta must be positive and finite, got 0"),
    ({"beta": math.inf}, "beta must be positive and finite, got inf"),
    ({"beta": (0.1, 0.2)}, "beta must be one number, got"),
    ({"relaxation": "error_sweeps(0)"}, "pairs must be at least 1, got 0"),
    ({"relaxation": "blocks(step_size=0.0)"}, r"step_size must be in \(0, 1\], got 0"),
    ({"relaxation": "error_sweeps(step_size=0.5)"}, "'error_sweeps' has no 'step_size'. It has pairs, update"),
    ({"jacobians": "free", "relaxation": "blocks(update=pgd)"}, "update='pgd' clamps"),
    (
        {"energy": "hopfield", "loss": "log_loss", "output_nudge": "exact"},
        "needs an uphill beta = 0, got .*Use estimator='forward'",
    ),
    ({"tolerance": 0.1}, "a tolerance stops between pairs of error sweeps, and there is one"),
    ({"relaxation": "blocks(even_odd(2), schedule=even_odd(3))"}, "gives 'schedule' twice"),
    ({"relaxation": "blocks(even_odd(2), step_size=)"}, "gives 'step_size' no value"),
    ({"relaxation": "blocks(pairs=2)"}, "'blocks' has no 'pairs'. It has schedule, update, step_size"),
    ({"energy": "hopfield", "free_schedule": "random_order(9)"}, "a prediction needs a fixed order"),
    ({"tolerance": 1.0, "relaxation": "error_sweeps(2)"}, r"tolerance must be in \(0, 1\), got 1"),
    ({"relaxation": "sweeps"}, "unknown relaxation 'sweeps'.*Known: auto, blocks\\(SCHEDULE\\), error_sweeps"),
    ({"free_schedule": "odd_even(3)"}, "free_schedule and start are of energy='hopfield'"),
    ({"start": "forward"}, "free_schedule and start are of energy='hopfield'"),
    ({"jacobians": "frozen"}, "jacobians must be one of 'current', 'free'"),
    ({"energy": "hopfield", "relaxation": "error_sweeps"}, "error sweeps are of predictive coding"),
    ({"energy": "hopfield", "relaxation": "blocks(update=pgd)"}, "update='pgd' is of predictive coding"),
    ({"energy": "hopfield", "jacobians": "free"}, "jacobians='free' is of predictive coding"),
    ({"output_nudge": "clamped"}, "pulls the output of a predictive coding network to its targets"),
    ({"estimator": "forward(held)"}, "the free state of 'predictive_coding' is the forward pass, which does not move"),
    (
        {"relaxation": "error_sweeps", "output_nudge": "clamped", "loss": "squared_error"},
        "error sweeps don't settle behind a clamped output",
    ),
    ({"energy": "hopfield", "output_nudge": "clamped", "loss": "squared_error"}, "pulls the output of a predictive"),
    (
        {"output_nudge": "exact", "loss": "squared_error", "beta": 1.0},
        "an exact squared_error nudge needs an uphill beta < 1, got 1",
    ),
    ({"relaxation": "blocks(even_odds(3))"}, "unknown schedule 'even_odds'. Did you mean"),
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
    with pytest.raises(dp.SettingError, match=r"Softmax couples some\. Use jacobians='current'"):
        dp.EquilibriumPropagation(jacobians="free").gradients(softmax, x, y)
    with pytest.raises(dp.SettingError, match=r"update='mod_pgd' needs activations that are projections .* has Tanh"):
        dp.EquilibriumPropagation(relaxation="blocks(update=mod_pgd)").gradients(dp.Network.from_module(mlp("tanh")), x, y)


def test_half_precision_is_refused():
    """A displacement of 1e-3 is not there in a state of bfloat16; the gradient would be that of the
    free states alone."""
    network, (x, y) = dp.Network.from_module(mlp("relu", dtype=F32)), batch(dtype=F32)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(dp.SettingError, match="loses its displacements in half precision"),
    ):
        dp.EquilibriumPropagation().gradients(network, x, y)


def heavy():
    """A tanh network whose free phase of 60 passes still moves by more than a small nudge would."""
    model = mlp("tanh", (20, 30, 30, 30, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    return model, batch((20,), 10, 12)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("estimator", ["centered", "forward", "backward", "random_sign"])
@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"relaxation": "blocks(even_odd(100))"}, 0.9),
        ({"relaxation": "blocks(even_odd(300))", "free_schedule": "even_odd(900)", "tolerance": 1e-2}, 0.99),
        ({"relaxation": "blocks(even_odd(300))", "free_schedule": "even_odd(900)", "tolerance": 1e-3}, 0.999),
    ],
    ids=["60 free passes", "loose", "tight"],
)
def test_what_is_left_of_the_free_states_motion_is_no_gradient(estimator, settings, least):
    """Divided by β it is larger than the gradient, in every one-sided estimate, unless the free
    term moves on as well."""
    model, (x, y) = heavy()
    network = dp.Network.from_module(model)
    rule = dp.EquilibriumPropagation(energy="hopfield", estimator=estimator, beta=0.02, **settings)
    exact = dp.EquilibriumPropagation(energy="hopfield", free_schedule="even_odd(2000)").exact_gradients(network, x, y)
    out = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(0))
    assert out.status.ok
    assert min(cosine(out.gradients[n], exact[n]) for n in exact) > least


def test_a_schedule_of_a_single_pass_is_not_judged_by_its_own_displacement():
    network, (x, y) = dp.Network.from_module(mlp("tanh")), batch()
    for schedule in ("4,3,2,1,2,3,4,3,2,1", "random_order(60)"):
        rule = dp.EquilibriumPropagation(relaxation=f"blocks({schedule})")
        out = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(0))
        assert out.status.ok, out.status
        assert rule.statistics(network, x, y, generator=torch.Generator().manual_seed(0))["residual"] >= 0
        with pytest.raises(dp.SettingError, match="tolerance needs a schedule of passes over all layers"):
            dp.EquilibriumPropagation(relaxation=f"blocks({schedule})", tolerance=0.1)


def test_a_step_is_a_step_of_the_output_too():
    network, (x, y) = dp.Network.from_module(mlp("relu")), batch()

    def displaced(step_size):
        rule = dp.EquilibriumPropagation(relaxation=f"blocks(even_odd(1), step_size={step_size})", beta=0.1)
        found = rule.infer(network, x, y)
        return float((found.nudged[0][1][-1] - found.free[-1]).norm())

    assert displaced(0.25) == pytest.approx(displaced(1.0) / 4, rel=1e-6)


def test_the_kinks_that_count_are_those_that_the_nudge_crosses():
    """A free Hopfield state is pulled from above too, far across kinks, without any nudge."""
    network, (x, y) = dp.Network.from_module(mlp("hard_sigmoid")), batch(n=32)
    settings = {"energy": "hopfield", "free_schedule": "even_odd(300)"}
    small, large = (
        dp.EquilibriumPropagation(beta=beta, **settings).statistics(network, x, y)["kink_crossing"] for beta in (1e-9, 0.9)
    )
    assert small == [0.0] * 4
    assert sum(large) > 0


@pytest.mark.parametrize("jacobians", ["current", "free"])
def test_no_digit_is_lost_where_no_kernel_helps(jacobians, monkeypatch):
    """Subtracting two states would leave eps/β: 5e-3 at β = 2e-4."""
    from dualprop.kernels import native

    monkeypatch.setattr(native, "takes", lambda *arguments: False)
    model, (x, y) = conv_net("relu", "before"), images(16)
    narrow = conv_net("relu", "before", dtype=F32)
    rule = dp.EquilibriumPropagation(beta=2e-4, jacobians=jacobians)
    wide = rule.gradients(dp.Network.from_module(model), x, y).gradients
    found = rule.gradients(dp.Network.from_module(narrow), x.float(), y).gradients
    assert max(distance(found[n], wide[n]) for n in wide) < 2e-5


def test_targets_are_checked_wherever_they_are_taken():
    network, (x, _) = dp.Network.from_module(mlp("tanh")), batch()
    wrong = torch.full((6,), 99)
    for rule in (dp.EquilibriumPropagation(), dp.EquilibriumPropagation(energy="hopfield")):
        for ask in (rule.infer, rule.statistics, rule.gradients):
            with pytest.raises(dp.SettingError, match=r"class indices must be in 0…3, got 99…99"):
                ask(network, x, wrong)


def test_a_phase_leaves_nothing_on_the_free_tapes():
    """Signals of the size of unpooled images would live until the last phase has ended."""
    network, (x, y) = dp.Network.from_module(conv_net("relu", "before")), images()
    rule = dp.EquilibriumPropagation()
    with torch.no_grad():
        problem = rule.problem(network, x, y, None, None)
        free = rule.inference(problem)
        rule.gradients_at(problem, free)
    assert all(tape.signal is None and tape.signal_at_core is None for tape in free.states.evaluation._tapes.values())


def test_a_hopfield_network_with_separate_feedback_weights_is_refused():
    """It has no energy, and what would be called its gradient is none."""
    model = dp.feedback.convert(mlp("tanh"), "random", generator=torch.Generator().manual_seed(0))
    with pytest.raises(dp.SettingError, match="a Hopfield network with separate feedback weights has no energy"):
        dp.EquilibriumPropagation(energy="hopfield").gradients(dp.Network.from_module(model), *batch())


def test_a_prediction_in_parts_is_the_prediction():
    network = dp.Network.from_module(mlp("tanh"))
    x, _ = batch(n=230)
    rule = dp.EquilibriumPropagation(energy="hopfield")
    torch.testing.assert_close(rule.predict(network, x)[150:160], rule.predict(network, x[150:160]))


def test_the_remedy_for_an_unsettled_clamped_phase_is_one_that_is_let_through():
    """Error sweeps are refused behind a clamped output."""
    model, (x, y) = mlp("relu"), batch(n=6)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    rule = dp.EquilibriumPropagation(loss="squared_error", output_nudge="clamped", relaxation="blocks(even_odd(3))", beta=5.0)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert "error_sweeps" not in out.status.message
    assert "Raise the number of schedule" in out.status.message


@pytest.mark.parametrize("schedule", ["even_odd(1)", "even_odd(2)"])
def test_layers_that_the_nudge_has_not_reached_are_told(schedule):
    """They would not learn at all, and the loss would fall all the same."""
    model, (x, y) = mlp("relu", widths=(5, 8, 8, 8, 8, 4)), batch(n=6)
    network = dp.Network.from_module(model)
    out = dp.EquilibriumPropagation(relaxation=f"blocks({schedule})").gradients(network, x, y)
    assert not bool(out.gradients["0.weight"].any())
    assert not out.status.ok
    assert "has not reached layer" in out.status.message
    assert f"in {schedule[-2]} passes" in out.status.message
    assert dp.EquilibriumPropagation(relaxation="blocks(even_odd(9))").gradients(network, x, y).status.ok


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("relaxation", ["error_sweeps", "blocks(even_odd(1))"])
def test_a_unit_whose_jacobian_is_held_settles_where_its_tangent_does(activation, relaxation):
    """Below one output layer: at h + T, T = Wᵀ(-β ∇ℓ); a projection lets f' T through."""
    model, (x, y) = mlp(activation, widths=(5, 8, 4)), batch(n=6)
    rule = dp.EquilibriumPropagation(jacobians="free", relaxation=relaxation, beta=0.3)
    states = rule.infer(dp.Network.from_module(model), x, y)
    hidden, output = states.free[1:]
    error = output.softmax(1) - nn.functional.one_hot(y, 4)
    for strength, nudged in states.nudged:
        pull = -strength * error @ model[2].weight
        moved = pull if activation == "tanh" else pull * (hidden > 0)
        torch.testing.assert_close(nudged[1], (hidden + moved).detach())
