"""Softmax neurons and the log loss: optimality on the simplex, slow solvers, and back-propagation
in the limit of small β."""

import itertools
import math
import re

import pytest
import torch
from comparison import assert_same, cosine, distance, numbered, rounding
from networks import autograd_gradients, batch, drawn
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.analysis.transcription import transcribe
from dualprop.kernels import dyadic as kernels
from dualprop.losses import CrossEntropy, LogLoss, SquaredError
from dualprop.neurons import Identity, ReLU, Sigmoid, Softmax

EPS = torch.finfo(torch.float64).eps
SCALES = [-0.999, -0.9, -0.5, 0.0, 1e-6, 0.7, 3.0, 9.9]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


DRIVES = {
    "ordinary": normal(7, 5),
    "wide": 20 * normal(7, 5, seed=1),
    "extreme": 1e3 * normal(7, 5, seed=2).clamp(-1, 1),
    "one far ahead": torch.tensor([[1e3, -1e3, 0.0], [1e3, 1e3, -1e3], [0.0, 1e-9, -1e-9]], dtype=torch.float64),
    "ties": torch.zeros(2, 4, dtype=torch.float64),
    "one unit": normal(3, 1),
    "two units": 5 * normal(9, 2, seed=3),
    "many units": normal(3, 300, seed=4),
}
each_drive = pytest.mark.parametrize("case", DRIVES)
TARGETS = {
    "indices": lambda n, k: torch.arange(n) % k,
    "one-hot": lambda n, k: F.one_hot(torch.arange(n) % k, k).double(),
    "soft": lambda n, k: normal(n, k, seed=9).softmax(1),
    "unnormalised": lambda n, k: 2.5 * normal(n, k, seed=9).softmax(1),
}


def gap(s, u, scale, pull=0.0):
    """How far s is from optimal: how much log s + scale·s - pull/s - u differs between units, where
    it should be one -μ.

    Relative to the terms that it is a difference of, since each is only known to its rounding. A
    unit that has vanished can at least not be missed.
    """
    seen = s > torch.finfo(s.dtype).tiny
    divided = torch.where(seen, torch.as_tensor(pull, dtype=s.dtype) / s, 0.0)
    level = torch.where(seen, torch.log(s) + scale * s - divided - u, 0.0)
    size = 1 + u.abs() + abs(scale) + (1 + s.log().abs().nan_to_num(posinf=0.0)) * divided
    top = s.argmax(1, keepdim=True)
    difference = (level - level.gather(1, top)).abs() / (size + size.gather(1, top))
    return float(torch.where(seen, difference, 0.0).max())


def assert_on_simplex(s, dim=1):
    tolerance = 16 * torch.finfo(s.dtype).eps
    assert bool((s >= 0).all())
    assert bool(((s.sum(dim) - 1).abs() <= tolerance).all()), s.sum(dim)


@pytest.mark.parametrize(("shape", "dims"), [((4, 3), (1, -1)), ((2, 3, 4), (1, 2, -1, -2)), ((2, 3, 4, 2), (1, 2, 3, -1, -3))])
def test_the_activation_is_that_of_the_module_along_its_dim_for_states_of_any_rank(shape, dims):
    """The network's own prediction and its states would be of two functions."""
    a = 4 * normal(*shape)
    for dim in dims:
        neuron = dp.neurons.from_module(nn.Softmax(dim), "0")
        assert neuron == Softmax(dim)
        for found in (neuron.f(a), neuron.f_(a.clone())):
            assert torch.equal(found, nn.Softmax(dim)(a))
        torch.testing.assert_close(neuron.prox(a, 0.0), neuron.f(a), rtol=32 * EPS, atol=0)
        torch.testing.assert_close(
            neuron.prox(a, 1.3), Softmax(1).prox(a.movedim(dim, 1), 1.3).movedim(1, dim), rtol=32 * EPS, atol=0
        )


@each_drive
def test_the_activation_is_the_prox_without_a_quadratic(case):
    """Or damping zero would be another algorithm than no damping."""
    u = DRIVES[case]
    found, expected = Softmax().prox(u, 0.0), Softmax().f(u)
    scale = 1 + (u - u.amax(1, keepdim=True)).abs()
    assert bool(((found - expected).abs() <= 16 * EPS * scale * expected).all())


