"""What the papers prove of the relaxations, at global optima of random convex problems; and what is
left of it in layers."""

import math

import pytest
import torch
from comparison import distance
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ACTIVATIONS, batch, drawn, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop import objectives

N, D, K = 3, 5, 2  # examples, units, and the last of them, which the loss sees


def random_energy(kind, seed):
    """(energy, its parameters, a start, a bound m on its curvature from below: ∇²E ≥ m)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "hopfield":
        return random_hopfield(seed, normal(N, 3))
    root, b, c = normal(D, D) / 2, normal(N, D).requires_grad_(), normal(4, D).requires_grad_()
    a = (torch.eye(D) + root @ root.T).requires_grad_()

    def energy(s):
        value = (s @ ((a + a.T) / 2) * s).sum(1) / 2 - (b * s).sum(1)
        if kind == "quadratic":
            return value
        drive = s @ c.T
        return value + torch.logaddexp(drive, -drive if kind == "log-cosh" else torch.zeros_like(drive)).sum(1)

    return energy, [a, b] if kind == "quadratic" else [a, b, c], torch.zeros(N, D, dtype=torch.float64), 1.0


def random_hopfield(seed, x):
    """A tanh network with weights so small that Σ E_k is strongly convex: two of norm 0.3 meet in a
    layer."""
    model = mlp("tanh", widths=(3, 4, 3, K), seed=seed)
    for linear in model[::2]:
        linear.weight.data *= 0.3 / torch.linalg.matrix_norm(linear.weight.data, 2)
    model[0].weight.data *= 5  # reads the input: no part of the curvature
    network = dp.Network.from_module(model)

    def energy(s):
        return objectives.hopfield(network, [x, *s.split([4, 3, K], dim=1)])

    return energy, list(network.parameters.values()), torch.zeros(N, 4 + 3 + K, dtype=torch.float64), 0.4


def random_loss(name, seed):
    """A loss ≥ 0 of the last K units, of curvature at most 1."""
    generator = torch.Generator().manual_seed(500 + seed)
    if name == "cross-entropy":
        y = torch.randint(K, (N,), generator=generator)
        return lambda s: F.cross_entropy(s[:, -K:], y, reduction="none")
    y = torch.randn(N, K, generator=generator, dtype=torch.float64)
    return lambda s: (s[:, -K:] - y).square().sum(1) / 2


KINDS = ["quadratic", "softplus", "log-cosh", "hopfield"]
LOSSES = ["squared error", "cross-entropy"]
problems = st.builds(
    lambda kind, loss, seed: (random_loss(loss, seed), *random_energy(kind, seed)),
    st.sampled_from(KINDS),
    st.sampled_from(LOSSES),
    st.integers(0, 30),
)
shares = st.floats(0, 1, width=32, allow_subnormal=False)  # settings are what float32 holds
strengths = st.floats(0.02, 0.95)  # of m, so that even the whole of β leaves the uphill problem concave


def value(problem, alpha, beta, solve=objectives.arovr):
    loss, energy, _, start, _ = problem
    return solve(loss, energy, alpha, beta, start).value.detach()


def assert_at_most(lesser, greater, beta):
    """Up to the rounding of E/β."""
    lesser, greater = lesser.detach(), greater.detach()
    excess = float((lesser - greater).max())
    assert excess <= 1e-13 * (1 + float(greater.abs().max())) / beta, f"greater by {excess:.3g}"


@settings(max_examples=40)
@given(problem=problems, alphas=st.tuples(shares, shares), strength=strengths)
def test_the_relaxation_falls_with_alpha(problem, alphas, strength):
    """Proposition 4.1 (a): α from 0 (adversarial) to 1 (optimistic). Shares swapped anywhere turn
    it round."""
    beta, (less, more) = strength * problem[-1], sorted(alphas)
    low, high = value(problem, more, beta), value(problem, less, beta)
    assert_at_most(low, high, beta)
    if more - less > 0.1 and strength > 0.1:
        assert bool((low < high).all()), "α has no effect"


@settings(max_examples=40)
@given(problem=problems, alpha=shares, pair=st.tuples(strengths, strengths))
def test_beta_times_the_relaxation_grows_with_beta(problem, alpha, pair):
    """Proposition 4.1 (b), for losses ≥ 0; J alone need not grow."""
    less, more = (strength * problem[-1] for strength in sorted(pair))
    assert_at_most(less * value(problem, alpha, less), more * value(problem, alpha, more), 1.0)


@settings(max_examples=30)
@given(problem=problems, alpha=st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1e-9]), shares), strength=strengths)
def test_the_averaged_and_the_saddle_point_relaxation_are_one(problem, alpha, strength):
    """E* cancels, also in the limits, where one bracket is absent: a wrong limit divides by zero or
    counts E* once."""
    beta = strength * problem[-1]
    one, other = value(problem, alpha, beta), value(problem, alpha, beta, objectives.sprovr)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13 / beta)


@settings(max_examples=30)
@given(problem=problems, strength=strengths)
def test_the_loss_lies_between_the_relaxations_at_alpha_one_and_zero(problem, strength):
    """ROVR is a lower bound of what is to be minimised, its uphill twin an upper bound."""
    loss, energy, _, start, m = problem
    lower, upper = objectives.rovr(loss, energy, strength * m, start), objectives.arovr(loss, energy, 0.0, strength * m, start)
    known = loss(lower.free)
    assert_at_most(lower.value, known, strength * m)
    assert_at_most(known, upper.value, strength * m)
    assert torch.equal(lower.minus, lower.free)
    assert torch.equal(upper.plus, upper.free)
    assert bool((loss(lower.plus) < known).all())
    assert bool((loss(upper.minus) > known).all())


@settings(max_examples=25)
@given(problem=problems, alpha=shares, strength=strengths, scale=st.sampled_from([1e-3, 0.1, 2.0]), seed=st.integers(0, 99))
def test_no_other_states_are_better_for_the_saddle_point(problem, alpha, strength, scale, seed):
    """Both optima are global: a Newton iteration that stops early, or at another point, is beaten
    by some neighbour."""
    loss, energy, _, start, m = problem
    beta = strength * m
    found = objectives.sprovr(loss, energy, alpha, beta, start)
    noise = scale * torch.randn(20, *start.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        for step in noise:
            plus, minus = found.plus + step, found.minus + step
            for worse, better, sign in ((plus, found.plus, alpha), (minus, found.minus, alpha - 1)):
                difference = sign * beta * (loss(worse) - loss(better)) + energy(worse) - energy(better)
                # Infinite where a tanh unit leaves its range.
                assert bool((difference > -1e-13 * (1 + energy(better).abs())).all()), difference


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_first_order_of_the_relaxation_is_the_squared_gradient_in_the_metric_of_the_energy(kind, loss_name, alpha):
    """J = ℓ + (β/2)(1-2α) ∇ℓᵀ(∇²E)⁻¹∇ℓ + O(β²): the link to robustness. Any other coefficient
    leaves a remainder of order β."""
    loss, (energy, _, start, _) = random_loss(loss_name, 4), random_energy(kind, 4)
    free = objectives.rovr(loss, energy, 0.01, start).free.requires_grad_()
    (g,) = torch.autograd.grad(loss(free).sum(), free)
    hessian = torch.autograd.functional.hessian(lambda s: energy(s).sum(), free.detach())
    hessian = torch.stack([hessian[n, :, n, :] for n in range(N)])
    norm = (g * torch.linalg.solve(hessian, g.unsqueeze(2)).squeeze(2)).sum(1)
    remainders = []
    for beta in (0.02, 0.01):
        j = objectives.arovr(loss, energy, alpha, beta, start).value.detach()
        remainders.append(float((j - loss(free.detach()) - beta / 2 * (1 - 2 * alpha) * norm).norm()))
    order = math.log2(remainders[0] / remainders[1])
    assert abs(order - 2) < 0.1, f"order {order:.3f}, remainders {remainders}"


@settings(max_examples=16)
@given(
    problem=problems,
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    strength=strengths,
    solve=st.sampled_from(["arovr", "sprovr"]),
)
def test_the_envelope_gradient_is_the_finite_difference_of_the_optimum(problem, alpha, strength, solve):
    """(1/β)(∂E(s⁺) - ∂E(s⁻)) with the states held fixed is the whole derivative of J: what makes
    learning local."""
    loss, energy, parameters, start, m = problem
    beta, solve = strength * m, getattr(objectives, solve)
    found = solve(loss, energy, alpha, beta, start)
    assert not any(s.requires_grad for s in (found.plus, found.minus, found.free))
    gradients = torch.autograd.grad(found.value.sum(), parameters)
    contrast = (energy(found.plus) - energy(found.minus)).sum() / beta
    for gradient, expected in zip(gradients, torch.autograd.grad(contrast, parameters), strict=True):
        assert distance(gradient, expected) < 1e-9
    generator, size = torch.Generator().manual_seed(1), 1e-5
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * size * direction
        ends.append(float(solve(loss, energy, alpha, beta, start).value.detach().sum()))
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= sign * size * direction
    along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(along, rel=1e-5, abs=1e-6 / beta)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_envelope_gradient_is_autograd_through_the_solution_of_a_quadratic(alpha):
    """The derivative through s±(θ), by the linear equations that they solve, adds nothing."""
    energy, (a, b), start, _ = random_energy("quadratic", 11)
    loss, beta = random_loss("squared error", 11), 0.6
    found = torch.autograd.grad(objectives.arovr(loss, energy, alpha, beta, start).value.sum(), [a, b])

    zero = torch.zeros(N, D, dtype=torch.float64)
    pull = torch.func.grad(lambda s: -loss(s).sum())(zero)
    q = torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64))

    def solved(t):
        return torch.linalg.solve((a + a.T) / 2 + t * q, (b + t * pull).T).T

    plus, minus = solved(alpha * beta), solved(-(1 - alpha) * beta)
    j = alpha * loss(plus) + (1 - alpha) * loss(minus) + (energy(plus) - energy(minus)) / beta
    for gradient, expected in zip(found, torch.autograd.grad(j.sum(), [a, b]), strict=True):
        assert distance(gradient, expected) < 1e-11


@settings(max_examples=25)
@given(
    alpha=shares,
    strength=strengths,
    seed=st.integers(0, 20),
    case=st.sampled_from(
        [("identity", "squared_error", 1.0), ("identity", "cross_entropy", 2.0), ("tanh", "squared_error", 1.0)]
    ),
)
def test_a_network_of_one_layer_has_the_saddle_point_relaxation_for_its_dyadic_objective(alpha, strength, seed, case):
    """Two solvers, one objective: DP's closed-form output and Newton's method on the layer's
    energy."""
    (activation, loss_name, limit), (x, y) = case, batch(classes=3, n=N, seed=seed)
    beta = strength * limit
    model = drawn(lambda: nn.Sequential(nn.Linear(5, 3), ACTIVATIONS[activation]()), seed)
    network, loss = dp.Network.from_module(model), dp.losses.from_name(loss_name)
    rule = dp.DualPropagation(alpha=alpha, beta=beta, loss=loss, output_nudge="exact")
    found = objectives.sprovr(
        lambda s: loss.value(s, y),
        lambda s: objectives.layer_energy(network, 1, s, x),
        alpha, beta, torch.zeros(N, 3, dtype=torch.float64),
    )  # fmt: skip
    state = rule.infer(network, x, y)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(state.plus[1], found.plus, **tolerance)
    torch.testing.assert_close(state.minus[1], found.minus, **tolerance)
    torch.testing.assert_close(objectives.dyadic(network, state, y, loss, beta), found.value, rtol=1e-12, atol=1e-13 / beta)


@settings(max_examples=40)
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    alpha=shares,
    betas=st.tuples(*[st.floats(0.1, 3.0)] * 3, st.floats(0.1, 0.9)),
    order=st.permutations([1, 2, 3, 4]),
    seed=st.integers(0, 20),
    scale=st.sampled_from([1e-3, 0.3, 3.0]),
)
def test_an_updated_dyad_is_the_saddle_point_of_the_dyadic_objective_in_its_layer(activation, alpha, betas, order, seed, scale):
    """s⁺ the minimum and s⁻ the maximum, over the whole range and by ‖·‖²/2β_k at least: no
    neighbour may do better."""
    model, (x, y) = mlp(activation, seed=seed), batch(n=N, seed=seed)
    network = dp.Network.from_module(model)
    rule = dp.DualPropagation(alpha=alpha, beta=betas, loss="squared_error", output_nudge="exact", schedule=order)
    state, k = rule.infer(network, x, y), order[-1]
    noise = torch.randn(state.mean(k).shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def objective(plus, minus):
        means, differences = list(state.means), list(state.differences)
        means[k], differences[k] = alpha * plus + (1 - alpha) * minus, plus - minus
        with torch.no_grad():
            return objectives.dyadic(network, dp.Dyads(tuple(means), tuple(differences), alpha), y, "squared_error", betas)

    neuron = network.into(k).neuron
    # Mean and difference give a state at the end of the range back to within a rounding, which may
    # lie outside.
    plus, minus, f = state.plus[k].clamp(*neuron.reach), state.minus[k].clamp(*neuron.reach), neuron.f
    best, inside = objective(plus, minus), f if activation != "identity" else lambda s: s
    other_plus, other_minus = inside(plus + scale * noise), inside(minus + scale * noise)
    # E is 1-strongly convex; uphill a squared error takes ᾱ β_L of it.
    curvature = 1 - (1 - alpha) * betas[3] if k == 4 else 1.0
    for found, moved, far in (
        (objective(other_plus, minus) - best, other_plus - plus, 1.0),
        (best - objective(plus, other_minus), other_minus - minus, curvature),
    ):
        least = far * moved.square().sum(1) / (2 * betas[k - 1])
        assert bool((found >= least - 1e-11 * (1 + least)).all()), (found, least)


def converged(network, x, y, alpha, beta):
    """The dyads where inference has come to rest, and L_α there."""
    settings = {"alpha": alpha, "beta": beta, "loss": "squared_error", "output_nudge": "exact"}
    state = dp.DualPropagation(schedule="alternating_sweeps(60)", **settings).infer(network, x, y)
    with torch.no_grad():
        return state, objectives.dyadic(network, state, y, "squared_error", beta)


@settings(max_examples=12)
@given(
    activation=st.sampled_from(["tanh", "leaky_relu"]),
    alpha=st.floats(0.1, 0.9),
    beta=st.floats(0.1, 0.6),
    seed=st.integers(0, 20),
)
def test_along_a_branch_of_saddle_points_the_dyadic_objective_keeps_proposition_4_1(activation, alpha, beta, seed):
    """With linear synapses dJ/dα = ℓ⁺ - ℓ⁻ - Σ Δ_k·δ_k/β ≤ 0 and d(βJ)/dβ = α ℓ⁺ + ᾱ ℓ⁻ ≥ 0, as f
    is monotone and ℓ ≥ 0.

    The states move with α and β, and by the envelope theorem that counts for nothing: were an
    inferred state no saddle point, it would.
    """
    model, (x, y) = mlp(activation, widths=(5, 6, 5, 4), seed=seed), batch(n=N, seed=seed)
    network, loss, step = dp.Network.from_module(model), dp.losses.SquaredError(), 1e-4
    state, _ = converged(network, x, y, alpha, beta)
    up, down = loss.value(state.plus[3], y), loss.value(state.minus[3], y)
    with torch.no_grad():
        pulls = [(state.difference(k + 1) @ model[2 * k].weight * state.difference(k)).sum(1) for k in (1, 2)]
    assert all(bool((pull >= 0).all()) for pull in pulls)
    assert bool((up <= down).all())
    more, less = (converged(network, x, y, alpha + d, beta)[1] for d in (step, -step))
    torch.testing.assert_close((more - less) / (2 * step), up - down - sum(pulls) / beta, rtol=1e-5, atol=1e-6)
    more, less = ((beta + d) * converged(network, x, y, alpha, beta + d)[1] for d in (step, -step))
    torch.testing.assert_close((more - less) / (2 * step), alpha * up + (1 - alpha) * down, rtol=1e-5, atol=1e-6)
