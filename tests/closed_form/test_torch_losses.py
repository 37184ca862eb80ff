"""PyTorch's losses by type: what their mean divides by, their gradients, and what is refused."""

import copy
import functools
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop import losses
from dualprop.errors import SettingError

N, C = 5, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = torch.tensor([0.3, 1.7, 0.9, 1.2], dtype=torch.float64)
S, TARGET, LABELS = normal(N, C), normal(N, C, seed=1), torch.tensor([0, 3, 1, 1, 2])
MAP, PIXELS = normal(N, C, 2, 3), torch.randint(C, (N, 2, 3), generator=torch.Generator().manual_seed(1))
HOLES = PIXELS.where(PIXELS != 2, -100)
ONES = TARGET.sign()

# Every known loss, with outputs and targets that it takes.
KNOWN = {
    "cross-entropy": (nn.CrossEntropyLoss(), S, LABELS),
    "cross-entropy, weighted and smoothed": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2), S, LABELS),
    "cross-entropy, all at once": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, ignore_index=1), MAP, PIXELS),
    "cross-entropy, holes": (nn.CrossEntropyLoss(), MAP, HOLES),
    "cross-entropy, soft and weighted": (nn.CrossEntropyLoss(weight=WEIGHT), MAP, MAP.softmax(1)),
    "nll": (nn.NLLLoss(weight=WEIGHT, ignore_index=1), MAP.log_softmax(1), PIXELS),
    "multi-margin": (nn.MultiMarginLoss(weight=WEIGHT), S, LABELS),
    "mse": (nn.MSELoss(), MAP, normal(N, C, 2, 3, seed=1)),
    "l1": (nn.L1Loss(), S, TARGET),
    "smooth l1": (nn.SmoothL1Loss(beta=0.5), S, TARGET),
    "huber": (nn.HuberLoss(delta=0.5), S, TARGET),
    "bce": (nn.BCELoss(weight=WEIGHT), S.sigmoid(), (TARGET > 0).double()),
    "bce with logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), S, TARGET > 0),
    "kl": (nn.KLDivLoss(log_target=True), S.log_softmax(1), TARGET.log_softmax(1)),
    "poisson": (nn.PoissonNLLLoss(), S, TARGET.exp()),
    "soft margin": (nn.SoftMarginLoss(), S, ONES),
    "hinge embedding": (nn.HingeEmbeddingLoss(margin=0.5), S, ONES),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(weight=WEIGHT), S, (TARGET > 0).double()),
}
every_known = pytest.mark.parametrize("name", KNOWN)


def test_every_known_loss_is_tried():
    assert {type(loss) for loss, _, _ in KNOWN.values()} == set(losses.pytorch.MODULES)


@every_known
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_the_scalar_is_pytorchs_and_the_sum_over_the_terms(name, reduction):
    """β counts per term: with a wrong count the nudge is of another size, and the gradient too."""
    module, s, y = KNOWN[name]
    if reduction == "batchmean" and not isinstance(module, nn.KLDivLoss):
        return
    module = copy.copy(module)
    module.reduction = reduction
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of the mean of kl_div
        compare_scalars(module, s, y)


def compare_scalars(module, s, y):
    loss = losses.from_name(module)
    expected = module(s, y.double() if y.dtype == torch.bool else y)
    y = loss.batch_targets(y, N, torch.float64)
    loss.check_targets(y, s)
    torch.testing.assert_close(loss.mean(s, y), expected, rtol=0, atol=0)
    torch.testing.assert_close(loss.total(s, y) / loss.terms(y, N), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.value(s, y).sum() / loss.terms(y, N), expected, rtol=1e-13, atol=0)
    assert loss.value(s, y).shape == (N,)
    leaf = s.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf, y.double() if y.dtype == torch.bool else y), leaf)
    torch.testing.assert_close(loss.gradient(s, y) / loss.terms(y, N), gradient, rtol=1e-12, atol=1e-15)