@each_drive
@pytest.mark.parametrize("scale", SCALES)
def test_prox_is_optimal_on_the_simplex(case, scale):
    """A solver that stops early, or at another point, would make damped and nudged states plausible
    and wrong."""
    u = DRIVES[case]
    s = Softmax().prox(u, scale)
    assert_on_simplex(s)
    assert gap(s, u, scale) <= 64 * EPS  # 1.4e-14


@pytest.mark.parametrize("scale", SCALES)
def test_prox_is_good_in_single_precision_too(scale):
    """A tolerance meant for float64 would spin to the step limit, or a loose one would leave δ in
    the noise."""
    for case in ("ordinary", "wide", "extreme", "many units"):
        u = DRIVES[case].float()
        s, expected = Softmax().prox(u, scale), Softmax().prox(u.double(), scale)
        assert s.dtype == torch.float32
        assert_on_simplex(s)
        assert gap(s, u, scale) <= 64 * torch.finfo(torch.float32).eps
        # The problem is strongly convex with modulus 2 + c on the simplex, so an error in u moves s
        # by no more than itself.
        allowed = 64 * torch.finfo(torch.float32).eps * (1 + (u - u.amax(1, keepdim=True)).abs().clamp(max=50) + abs(scale))
        assert bool(((s.double() - expected).abs() <= allowed).all()), case


def searched(objective, shape):
    """argmin over the simplex by L-BFGS over logits, and the norm of the slope that is left."""
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [logits], lr=1, max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        value = objective(logits.softmax(1)).sum()
        value.backward()
        return value

    search.step(closure)
    return logits.detach().softmax(1), float(logits.grad.norm())


@pytest.mark.parametrize("scale", [-0.9, -0.4, 0.0, 2.0, 9.0])
def test_prox_is_what_a_search_finds_that_knows_only_the_potential(scale):
    """Optimality conditions that share the solver's mistake would be met at a wrong point."""
    u = 2 * normal(4, 5, seed=6)

    def objective(s):
        return (Softmax().potential(s) + scale / 2 * s * s - s * u).sum(1)

    expected, slope = searched(objective, u.shape)
    assert slope < 1e-6, "the search did not converge, so it proves nothing"
    torch.testing.assert_close(Softmax().prox(u, scale), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [-0.49, -0.2, 0.0, 0.5, 4.0])
def test_two_units_are_one_coin(scale):
    """On s = (p, 1-p) the problem is the sigmoid's, G(p) + c p² - p (u₁ - u₂ + c): a closed form by
    another solver."""
    u = DRIVES["two units"]
    p = Sigmoid().prox(u[:, 0] - u[:, 1] + scale, 2 * scale)
    torch.testing.assert_close(Softmax().prox(u, scale), torch.stack([p, 1 - p], 1), rtol=0, atol=1e-14)


def test_the_potential_and_logsumexp_are_a_fenchel_pair():
    """G(s) + log Σ exp a = s·a exactly at s = softmax(a), and more elsewhere: or the dyads would
    minimise another energy."""
    a = DRIVES["wide"]
    s = Softmax().f(a)
    torch.testing.assert_close(Softmax().potential(s).sum(1) + a.logsumexp(1), (s * a).sum(1), rtol=0, atol=1e-13)
    other = normal(*a.shape, seed=8).softmax(1)
    assert bool((Softmax().potential(other).sum(1) + a.logsumexp(1) > (other * a).sum(1) + 1e-6).all())


def test_the_potential_is_per_unit_and_infinite_outside_its_range():
    """0 log 0 = 0 at the corners, where a NaN would spread over the energy."""
    found = Softmax().potential(torch.tensor([0.0, 0.5, 1.0, -1e-6, 1 + 1e-6], dtype=torch.float64))
    assert found.tolist() == [0.0, 0.5 * math.log(0.5), 0.0, math.inf, math.inf]


def test_the_derivative_is_the_diagonal_of_autograds_jacobian():
    """It is documented as no more than that."""
    a = normal(3, 4)
    jacobian = torch.autograd.functional.jacobian(Softmax().f, a)
    diagonal = torch.einsum("nknk->nk", jacobian)
    torch.testing.assert_close(Softmax().derivative(a), diagonal, rtol=16 * EPS, atol=16 * EPS)


