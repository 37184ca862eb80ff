"""What a reader of code could get silently wrong: pickles, in-place writing, branches, randomness,
hooks, nonlinear products."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import dualprop as dp


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Optional(Functional):
    def forward(self, x, skip=None):
        h = self.a(x)
        if skip is None:
            h = torch.tanh(h)
        return self.b(h)


class HarmlessDefault(Functional):
    def forward(self, x, scale=2.0):
        return self.b(torch.tanh(self.a(x)) * scale)


class Branching(Functional):
    def forward(self, x):
        h = self.a(x)
        if isinstance(h, torch.Tensor):
            h = F.relu(h)
        return self.b(h)


class LayerDrop(Functional):
    def forward(self, x):
        h = self.a(x)
        return self.b(torch.relu(h) if random.random() < 0.5 else h)


class OwnTensor(Functional):
    def forward(self, x):
        return self.b(torch.relu(self.a(x)) + torch.arange(8))


class ForEffect(Functional):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.a(x)
        self.act(h)
        return self.b(h)


class ReadAgain(ForEffect):
    def forward(self, x):
        h = self.a(x)
        return self.b(self.act(h)) + h.sum()


class FunctionalReadAgain(Functional):
    def forward(self, x):
        h = self.a(x)
        y = F.relu(h, inplace=True)
        return self.b(y + h)


class PreActivation(Functional):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x + self.block(x))))


class Ratio(Functional):
    def forward(self, x):
        return self.b(1 / (self.a(x).relu() + 9))


class KeywordSquare(Functional):
    def forward(self, x):
        h = self.a(x).relu()
        return self.b(torch.mul(h, other=h))


IN_PLACE = [ForEffect, ReadAgain, FunctionalReadAgain, PreActivation]
KINDS = [Optional, Branching, LayerDrop, OwnTensor, Ratio, KeywordSquare, *IN_PLACE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_with_branches_randomness_and_writing_in_place_is_what_it_does(kind):
    """Each of these trained by something else, or predicted something else, when code was read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = kind().double()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for model in (plain, dp.dualize(copy.deepcopy(plain), beta=1e-5, loss_reduction="sum")):
        random.seed(1)  # the first draw is below ½, the second above
        output = torch.stack([model(x.clone()), model(x.clone())])
        output.square().sum().backward()
        found.append((output.detach(), {n: p.grad for n, p in model.named_parameters()}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", [Functional, HarmlessDefault])
def test_a_converted_forward_predicts_what_it_did_and_is_dyadic(kind):
    """Defaults alone are no branch."""
    torch.manual_seed(0)
    model = kind().double()
    twin, x = copy.deepcopy(model), torch.randn(3, 6).double()
    dp.dualize(model, beta=3.0, loss_reduction="sum")
    assert torch.equal(model(x), twin(x))
    model(x).sum().backward()
    twin(x).sum().backward()
    assert not torch.allclose(model.a.weight.grad, twin.a.weight.grad)


def test_clamp_between_numbers_is_no_writing_in_place():
    """True equals 1, but clamp(x, 0, 1) is not inplace=True."""

    class Clamped(Functional):
        def forward(self, x):
            h = self.a(x)
            return self.b(torch.clamp(h, 0, 1) + h)

    assert dp.dualize(Clamped())(torch.randn(2, 6)).shape == (2, 4)


def test_a_dualized_model_is_pickled_and_comes_back_dualized():
    """torch.save(model) came back as plain back-propagation."""
    model = dp.dualize(Functional().double(), beta=3.0)
    twin = pickle.loads(pickle.dumps(model))
    x = torch.randn(5, 6, dtype=torch.float64)
    for each in (model, twin):
        F.cross_entropy(each(x), torch.arange(5) % 4).backward()
    plain = dp.undualize(copy.deepcopy(model))
    plain.zero_grad()
    F.cross_entropy(plain(x), torch.arange(5) % 4).backward()
    assert torch.equal(twin.a.weight.grad, model.a.weight.grad)
    assert not torch.allclose(plain.a.weight.grad, model.a.weight.grad)


def test_a_copy_of_a_converted_model_computes_with_its_own_parameters():
    """A copy that still ran the original's weights would train the wrong model."""
    model = dp.dualize(Functional())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(torch.randn(2, 6)).any()
    assert model(torch.randn(2, 6)).any()


def test_forward_hooks_on_an_activation_act_as_before():
    """A conversion that lost them would predict something else."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].register_forward_hook(lambda module, inputs, output: output * 0)
    dp.dualize(model)
    assert torch.equal(model(torch.randn(5, 3)), model[2].bias.expand(5, 2))


def test_what_is_left_is_left_whole_and_a_single_name_will_do():
    """A container that is left keeps its activations; leave='ReLU' is one name, not four
    letters."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    found = [dp.dualize(copy.deepcopy(model), beta=4.0, leave=leave) for leave in ("0", "softmax", "Softmax")]
    x = torch.randn(5, 3)
    for each in (*found, dp.dualize(model, beta=4.0)):
        F.cross_entropy(each(x), torch.arange(5) % 2).backward()
    assert torch.equal(found[0][0][0].weight.grad, found[1][0][0].weight.grad)
    assert torch.equal(found[0][0][0].weight.grad, found[2][0][0].weight.grad)
    assert not torch.equal(found[0][0][0].weight.grad, model[0][0].weight.grad)


def test_parametrized_weights_parameter_lists_and_losses_are_no_obstacle():
    """None of them can hide an activation of the forward pass."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    model.loss = nn.CrossEntropyLoss()
    del model.loss
    dp.dualize(model)
    nn.functional.cross_entropy(model(torch.randn(5, 3)), torch.arange(5) % 2).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_explicit_inference_refuses_half_precision():
    """Its differences were off by 99 % with a status of ok."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    with pytest.raises(dp.SettingError, match="float32"):
        dp.DualPropagation().gradients(dp.Network.from_module(model), torch.randn(5, 3).bfloat16(), torch.arange(5) % 2)


@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_parameters_frozen_or_unfrozen_after_the_view_was_made_are_seen(engine):
    """Fine-tuning in stages freezes and unfreezes; the view must follow."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network, rule = dp.Network.from_module(model), dp.DualPropagation(engine=engine)
    x, y = torch.randn(5, 3), torch.arange(5) % 2
    model[0].requires_grad_(False)
    assert set(rule.gradients(network, x, y).gradients) == {"2.weight", "2.bias"}
    model[0].requires_grad_(True)
    assert set(rule.gradients(network, x, y).gradients) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("rule", [dp.Backprop(), dp.DualPropagation(), dp.DualPropagation(engine="fused")])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_targets_of_any_integer_type_and_whole_one_hot_rows_are_understood(rule, loss):
    """F.one_hot gives int64; data files give uint8."""
    rule = type(rule)(**{**{k: getattr(rule, k) for k in ("engine",) if hasattr(rule, k)}, "loss": loss})
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    network, x, y = dp.Network.from_module(model), torch.randn(5, 3).double(), torch.arange(5) % 2
    expected = rule.gradients(network, x, y).gradients
    for other in (y.int(), y.to(torch.uint8), y.to(torch.int8), F.one_hot(y), F.one_hot(y).bool()):
        for name, gradient in rule.gradients(network, x, other).gradients.items():
            assert torch.allclose(gradient, expected[name]), (name, other.dtype)


def test_a_state_of_another_alpha_is_refused():
    """Its mean and difference would be read as other states."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network, x, y = dp.Network.from_module(model), torch.randn(5, 3), torch.arange(5) % 2
    state = dp.DualPropagation(alpha=0.2).gradients(network, x, y).state
    with pytest.raises(dp.SettingError, match=r"alpha=0\.7"):
        dp.DualPropagation(alpha=0.7, start="previous").gradients(network, x, y, state=state)
