"""The objectives against what they are said to be: the rule's gradients and updates, BP, and
numbers worked out by hand."""

import math

import pytest
import torch
from comparison import assert_same, rounding
from networks import ACTIVATIONS, autograd_gradients, batch, conv_net, drawn, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop import objectives
from dualprop.neurons import HardSigmoid, Identity, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh

MODELS = {
    "mlp": lambda activation: (mlp(activation), *batch()),
    "conv": lambda activation: (conv_net(activation, "none"), *images()),
    "pool before": lambda activation: (conv_net(activation, "before"), *images()),
    "pool after": lambda activation: (conv_net(activation, "after"), *images()),
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

# (α, β, nudge, loss): asymmetric, per layer, both nudges; exact ones within ᾱ β_L < 1 or 2.
SETTINGS = [
    (0.5, 1.0, "linearized", "cross_entropy"),
    (0.0, 0.5, "exact", "squared_error"),
    (0.3, (0.5, 2.0, 1.0, 0.3), "exact", "cross_entropy"),
    (1.0, (0.1, 0.4, 2.0, 1.5), "linearized", "squared_error"),
]


def derivative(values, tensors):
    """The gradient of the sum over the batch."""
    return torch.autograd.grad(values.sum(), list(tensors), retain_graph=True, materialize_grads=True, allow_unused=True)


def dyads_of(plus, minus, alpha):
    means = tuple(alpha * p + (1 - alpha) * m for p, m in zip(plus, minus, strict=True))
    return dp.Dyads(means, tuple(p - m for p, m in zip(plus, minus, strict=True)), alpha)


def two_layers():
    """The network of test_two_layer_example: x = (1, 2), a_1 = (1, 2), a_2 = (1, 3), target (2,
    1)."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    values = [[[1.0, 0.0], [1.0, 1.0]], [0.0, -1.0], [[1.0, 0.0], [0.5, 1.0]], [0.0, 0.5]]
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float64)
    return dp.Network.from_module(model)


X, TARGET = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[2.0, 1.0]]).double()


def assert_is(found, expected):
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_the_objectives_of_two_layers_are_the_numbers_worked_out_by_hand():
    """α ↔ ᾱ, a lost ½ or 1/β, a state in the place of its mean: each is another number here."""
    network = two_layers()
    s_1, s_2 = torch.tensor([[1.0, 4.0]]).double(), torch.tensor([[2.0, 2.0]]).double()
    # E_1 = (1 + 16)/2 - (1·1 + 4·2); a_2(s_1) = (1, 5), so E_2 = (4 + 4)/2 - (2·1 + 2·5).
    assert_is(objectives.layer_energy(network, 1, s_1, X), -0.5)
    assert_is(objectives.layer_energy(network, 2, s_2, s_1), -8.0)
    assert_is(objectives.hopfield(network, [X, s_1, s_2]), -8.5)
    # Gaps ½‖X - a‖² (all drives are positive): ½(0 + 4) and ½(1 + 9), the loss ½(0 + 1).
    assert_is(objectives.lifted(network, [X, s_1, s_2], TARGET, "squared_error", (0.5, 2.0)), 0.5 + 2 / 0.5 + 5 / 2)
    # α = ¼: s⁺ = (1, 4), s⁻ = (1, 0), s̄ = (1, 1), so a_2 = (1, 2); layer 2: s⁺ = (2, 2), s⁻ = (0,
    # 2).
    plus, minus = [X, s_1, s_2], [X, torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()]
    # Layer 1: 17/2 - 1/2 - 4·2 = 0. Layer 2: 4 - 2 - 2·1 = 0. Losses: ¼·½ + ¾·½(4 + 1).
    dyads = dyads_of(plus, minus, 0.25)
    assert_is(objectives.dyadic(network, dyads, TARGET, "squared_error", 0.5), 0.125 + 0.75 * 2.5)
    plus[1] = torch.tensor([[1.0, 8.0]]).double()
    # s̄_1 = (1, 2), a_2 = (1, 3). Layer 1: 65/2 - 1/2 - 8·2 = 16. Layer 2 as before: δ_2 = (2, 0)
    # does not read unit 2.
    assert_is(objectives.dyadic(network, dyads_of(plus, minus, 0.25), TARGET, "squared_error", (2.0, 4.0)), 2.0 + 16 / 2)
    # Linearised at p = (1, 1): g = (-1, 0), ℓ(p) = ½, s̄_2 = (½, 2): ½ - (½ - 1).
    linearized = objectives.dyadic(network, dyads, TARGET, "squared_error", 0.5, linearized_at=torch.ones(1, 2).double())
    assert_is(linearized, 1.0)


def test_the_lagrangian_of_two_sigmoid_units_is_the_number_worked_out_by_hand():
    """The inverse activation, the multiplier's sign and the layer below of each term."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 1)).double()
    for parameter, value in zip(model.parameters(), (2.0, 1.0, 3.0, -1.0), strict=True):
        parameter.data.fill_(value)
    means = [torch.tensor([[v]], dtype=torch.float64) for v in (1.0, 0.8, 2.0)]
    multipliers = [torch.tensor([[v]], dtype=torch.float64) for v in (5.0, -7.0)]
    found = objectives.lagrangian(
        dp.Network.from_module(model), means, multipliers, torch.zeros(1, 1).double(), "squared_error"
    )
    assert_is(found, 2.0 + 5 * (math.log(4) - 3) - 7 * (2 - 1.4))


CONJUGATES = [
    (Identity(), lambda a: a**2 / 2),
    (ReLU(), lambda a: a.clamp(min=0) ** 2 / 2),
    (LeakyReLU(0.2), lambda a: torch.where(a > 0, a**2, 0.2 * a**2) / 2),
    (HardSigmoid(), lambda a: torch.where(a > 1, a - 0.5, a.clamp(min=0) ** 2 / 2)),
    (Sigmoid(), lambda a: torch.logaddexp(a, torch.zeros_like(a))),
    (Tanh(), lambda a: a.cosh().log()),
]


@pytest.mark.parametrize(("neuron", "expected"), CONJUGATES, ids=[repr(neuron) for neuron, _ in CONJUGATES])
def test_the_conjugate_is_the_integral_of_the_activation_and_has_it_for_its_derivative(neuron, expected):
    """Autograd through a f(a) - G(f(a)) would be 0·∞ where tanh saturates; the second derivative is
    needed as well."""
    a = torch.tensor([-40.0, -3.0, -0.7, 0.3, 0.9, 2.0, 40.0], dtype=torch.float64, requires_grad=True)
    found = objectives.conjugate(neuron, a)
    torch.testing.assert_close(found, expected(a), rtol=1e-14, atol=1e-14)
    (first,) = torch.autograd.grad(found.sum(), a, create_graph=True)
    assert torch.equal(first, neuron.f(a))
    (second,) = torch.autograd.grad(first.sum(), a)
    torch.testing.assert_close(second, neuron.derivative(a), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("neuron", [Identity(), LeakyReLU(0.2), Sigmoid(), Tanh()], ids=repr)
def test_the_inverse_takes_a_state_back_to_its_drive(neuron):
    """A Lagrangian with another inverse would have another forward pass."""
    a = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(objectives.inverse(neuron, neuron.f(a)), a, rtol=1e-12, atol=1e-13)


@each_activation
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("alpha", "beta", "nudge", "loss"), SETTINGS)
def test_the_gradient_of_the_dyadic_objective_in_the_parameters_is_the_rules(activation, kind, alpha, beta, nudge, loss):
    """Were it not, the rule would learn something other than what its inference solves for."""
    model, x, y = MODELS[kind](activation)
    network = dp.Network.from_module(model)
    rule = dp.DualPropagation(alpha=alpha, beta=beta, output_nudge=nudge, loss=loss, schedule="alternating_sweeps(2)")
    out = rule.gradients(network, x, y)
    point = out.logits if nudge == "linearized" else None
    values = objectives.dyadic(network, out.state, y, loss, beta, linearized_at=point)
    assert values.shape == (len(x),)
    assert bool(torch.isfinite(values).all()), "a state at the end of its range counts as outside by rounding"
    parameters = network.parameters
    found = dict(zip(parameters, derivative(values / len(x), parameters.values()), strict=True))
    assert_same(found, {name: out.gradients[name] for name in parameters}, rounding(1.0))


def assert_stationary(network, dyads, y, loss, beta, layers, point=None):
    """L_α is stationary in both compartments of these layers: the gradient vanishes inside the
    range of the activation, and at its ends points out of it for s⁺, which descends, and into it
    for s⁻, which climbs. On a simplex it is the same for all units: the multiplier of Σ s = 1."""
    plus = [s.clone().requires_grad_() for s in dyads.plus]
    minus = [s.clone().requires_grad_() for s in dyads.minus]
    values = objectives.dyadic(network, dyads_of(plus, minus, dyads.alpha), y, loss, beta, linearized_at=point)
    for sign, states, name in ((1, plus, "+"), (-1, minus, "-")):
        for k, slope in zip(layers, derivative(values, [states[k] for k in layers]), strict=True):
            low, high = network.into(k).neuron.reach
            if isinstance(network.into(k).neuron, Softmax):
                slope = slope - slope.mean(1, keepdim=True)
            at_low, at_high = states[k] <= low + 1e-14, states[k] >= high - 1e-14
            # G' of a sigmoid or tanh unit near its ends magnifies the rounding of s.
            tolerance = 1e-10
            wrong = torch.where(at_low, (-sign * slope).clamp(min=0), slope.abs())
            wrong = torch.where(at_high, (sign * slope).clamp(min=0), wrong)
            assert float(wrong.max()) <= tolerance, f"layer {k}, s{name}: {float(wrong.max()):.3g}"
            assert bool((~at_low & ~at_high).any()), f"every unit of layer {k} sits at an end: nothing is tested"


@each_activation
@pytest.mark.parametrize(("alpha", "beta", "nudge", "loss"), SETTINGS)
@pytest.mark.parametrize("order", ["4", "4,3", "4,3,2", "4,3,2,1", "4,3,2,3", "4,3,1,2"])
def test_every_update_is_stationary_for_the_dyadic_objective_in_its_layer(activation, alpha, beta, nudge, loss, order):
    """Block coordinate descent-ascent on L_α is what DP's inference claims to be; a wrong share or
    ratio moves the optimum."""
    for kind in ("mlp", "conv"):
        model, x, y = MODELS[kind](activation)
        network = dp.Network.from_module(model)
        rule = dp.DualPropagation(alpha=alpha, beta=beta, output_nudge=nudge, loss=loss, schedule=order)
        out = rule.gradients(network, x, y)
        # Layer 4 is updated first, so the current output is the forward prediction.
        point = out.logits if nudge == "linearized" else None
        assert_stationary(network, out.state, y, loss, beta, [int(order[-1])], point)


@pytest.mark.parametrize("output", ["sigmoid", "tanh", "hard_sigmoid"])
@pytest.mark.parametrize(("nudge", "alpha"), [("exact", 0.3), ("linearized", 0.8)])
def test_a_nonlinear_output_is_stationary_for_its_own_potential(output, nudge, alpha):
    """The output's potential must enter the objective as every other layer's does."""
    model = drawn(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), ACTIVATIONS[output]()))
    (x, y), network = batch(), dp.Network.from_module(model)
    rule = dp.DualPropagation(alpha=alpha, beta=0.9, output_nudge=nudge, loss="squared_error", schedule=[2])
    out = rule.gradients(network, x, y)
    assert_stationary(network, out.state, y, "squared_error", 0.9, [2], out.logits if nudge == "linearized" else None)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "tanh", "leaky_relu"])