def test_the_prox_of_an_example_does_not_depend_on_the_others():
    """Brackets and stopping are shared code over the batch; a shared μ would couple the
    examples."""
    u = torch.cat([DRIVES["ordinary"], DRIVES["wide"], DRIVES["extreme"]])
    for call in (lambda v: Softmax().prox(v, -0.7), lambda v: Softmax().nudged(v, 0.3 * torch.ones_like(v))):
        together = call(u)
        for i in range(len(u)):
            torch.testing.assert_close(together[i : i + 1], call(u[i : i + 1]), rtol=1e-12, atol=0)


def test_prox_takes_one_scale_per_unit():
    """argmin Σ s log s + Σ c s²/2 - s·u, each unit by its own c."""
    u, scale = DRIVES["ordinary"], torch.tensor([0.0, 0.5, 3.0, -0.5, 10.0], dtype=torch.float64)
    s = Softmax().prox(u, scale)
    level = s.log() + scale * s - u
    torch.testing.assert_close(level, level[:, :1].expand_as(level), rtol=0, atol=1e-13)


def test_what_is_not_a_number_stays_so_in_its_example_alone():
    """Numerical trouble is a status: no loop without end, and no good example spoilt. A drive of
    -inf is a unit that is off."""
    u = torch.tensor([[math.nan, 1.0], [2.0, 3.0], [-math.inf, 1.0]], dtype=torch.float64)
    s = Softmax().prox(u, 1.0)
    assert bool(s[0].isnan().all())
    torch.testing.assert_close(s[1:2], Softmax().prox(u[1:2], 1.0))
    assert s[2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dim", [0, None, 1.5])
def test_a_softmax_that_couples_examples_or_has_no_dim_is_refused(dim):
    """PyTorch guesses a dim of None, and 0 is the batch."""
    with pytest.raises(dp.SettingError, match=r"dim of a Softmax.*Use nn\.Softmax\(dim=1\)"):
        Softmax(dim)
    network = dp.Network.from_module(nn.Sequential(nn.Linear(5, 4), nn.Softmax(dim)))
    assert network.is_recorded  # its softmax is then left to exact derivatives
    assert re.search(r"'1'.*Use nn\.Softmax\(dim=1\)", network.obstacle)
    assert "\n" not in network.obstacle


@pytest.mark.parametrize("dim", [2, -2, -3])
def test_a_dim_that_is_the_examples_or_that_a_state_does_not_have_is_refused_when_the_state_is_known(dim):
    """Over (N, K), dim -2 is the batch: the examples would compete for probability."""
    for call in (Softmax(dim).f, lambda a: Softmax(dim).prox(a, 0.5)):
        with pytest.raises(dp.SettingError, match=rf"dim {dim} can't read a state of shape \(7, 5\)"):
            call(DRIVES["ordinary"])


# The log loss


@pytest.mark.parametrize("kind", TARGETS)
def test_the_log_loss_and_its_gradient_are_autograds(kind):
    """The output's nudge is this gradient: a wrong one teaches every layer the wrong thing."""
    s = normal(7, 5).softmax(1).requires_grad_()
    y = TARGETS[kind](7, 5)
    target = y if y.is_floating_point() else F.one_hot(y, 5).double()
    value = LogLoss().value(s, y)
    torch.testing.assert_close(value, -(target * s.log()).sum(1), rtol=8 * EPS, atol=8 * EPS)
    (expected,) = torch.autograd.grad(-(target * s.log()).sum(), s)
    torch.testing.assert_close(LogLoss().gradient(s.detach(), y), expected, rtol=8 * EPS, atol=8 * EPS)
    (differentiated,) = torch.autograd.grad(value.sum(), s)
    torch.testing.assert_close(differentiated, expected, rtol=8 * EPS, atol=8 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_probability_of_zero_costs_much_and_nothing_becomes_infinite(dtype):
    """softmax underflows at a gap of 104 in float32; the value, the gradient and autograd's must
    still agree."""
    s, y = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True), torch.tensor([0])
    value, tiny = LogLoss().value(s, y), torch.finfo(dtype).tiny
    assert float(value.detach()) == pytest.approx(-math.log(tiny), rel=1e-6)
    (found,) = torch.autograd.grad(value.sum(), s)
    assert torch.equal(found, LogLoss().gradient(s.detach(), y))
    assert bool(found.isfinite().all())


def test_the_log_loss_of_a_softmax_is_the_cross_entropy_of_its_logits():
    """Two names for one objective: training by either must report the same numbers."""
    a, y = DRIVES["ordinary"], torch.arange(7) % 5
    torch.testing.assert_close(LogLoss().value(a.softmax(1), y), CrossEntropy().value(a, y), rtol=1e-13, atol=1e-13)


STRENGTHS = [1e-6, 0.1, 1.0, 10.0]


@each_drive
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_exact_log_loss_nudge_is_optimal_on_the_simplex(case, kind, strength):
    """log s - c y/s - a must be the same for every unit; a wrong sign of c would push the right
    class down."""
    a = DRIVES[case]
    y = TARGETS[kind](*a.shape)
    target = y if y.is_floating_point() else F.one_hot(y, a.shape[1]).double()
    s = LogLoss().nudge(Softmax(), a, y, strength)
    assert_on_simplex(s)
    assert gap(s, a, 0.0, strength * target) <= 64 * EPS
    assert bool((LogLoss().value(s, y) <= LogLoss().value(Softmax().f(a), y) + 1e-12).all()), "uphill"
    single = LogLoss().nudge(Softmax(), a.float(), y, strength)
    assert single.dtype == torch.float32
    assert gap(single, a.float(), 0.0, strength * target.float()) <= 256 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("strength", [0.2, 3.0])
def test_the_exact_log_loss_nudge_is_what_a_search_finds(kind, strength):
    """As for prox: by a solver that knows only the potential and the loss."""
    a, y = 2 * normal(4, 5, seed=6), TARGETS[kind](4, 5)
    expected, slope = searched(lambda s: (Softmax().potential(s) - s * a).sum(1) + strength * LogLoss().value(s, y), a.shape)
    assert slope < 1e-6, "the search did not converge, so it proves nothing"
    torch.testing.assert_close(LogLoss().nudge(Softmax(), a, y, strength), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [-0.9, -0.3, 0.4, 5.0])
def test_the_exact_squared_error_nudge_is_what_a_search_finds(strength):
    """It goes through prox, where ‖s - y‖² must not lose its cross term."""
    a, y = 2 * normal(4, 5, seed=6), torch.arange(4)
    expected, slope = searched(
        lambda s: (Softmax().potential(s) - s * a).sum(1) + strength * SquaredError().value(s, y), a.shape
    )
    assert slope < 1e-6, "the search did not converge, so it proves nothing"
    torch.testing.assert_close(SquaredError().nudge(Softmax(), a, y, strength), expected, rtol=0, atol=1e-5)


def test_a_log_loss_nudge_of_zero_is_the_free_state_and_uphill_there_is_none():
    """Uphill the loss falls to minus infinity as the right class vanishes."""
    a, y = DRIVES["ordinary"], torch.arange(7) % 5
    for zero in (0.0, -0.0):
        assert torch.equal(LogLoss().nudge(Softmax(), a, y, zero), Softmax().f(a))
    with pytest.raises(dp.SettingError, match=r"no argmin uphill.*output_nudge='linearized'"):
        LogLoss().nudge(Softmax(), a, y, -0.1)


@pytest.mark.parametrize(("coupling", "free"), [("original", 1.0), ("transposed", 0.0)])
def test_the_exact_log_loss_nudge_is_allowed_exactly_where_the_uphill_state_is_free(coupling, free):
    """A share of 0 is well posed at any β; any other is not, and no smaller β would help."""
    settings = {"coupling": coupling, "loss": "log_loss", "output_nudge": "exact"}
    for beta in (1e-3, 100.0):
        dp.DualPropagation(alpha=free, beta=beta, **settings)
    for alpha in (abs(free - 1e-9), 0.5, 1 - free):
        with pytest.raises(dp.SettingError, match=rf"beta = 0, got .*Use alpha={free:g}, or use output_nudge='linearized'"):
            dp.DualPropagation(alpha=alpha, beta=1e-3, **settings)


def test_the_log_loss_is_found_by_name():
    """Recipes and the command line go by it."""
    assert dp.losses.from_name("log_loss") == LogLoss()
    assert dp.DualPropagation(loss="log_loss").loss == LogLoss()
    assert dp.neurons.from_name("softmax") == Softmax(1)
    assert dp.neurons.module("softmax").dim == 1


@pytest.mark.parametrize("neuron", [Identity(), ReLU(), Sigmoid()], ids=repr)
def test_an_exact_log_loss_nudge_is_refused_on_an_output_that_is_no_softmax(neuron):
    """The solver works on the simplex; elsewhere it would solve another problem."""
    with pytest.raises(dp.SettingError, match=r"takes probabilities.*End the model with nn\.Softmax\(dim=1\)"):
        LogLoss().nudge(neuron, DRIVES["ordinary"], torch.arange(7) % 5, 0.5)


# Networks


def network(hidden="tanh", seed=0, depth=2, gain=1.0):
    """Linear layers with an activation after each; the last is a softmax."""

    def make():
        layers = []
        for k in range(depth):
            layers += [nn.Linear(5 if k == 0 else 6, 6), dp.neurons.module(hidden)]
        return nn.Sequential(*layers, nn.Linear(6, 4), nn.Softmax(1))

    model = drawn(make, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= gain
    return model


def exact(model, x, y, loss):
    """Autograd's gradient; that of the log loss by PyTorch's own cross-entropy of the logits."""
    if loss == "log_loss":
        value = F.cross_entropy(model[:-1](x), y)
    else:
        value = (model(x) - F.one_hot(y, 4)).square().sum() / (2 * len(x))
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))


