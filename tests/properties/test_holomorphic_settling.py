"""Holomorphic EP: what it costs, what it says where complex states do not settle, what it infers,
and what it refuses."""

import math

import pytest
import torch
from comparison import assert_same, distance
from networks import batch, conv_net, images, mlp
from torch import nn

import dualprop as dp
from dualprop.equilibrium import estimators, holomorphic
from dualprop.network.states import States
from dualprop.settling import residual
from dualprop.softmax import SoftmaxPool2d

HOPFIELD = {"energy": "hopfield", "relaxation": "blocks(even_odd(40))", "free_schedule": "even_odd(60)", "beta": 0.2}


def rule(points=4, **settings):
    return dp.EquilibriumPropagation(**{**HOPFIELD, "estimator": f"holomorphic({points})", **settings})


@pytest.mark.parametrize("points", [2, 3, 4, 5, 8])
def test_the_weights_are_those_of_the_mean_over_the_circle(points):
    """1/(N β_m) each, conjugates counted twice: their real parts sum to zero, and to one times the
    nudges."""
    terms = estimators.Holomorphic(points).terms(0.3)
    assert len(terms) == points // 2 + 1
    assert not any(isinstance(term.nudge, complex) for term in (terms[0], *(terms[-1:] if points % 2 == 0 else ())))
    assert all(abs(term.nudge) == pytest.approx(0.3) for term in terms)
    for power in range(points + 1):
        value = sum(term.weight * term.nudge**power for term in terms).real
        assert value == pytest.approx({1: 1.0}.get(power, 0.0), abs=1e-12), f"of β^{power}"


def test_the_text_of_an_estimator_is_read_as_it_is_written():
    """Recipes and the command line hold it so."""
    for made in (rule(6), rule(2)):
        assert estimators.from_name(str(made.estimator)) == made.estimator
    assert estimators.from_name("holomorphic") == estimators.Holomorphic(4)
    assert "holomorphic(N)" in estimators.AbstractEstimator.choices()


def counted(out):
    return tuple(out.diagnostics[n] for n in ("drives", "feedbacks", "gradients"))


