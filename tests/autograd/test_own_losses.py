"""PyTorch's losses and the user's own, under every rule: each tends to autograd's gradient of the
very scalar that the function gives, whatever its mean divides by."""

import functools
import re

import pytest
import torch
from comparison import assert_same
from networks import ACTIVATIONS, drawn, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp

N, T, C = 6, 3, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape, ignored=()):
    y = torch.randint(C, shape, generator=torch.Generator().manual_seed(1))
    for index in ignored:
        y[index] = -100
    return y


WEIGHT = torch.tensor([0.3, 1.7, 0.9, 1.2], dtype=torch.float64)
# One token of the first example, and all of the third.
TOKENS = classes(N, T, ignored=[(0, 1), (2,)])


def powered(outputs, y):
    return (outputs.squeeze(1) - y).abs().pow(1.5)


def softplus(outputs, y):
    return F.softplus(-outputs * y["sign"]).mean()


def masked(outputs, y):
    """Per example, of which the first half of the units are known."""
    return ((outputs - y["target"]).square() * y["mask"]).sum(1)


MASKED = {"target": normal(N, C, seed=3), "mask": (normal(N, C, seed=4) > 0).double()}
weighted = nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)
multilabel = nn.BCEWithLogitsLoss(pos_weight=WEIGHT)
padded = functools.partial(F.cross_entropy, ignore_index=-100, weight=WEIGHT)

# By name: the model's kind, the loss as a rule is given it, the targets, the scalar in plain
# PyTorch.
CASES = {
    "cross-entropy": ("vectors", F.cross_entropy, classes(N), F.cross_entropy),
    "class weights, label smoothing": ("vectors", weighted, classes(N), weighted),
    "soft targets": ("vectors", nn.CrossEntropyLoss(), normal(N, C, seed=3).softmax(1), F.cross_entropy),
    "mse": ("vectors", F.mse_loss, normal(N, C, seed=3), F.mse_loss),
    "mse, summed": ("vectors", nn.MSELoss(reduction="sum"), normal(N, C, seed=3), nn.MSELoss(reduction="sum")),
    "multi-label": ("vectors", multilabel, normal(N, C, seed=3) > 0, lambda o, y: multilabel(o, y.double())),
    "regression": ("one", nn.HuberLoss(delta=0.5), normal(N, 1, seed=3), nn.HuberLoss(delta=0.5)),
    "own, a value per example": (
        "one", dp.losses.from_function(powered, "none"), normal(N, seed=3), lambda o, y: powered(o, y).mean(),
    ),
    "own, a mean of a dict": (
        "vectors", dp.losses.from_function(softplus), {"sign": normal(N, C, seed=3).sign()}, softplus,
    ),
    "own, with terms": (
        "vectors", dp.losses.from_function(masked, "none", terms=lambda y: y["mask"].sum()), MASKED,
        lambda o, y: masked(o, y).sum() / y["mask"].sum(),
    ),
    "tokens, classes last": (
        "sequence", dp.losses.from_torch(F.cross_entropy, classes_last=True), TOKENS,
        lambda o, y: F.cross_entropy(o.reshape(-1, C), y.reshape(-1)),
    ),
    "tokens, classes first": ("convolution", padded, TOKENS, padded),
    "dense": ("images", nn.CrossEntropyLoss(), classes(N, 4, 4), F.cross_entropy),
    "token ids": (
        "ids", dp.losses.from_torch(nn.CrossEntropyLoss(), classes_last=True), TOKENS,
        lambda o, y: F.cross_entropy(o.reshape(-1, C), y.reshape(-1)),
    ),
}  # fmt: skip

# At the limit of their settings, with the error that is left there.
RULES = {
    "backprop": (dp.Backprop, {}, 1e-14),
    "dual_propagation": (dp.DualPropagation, {"beta": 1e-4}, 1e-7),
    "dual_propagation, transposed": (dp.DualPropagation, {"beta": 1e-6, "coupling": "transposed", "alpha": 0.0}, 1e-5),
    "dual_propagation, fused": (dp.DualPropagation, {"beta": 1e-4, "engine": "fused"}, 1e-7),
    "equilibrium_propagation": (dp.EquilibriumPropagation, {"beta": 1e-4}, 1e-6),
    "equilibrium_propagation, signs": (dp.EquilibriumPropagation, {"beta": 1e-6, "estimator": "random_sign"}, 1e-5),
    "lifted": (
        dp.Lifted, {"beta": 1e-6, "output_nudge": "linearized", "tolerance": 1e-8, "max_sweeps": 400}, 1e-5,
    ),
    "predictive_coding": (dp.PredictiveCoding, {"beta": 1e-6, "steps": 300}, 1e-4),
    "target_propagation": (dp.TargetPropagation, {"beta": 1e-6, "iterations": 0}, 1e-5),
    "contrastive_hebbian": (dp.ContrastiveHebbian, {"gamma": 1e-5}, 1e-3),
}  # fmt: skip


