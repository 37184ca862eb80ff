"""The user's own loss, `dp.losses.from_function`: its reductions, outputs of several tensors, and
what its check at the first batch finds."""

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.errors import SettingError
from dualprop.losses import from_function

N, K = 6, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, Y = normal(N, K), normal(N, K, seed=1)


def squares(outputs, y):
    return (outputs - y).square().sum(1)


REDUCTIONS = {
    "mean": (from_function(lambda s, y: squares(s, y).mean()), N, squares(S, Y).mean()),
    "mean of elements": (from_function(F.mse_loss, terms=lambda y: y.numel()), N * K, squares(S, Y).mean() / K),
    "sum": (from_function(lambda s, y: squares(s, y).sum(), "sum"), 1, squares(S, Y).sum()),
    "none": (from_function(squares, "none"), N, squares(S, Y).mean()),
    "none, by terms": (from_function(squares, "none", terms=4), 4, squares(S, Y).sum() / 4),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_gradient_is_of_the_terms_sum_and_the_mean_is_the_functions(name):
    """∇ Σ (s - y)² = 2 (s - y), whichever way the function reduces it."""
    loss, terms, scalar = REDUCTIONS[name]
    loss.check_targets(Y, S)
    assert loss.terms(Y, N) == terms
    torch.testing.assert_close(loss.mean(S, Y), scalar, rtol=1e-14, atol=0)
    torch.testing.assert_close(loss.total(S, Y), squares(S, Y).sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.gradient(S, Y), 2 * (S - Y), rtol=1e-13, atol=1e-15)


Pair = namedtuple("Pair", ["mean", "scale"])


@dataclass
class Output:
    mean: Tensor
    scale: Tensor
    note: str = "kept"


class ModelOutput(OrderedDict):
    """A mapping of its own, as libraries have them."""


def gaussian(mean, scale, y):
    return ((mean - y).square() * scale.exp() - scale).sum(1).mean()


def values(tree):
    return list(tree.values()) if isinstance(tree, dict) else [tree.mean, tree.scale] if hasattr(tree, "mean") else list(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"mean": S, "scale": normal(N, K, seed=2)},
        (S, normal(N, K, seed=2)),
        [S, normal(N, K, seed=2)],
        Pair(S, normal(N, K, seed=2)),
        Output(S, normal(N, K, seed=2)),
        ModelOutput(mean=S, scale=normal(N, K, seed=2)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_outputs_of_several_tensors_have_a_gradient_of_the_same_form(tree):
    """∂/∂mean = 2 (mean - y) eˢ and ∂/∂scale = (mean - y)² eˢ - 1, each example's own."""
    loss = from_function(lambda outputs, y: gaussian(*values(outputs), y))
    loss.check_targets(Y, tree)
    found, (mean, scale) = loss.gradient(tree, Y), values(tree)
    assert type(found) is type(tree)
    torch.testing.assert_close(values(found)[0], 2 * (mean - Y) * scale.exp(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(values(found)[1], (mean - Y).square() * scale.exp() - 1, rtol=1e-12, atol=1e-14)
    assert not any(value.requires_grad for value in values(tree)), "the outputs are the caller's"


def first(loss, s=S, y=Y):
    loss.check_targets(loss.batch_targets(y, len(s), s.dtype), s)
    return loss


SCALE = nn.Parameter(torch.ones(K, dtype=torch.float64))
COLUMN, ROW = S[:, :1], Y[:, 0]
DROPS = nn.Dropout(0.5)
REFUSED = {
    "detached": (lambda s, y: squares(s.detach(), y).mean(), "mean", "no gradient in the outputs"),
    "rounded": (lambda s, y: (s.argmax(1) == y.argmax(1)).double().mean(), "mean", "no gradient"),
    "detached in part": (lambda s, y: (s.detach() * s - s * y).sum(1).mean(), "mean", "detached or not differentiable.*check="),
    "in one entry": (lambda s, y: squares(torch.cat([s[:1, :1].detach(), s[:1, 1:]], 1), y[:1]).sum(), "sum", "detached"),
    "random": (lambda s, y: squares(DROPS(s), y).mean(), "mean", "and then .* same outputs"),
    "not reduced": (squares, "mean", r"must return a tensor of shape \(\), got .*\(6,\).*'none'"),
    "reduced": (lambda s, y: squares(s, y).mean(), "none", r"shape \(6,\), got .*\(\).*'mean' or 'sum'"),
    "a number": (lambda s, y: squares(s, y).mean().item(), "mean", "got float"),
    "a parameter": (lambda s, y: squares(s * SCALE, y).mean(), "mean", r"shape \(3,\) that requires grad"),
    "weight decay": (lambda s, y: squares(s, y).mean() + SCALE.square().sum(), "mean", "optimizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_without_its_gradient_is_refused_at_the_first_batch(name):
    """Every layer would learn from it, and the loss shown would be another's."""
    function, reduction, message = REFUSED[name]
    with pytest.raises(SettingError, match=message) as refusal:
        first(from_function(function, reduction))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: (s - y).square().mean(),
        lambda s, y: (y - s).abs().mean(),
        lambda s, y: torch.nn.functional.mse_loss(s, y),
        lambda s, y: F.huber_loss(s, y),
        lambda s, y: F.binary_cross_entropy_with_logits(s * torch.ones(N, 1), y + 0 * s),
    ],
    ids=["minus", "reversed", "mse_loss", "huber_loss", "inside"],
)
def test_outputs_of_one_column_beside_plain_targets_are_refused(function):
    """(N, 1) less (N,) is (N, N): every output would be pulled to the mean of all targets."""
    with pytest.raises(SettingError, match=r"broadcasts shapes \(6, 1\) and \(6,\) to \(6, 6\).*squeeze"):
        first(from_function(function), COLUMN, ROW)


SOUND = {
    "squeezed": (lambda s, y: (s.squeeze(1) - y).square().mean(), COLUMN, ROW),
    "at its kinks": (lambda s, y: (s - y).abs().mean(), Y.clone(), Y),
    "hinge at zero": (lambda s, y: F.relu(1 - s * y.sign()).mean(), torch.zeros(N, K).double(), Y),
    "pairs of examples": (lambda s, y: F.cross_entropy(s @ s.T, torch.arange(N)), S, Y),
    "pairs of targets": (lambda s, y: ((s - s.T) * (y.unsqueeze(1) > y)).relu().mean(), COLUMN, ROW),
    "float32 inside": (lambda s, y: F.cross_entropy(s.float(), y.argmax(1), weight=torch.ones(K)), S.float(), Y.float()),
    "steep": (lambda s, y: F.cross_entropy(s / 1e-3, y.argmax(1)), 30 * S, Y),
    "steep, in float32": (lambda s, y: F.cross_entropy(s.float() / 0.02, y.argmax(1)), S, Y),
    "large": (lambda s, y: squares(s, y).mean(), 1e4 * S, Y),
    "no targets": (lambda s, y: s.square().mean(), S, None),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_function_passes(name):
    """Kinks have several gradients, batches may be coupled, and float32 has its own rounding."""
    function, s, y = SOUND[name]
    first(from_function(function), s, y)


def test_the_check_is_made_once_and_can_be_left_out():
    """It costs some evaluations, and a stop-gradient is a gradient that someone wants."""
    calls = []

    def counted(s, y):
        calls.append(1)
        return squares(s, y).mean()

    loss = first(from_function(counted))
    assert len(calls) > 3
    calls.clear()
    first(loss)
    assert not calls
    first(from_function(REFUSED["detached in part"][0], check=False))
    assert first(copy.deepcopy(loss)) is not loss


def test_another_form_of_outputs_is_checked_anew():
    """One example shows no broadcasting, and plain outputs none either."""
    loss = first(from_function(lambda s, y: (s - y).square().mean()))
    first(loss, COLUMN[:1], ROW[:1])
    first(loss, ROW.clone(), ROW)
    with pytest.raises(SettingError, match="broadcasts"):
        first(loss, COLUMN, ROW)


def test_a_batch_whose_loss_is_not_finite_proves_nothing_and_the_next_is_checked():
    loss = first(from_function(REFUSED["detached in part"][0]), S * float("inf"))
    with pytest.raises(SettingError, match="detached"):
        first(loss)


def test_targets_that_are_not_by_example_are_refused():
    """A vector of K would broadcast over the batch."""
    with pytest.raises(SettingError, match=r"6 examples but y has shape \(3,\)"):
        first(from_function(squares, "none"), y={"target": Y, "scale": Y[0]})


def test_what_is_no_loss_is_refused_when_it_is_made():
    for arguments in ({"function": 3}, {"function": nn.MSELoss}, {"reduction": "max"}, {"reduction": "sum", "terms": 3}):
        with pytest.raises(SettingError):
            from_function(**{"function": squares, **arguments})


def test_one_scalar_has_no_value_per_example():
    with pytest.raises(SettingError, match=r"no value per example.*reduction='none'"):
        first(from_function(F.mse_loss)).value(S, Y)


def test_squared_error_is_of_outputs_of_any_shape():
    """½‖s - y‖² over all of an example's units."""
    loss, s, y = dp.losses.SquaredError(), normal(N, K, 2), normal(N, K, 2, seed=1)
    loss.check_targets(y, s)
    torch.testing.assert_close(loss.value(s, y), (s - y).square().sum((1, 2)) / 2, rtol=1e-14, atol=0)
    with pytest.raises(SettingError, match=r"outputs must have shape \(N, K\)"):
        dp.losses.CrossEntropy().check_targets(y, s)