def gradients(model, x, y, **settings):
    return dp.DualPropagation(**settings).gradients(dp.Network.from_module(model), x, y).gradients


def exact_is_allowed(loss, coupling, alpha):
    return loss != "log_loss" or alpha == (1.0 if coupling == "original" else 0.0)


COUPLINGS = ["original", "transposed"]
ALPHAS = [0.0, 0.3, 0.5, 1.0]
SETTINGS = [
    {"loss": loss, "coupling": coupling, "alpha": alpha, "output_nudge": nudge}
    for loss, coupling, alpha, nudge in itertools.product(
        ["log_loss", "squared_error"], COUPLINGS, ALPHAS, ["linearized", "exact"]
    )
    if nudge == "linearized" or exact_is_allowed(loss, coupling, alpha)
]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))


@each_setting
@pytest.mark.parametrize("hidden", ["tanh", "softmax"])
def test_the_error_falls_as_beta_squared_at_one_half_and_as_beta_elsewhere(settings, hidden):
    """Towards the gradient of softmax cross-entropy itself. A nudge through the diagonal alone
    would not approach it at all."""
    model, (x, y) = network(hidden), batch()
    expected = exact(model, x, y, settings["loss"])
    beta = 1e-3
    coarse, fine = (gradients(model, x, y, beta=b, **settings) for b in (beta, beta / 2))
    wanted = 2 if settings["alpha"] == 0.5 else 1
    for name in expected:
        order = math.log2(distance(coarse[name], expected[name]) / distance(fine[name], expected[name]))
        assert distance(fine[name], expected[name]) < (1e-3 if wanted == 2 else 2e-2), name
        assert abs(order - wanted) < 0.15, f"{name}: order {order:.3f} instead of {wanted}"