@pytest.mark.parametrize("points", [2, 3, 4, 6, 7])
def test_a_complex_evaluation_counts_as_two_and_conjugates_as_none(points):
    """Counts stand beside back-propagation's: a complex product is two real ones on twice the
    batch, or the table flatters."""
    network, (x, y) = dp.Network.from_module(mlp("sigmoid")), batch()
    settings = {"relaxation": "blocks(even_odd(5))", "free_schedule": "even_odd(5)"}
    one, two = (
        counted(rule(2, relaxation=f"blocks(even_odd({n}))", free_schedule="even_odd(5)").gradients(network, x, y))
        for n in (5, 6)
    )
    found = counted(rule(points, **settings).gradients(network, x, y))
    reals, complexes = (2, points // 2 - 1) if points % 2 == 0 else (1, (points - 1) // 2)
    # Against the first phase each other takes a gradient of its own, a complex one two, and one of
    # the first's.
    assert found[2] == 4 * ((reals - 1) * 2 + complexes * 3)
    # A pass more of two real phases, which reuse what is known of the free states; five passes of a
    # complex one drive anew.
    a_pass = [(more - less) // 2 for less, more in zip(one, two, strict=True)]
    assert found[1] == one[1] + (reals - 2) * 5 * a_pass[1] + complexes * 2 * 5 * a_pass[1]
    assert found[0] == pytest.approx(one[0] + ((reals - 2) + 2 * complexes) * 5 * a_pass[0], abs=2 * (complexes + 1) * 4)


def test_inference_gives_the_states_of_every_nudge_that_is_run():
    """Real ones as centered EP has them, complex ones settled on the circle; a conjugate nudge has
    the conjugate states."""
    network, (x, y) = dp.Network.from_module(conv_net("sigmoid", "none")), images(3)
    found = rule(4).infer(network, x, y)
    centered = rule(estimator="centered").infer(network, x, y)
    (first, real), (second, states), (last, opposite) = found.nudged
    assert (first, last) == (0.2, -0.2)
    assert second == pytest.approx(0.2j)
    for mine, theirs in ((found.free, centered.free), (real, centered.nudged[0][1]), (opposite, centered.nudged[1][1])):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert all(s.dtype == torch.complex128 for s in states)
    assert torch.equal(states[0], x + 0j)
    # Along the circle the states go as the nudge does, to first order.
    for s, free, plus in zip(states[1:], found.free[1:], real[1:], strict=True):
        assert distance(s.imag, plus - free) < 0.2
        assert float((s.real - free).norm()) < 0.3 * float(s.imag.norm())


def test_a_rule_of_complex_phases_is_deterministic_and_needs_no_generator():
    network, (x, y) = dp.Network.from_module(mlp("sigmoid")), batch()
    made = rule(6)
    assert not made.needs_generator
    assert made.capture_obstacle == ""
    assert_same(made.gradients(network, x, y).gradients, made.gradients(network, x, y).gradients, 0.0)


def test_statistics_are_of_the_complex_phases_too():
    """A real phase settles long before a complex one that cycles."""
    network, (x, y) = dp.Network.from_module(mlp("sigmoid")), batch()
    few = {"relaxation": "blocks(even_odd(3))"}
    told = rule(3, **few).statistics(network, x, y)
    assert told["kink_crossing"] == [0.0] * 4
    assert told["residual"] >= rule(2, **few).statistics(network, x, y)["residual"] > 0


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_a_beta_that_is_too_large_for_complex_states_alone_ends_in_a_status_with_a_remedy(tolerance):
    """At β = 2 real phases settle and those at ±2i go round; the gradient is then nothing, and
    looks like any other."""
    network, (x, y) = dp.Network.from_module(mlp("sigmoid")), batch()
    settings = {"beta": 2.0, "relaxation": "blocks(even_odd(60))", "free_schedule": "even_odd(100)", "tolerance": tolerance}
    assert rule(2, **settings).gradients(network, x, y).status.ok
    out = rule(4, **settings).gradients(network, x, y)
    assert not out.status.ok
    assert out.status.is_finite
    assert "the complex nudged states " in out.status.message
    assert "Lower beta, raise the number of schedule, or use estimator='centered'." in out.status.message
    assert "\n" not in out.status.message
    assert out.diagnostics["residual"] > 1
    assert rule(4, **settings).statistics(network, x, y)["residual"] > 0.5


def test_states_that_are_no_numbers_are_told_with_the_phase_that_they_are_of():
    """That a gradient is not finite says nothing of why."""
    network, (x, y) = dp.Network.from_module(mlp("sigmoid")), batch()
    out = rule(4, beta=40.0, relaxation="blocks(even_odd(400))", loss="squared_error").gradients(network, x, y)
    assert not out.status.ok
    assert not out.status.is_finite
    assert math.isnan(out.diagnostics["residual"]) or math.isinf(out.diagnostics["residual"])
    assert "is not finite. Inference did not settle: the " in out.status.message
    assert "states diverged by pass" in out.status.message


def test_the_motion_of_imaginary_parts_is_motion():
    """PyTorch's .double() drops them, with a warning: a phase that turns round the imaginary axis
    would have settled."""
    real, imaginary = torch.tensor([3.0]), torch.tensor([4.0])
    (moved,) = residual([torch.complex(real, imaginary)], [torch.complex(real, 0 * real)])
    assert moved == pytest.approx(5 / 3)
    assert residual([torch.complex(0 * real, imaginary)], [imaginary]) == [pytest.approx(1.0)]


def test_a_smaller_step_reaches_the_same_complex_equilibrium():
    network, (x, y) = dp.Network.from_module(mlp("sigmoid")), batch()
    settings = {"free_schedule": "even_odd(100)", "tolerance": 1e-12}
    blocks = ("blocks(even_odd(300))", "blocks(even_odd(300), step_size=0.5)")
    whole, half = (rule(4, relaxation=each, **settings).gradients(network, x, y) for each in blocks)
    assert half.status.ok
    assert_same(half.gradients, whole.gradients, 1e-8)


def test_sigmoids_and_softmaxes_of_large_complex_numbers_are_numbers():
    """e^-z has no room in the dtype where Re z < -88; PyTorch's own sigmoid is then not a
    number."""
    for dtype in (torch.complex64, torch.complex128):
        z = torch.tensor([-800 + 1j, -100 + 2j, -3 + 0.5j, 0.2 - 0.4j, 100 - 2j, 800 + 3j], dtype=dtype)
        torch.testing.assert_close(dp.neurons.Sigmoid().f(z), ((z / 2).tanh() + 1) / 2, rtol=1e-5, atol=1e-6)
        soft = dp.neurons.Softmax(1).f(torch.stack([z, z + 1000]))
        assert bool(torch.isfinite(torch.view_as_real(soft)).all())
        torch.testing.assert_close(soft.sum(1), torch.ones(2, dtype=dtype))
        torch.testing.assert_close(soft[0], soft[1], rtol=1e-3, atol=1e-4)


def test_a_complex_counterpart_shares_the_modules_and_leaves_the_free_phase_alone():
    """A copy of the parameters would go stale, and a tape that is shared would be another
    phase's."""
    network, x = dp.Network.from_module(conv_net("sigmoid", "none")), images(3)[0]
    free = States(network, x)
    with torch.no_grad():
        free.forward()
        counts = dict(free.counts)
        other = holomorphic.counterpart(free)
        drives = [other.drive(k) for k in range(1, network.depth + 1)]
    assert free.counts == counts
    assert not any(s.is_complex() for s in free.means)
    assert all(p is network.parameters[n] for n, p in other.network.parameters.items())
    for k, drive in enumerate(drives, start=1):
        torch.testing.assert_close(drive, free.drive(k) + 0j, rtol=1e-12, atol=1e-12)


MAX_POOLED = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3)).double()
NORMED = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Sigmoid(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            mlp("relu"),
            r"layer '0' has ReLU, which is not holomorphic: .* Tanh or Softmax\. Use one, or estimator='centered'",
        ),
        (mlp("hard_sigmoid"), "layer '0' has HardSigmoid, which is not holomorphic"),
        (mlp("leaky_relu"), "layer '0' has LeakyReLU, which is not holomorphic"),
        (
            MAX_POOLED,
            r"holds MaxPool2d \('1'\), which is not holomorphic\. Use average pooling, softmax\.SoftmaxPool2d, or",
        ),
        (NORMED, r"holds LayerNorm \('1'\), which is not holomorphic"),
    ],
    ids=["relu", "hard sigmoid", "leaky relu", "max-pool", "norm"],
)
def test_a_network_that_is_not_holomorphic_is_refused_by_name(model, message):
    """PyTorch would take the real part, or compare complex numbers, or fail in a way that names
    nothing of the user's."""
    network, (x, y) = dp.Network.from_module(model), images() if model is MAX_POOLED else batch()
    for ask in (rule(3).gradients, rule(4).infer, rule(6).statistics):
        with pytest.raises(dp.SettingError, match=message) as refusal:
            ask(network, x, y)
        assert "\n" not in str(refusal.value)
    assert rule(2).gradients(network, x, y).gradients