def model_and_input(kind):
    def chain(*modules):
        return drawn(lambda: nn.Sequential(*(module() for module in modules)))

    if kind == "vectors":
        return mlp("tanh", (5, 8, 7, C)), normal(N, 5, seed=2)
    if kind == "one":
        return mlp("tanh", (5, 8, 1)), normal(N, 5, seed=2)
    if kind == "sequence":
        return mlp("tanh", (5, 8, C)), normal(N, T, 5, seed=2)
    if kind == "convolution":
        return chain(lambda: nn.Conv1d(5, 8, 3, padding=1), nn.Tanh, lambda: nn.Conv1d(8, C, 1)), normal(N, 5, T, seed=2)
    if kind == "images":
        model = chain(lambda: nn.Conv2d(2, 6, 3, padding=1), nn.Tanh, lambda: nn.Conv2d(6, C, 3, padding=1))
        return model, normal(N, 2, 4, 4, seed=2)
    ids = torch.randint(9, (N, T), generator=torch.Generator().manual_seed(2))
    return chain(lambda: nn.Embedding(9, 5), lambda: nn.Linear(5, 8), nn.Tanh, lambda: nn.Linear(8, C)), ids


def exact(model, x, y, scalar):
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(scalar(model(x), y), list(parameters.values())), strict=True))


def found(rule, model, x, y):
    out = rule.gradients(dp.Network.from_module(model), x, y, generator=torch.Generator().manual_seed(0))
    assert out.status.ok, out.status.message
    return out


def test_every_rule_that_approaches_the_gradient_is_tried():
    assert {name for name, rule in dp.RULES.items() if rule.approaches_gradient} == {name.partition(",")[0] for name in RULES}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("case", CASES)
