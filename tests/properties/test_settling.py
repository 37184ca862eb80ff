"""When inference has settled: the tolerance, the residual of the statistics and crossed kinks, each
found a second time."""

import copy
import dataclasses
import math

import pytest
import torch
from networks import batch, conv_net, images, mlp

import dualprop as dp
from dualprop.analysis.transcription import transcribe
from dualprop.schedules import Step
from dualprop.settling import settle

PASSES = ["bottom_up", "up_down", "odd_even", "even_odd", "synchronous", "alternating_sweeps"]


def problem(kind="mlp", activation="relu", scale=1.0, seed=0):
    model = mlp(activation, seed=seed) if kind == "mlp" else conv_net(activation, kind, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(scale if name.endswith("weight") else 1.0)
    return model, *(batch(seed=seed) if kind == "mlp" else images(3, seed))


def forward_states(network, x):
    states = [x]
    for layer in network.layers:
        states.append(layer.neuron.f(layer.synapse.forward(states[-1])).detach())
    return states


def length(pairs):
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))


def relative_move(before, after, free):
    """‖after - before‖ / ‖before - free‖, each over means and differences of all layers; a state is
    (means, differences)."""
    moves = length([pair for i in (0, 1) for pair in zip(after[i], before[i], strict=True)])
    displacement = length([pair for i in (0, 1) for pair in zip(before[i], free[i], strict=True)])
    return 0.0 if moves == 0 else moves / displacement if displacement else math.inf


def updated_once_more(network, x, y, dyads, rule):
    """All layers updated together from these dyads, undamped, by the rule's own formulas and loss
    gradient."""
    at = rule.linearize_at or ("current" if rule.coupling == "original" and rule.damping is None else "forward")
    once = dataclasses.replace(
        rule, schedule=[(1, 2, 3, 4)], start="previous", damping=None, tolerance=None, linearize_at=at
    )  # fmt: skip
    return once.infer(network, x, y, state=dyads)


def state_of(dyads):
    depth = len(dyads.means)
    return [dyads.mean(k) for k in range(depth)], [dyads.difference(k) for k in range(depth)]


def at_rest(states):
    return states, [torch.zeros_like(s) for s in states]


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("start", ["forward", "zeros", "previous"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
def test_inference_stops_after_the_first_pass_that_leaves_no_more_to_move_than_the_tolerance(name, start, tolerance):
    """A pass too few is not settled though it says so; a pass too many is time lost. And the states
    are those of that pass."""
    model, x, y = problem("mlp", "tanh")
    network, fixed = dp.Network.from_module(model), {"alpha": 0.2, "start": start}
    state = dp.DualPropagation(alpha=0.2).infer(network, x.flip(0), y) if start == "previous" else None
    free = at_rest(forward_states(network, x))
    left, expected = [], None
    for count in range(1, 60):
        each = dp.DualPropagation(schedule=f"{name}({count})", **fixed)
        expected = each.gradients(network, x, y, state=state)
        after = updated_once_more(network, x, y, expected.state, each)
        left.append(relative_move(state_of(expected.state), state_of(after), free))
        if left[-1] <= tolerance:
            break
    assert (2 if tolerance < 1e-2 else 1) <= len(left) < 59, f"the case must settle, and not at once: {left}"
    rule = dp.DualPropagation(schedule=f"{name}(100)", tolerance=tolerance, **fixed)
    out = rule.gradients(network, x, y, state=state)
    assert out.diagnostics["passes"] == len(left), left
    assert out.diagnostics["residual"] == pytest.approx(left[-1], rel=1e-6, abs=1e-15)
    assert out.status == dp.DualPropagation().gradients(network, x, y).status, "settled, all is well"
    assert all(torch.equal(out.gradients[n], gradient) for n, gradient in expected.gradients.items())


def test_without_a_tolerance_nothing_is_said_about_settling():
    """A residual that nobody asked for costs a copy of all states and a wait for the device at each
    pass."""
    model, x, y = problem(scale=3.0)
    out = dp.DualPropagation(alpha=0.0, schedule="up_down(9)").gradients(dp.Network.from_module(model), x, y)
    assert set(out.diagnostics) == {"drives", "feedbacks", "gradients"}
    assert out.status.ok


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        ({"alpha": 0.0}, ("coupling='transposed'", "damping='spectral'", "alpha nearer to 0.5", "more passes")),
        ({"alpha": 0.5}, ("beta", "more passes")),
        ({"alpha": 0.25, "coupling": "transposed"}, ("beta", "more passes")),
    ],
)
def test_where_the_states_do_not_settle_the_status_says_so_in_one_line_with_what_would_help(settings, remedies):
    """Taken for settled, the gradients of an oscillation would be trained on; taken for a NaN, the
    run would be stopped."""
    model, x, y = problem(scale=5.0)
    rule = dp.DualPropagation(schedule="up_down(40)", tolerance=1e-3, **settings)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert out.diagnostics["passes"] == 40
    assert out.diagnostics["residual"] > 1e-3
    assert (out.status.ok, out.status.is_finite) == (False, True)
    message = out.status.message
    assert "\n" not in message
    assert "after pass 40" in message
    assert f"{out.diagnostics['residual']:.2g}" in message
    assert "tolerance 0.001" in message
    assert all(remedy in message for remedy in remedies), message
    if settings.get("coupling") == "transposed" or settings["alpha"] == 0.5:
        # At ½ the couplings are one, and spectral damping is none.
        assert "damping='spectral'" not in message
        assert "nearer to 0.5" not in message