def test_an_exact_nudge_of_other_outputs_than_linear_ones_is_refused():
    network = dp.Network.from_module(nn.Sequential(*mlp("sigmoid"), nn.Sigmoid()))
    with pytest.raises(dp.SettingError, match=r"an exact complex nudge is of linear outputs, but the output neuron is Sigmoid"):
        rule(4, loss="squared_error", output_nudge="exact").gradients(network, *batch())
    assert rule(4, loss="squared_error").gradients(network, *batch()).status.ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"energy": "predictive_coding"}, r"is of Hopfield networks, not .*Use energy='hopfield', or estimator='centered'"),
        ({"estimator": "holomorphic(1)"}, "points must be at least 2, got 1. With one nudge"),
        ({"estimator": "holomorphic(-3)"}, "points must be at least 2, got -3"),
        ({"estimator": "holomorhpic"}, r"unknown estimator 'holomorhpic'\. Did you mean 'holomorphic\(N\)'\?"),
        ({"estimator": "holomorphic(x)"}, "unknown estimator"),
        (
            {"output_nudge": "exact"},
            r"an exact cross_entropy nudge is found by real iteration\. With .* use output_nudge='linear",
        ),
        ({"output_nudge": "exact", "loss": "squared_error", "beta": 1.0}, "needs an uphill beta < 1, got 1"),
        (
            {"output_nudge": "exact", "loss": "squared_error", "beta": 1.0, "estimator": "holomorphic(3)"},
            "needs an uphill beta < 1, got 1",
        ),
        ({"output_nudge": "clamped", "loss": "squared_error"}, "pulls the output of a predictive coding network"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_the_remedy(settings, message):
    with pytest.raises(dp.SettingError, match=message) as refusal:
        rule(**settings)
    assert "\n" not in str(refusal.value)


def test_a_loss_of_probabilities_has_no_complex_counterpart():
    network = dp.Network.from_module(nn.Sequential(*mlp("sigmoid"), nn.Softmax(1)))
    with pytest.raises(dp.SettingError, match="the log_loss takes no complex outputs"):
        rule(4, loss="log_loss").gradients(network, *batch())


def test_softmax_pools_stand_in_a_network_of_any_rule_and_in_a_fused_one():
    """They are differentiable maps of one example, as max-pools are."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), SoftmaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()

    x, y = images()
    exact = dp.Backprop().gradients(dp.Network.from_module(model()), x, y).gradients
    found = dp.DualPropagation(beta=1e-3).gradients(dp.Network.from_module(model()), x, y).gradients
    assert max(distance(found[n], exact[n]) for n in exact) < 1e-5
    fused = dp.dualize(model(), coupling="transposed", alpha=0.5, beta=1e-3, loss_reduction="mean")
    nn.functional.cross_entropy(fused(x), y).backward()
    assert max(distance(p.grad, exact[n]) for n, p in fused.named_parameters()) < 1e-5