@each_setting
@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("hidden", ["relu", "softmax"])
def test_at_a_beta_that_trains_the_gradients_point_back_propagations_way_and_states_stay_on_the_simplex(settings, beta, hidden):
    """Both engines' promise for every output that is allowed; a state off the simplex is no
    distribution."""
    model, (x, y) = network(hidden, gain=0.5), batch()
    view, rule = dp.Network.from_module(model), dp.DualPropagation(beta=beta, **settings)
    found, expected = rule.gradients(view, x, y), exact(model, x, y, settings["loss"])
    assert found.status.ok
    for name, gradient in found.gradients.items():
        assert cosine(gradient, expected[name]) > 0, name
    dyads = rule.infer(view, x, y)
    for k in (3, *((1, 2) if hidden == "softmax" else ())):
        assert_on_simplex(dyads.plus[k])
        assert_on_simplex(dyads.minus[k])
    value = rule.loss.value
    assert bool((value(dyads.plus[3], y) < value(dyads.minus[3], y)).all()), "s⁺ is the downhill state"


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("hidden", ["tanh", "softmax"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("beta", [1e-2, 0.5])
def test_fused_is_explicit_for_transposed_dp_at_alpha_zero_and_one(loss, hidden, alpha, beta):
    """One downward sweep at the forward states: any gap is a defect of one of the engines."""
    model, (x, y) = network(hidden), batch()
    settings = {"coupling": "transposed", "alpha": alpha, "beta": beta, "loss": loss}
    expected = gradients(model, x, y, **settings)
    assert_same(gradients(model, x, y, engine="fused", **settings), expected, rounding(beta))
    dyadic = dp.dualize(model, coupling="transposed", alpha=alpha, beta=beta)
    named = dict(dyadic.named_parameters())
    value = dp.losses.from_name(loss).value(dyadic(x), y).mean()
    found = dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))
    assert_same(found, expected, rounding(beta))