def test_a_rule_tends_to_the_gradient_of_the_users_own_scalar(case, name):
    """A missing half, a mean over examples in place of tokens, or squared error in place of the
    loss would train, towards something else."""
    (kind, loss, y, scalar), (rule, settings, tolerance) = CASES[case], RULES[name]
    model, x = model_and_input(kind)
    out = found(rule(loss=loss, **settings), model, x, y)
    assert_same(out.gradients, exact(model, x, y, scalar), tolerance, f"{name} on {case}")
    torch.testing.assert_close(out.loss, scalar(model(x), y).detach(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_feedback_alignments_output_layer_learns_by_the_users_own_scalar(case):
    """It alone has the true gradient there."""
    kind, loss, y, scalar = CASES[case]
    model, x = model_and_input(kind)
    out, expected = found(dp.DirectFeedbackAlignment(loss=loss), model, x, y).gradients, exact(model, x, y, scalar)
    last = list(expected)[-2:]
    assert_same({n: out[n] for n in last}, {n: expected[n] for n in last}, 1e-12)


@pytest.mark.parametrize(
    ("last", "loss", "y"),
    [
        ("sigmoid", F.binary_cross_entropy, (normal(N, C, seed=3) > 0).double()),
        ("tanh", nn.SmoothL1Loss(), normal(N, C, seed=3)),
        ("tanh", dp.losses.CrossEntropy(), classes(N)),
        ("softmax", dp.losses.from_function(lambda p, y: -(y * p.log()).sum() / N, name="own"), normal(N, C, seed=3).sigmoid()),
        ("softmax", dp.losses.LogLoss(), 3 * normal(N, C, seed=3).sigmoid()),
    ],
    ids=["bce", "smooth l1", "cross-entropy of tanh", "own of softmax", "log loss, unnormalised"],
)
def test_contrastive_hebbian_learning_descends_its_loss_behind_an_activation(last, loss, y):
    """Clamped to targets it would descend squared error: cosine -0.77 to a binary cross-entropy."""
    model = drawn(lambda: nn.Sequential(*mlp("tanh", (5, 8, 7, C)), ACTIVATIONS[last]()))
    x, named = normal(N, 5, seed=2), {"cross_entropy": F.cross_entropy, "log_loss": lambda p, y: -(y * p.log()).sum() / N}
    scalar = named.get(str(loss)) or (loss.function if isinstance(loss, dp.losses.OwnLoss) else loss)
    out = found(dp.ContrastiveHebbian(gamma=1e-5, loss=loss), model, x, y)
    assert_same(out.gradients, exact(model, x, y, scalar), 1e-3)


def test_a_hopfield_network_descends_its_loss_at_the_equilibrium():
    """The reference differentiates through 300 sweeps of two layers written out."""
    model, x, y = mlp("tanh", (5, 6, C)), normal(N, 5, seed=2), classes(N)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)

    def settled(x):
        (first, _, second), output = model, torch.zeros(N, C, dtype=torch.float64)
        for _ in range(300):
            output = second(torch.tanh(first(x) + output @ second.weight))
        return output

    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(weighted(settled(x), y), list(parameters.values()))
    expected = dict(zip(parameters, expected, strict=True))
    rule = dp.EquilibriumPropagation(
        energy="hopfield", beta=1e-3, loss=weighted, relaxation="blocks(even_odd(100))", free_schedule="even_odd(100)"
    )
    assert_same(rule.exact_gradients(dp.Network.from_module(model), x, y), expected, 1e-6)
    assert_same(found(rule, model, x, y).gradients, expected, 1e-5)


@pytest.mark.parametrize("beta", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("name", [name for name, (_, settings, _) in RULES.items() if "beta" in settings])
def test_mean_squared_error_is_twice_squared_error_at_twice_its_beta(name, beta):
    """Of N·K terms each, (s - y)², against N terms ½‖s - y‖²: where β means each loss's own term,
    the dyads are the same at every β, and the gradients differ by 2/K."""
    (rule, settings, _), y = RULES[name], normal(N, C, seed=3)
    model, x = model_and_input("vectors")
    settings = {**settings, "tolerance": None} if name.startswith("equilibrium") else settings
    network, draws = dp.Network.from_module(model), torch.Generator()
    ours = rule(**{**settings, "beta": beta}, loss=F.mse_loss).gradients(network, x, y, generator=draws.manual_seed(0))
    twin = rule(**{**settings, "beta": 2 * beta}, loss="squared_error").gradients(network, x, y, generator=draws.manual_seed(0))
    assert_same({n: g * (C / 2) for n, g in ours.gradients.items()}, twin.gradients, 1e-11 / min(settings["beta"], beta))


@pytest.mark.parametrize("name", RULES)
def test_what_is_ignored_changes_nothing_at_any_beta(name):
    """Three more examples, all padding, and β as large as it is used: a count of examples would
    shrink every gradient."""
    (rule, settings, _), (kind, loss, _, _) = RULES[name], CASES["tokens, classes first"]
    model, x = model_and_input(kind)
    settings = {**settings, **({"beta": 0.5} if "beta" in settings else {"gamma": 0.05} if "gamma" in settings else {})}
    settings = {key: value for key, value in settings.items() if key not in ("tolerance", "max_sweeps", "steps")}
    more_x, more_y = torch.cat([x, normal(3, 5, T, seed=5)]), torch.cat([TOKENS, torch.full((3, T), -100)])
    network, draws = dp.Network.from_module(model), torch.Generator()
    alone, padded_ = (
        rule(loss=loss, **settings).gradients(network, *batch, generator=draws.manual_seed(0)).gradients
        for batch in ((x, TOKENS), (more_x, more_y))
    )
    assert_same(padded_, alone, 1e-9)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (dp.DualPropagation, {"output_nudge": "exact"}),
        (dp.EquilibriumPropagation, {"output_nudge": "exact"}),
        (dp.EquilibriumPropagation, {"output_nudge": "clamped"}),
        (dp.Lifted, {}),
    ],
)
@pytest.mark.parametrize("loss", [F.mse_loss, dp.losses.from_function(softplus)], ids=["mse", "own"])
def test_an_exact_nudge_of_such_a_loss_is_refused_by_name(rule, settings, loss):
    """Nudged by squared error's formula it would settle somewhere else."""
    with pytest.raises(dp.SettingError, match=re.escape("output_nudge='linearized'")):
        rule(loss=loss, **settings)


def test_complex_nudges_of_such_a_loss_are_refused_by_name():
    model, x = model_and_input("vectors")
    rule = dp.EquilibriumPropagation(energy="hopfield", estimator="holomorphic(4)", loss=F.mse_loss)
    with pytest.raises(dp.SettingError, match="MSELoss takes no complex outputs"):
        rule.gradients(dp.Network.from_module(model), x, normal(N, C))


@pytest.mark.parametrize(
    ("first", "x", "message"),
    [
        (nn.Embedding(9, 5), torch.full((N, T), 9), "the model can't read .* index out of range"),
        (nn.Embedding(9, 5), normal(N, T), "the model can't read .*float64"),
        (nn.Linear(T, 5), torch.ones(N, T).long(), r"must be floating point.*nn\.Embedding"),
    ],
    ids=["beyond the table", "no ids", "no embedding"],
)
def test_token_ids_that_the_model_can_not_read_are_refused(first, x, message):
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(5 if isinstance(first, nn.Linear) else 5 * T, C)).double()
    with pytest.raises(dp.SettingError, match=message):
        dp.Backprop(loss=F.cross_entropy).gradients(dp.Network.from_module(model), x, classes(N))


def test_a_step_that_counts_its_targets_is_not_captured():
    """A replayed step would divide by the count of the batch that was captured."""
    for loss in (F.cross_entropy, CASES["own, with terms"][1]):
        assert "counted in each batch" in dp.DualPropagation(loss=loss).capture_obstacle
    for loss in (F.mse_loss, nn.CrossEntropyLoss(reduction="sum"), dp.losses.from_function(softplus)):
        assert not dp.DualPropagation(loss=loss).capture_obstacle
