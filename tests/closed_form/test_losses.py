"""Losses: gradients against autograd, exact nudges against their closed form, stationarity and slow
solvers."""

import pytest
import torch
from torch.nn import functional as F

import dualprop as dp
from dualprop import losses
from dualprop.errors import SettingError
from dualprop.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from dualprop.neurons import HardSigmoid, Identity, ReLU, Sigmoid, Tanh

EPS = torch.finfo(torch.float64).eps
LOSSES = [
    CrossEntropy(),
    SquaredError(),
    CrossEntropy(label_smoothing=0.2),
    CrossEntropy(class_weights=(0.5, 2.0, 1.0, 0.25)),
    CrossEntropy(0.1, class_weights=(0.5, 2.0, 1.0, 0.25)),
    BinaryCrossEntropy(),
]


def outputs(n=5, k=4, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of_every_kind(k=4):
    indices = torch.tensor([0, 3, 1, 1, 2]) % k
    one_hot = F.one_hot(indices, k).double()
    soft = outputs(5, k, seed=7).softmax(1)
    return {"indices": indices, "one-hot": one_hot, "soft": soft, "unnormalised": 2.5 * soft}


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("kind", targets_of_every_kind())
def test_the_gradient_is_autograds_for_every_kind_of_target(loss, kind):
    """The output's nudge is this gradient: a wrong one teaches every layer the wrong thing."""
    s, y = outputs().requires_grad_(), targets_of_every_kind()[kind]
    (expected,) = torch.autograd.grad(loss.value(s, y).sum(), s)
    torch.testing.assert_close(loss.gradient(s.detach(), y), expected, rtol=32 * EPS, atol=32 * EPS)


def test_the_values_are_per_example_and_written_out_by_hand():
    """A mean inside would make β depend on the batch size; the missing ½ would double every
    gradient."""
    s = torch.tensor([[1.0, -2.0], [0.5, 0.5]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    by_hand = torch.tensor([0.5 * (0**2 + 2**2), 0.5 * (0.5**2 + 0.5**2)], dtype=torch.float64)
    torch.testing.assert_close(SquaredError().value(s, y), by_hand)
    by_hand = torch.log(torch.tensor([1 + torch.e**-3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(CrossEntropy().value(s, y), by_hand)


@pytest.mark.parametrize("c", [1.5, 0.3, -0.3, -0.9])
def test_the_squared_error_nudge_of_a_linear_output_is_the_papers_formula(c):
    """(a + c y)/(1 + c) with c = αβ downhill and c = -ᾱβ uphill: the code of Høier & Zach
    (2024)."""
    a, y = outputs(), torch.tensor([0, 3, 1, 1, 2])
    expected = (a + c * F.one_hot(y, 4).double()) / (1 + c)
    torch.testing.assert_close(SquaredError().nudge(Identity(), a, y, c), expected, rtol=8 * EPS, atol=8 * EPS)


@pytest.mark.parametrize("neuron", [ReLU(), HardSigmoid(), Sigmoid(), Tanh()], ids=repr)
@pytest.mark.parametrize("c", [2.0, 0.4, -0.4, -0.9])
def test_the_squared_error_nudge_minimises_over_a_grid_of_states(neuron, c):
    """A bounded output that is nudged must settle inside its range, at the argmin and not at f of a
    shifted drive."""
    a, y = outputs(), outputs(seed=3)
    found = SquaredError().nudge(neuron, a, y, c)
    grid = torch.linspace(-1, 12, 130_001, dtype=torch.float64)
    for i, j in [(0, 0), (1, 2), (4, 3)]:
        objective = neuron.potential(grid) - grid * a[i, j] + c / 2 * (grid - y[i, j]) ** 2
        assert abs(float(found[i, j] - grid[objective.argmin()])) <= 1e-4  # the grid's spacing


def descended(a, y, c):
    """argmin ½‖s - a‖² + c ℓ(s, y) by gradient descent, to the residue that float64 allows."""
    s = a.clone()
    step = 1 / (1 + max(c, 0.0) / 2 * float(y.sum(1).max()))
    for _ in range(12_000):
        slope = s - a + c * (y.sum(1, keepdim=True) * s.softmax(1) - y)
        if float(slope.abs().max()) < 2 * EPS * (1 + float(a.abs().max())):
            break
        s = s - step * slope
    return s


STRENGTHS = [-1.99, -1.5, -1.0, -0.5, -1e-3, 1e-3, 0.5, 1.99, 10.0]
HARD = {
    "two classes at a tie": (torch.zeros(1, 2), torch.tensor([1])),
    "two classes, wrong by 50": (torch.tensor([[50.0, -50.0]]), torch.tensor([1])),
    "two classes, right by 50": (torch.tensor([[50.0, -50.0]]), torch.tensor([0])),
    "ten classes, saturated": (torch.tensor([[50.0] + [-50.0] * 9, [-50.0] * 9 + [50.0]]), torch.tensor([0, 3])),
    "ten classes at a tie": (torch.zeros(1, 10), torch.tensor([4])),
    "ten random classes": (3 * outputs(8, 10, seed=1), torch.arange(8)),
    "soft targets": (2 * outputs(6, 10, seed=2), outputs(6, 10, seed=5).softmax(1)),
    "two leaders near the switch": (torch.tensor([[1.0, 1.0 + 1e-9, -3.0], [0.99, -0.99, -8.0]]), torch.tensor([2, 1])),
}


@pytest.mark.parametrize("c", STRENGTHS)
@pytest.mark.parametrize("case", HARD)
def test_the_cross_entropy_nudge_is_stationary_and_is_the_minimiser(case, c):
    """φ(s) = ½‖s - a‖² + c ℓ is strongly convex with modulus m = min(1, 1 + c/2), so a residue r
    is an error of at most r/m.

    A Newton step with a wrong sign, or one left undamped, would stop at some other point and call
    it s±.
    """
    a, y = HARD[case]
    a = a.double()
    target = y if y.is_floating_point() else F.one_hot(y, a.shape[1]).double()
    s = CrossEntropy().nudge(Identity(), a, y, c)
    residue = (s - a + c * (s.softmax(1) - target)).norm(dim=1)
    modulus = min(1.0, 1 + c / 2)
    allowed = 64 * EPS * max(1.0, abs(c)) * (1 + a.abs().amax(1))
    assert bool((residue <= allowed).all()), f"residue {residue.max():.3g} beyond {allowed.max():.3g}"
    slow = descended(a, target, c)
    slow_residue = (slow - a + c * (slow.softmax(1) - target)).norm(dim=1)
    bound = (residue + slow_residue + allowed) / modulus
    assert float((slow_residue / modulus).max()) < 1e-7, "the slow solver did not converge, so it proves nothing"
    error = (s - slow).norm(dim=1)
    assert bool((error <= bound).all()), f"{error.max():.3g} from the slow solver's point, bound {bound.max():.3g}"


@pytest.mark.parametrize("c", [-1.9, 0.7])
def test_the_cross_entropy_nudge_settles_in_float32_too(c):
    """A tolerance meant for float64 would spin to the step limit, or a loose one would leave δ in
    the noise."""
    a, y = HARD["ten random classes"]
    s = CrossEntropy().nudge(Identity(), a.float(), y, c)
    exact = descended(a.float().double(), F.one_hot(y, 10).double(), c)
    allowed = 64 * torch.finfo(torch.float32).eps * (1 + float(a.abs().max())) / min(1.0, 1 + c / 2)
    assert s.dtype == torch.float32
    assert float((s.double() - exact).norm(dim=1).max()) <= allowed


def test_the_nudge_of_an_example_does_not_depend_on_the_others():
    """Step halving and stopping are shared over the batch; a shared length would couple the
    examples."""
    a, y = HARD["ten random classes"]
    a = a.double() * torch.tensor([0.01, 1, 10, 1, 0.1, 5, 1, 20]).double().unsqueeze(1)
    together = CrossEntropy().nudge(Identity(), a, y, -1.8)
    for i in range(len(a)):
        alone = CrossEntropy().nudge(Identity(), a[i : i + 1], y[i : i + 1], -1.8)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("output_nudge", ["linearized", "exact"])
def test_plus_is_the_downhill_state(output_nudge):
    """With the signs exchanged every gradient is negated, and at α = ½ no norm would show it."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4)).double()
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6) % 4
    for loss in LOSSES:
        rule = dp.DualPropagation(loss=loss, beta=0.5, output_nudge=output_nudge)
        dyads = rule.infer(dp.Network.from_module(model), x, y)
        assert bool((loss.value(dyads.plus[1], y) < loss.value(dyads.minus[1], y)).all())


# (loss, coupling, alpha, beta at the edge of the domain of the uphill state)
EDGES = [
    ("cross_entropy", "original", 0.0, 2.0),
    ("cross_entropy", "original", 0.75, 8.0),
    ("cross_entropy", "transposed", 1.0, 2.0),
    ("cross_entropy", "transposed", 0.25, 8.0),
    ("squared_error", "original", 0.0, 1.0),
    ("squared_error", "original", 0.75, 4.0),
    ("squared_error", "transposed", 1.0, 1.0),
    ("squared_error", "transposed", 0.25, 4.0),
]


@pytest.mark.parametrize(("loss", "coupling", "alpha", "edge"), EDGES)
def test_an_exact_nudge_is_refused_exactly_where_it_is_no_longer_well_posed(loss, coupling, alpha, edge):
    """Beyond ᾱβ < 2 (cross-entropy) or < 1 (squared error) the uphill state has no argmin."""
    settings = {"loss": loss, "coupling": coupling, "alpha": alpha, "output_nudge": "exact"}
    dp.DualPropagation(beta=0.999 * edge, **settings)
    with pytest.raises(SettingError, match=r"exact .* nudge needs .*beta < \d.*Lower beta"):
        dp.DualPropagation(beta=edge, **settings)
    dp.DualPropagation(beta=(100.0, 0.999 * edge), **settings)  # it is the output layer's β that counts
    with pytest.raises(SettingError, match="exact"):
        dp.DualPropagation(beta=(0.1, edge), **settings)


def test_an_exact_cross_entropy_nudge_is_refused_on_an_output_that_is_not_linear():
    """The solver works on logits; behind a sigmoid it would solve another problem."""
    with pytest.raises(SettingError, match=r"acts on logits.*Remove the model's last activation"):
        CrossEntropy().nudge(Sigmoid(), outputs(), torch.tensor([0, 3, 1, 1, 2]), 0.5)


def test_a_loss_is_found_by_name():
    """And a misspelt one is named with the nearest."""
    assert losses.from_name("cross_entropy") == CrossEntropy()
    assert losses.from_name(SquaredError()) == SquaredError()
    with pytest.raises(SettingError, match=r"unknown loss 'crossentropy'.*Did you mean 'cross_entropy'"):
        losses.from_name("crossentropy")


@pytest.mark.parametrize("loss", [losses.SquaredError(), losses.CrossEntropy(), losses.LogLoss()], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision_outputs_are_taken_in_float32(loss, soft):
    """A loss rounded to three digits hides what training does, and its gradient is the root of
    every difference."""
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(6, 4, generator=generator).softmax(1).bfloat16()
    y = torch.rand(6, 4, generator=generator) if soft else torch.arange(6) % 4
    for found, expected in ((loss.value(s, y), loss.value(s.float(), y)), (loss.gradient(s, y), loss.gradient(s.float(), y))):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_smoothed_labels_are_those_of_pytorch():
    s = outputs()
    for y in (torch.tensor([0, 3, 1, 1, 2]), torch.rand(5, 4, dtype=s.dtype, generator=torch.Generator().manual_seed(2))):
        expected = F.cross_entropy(s, y, label_smoothing=0.3, reduction="none")
        torch.testing.assert_close(CrossEntropy(label_smoothing=0.3).value(s, y), expected)


@pytest.mark.parametrize("smoothing", [0.2, 1 / 3, 1e-3])
def test_a_smoothing_is_part_of_the_losss_name(smoothing):
    """A recipe holds its loss by name: rounded there, a resumed run would descend another loss."""
    loss = CrossEntropy(label_smoothing=smoothing)
    assert losses.from_name(str(loss)) == loss


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cross_entropy(1)", "label_smoothing must be in [0, 1), got 1"),
        ("squared_error(0.1)", "the loss 'squared_error' has no setting"),
        ("cross_entropy(1-1)", "must be a number, got '1-1'"),
    ],
)
def test_a_setting_that_a_loss_has_not_is_refused(name, told):
    with pytest.raises(SettingError) as caught:
        losses.from_name(name)
    assert told in str(caught.value)


def test_a_weighted_example_counts_as_often_as_its_class_weighs():
    """Whole weights are as many examples of the same; a mean over weights would undo them."""
    s, y = outputs(), torch.tensor([0, 3, 1, 1, 2])
    weights = (3.0, 1.0, 2.0, 1.0)
    repeats = torch.tensor(weights).long()[y]
    loss = CrossEntropy(class_weights=weights)
    torch.testing.assert_close(loss.value(s, y).sum(), CrossEntropy().value(s, y).repeat_interleave(repeats).sum())
    torch.testing.assert_close(loss.gradient(s, y), CrossEntropy().gradient(s, y) * repeats[:, None])


@pytest.mark.parametrize("c", [2.0, 0.4, -0.4, -0.6])
def test_a_weighted_nudge_is_one_of_as_many_times_the_strength(c):
    """The weight belongs to the example's loss, and so to its β."""
    a, y = outputs(), torch.tensor([0, 3, 1, 1, 2])
    weights = (3.0, 1.0, 2.0, 0.5)
    found = CrossEntropy(class_weights=weights).nudge(Identity(), a, y, c)
    for i, k in enumerate(y.tolist()):
        expected = CrossEntropy().nudge(Identity(), a[i : i + 1], y[i : i + 1], c * weights[k])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)


def test_the_limit_of_a_weighted_nudge_is_that_of_the_heaviest_class():
    """Beyond it the uphill problem has no answer for that class alone."""
    loss = CrossEntropy(class_weights=(4.0, 1.0))
    assert not list(loss.uphill_conflict(0.49, "beta", "Lower beta"))
    assert list(loss.uphill_conflict(0.5, "beta", "Lower beta"))
    with pytest.raises(SettingError, match="class_weights must hold 4 numbers, one a class, got 2"):
        loss.gradient(outputs(), torch.tensor([0, 1, 0, 1, 0]))


@pytest.mark.parametrize("c", [50.0, 2.0, 0.3, -0.3, -2.0, -3.9])
def test_the_nudge_of_labels_is_where_its_objective_is_stationary(c):
    """s - a + c (σ(s) - y) = 0; at c = -3.9 Newton's steps alone would run away."""
    a = 20 * outputs(6, 5)
    y = (outputs(6, 5, seed=4) > 0).double()
    s = BinaryCrossEntropy().nudge(Identity(), a, y, c)
    slope = s - a + c * (s.sigmoid() - y)
    assert float(slope.abs().max()) <= 1e-12 * (1 + float(a.abs().max()) + abs(c))


def test_labels_are_told_apart_one_by_one():
    """Written out: -log σ(s) where it is there, -log (1 - σ(s)) where not."""
    s = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    expected = -(
        torch.tensor(0.5).log() + torch.tensor(1 - 1 / (1 + torch.e**-2.0)).log() + torch.tensor(1 / (1 + torch.e)).log()
    )
    torch.testing.assert_close(BinaryCrossEntropy().value(s, y), expected.double()[None], rtol=1e-6, atol=0)
    for neuron in (Sigmoid(), Tanh()):
        with pytest.raises(SettingError, match=r"logits"):
            BinaryCrossEntropy().nudge(neuron, s, y, 0.1)