def test_where_the_last_pass_allowed_settles_the_status_is_ok():
    """The count of the schedule is the most passes, not one less."""
    model, x, y = problem("mlp", "tanh")
    network = dp.Network.from_module(model)
    needed = dp.DualPropagation(alpha=0.2, schedule="up_down(50)", tolerance=1e-4).gradients(network, x, y)
    passes = needed.diagnostics["passes"]
    for count, ok in ((passes, True), (passes - 1, False)):
        out = dp.DualPropagation(alpha=0.2, schedule=f"up_down({count})", tolerance=1e-4).gradients(network, x, y)
        assert out.status.ok == ok
        assert out.diagnostics["passes"] == count


@pytest.mark.parametrize(("least", "most", "passes"), [(0, None, 4), (3, None, 4), (6, None, 6), (0, 2, 2), (6, 5, 5)])
def test_a_tolerance_stops_no_sooner_than_the_least_number_of_passes(least, most, passes):
    """What a complex phase has left to move cancels only after the passes of the real one."""
    states = Halving()
    told = settle(states, [[Step((1,))]] * 9, Halving.half, states.moved, 0.1, least=least, most=most)
    assert (told.passes, len(told.moved)) == (passes, passes)
    assert states.value == 0.5**passes
    assert bool(told.trouble) == (passes < 4)


class Halving:
    """One state that each pass halves, as `settle` takes it.

    Pass n moves it by 1/(2ⁿ-1) of its displacement from 1.
    """

    step, final, kind = Step(()), frozenset(), ""

    def __init__(self):
        self.value = 1.0

    def half(self, k):
        return (self.value / 2,)

    def set(self, k, value):
        self.value = value

    def positions(self):
        return (self.value,)

    def moved(self, before):
        return [(before[0] - self.value) / (1 - self.value)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"damping": "spectral", "alpha": 0.0}, {"coupling": "transposed", "alpha": 0.0}])
def test_weights_that_are_not_finite_are_no_matter_of_settling(bad, settings):
    """The trainer goes on where inference merely did not settle; through a NaN it must not. And no
    passes are wasted."""
    model, x, y = problem()
    with torch.no_grad():
        model[2].weight[0, 0] = bad
    rule = dp.DualPropagation(schedule="up_down(500)", tolerance=1e-3, **settings)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert (out.status.ok, out.status.is_finite) == (False, False)
    assert out.diagnostics["passes"] <= 2
    assert "settle" not in out.status.message


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["mlp", "none", "before", "after"])
@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "tanh", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("beta", [0.1, 10.0])
def test_transposed_dp_at_alpha_zero_or_one_is_settled_after_one_downward_sweep_to_the_last_bit(alpha, kind, activation, beta):
    """Its means are the forward pass, so nothing is left to move: the papers' sixteen passes are
    one BP step here."""
    model, x, y = problem(kind, activation)
    network = dp.Network.from_module(model)
    fixed = {"coupling": "transposed", "alpha": alpha, "beta": beta, "engine": "explicit"}
    swept = dp.DualPropagation(**fixed).gradients(network, x, y)
    assert all(bool(gradient.any()) for gradient in swept.gradients.values())
    for schedule in ("alternating_sweeps(1)", "bottom_up(16)", "odd_even(9)", "up_down(5)"):
        rule = dp.DualPropagation(schedule=schedule, **fixed)
        out = rule.gradients(network, x, y)
        assert all(torch.equal(out.gradients[name], gradient) for name, gradient in swept.gradients.items()), schedule
        assert (out.diagnostics["drives"], out.diagnostics["feedbacks"]) == (4, 3)
        assert rule.statistics(network, x, y)["residual"] == 0.0, schedule
    for schedule, passes in (("alternating_sweeps(1)", 1), ("up_down(9)", 1), ("bottom_up(9)", 4), ("odd_even(9)", 3)):
        out = dp.DualPropagation(schedule=schedule, tolerance=1e-30, **fixed).gradients(network, x, y)
        assert out.diagnostics == {"drives": 4, "feedbacks": 3, "gradients": 4, "passes": passes, "residual": 0.0}
        assert out.status.ok
        assert all(torch.equal(out.gradients[name], gradient) for name, gradient in swept.gradients.items()), schedule