@every_known
def test_a_gradient_is_each_examples_own(name):
    """Alone, an example has the same row: a mean inside would make it smaller beside others."""
    module, s, y = KNOWN[name]
    loss = losses.from_name(module)
    together = loss.gradient(s, y)
    for i in range(N):
        torch.testing.assert_close(loss.gradient(s[i : i + 1], y[i : i + 1]), together[i : i + 1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("module", losses.pytorch.MODULES, ids=lambda kind: kind.__name__)
def test_a_function_is_its_module(module):
    """Wherever a rule takes `loss=`, F.mse_loss and nn.MSELoss() are the same."""
    function = losses.pytorch.MODULES[module][0]
    for loss in (function, module(), functools.partial(function), functools.partial(function, reduction="sum")):
        made = dp.DualPropagation(loss=loss).loss
        assert type(made.module) is module
        assert made.module.reduction == ("sum" if isinstance(loss, functools.partial) and loss.keywords else "mean")
    assert str(made) == module.__name__


def test_keywords_of_a_function_are_kept():
    loss = losses.from_name(functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=3, label_smoothing=0.1))
    expected = F.cross_entropy(S, LABELS, weight=WEIGHT, ignore_index=3, label_smoothing=0.1)
    torch.testing.assert_close(loss.mean(S, LABELS), expected, rtol=0, atol=0)
    assert loss.terms(LABELS, N) == pytest.approx(0.3 + 1.7 + 1.7 + 0.9)  # the labels 0, 1, 1, 2


def test_classes_may_stand_last():
    """As language models give them; PyTorch would take the tokens for classes."""
    s, loss = MAP.movedim(1, -1), losses.from_torch(F.cross_entropy, classes_last=True)
    loss.check_targets(HOLES, s)
    torch.testing.assert_close(loss.mean(s, HOLES), F.cross_entropy(s.reshape(-1, C), HOLES.reshape(-1)), rtol=1e-14, atol=0)
    assert loss.gradient(s, HOLES).shape == s.shape
    soft = s.softmax(-1)
    loss.check_targets(soft, s)
    torch.testing.assert_close(loss.mean(s, soft), F.cross_entropy(MAP, MAP.softmax(1)), rtol=1e-14, atol=0)
    assert loss.terms(soft, N) == N * 6


def checked(loss, s, y):
    loss = losses.from_name(loss)
    y = loss.batch_targets(y, len(s), s.dtype)
    loss.check_targets(y, s)
    return loss.terms(y, len(s))


REFUSED = {
    "broadcast targets": (lambda: checked(F.mse_loss, S[:, :1], TARGET[:, 0]), r"outputs' shape \(5, 1\), got \(5,\)"),
    "broadcast outputs": (lambda: checked(F.l1_loss, S, TARGET[:, :1]), r"outputs' shape \(5, 4\), got \(5, 1\)"),
    "labels for numbers": (lambda: checked(F.mse_loss, S, LABELS), r"outputs' shape \(5, 4\)"),
    "a label too large": (lambda: checked(F.cross_entropy, S, LABELS + 1), r"class indices must be in 0…3, got 1…4"),
    "a label too small": (lambda: checked(F.cross_entropy, S, LABELS - 1), r"class indices must be in 0…3, got -1…2"),
    "a token too large": (lambda: checked(F.nll_loss, MAP, HOLES.where(HOLES != 3, 9)), "in 0…3, got 0…9"),
    "one too large, weighted": (lambda: checked(nn.CrossEntropyLoss(WEIGHT), S, LABELS + 1), "in 0…3, got 1…4"),
    "classes last": (lambda: checked(F.cross_entropy, MAP[..., 0], PIXELS[:, 0]), r"need integer .* of \(5, 2\).*classes_last"),
    "one-hot integers": (lambda: checked(F.cross_entropy, S, F.one_hot(LABELS, C)), "Reshape y"),
    "real labels": (lambda: checked(F.cross_entropy, S, LABELS.double()), r"must be integers, got torch\.float64"),
    "true or false": (lambda: checked(F.cross_entropy, S, LABELS > 1), r"must be integers, got torch\.bool"),
    "no batch": (lambda: checked(F.cross_entropy, S[:, 0], LABELS), "at dimension 1"),
    "too few": (lambda: checked(F.mse_loss, S, TARGET[:3]), "one target per example"),
    "no token at all": (lambda: checked(F.cross_entropy, S, torch.full((N,), -100)), r"divides by 0.*Leave the batch out"),
    "weights of zero": (lambda: checked(nn.CrossEntropyLoss(0 * WEIGHT), S, LABELS), "no target counts"),
    "no reduction": (lambda: dp.Backprop(loss=nn.MSELoss(reduction="none")), "no one scalar.*'mean' or 'sum'"),
    "a subclass": (lambda: dp.Backprop(loss=type("Focal", (nn.CrossEntropyLoss,), {})()), "Focal .*from_function"),
    "a function": (lambda: dp.Backprop(loss=lambda o, y: o.sum()), r"<lambda> is not one .*reduction='mean'"),
    "a class": (lambda: dp.Backprop(loss=nn.MSELoss), "unknown loss"),
    "no such keyword": (lambda: losses.from_torch(F.mse_loss, delta=1.0), "takes no such keywords.*delta"),
    "no such function": (lambda: losses.from_torch(F.relu), "none of PyTorch's losses"),
    "last of numbers": (lambda: losses.from_torch(F.mse_loss, classes_last=True), "classes_last is of class indices"),
    "beyond its domain": (lambda: losses.from_name(F.binary_cross_entropy).mean(S, ONES), "BCELoss .*between 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_pytorch_would_take_for_something_else_is_refused_with_the_remedy(name):
    """Broadcast, wrapped or averaged over nothing, training would go on."""
    call, message = REFUSED[name]
    with pytest.raises(SettingError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("loss", "last", "message"),
    [
        (F.cross_entropy, nn.Softmax(1), "takes logits"),
        (F.nll_loss, nn.Softmax(1), "takes log-probabilities"),
        (F.binary_cross_entropy_with_logits, nn.Sigmoid(), "takes logits"),
    ],
)
def test_a_loss_of_logits_is_refused_behind_its_own_activation(loss, last, message):
    network = dp.Network.from_module(nn.Sequential(nn.Linear(4, C), last).double())
    with pytest.raises(SettingError, match=message):
        dp.Backprop(loss=loss).gradients(network, S, LABELS if loss is not F.binary_cross_entropy_with_logits else ONES)


def test_half_precision_outputs_are_taken_in_float32():
    loss, s, y = losses.from_name(F.cross_entropy), S.bfloat16(), LABELS
    torch.testing.assert_close(loss.gradient(s, y), loss.gradient(s.float(), y), rtol=0, atol=0)
    assert loss.mean(s, y).dtype == torch.float32


def test_a_rule_with_such_a_loss_can_be_copied_and_pickled():
    rule = dp.DualPropagation(loss=nn.CrossEntropyLoss(weight=WEIGHT))
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert torch.equal(twin.loss.mean(S, LABELS), rule.loss.mean(S, LABELS))


def test_a_recipe_refuses_a_loss_that_it_could_not_write_down():
    """Resumed, the run would not know what it descends."""
    from dataclasses import replace

    from dualprop import recipes

    recipe = recipes.from_name("digits-mlp")
    with pytest.raises(SettingError, match=r"loss by name.*got MSELoss\. Train with your own loss"):
        replace(recipe, rule=dp.Backprop(loss=F.mse_loss))