@pytest.mark.parametrize(("alpha", "beta", "nudge", "loss"), SETTINGS)
def test_a_converged_inference_is_stationary_in_all_layers_at_once(activation, alpha, beta, nudge, loss):
    """The fixed point of the sweeps is a saddle point of the whole objective, and not only of its
    last block."""
    model, (x, y) = mlp(activation), batch()
    network = dp.Network.from_module(model)
    # Undamped, α = 1 at β = 2 runs in circles; damping changes the way, not the fixed points.
    rule = dp.DualPropagation(
        alpha=alpha, beta=beta, output_nudge=nudge, loss=loss, schedule="alternating_sweeps(150)", damping=(2.0, 2.0, 2.0),
        linearize_at="current" if nudge == "linearized" else None,
    )  # fmt: skip
    state = rule.infer(network, x, y)
    point = network.into(4).synapse.forward(state.mean(3)).detach() if nudge == "linearized" else None
    assert_stationary(network, state, y, loss, beta, [1, 2, 3, 4], point)


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_at_alpha_one_half_the_objective_of_a_linear_network_is_the_lagrangian_but_for_the_curvature_of_the_loss(beta):
    """L_½(s̄, δ) = ½ℓ(s̄+δ/2) + ½ℓ(s̄-δ/2) + Σ δ·(s̄ - a)/β at any states: here the squared error's
    second order is ‖δ_L‖²/8."""
    model, (x, y) = mlp("identity"), batch()
    network, generator = dp.Network.from_module(model), torch.Generator().manual_seed(5)
    widths = (8, 7, 6, 4)
    means, deltas = ([torch.randn(len(x), w, generator=generator).double() for w in widths] for _ in range(2))
    dyads = dp.Dyads((x, *means), (None, *deltas), 0.5)
    found = objectives.dyadic(network, dyads, y, "squared_error", beta) - deltas[-1].square().sum(1) / 8
    expected = objectives.lagrangian(network, [x, *means], [d / beta for d in deltas], y, "squared_error")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_the_lagrangian_is_stationary_at_the_forward_pass_with_backprops_errors_and_gives_its_gradient(activation, loss):
    """Its signs decide whether multipliers are errors or their negatives, and so whether one
    descends or climbs."""
    model, (x, y) = mlp(activation), batch()
    network = dp.Network.from_module(model)
    means, drives = [x], []
    for k in range(1, network.depth + 1):
        drives.append(network.into(k).synapse.forward(means[-1]))
        means.append(network.into(k).neuron.f(drives[-1]))
    error = (
        F.cross_entropy
        if loss == "cross_entropy"
        else lambda s, y, reduction: F.mse_loss(s, F.one_hot(y), reduction=reduction) / 2
    )
    d = [-e for e in torch.autograd.grad(error(means[-1], y, reduction="sum"), drives)]
    means, d = [s.detach().requires_grad_() for s in means], [e.requires_grad_() for e in d]
    values = objectives.lagrangian(network, means, d, y, loss)
    slopes = derivative(values, [*means[1:], *d])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-13
    values = objectives.lagrangian(network, means, d, y, loss)
    found = derivative(values / len(x), network.parameters.values())
    assert_same(dict(zip(network.parameters, found, strict=True)), autograd_gradients(model, x, y, loss), 1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_dp_at_one_half_finds_the_lagrangians_stationary_point_on_linear_networks(loss):
    """Means are the forward pass and differences over -β BP's errors; this ties the two objectives
    to the rule."""
    model, (x, y), beta = mlp("identity"), batch(), 0.7
    network = dp.Network.from_module(model)
    state = dp.DualPropagation(beta=beta, loss=loss).infer(network, x, y)
    means = [s.detach().requires_grad_() for s in state.means]
    d = [(state.difference(k) / beta).requires_grad_() for k in range(1, 5)]
    slopes = derivative(objectives.lagrangian(network, means, d, y, loss), [*means[1:], *d])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-13


def forward_states(network, x):
    states = [x]
    for k in range(1, network.depth + 1):
        states.append(network.into(k).neuron.f(network.into(k).synapse.forward(states[-1])).detach())
    return states


@each_activation
@pytest.mark.parametrize("kind", MODELS)
def test_the_lifted_objective_is_the_loss_at_the_forward_pass_and_nowhere_below_the_loss_of_its_states(activation, kind):
    """A conjugate that is off by a constant or a factor opens a gap at the forward pass, or a
    negative one elsewhere."""
    model, x, y = MODELS[kind](activation)
    network = dp.Network.from_module(model)
    states = forward_states(network, x)
    expected = F.cross_entropy(states[-1], y, reduction="none")
    found = objectives.lifted(network, states, y, "cross_entropy", 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    generator = torch.Generator().manual_seed(3)
    for size in (0.1, 3.0):
        moved = [x, *(s + size * torch.randn(s.shape, generator=generator).double() for s in states[1:])]
        moved = [x, *(network.into(k).neuron.f(s) for k, s in enumerate(moved[1:], start=1))]
        with torch.no_grad():
            gap = objectives.lifted(network, moved, y, "cross_entropy", 1.0) - F.cross_entropy(moved[-1], y, reduction="none")
        assert float(gap.min()) > 1e-6, float(gap.min())


@each_activation
def test_the_lifted_gradient_in_the_weights_is_the_state_less_the_prediction_times_the_state_below(activation):
    """LPOM's learning rule, -(1/β_k)(X_k - f(a_k)) X_{k-1}ᵀ; the sign decides whether it learns or
    forgets."""
    model, (x, y), betas = mlp(activation), batch(), (0.5, 2.0, 1.0, 0.3)
    network, generator = dp.Network.from_module(model), torch.Generator().manual_seed(4)
    states = [x]
    for k, width in enumerate((8, 7, 6, 4), start=1):
        states.append(network.into(k).neuron.f(torch.randn(len(x), width, generator=generator).double()))
    parameters = network.parameters
    values = objectives.lifted(network, states, y, "cross_entropy", betas)
    found = dict(zip(parameters, derivative(values, parameters.values()), strict=True))
    expected = {}
    for k, (name, beta) in enumerate(zip((0, 2, 4, 6), betas, strict=True), start=1):
        error = -(states[k] - network.into(k).neuron.f(network.into(k).synapse.forward(states[k - 1]))).detach() / beta
        expected |= {f"{name}.weight": error.T @ states[k - 1], f"{name}.bias": error.sum(0)}
    assert_same(found, expected, 1e-12)


@each_activation
def test_the_layer_energy_is_least_at_the_activation(activation):
    """f(a) = argmin E_k: the sign of the coupling s·a."""
    model, (x, _) = mlp(activation), batch()
    network, generator = dp.Network.from_module(model), torch.Generator().manual_seed(2)
    s = forward_states(network, x)[1]
    least = objectives.layer_energy(network, 1, s, x)
    for size in (1e-3, 0.5):
        other = network.into(1).neuron.f(s + size * torch.randn(s.shape, generator=generator).double())
        assert bool((objectives.layer_energy(network, 1, other, x) >= least).all())


def test_a_state_beyond_the_range_of_its_activation_is_infinite_and_one_beyond_by_rounding_is_not():
    """s⁺ = s̄ + ᾱ δ of a silent ReLU is often -1e-17: an infinite objective there would hide every
    value."""
    network, s_2 = two_layers(), torch.zeros(1, 2).double()

    def at(s):
        dyads = dp.Dyads(
            (X, torch.tensor([[s, 1.0]], dtype=torch.float64), s_2), (None, torch.tensor([[1.0, 0.0]]).double(), s_2), 0.5
        )
        with torch.no_grad():
            return float(objectives.dyadic(network, dyads, TARGET, "squared_error", 1.0))

    assert math.isinf(at(0.4))  # s⁻ = -0.1
    assert at(0.5 - 1e-16) == pytest.approx(at(0.5), abs=1e-14)
    assert bool(objectives.layer_energy(network, 1, torch.tensor([[-0.1, 1.0]]).double(), X).isinf())


def quadratic(matrix, centre):
    return lambda s: ((s - centre) @ matrix * (s - centre)).sum(1) / 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_relaxations_of_quadratics_are_the_solutions_of_their_linear_equations(alpha, beta):
    """E = ½(s-m)ᵀA(s-m), ℓ = ½(s-y)ᵀQ(s-y): (A ± tQ) s = A m ± t Q y with t = αβ, ᾱβ, and J from
    its definition."""
    generator = torch.Generator().manual_seed(7)
    root, other = (torch.randn(4, 4, generator=generator).double() for _ in range(2))
    a, q = root @ root.T / 4 + torch.eye(4), other @ other.T / 10
    m, y = (torch.randn(3, 4, generator=generator).double() for _ in range(2))
    assert (1 - alpha) * beta * float(torch.linalg.eigvals(torch.linalg.solve(a, q)).real.max()) < 1, "not concave"

    def solved(t):
        return torch.linalg.solve(a + t * q, (m @ a + t * (y @ q)).unsqueeze(2)).squeeze(2)

    energy, loss, plus, minus = quadratic(a, m), quadratic(q, y), solved(alpha * beta), solved(-(1 - alpha) * beta)
    # E* = 0, so J = α ℓ⁺ + E⁺/β + ᾱ ℓ⁻ - E⁻/β; the absent term's state is m and its energy 0.
    expected = alpha * loss(plus) + (1 - alpha) * loss(minus) + (energy(plus) - energy(minus)) / beta
    for found in (
        objectives.arovr(loss, energy, alpha, beta, torch.zeros(3, 4).double()),
        objectives.sprovr(loss, energy, alpha, beta, torch.zeros(3, 4).double()),
    ):
        for state, wanted in ((found.plus, plus), (found.minus, minus), (found.free, m), (found.value, expected)):
            torch.testing.assert_close(state, wanted, rtol=1e-11, atol=1e-11)
    if alpha == 1:
        found = objectives.rovr(loss, energy, beta, torch.zeros(3, 4).double())
        torch.testing.assert_close(found.value, expected, rtol=1e-11, atol=1e-11)


def test_one_unit_relaxed_is_the_fraction_worked_out_by_hand():
    """E = (s-1)²/2, ℓ = s²/2, α = ½, β = 1: s⁺ = 1/(1+½) = ⅔, s⁻ = 2; J = ½·(2/9) + ½·2 + 1/18 - ½
    = ⅔."""
    found = objectives.arovr(lambda s: s[:, 0] ** 2 / 2, lambda s: (s[:, 0] - 1) ** 2 / 2, 0.5, 1.0, torch.zeros(1, 1).double())
    assert_is(found.plus, [2 / 3])
    assert_is(found.minus, [2.0])
    assert_is(found.value, 2 / 3)


def half_square(s):
    return s.square().sum(1) / 2


START = torch.ones(2, 3, dtype=torch.float64)
REFUSED = {
    "uphill": (
        lambda: objectives.arovr(half_square, half_square, 0.2, 1.3, START),
        "uphill problem is not strictly concave.*Lower beta, or",
    ),
    "energy": (
        lambda: objectives.rovr(half_square, lambda s: -half_square(s), 1.0, START),
        "energy is not strictly convex for 2 of 2",
    ),
    "downhill": (
        lambda: objectives.rovr(lambda s: -half_square(s), half_square, 2.0, START),
        "downhill problem is not strictly convex",
    ),
    "kinks": (
        lambda: objectives.rovr(half_square, lambda s: half_square(s) + (s - 0.3).abs().sum(1), 1.0, START),
        "did not converge in 100 Newton steps",
    ),
    "alpha": (lambda: objectives.arovr(half_square, half_square, 1.5, 1.0, START), r"alpha must be in \[0, 1\], got 1.5"),
    "beta": (
        lambda: objectives.sprovr(half_square, half_square, 0.5, -1.0, START),
        "beta must be positive and finite, got -1",
    ),
    "start": (lambda: objectives.rovr(half_square, half_square, 1.0, START[0]), r"shape \(N, D\), got torch.float64 of \(3,\)"),
    "ReLU": (
        lambda: objectives.lagrangian(two_layers(), [X, X, X], [X, X], TARGET, "squared_error"),
        "ReLU has no inverse.*Use LeakyReLU",
    ),
    "layer": (lambda: objectives.layer_energy(two_layers(), 3, X, X), "layers 1 to 2, got 3"),
    "state": (lambda: objectives.layer_energy(two_layers(), 1, X[:, :1], X), r"layer 1 must have shape \(1, 2\), got \(1, 1\)"),
    "states": (lambda: objectives.hopfield(two_layers(), [X, X]), "must hold 3 tensors, s_0…s_L, got 2"),
    "betas": (
        lambda: objectives.lifted(two_layers(), [X] * 3, TARGET, "squared_error", (1.0,) * 3),
        "beta lists 3 values.*2 layers",
    ),
    "loss": (lambda: objectives.lifted(two_layers(), [X] * 3, TARGET, "squared", 1.0), "unknown loss 'squared'. Did you mean"),
    "targets": (lambda: objectives.lifted(two_layers(), [X] * 3, TARGET[0], "squared_error", 1.0), "one target per example"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_value_is_refused_with_the_remedy(name):
    """A saddle that is no saddle, or a broadcast target, gives a plausible number otherwise."""
    call, message = REFUSED[name]
    with pytest.raises(dp.SettingError, match=message):
        call()


def test_the_uphill_problem_is_refused_exactly_from_the_limit_of_beta_on():
    """E = ‖s‖²/2 = ℓ: concave for ᾱβ < 1; at α = 1 for every β."""
    objectives.arovr(half_square, half_square, 0.5, 1.99, START)
    objectives.arovr(half_square, half_square, 1.0, 100.0, START)
    with pytest.raises(dp.SettingError, match="move alpha towards 1"):
        objectives.arovr(half_square, half_square, 0.5, 2.01, START)
