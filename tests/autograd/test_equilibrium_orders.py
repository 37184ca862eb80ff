"""What equilibrium propagation tends to as β → 0, and how fast: BP on predictive coding, else the
implicit gradient."""

import pytest
import torch
from comparison import assert_same, cosine, distance, report
from networks import autograd_gradients, batch, conv_net, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp

ESTIMATORS = ["centered", "forward", "backward", "random_sign"]
# Where β is halved the error falls by 2 to the order.
ORDERS = {"centered": 2, "forward": 1, "backward": 1, "random_sign": 1}
SETTLED = {"relaxation": "blocks(even_odd(200))", "tolerance": 1e-11}
PAIR = {"relaxation": "error_sweeps"}


def gradients(network, x, y, **settings):
    rule = dp.EquilibriumPropagation(**settings)
    out = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(3))
    assert not out.unsettled, out.unsettled
    return out.gradients


def errors(network, x, y, expected, betas, **settings):
    found = [gradients(network, x, y, beta=beta, **settings) for beta in betas]
    return [max(distance(g[n], expected[n]) for n in expected) for g in found]


def smaller(model, factor):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("relaxation", [PAIR, SETTLED], ids=["one pair", "settled"])
@pytest.mark.parametrize("nudge", ["linearized", "exact"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_predictive_coding_tends_to_back_propagation_at_the_estimators_order(estimator, relaxation, nudge, loss):
    """A bias that does not vanish, or vanishes slowly, trains too: only its order tells."""
    model, (x, y) = conv_net("tanh", "none"), images(8)
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y, loss)
    far, near = errors(network, x, y, expected, (0.02, 0.01), estimator=estimator, output_nudge=nudge, loss=loss, **relaxation)
    assert near < 0.1
    assert 0.8 < torch.tensor(far / near).log2() / ORDERS[estimator] < 1.2, (far, near)


@pytest.mark.parametrize("pool", ["before", "none"])
def test_one_pair_of_error_sweeps_is_back_propagation_while_no_kink_is_crossed(pool):
    """Both phases are then mirror images, and what they share cancels: to rounding, at any β."""
    model, (x, y) = conv_net("relu", pool), images(4)
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    for beta in (1e-3, 1e-5):
        rule = dp.EquilibriumPropagation(beta=beta)
        assert rule.statistics(network, x, y)["kink_crossing"] == [0.0] * network.depth
        # Each term of the difference is rounded at eps of its own size, which is β of the state's.
        assert_same(rule.gradients(network, x, y).gradients, expected, 1e-13 / beta, f"β = {beta}")


def test_in_float32_a_pair_keeps_its_digits_at_small_beta():
    """Differences of states lose eps/β; the errors are computed as such, and only second-order
    terms are differences."""
    model, (x, y) = conv_net("relu", "before"), images(32)
    expected = autograd_gradients(model, x, y)
    narrow = dp.Network.from_module(conv_net("relu", "before", dtype=torch.float32))
    for beta in (2e-2, 2e-3, 2e-4):
        found = gradients(narrow, x.float(), y, beta=beta)
        assert min(cosine(found[n], expected[n]) for n in expected) > 0.999, f"β = {beta}\n{report(found, expected)}"


def unrolled(network, x, y, loss, passes):
    """The gradient through `passes` even/odd passes of a Hopfield network from zeros, by plain
    autograd: what BPTT computes."""
    depth, states = network.depth, [x]
    for k in range(1, depth + 1):
        states.append(torch.zeros_like(network.into(k).forward(states)).detach())
    for _ in range(passes):
        for k in [*range(2, depth + 1, 2), *range(1, depth + 1, 2)]:
            pull = network.into(k).forward(states)
            if k < depth:
                h = states[k] if states[k].requires_grad else states[k].requires_grad_()
                above = network.into(k + 1).forward({k: h})
                pull = pull + torch.autograd.grad(above, h, states[k + 1], create_graph=True)[0]
            states[k] = network.into(k).neuron.f(pull)
    value = F.cross_entropy(states[-1], y)
    if loss == "squared_error":
        value = (states[-1] - F.one_hot(y, states[-1].shape[1])).square().sum() / (2 * len(y))
    found = torch.autograd.grad(value, list(network.parameters.values()))
    return dict(zip(network.parameters, found, strict=True))


HOPFIELD = {"energy": "hopfield", "free_schedule": "even_odd(500)", "relaxation": "blocks(even_odd(200))", "tolerance": 1e-11}


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(("activation", "pool"), [("tanh", "none"), ("hard_sigmoid", "none"), ("hard_sigmoid", "before")])
def test_the_implicit_gradient_is_that_of_the_unrolled_free_phase(loss, activation, pool):
    """The yardstick of every Hopfield network: were it BP's through the forward pass, every angle
    to it would be wrong."""
    model, (x, y) = smaller(conv_net(activation, pool), 0.6), images(4)
    network = dp.Network.from_module(model)
    found = dp.EquilibriumPropagation(loss=loss, **HOPFIELD).exact_gradients(network, x, y)
    assert_same(found, unrolled(network, x, y, loss, 120), 1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("nudge", ["linearized", "exact"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_hopfield_tends_to_the_implicit_gradient_at_the_estimators_order(estimator, nudge, kind):
    """And not to back-propagation's through the forward pass, from which it differs by the feedback
    in the free state."""
    model, (x, y) = (mlp("tanh"), batch(n=8)) if kind == "mlp" else (conv_net("tanh", "none"), images(8))
    network = dp.Network.from_module(smaller(model, 0.7))
    expected = dp.EquilibriumPropagation(**HOPFIELD).exact_gradients(network, x, y)
    assert max(distance(g, expected[n]) for n, g in autograd_gradients(model, x, y).items()) > 0.1
    far, near = errors(network, x, y, expected, (0.02, 0.01), estimator=estimator, output_nudge=nudge, **HOPFIELD)
    assert near < 0.1
    assert 0.8 < torch.tensor(far / near).log2() / ORDERS[estimator] < 1.2, (far, near)


def test_a_hopfield_network_predicts_by_its_free_equilibrium():
    """Accuracies of its forward pass would be of a network that was never trained."""
    model, (x, y) = smaller(mlp("tanh"), 0.7), batch(n=8)
    network = dp.Network.from_module(model)
    rule = dp.EquilibriumPropagation(**HOPFIELD)
    out, predicted = rule.gradients(network, x, y), rule.predict(network, x)
    torch.testing.assert_close(out.logits, predicted)
    torch.testing.assert_close(out.loss, F.cross_entropy(predicted, y))
    assert distance(predicted, model(x).detach()) > 0.05
    leaves = [x, *(s.clone().requires_grad_() for s in rule.infer(network, x, y).free[1:])]
    for slope in torch.autograd.grad(dp.objectives.hopfield(network, leaves).sum(), leaves[1:]):
        assert float(slope.abs().max()) < 1e-8, "the free states are no minimum of the energy"


def average_pooled(seed=0):
    return conv_net("relu", "before", seed).__class__(
        *(nn.AvgPool2d(2) if isinstance(m, nn.MaxPool2d) else m for m in conv_net("relu", "before", seed))
    )


@pytest.mark.parametrize("energy", ["predictive_coding", "hopfield"])
def test_with_average_pooling_every_convergent_relaxation_reaches_one_fixed_point(energy):
    """The fixed point is the energy's, not the order's."""
    model, (x, y) = smaller(average_pooled(), 0.7), images(6)
    network = dp.Network.from_module(model)
    common = {"energy": energy, "beta": 0.05, "tolerance": 1e-12, "output_nudge": "exact"}
    common |= {"free_schedule": "even_odd(500)"} if energy == "hopfield" else {}
    orders = ("even_odd(200)", "odd_even(200)", "up_down(200)", "bottom_up(400)")
    relaxations = [{"relaxation": f"blocks({name})"} for name in orders]
    relaxations.append({"relaxation": "blocks(even_odd(400), step_size=0.5)"})
    if energy == "predictive_coding":
        relaxations.append({"relaxation": "error_sweeps(100)"})
    found = []
    for relaxation in relaxations:
        rule = dp.EquilibriumPropagation(**common, **relaxation)
        assert rule.gradients(network, x, y).status.ok, relaxation
        found.append(rule.infer(network, x, y).nudged)
    for relaxation, nudged in zip(relaxations, found, strict=True):
        for (_, states), (_, wanted) in zip(nudged, found[0], strict=True):
            for k, (s, w) in enumerate(zip(states, wanted, strict=True)):
                torch.testing.assert_close(s, w, rtol=1e-7, atol=1e-8, msg=lambda m, k=k, r=relaxation: f"{r}, layer {k}: {m}")


def test_the_free_equilibrium_of_predictive_coding_is_the_forward_pass():
    """So that it needs no free phase, and its energy no second state."""
    model, (x, y) = conv_net("relu", "before"), images(4)
    network = dp.Network.from_module(model)
    free = dp.EquilibriumPropagation().infer(network, x, y).free
    leaves = [x, *(s.clone().requires_grad_() for s in free[1:])]
    value = dp.objectives.predictive_coding(network, leaves)
    torch.testing.assert_close(value, torch.zeros(4, dtype=torch.float64))
    assert not any(bool(g.any()) for g in torch.autograd.grad(value.sum(), leaves[1:]))
    torch.testing.assert_close(free[-1], model(x).detach())


def test_random_signs_average_out_to_the_centered_estimate():
    """Its expectation is O(β²): a sign that is drawn for the nudge and not for the gradient would
    leave no gradient at all."""
    model, (x, y) = conv_net("tanh", "none"), images(8)
    network = dp.Network.from_module(model)
    expected = gradients(network, x, y, beta=0.05)
    rule, generator = dp.EquilibriumPropagation(estimator="random_sign", beta=0.05), torch.Generator().manual_seed(0)
    draws = [rule.gradients(network, x, y, generator=generator).gradients for _ in range(200)]
    mean = {n: torch.stack([draw[n] for draw in draws]).mean(0) for n in expected}
    single = max(distance(draws[0][n], expected[n]) for n in expected)
    assert max(distance(mean[n], expected[n]) for n in expected) < single / 5


def test_a_clamped_output_sends_down_what_the_layers_below_do_not_take_up():
    """On a linear chain the settled gradient is back-propagation's with (I + J Jᵀ)⁻¹ (y - h_L⁰) for
    its error, J the whole Jacobian of the output by all states below it, at any β: not the loss's
    own, and to be told so."""
    model, (x, y) = mlp("identity", widths=(5, 6, 4)), batch(n=6)
    network = dp.Network.from_module(model)
    rule = dp.EquilibriumPropagation(
        output_nudge="clamped", loss="squared_error", beta=0.1, relaxation="blocks(even_odd(400))", tolerance=1e-13
    )
    out = rule.gradients(network, x, y)
    assert out.status.ok, out.status.message
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    h1 = x @ w1.T + b1
    error = (F.one_hot(y, 4) - (h1 @ w2.T + b2)) @ torch.linalg.inv(torch.eye(4).double() + w2 @ w2.T)
    below = error @ w2
    expected = {
        "0.weight": -below.T @ x / 6, "0.bias": -below.sum(0) / 6,
        "2.weight": -error.T @ h1 / 6, "2.bias": -error.sum(0) / 6,
    }  # fmt: skip
    assert_same(out.gradients, expected, 1e-9)
    plain = autograd_gradients(model, x, y, "squared_error")
    assert min(cosine(expected[n], plain[n]) for n in plain) < 0.99


def test_of_rectifiers_a_clamp_counts_the_units_that_are_on():
    """J is the derivative of the output by all hidden states at once, of the units that are on:
    mod-PGD lets the others absorb their pull. Then, as β → 0, it is back-propagation with
    (I + J Jᵀ)⁻¹ ∇ℓ for ∇ℓ. All units, or the layer below alone, would be another gradient."""
    model, (x, y) = mlp("relu", widths=(5, 8, 7, 4)), batch(n=6)
    network, target = dp.Network.from_module(model), F.one_hot(y, 4)
    rule = dp.EquilibriumPropagation(
        output_nudge="clamped", loss="squared_error", beta=1e-4, tolerance=1e-8,
        relaxation="blocks(even_odd(400), update=mod_pgd)",
    )  # fmt: skip
    out = rule.gradients(network, x, y)
    assert out.status.ok, out.status.message
    assert max(rule.statistics(network, x, y)["kink_crossing"]) == 0
    first = model[:2](x).detach()
    second = model[2:4](first).detach()
    on = [torch.diag_embed((h > 0).double()) for h in (first, second)]
    upper = model[4].weight.detach() @ on[1]
    whole = torch.cat([upper @ model[2].weight.detach() @ on[0], upper], dim=2)
    output = model(x)
    slope = (output.detach() - target).unsqueeze(2)
    error = torch.linalg.solve(torch.eye(4).double() + whole @ whole.transpose(1, 2), slope).squeeze(2) / len(x)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(output, list(model.parameters()), error), strict=True))
    assert_same(out.gradients, expected, 1e-6)
    plain = autograd_gradients(model, x, y, "squared_error")
    assert min(distance(expected[n], plain[n]) for n in plain) > 0.05


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("kind", ["relu", "tanh", "conv"])
def test_with_free_jacobians_one_pair_is_back_propagation_and_more_err_as_the_square_of_beta(kind, loss):
    """The page says so. With several pairs or blocks ∇ℓ is taken at the moved output: no flipped
    mask, but no rounding either (1e-3 to 4e-3 at the default β on these networks)."""
    model, (x, y) = (conv_net("relu", "before"), images(16)) if kind == "conv" else (mlp(kind), batch(n=32))
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y, loss)

    def error(relaxation, beta):
        rule = dp.EquilibriumPropagation(jacobians="free", relaxation=relaxation, beta=beta, loss=loss)
        found = rule.gradients(network, x, y).gradients
        return max(distance(found[n], expected[n]) for n in expected)

    assert error("error_sweeps(1)", 0.2) < 1e-13
    for relaxation in ("error_sweeps(2)", "blocks(even_odd(10))"):
        far, near = error(relaxation, 0.02), error(relaxation, 0.002)
        assert 9e-4 < far < 4.5e-3, (relaxation, far)
        assert 80 < far / near < 120, (relaxation, far, near)
