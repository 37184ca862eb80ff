"""Activations that no mode meets: in functions of torch.jit, of vmap, of C++, in operators."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dualprop as dp

# Of torch.jit, which a model may still use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RULE = dp.DualPropagation(beta=0.5, coupling="transposed", alpha=0.0, engine="explicit")


class Net(nn.Module):
    """tanh, then `function`."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.function = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4), function
        self.double()

    def forward(self, x):
        return self.c(self.function(self.b(torch.tanh(self.a(x)))))


class Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        s = torch.sigmoid(a)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx, dy):
        (s,) = ctx.saved_tensors
        return dy * s * (1 - s)


def batch():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4


def scripted(function):
    def sigmoid(a: torch.Tensor):
        return 2 * torch.sigmoid(a)

    def twice(a: torch.Tensor):
        return 2 * a

    return torch.jit.script({"sigmoid": sigmoid, "twice": twice}[function])


def traced():
    return torch.jit.trace(lambda a: torch.sigmoid(a) + 1, torch.zeros(6, 6).double())


# Each with what it computes.
HIDING = {
    "script": (lambda: scripted("sigmoid"), lambda a: 2 * a.sigmoid()),
    "trace": (traced, lambda a: a.sigmoid() + 1),
    "vmap": (lambda: torch.func.vmap(torch.sigmoid), torch.sigmoid),
}


def warmed(function):
    """Called until torch.jit has compiled it: autograd then has one node for the whole."""
    for _ in range(3):
        function(torch.zeros(6, 6).double().requires_grad_())
    return function


def dualized(net, x, y, **settings):
    F.cross_entropy(dp.dualize(net, **settings)(x), y).backward()


def explicit(net, x, y, **settings):
    network = dp.Network.from_module(net, **settings)
    RULE(network, x, y).backward()
    return network


def dyadic(net, x, y, **settings):
    with dp.dyadic(batch=len(x), **settings):
        outputs = net(x)
    F.cross_entropy(outputs, y).backward()


@pytest.mark.parametrize("train", [dualized, explicit, dyadic])
@pytest.mark.parametrize("make", [make for make, _ in HIDING.values()], ids=HIDING)
def test_an_activation_that_no_mode_meets_is_refused_by_name(make, train):
    """It would stay back-propagation, and nobody would know."""
    with pytest.raises(dp.errors.UnsupportedModuleError, match=r"sigmoid runs inside .*leave=\('sigmoid',\)"):
        train(Net(make()), *batch())


@pytest.mark.parametrize("train", [dualized, explicit, dyadic])
def test_a_function_that_torch_jit_has_compiled_is_refused_whatever_it_holds(train):
    with pytest.raises(dp.errors.UnsupportedModuleError, match=r"torch.jit runs inside a function .*PYTORCH_JIT=0"):
        train(Net(warmed(scripted("sigmoid"))), *batch())


@pytest.mark.parametrize("train", [dualized, explicit, dyadic])
@pytest.mark.parametrize(("make", "function"), HIDING.values(), ids=HIDING)
def test_a_hidden_activation_that_is_left_by_name_gives_what_a_left_one_gives(make, function, train):
    x, y = batch()
    net, plain = Net(make()), Net(function)
    for each in (net, plain):
        train(each, x, y, leave=("sigmoid",))
    for p, expected in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-12, atol=1e-14)


def test_what_torch_jit_runs_without_activations_is_as_if_it_were_called():
    x, y = batch()
    net, plain = Net(scripted("twice")), Net(lambda a: 2 * a)
    dp.dualize(net), dp.dualize(plain)
    for _ in range(4):  # torch.jit compiles in the third
        for each in (net, plain):
            each.zero_grad()
            F.cross_entropy(each(x), y).backward()
        for p, expected in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, expected.grad, rtol=1e-12, atol=1e-14)


def test_a_branch_that_hides_an_activation_is_refused_when_it_is_taken():
    net = Net(torch.sigmoid)
    x, y = batch()
    dualized(net, x, y)
    net.function = scripted("sigmoid")
    with pytest.raises(dp.errors.UnsupportedModuleError, match="sigmoid runs inside"):
        net(x)
    net.function = torch.sigmoid
    F.cross_entropy(net(x), y).backward()


def test_what_describes_a_model_tells_of_hidden_activations_and_of_functions_of_the_users():
    x, _ = batch()
    assert "out of sight, refused: sigmoid in or before 'c'" in str(dp.describe(Net(scripted("sigmoid")), x))
    assert "out of sight, refused: sigmoid" in str(dp.describe(nn.Sequential(Net(scripted("sigmoid")), scripted_last()), x))
    assert "left to exact derivatives inside a synapse: Squash of 'Net'" in str(dp.describe(Net(Squash.apply), x))


def scripted_last():
    class Last(nn.Module):
        def forward(self, a):
            return scripted("sigmoid")(a)

    return Last()


def test_a_users_autograd_function_is_told_and_refused_by_strict():
    """Its own derivative is used: an activation inside stays exact."""
    x, y = batch()
    assert "exact derivatives inside a synapse: Squash of 'Net'" in str(explicit(Net(Squash.apply), x, y))
    with pytest.raises(dp.errors.UnsupportedModuleError, match="Squash"):
        explicit(Net(Squash.apply), x, y, strict=True)
    with pytest.raises(dp.errors.UnsupportedModuleError, match="Squash"):
        dualized(Net(Squash.apply), x, y, strict=True)


def test_what_is_made_of_parameters_alone_or_before_the_pass_hides_nothing():
    x, y = batch()
    net, positive = Net(torch.sigmoid), scripted("sigmoid")
    net.scale = nn.Parameter(torch.zeros(6).double())
    net.function = lambda a: torch.sigmoid(a * positive(net.scale))
    dualized(net, x, y)
    head, features = Net(torch.sigmoid), nn.Linear(5, 5).double()
    F.cross_entropy(dp.dualize(head)(positive(features(x))), y).backward()
    assert features.weight.grad is not None


CALLS = {
    "packet": (torch.ops.aten.sigmoid, torch.sigmoid),
    "overload": (torch.ops.aten.gelu.default, F.gelu),
    "of C": (torch._C._nn.hardtanh, F.hardtanh),
    "partial": (functools.partial(F.leaky_relu, negative_slope=0.2), nn.LeakyReLU(0.2)),
    "special": (torch.special.expit, torch.sigmoid),
    "settings": (functools.partial(torch.ops.aten.softplus, beta=2), nn.Softplus(2)),
    "softmax": (functools.partial(torch.ops.aten.softmax, dim=1), nn.Softmax(1)),
}


@pytest.mark.parametrize("train", [dualized, explicit])
@pytest.mark.parametrize(("call", "plain"), CALLS.values(), ids=CALLS)
def test_an_activation_counts_however_it_is_called(call, plain, train):
    x, y = batch()
    nets = Net(call), Net(plain)
    for net in nets:
        train(net, x, y)
    for p, expected in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-12, atol=1e-14)