class Weighting(nn.Module):
    """A softmax over the last of three dimensions, between values that it weighs."""

    def __init__(self):
        super().__init__()
        self.score, self.value, self.last, self.softmax = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2), nn.Softmax(-1)

    def forward(self, x):
        return self.last(self.softmax(self.score(x)) * self.value(x)).mean(1)


@pytest.mark.parametrize(("alpha", "bound"), [(0.5, 1e-6), (0.0, 1e-2), (1.0, 1e-2)])
def test_dualize_converts_a_softmax_module_along_its_own_dim(alpha, bound):
    """Along another dim, or unit by unit, the limit of small β would not be autograd's gradient."""
    model, x, y = drawn(Weighting), normal(6, 5, 4), torch.arange(6) % 2
    expected = autograd_gradients(model, x, y)
    dp.dualize(model, alpha=alpha, beta=1e-3, coupling="transposed")
    assert [event.neuron for event in dp.describe(model, x).events] == ["Softmax"]
    F.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected[name]) < bound, name


def matches_transcription(model, rule, x, y):
    view = dp.Network.from_module(model)
    steps = list(rule.schedule.steps(view.depth, torch.Generator().manual_seed(0)))
    plus, minus, expected = transcribe(view, rule, x, y, steps)
    dyads, found = rule.infer(view, x, y), rule.gradients(view, x, y).gradients
    # Each softmax shrinks δ by its slopes, which here are far below ½; its rounding stays.
    tolerance = rounding(rule.beta, terms=1e4)
    assert_same(numbered(dyads.plus, "plus"), numbered(plus, "plus"), tolerance)
    assert_same(numbered(dyads.minus, "minus"), numbered(minus, "minus"), tolerance)
    assert_same(found, expected, tolerance)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("hidden", ["tanh", "softmax"])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize(
    "more", [{}, {"damping": (0.5, 2.0)}, {"start": "zeros", "schedule": "synchronous(7)"}, {"schedule": "3,1,2,3,2"}], ids=str
)
def test_states_and_gradients_are_those_of_the_slow_transcription(coupling, alpha, hidden, loss, more):
    """Reuse and free means must hold for units that are coupled too."""
    settings = {"schedule": "up_down(2)", "beta": 0.3} | more
    rule = dp.DualPropagation(coupling=coupling, alpha=alpha, loss=loss, **settings)
    matches_transcription(network(hidden, gain=0.5), rule, *batch())


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", ["alternating_sweeps(1)", "odd_even(2)"])
def test_large_softmax_layers_are_not_walked_in_pieces(coupling, alpha, schedule, monkeypatch):
    """A piece that ends in the middle of an example would be a distribution of its own."""
    monkeypatch.setattr(kernels, "PIECE", 5)
    rule = dp.DualPropagation(coupling=coupling, alpha=alpha, loss="squared_error", schedule=schedule)
    model, (x, y) = network("softmax"), batch()
    matches_transcription(model, rule, x, y)
    if coupling == "transposed" and alpha in (0.0, 1.0) and schedule == "alternating_sweeps(1)":
        settings = {"coupling": coupling, "alpha": alpha, "loss": "squared_error", "beta": 1.0}
        assert_same(gradients(model, x, y, engine="fused", **settings), gradients(model, x, y, **settings), rounding(1.0))


@pytest.mark.parametrize("output_nudge", ["linearized", "exact"])
def test_a_softmax_output_learns_by_the_log_loss(output_nudge):
    """The whole promise: an optimizer that steps with these gradients lowers the loss."""
    model, (x, y) = network("relu"), batch(n=32)
    rule = dp.DualPropagation(coupling="transposed", alpha=0.0, beta=0.1, loss="log_loss", output_nudge=output_nudge)
    view, optimizer = dp.Network.from_module(model), torch.optim.Adam(model.parameters(), lr=0.03)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(float(rule.backward(view, x, y).loss))
        optimizer.step()
    assert values[-1] < 0.8 * values[0], values