CASES = {
    "dp": {"alpha": 0.5},
    "dp, asymmetric": {"alpha": 0.1, "schedule": "up_down(2)", "beta": (0.5, 1.0, 0.3, 2.0)},
    "transposed": {"coupling": "transposed", "alpha": 0.3, "schedule": "bottom_up(3)", "beta": 3.0},
    "damped": {"alpha": 0.0, "damping": (0.5, 0.0, 1.5), "schedule": "up_down(2)"},
    "from zeros": {"alpha": 0.4, "start": "zeros", "schedule": "synchronous(5)"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["mlp", "before", "after"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_residual_is_that_of_one_more_undamped_update_of_all_layers(case, kind, activation):
    """The number that says whether a schedule is long enough. Reuse must not hide a move, nor
    differences be left out, nor damping, which makes every move small, look like rest."""
    model, x, y = problem(kind, activation)
    network, rule = dp.Network.from_module(model), dp.DualPropagation(**CASES[case])
    free, dyads = at_rest(forward_states(network, x)), rule.infer(network, x, y)
    expected = relative_move(state_of(dyads), state_of(updated_once_more(network, x, y, dyads, rule)), free)
    assert expected > 1e-4, "the case must still move"
    assert rule.statistics(network, x, y)["residual"] == pytest.approx(expected, rel=1e-6)
    if rule.damping is None:
        states = []
        for more in ([], [Step((1, 2, 3, 4))]):
            plus, minus, _ = transcribe(network, rule, x, y, [*rule.schedule.steps(4), *more])
            means = [rule.alpha * p + (1 - rule.alpha) * m for p, m in zip(plus, minus, strict=True)]
            states.append((means, [p - m for p, m in zip(plus, minus, strict=True)]))
        assert relative_move(*states, free) == pytest.approx(expected, rel=1e-6), "by the slow transcription"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["mlp", "before", "after"])
@pytest.mark.parametrize(("activation", "kinks"), [("relu", (0.0,)), ("hard_sigmoid", (0.0, 1.0)), ("tanh", ())])
def test_crossed_kinks_are_those_between_the_two_nudged_drives(case, kind, activation, kinks):
    """The share of units at which DP is not a derivative; wrong shares of the nudge would count
    others."""
    model, x, y = problem(kind, activation, scale=2.0)
    network, rule = dp.Network.from_module(model), dp.DualPropagation(**CASES[case])
    betas, (up, down) = rule.betas(4), (rule.alpha, 1 - rule.alpha)
    up, down = (up, down) if rule.coupling == "original" else (down, up)
    dyads, expected = rule.infer(network, x, y), []
    for k in range(1, 4):
        a = network.into(k).synapse.forward(dyads.mean(k - 1)).detach()
        s = dyads.mean(k).clone().requires_grad_()
        product = (network.into(k + 1).synapse.forward(s) * dyads.difference(k + 1)).sum()
        pull = betas[k - 1] / betas[k] * torch.autograd.grad(product, s)[0]
        plus, minus = (a + up * pull).flatten().tolist(), (a - down * pull).flatten().tolist()
        crossed = [any(min(p, m) <= kink < max(p, m) for kink in kinks) for p, m in zip(plus, minus, strict=True)]
        expected.append(sum(crossed) / len(crossed))
    assert (max(expected) > 0) == bool(kinks), "the case must cross a kink where there is one"
    assert rule.statistics(network, x, y)["kink_crossing"] == pytest.approx([*expected, 0.0], abs=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        *CASES.values(),
        {"coupling": "transposed", "alpha": 0.0},
        {"start": "previous", "schedule": "up_down(1)"},
        {"damping": "spectral", "alpha": 0.0},
    ],
)
def test_statistics_change_no_state_and_no_gradient(settings):
    """They are taken between two epochs: measured and unmeasured runs must be the same run."""
    model, x, y = problem("after")
    network, rule = dp.Network.from_module(model), dp.DualPropagation(**settings, engine="explicit")
    state = rule.gradients(network, x.flip(0), y).state
    first = rule.gradients(network, x, y, state=state)
    kept = copy.deepcopy((state, model.state_dict(), x))
    generator = torch.get_rng_state()
    told = [rule.statistics(network, x, y, state=state) for _ in range(2)]
    assert told[0] == told[1]
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, kept[1][name]) for name, value in model.state_dict().items())
    assert torch.equal(x, kept[2])
    for name in ("means", "differences", "directions"):
        for now, before in zip(getattr(state, name), getattr(kept[0], name), strict=True):
            assert (now is None and before is None) or torch.equal(now, before), name
    again = rule.gradients(network, x, y, state=state)
    assert all(torch.equal(again.gradients[name], gradient) for name, gradient in first.gradients.items())


def test_back_propagation_has_no_statistics_and_the_fused_engine_tells_those_of_the_explicit_one():
    """A residual of nought would claim that something had settled; and a fused run crosses kinks as
    an explicit one does."""
    model, x, y = problem()
    network = dp.Network.from_module(model)
    assert dp.Backprop().statistics(network, x, y) == {}
    assert dp.DualPropagation(engine="fused").statistics(network, x, y) == dp.DualPropagation().statistics(network, x, y)
