"""The report of a model: what is nonlinear in its states and no activation, other batches' ways."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dualprop as dp

RULE = dp.DualPropagation(engine="explicit", beta=0.1)


class Net(nn.Module):
    """`product` of two states; `weight` is a parameter, w one of data."""

    def __init__(self, product):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.product = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4), product
        self.weight, self.bilinear = nn.Parameter(torch.randn(6, 6)), nn.Bilinear(6, 6, 6)
        self.double()

    def forward(self, x):
        return self.c(self.product(self, torch.tanh(self.a(x)), torch.tanh(self.b(x))))


# Of 6 examples, so that states are square matrices.
PRODUCTS = {
    "linear": lambda m, s, t: F.linear(s, t),
    "addmm": lambda m, s, t: torch.addmm(s, s, t),
    "outer": lambda m, s, t: torch.outer(s[:, 0], t[:, 0]),
    "bilinear": lambda m, s, t: m.bilinear(s, t),
    "conv1d": lambda m, s, t: F.conv1d(s[:, None], t[:1, None, :1])[:, 0],
    "einsum": lambda m, s, t: torch.einsum("ni,nj->ni", s, t),
    "matmul": lambda m, s, t: s @ t,
    "mul": lambda m, s, t: s * t,
}
LINEAR = {
    "a bias of data": lambda m, s, t: F.linear(s, m.weight, t[0]),
    "addmm": lambda m, s, t: torch.addmm(t, s, m.weight),
    "a weight made of parameters": lambda m, s, t: F.linear(s, m.weight.t() * m.weight),
    "a parameter alone": lambda m, s, t: s @ m.weight + torch.outer(t[:, 0], m.weight[0]),
}


def batch():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4


def report(net):
    network = dp.Network.from_module(net)
    RULE.gradients(network, *batch())
    return str(network)


@pytest.mark.parametrize(("name", "product"), PRODUCTS.items(), ids=PRODUCTS)
def test_a_product_of_two_states_is_told_whatever_computes_it(name, product):
    """It is no synapse: exact derivatives are taken of something nonlinear in the states."""
    told = f"left to exact derivatives inside a synapse: {name}, a product of states"
    assert told in report(Net(product))
    assert told in str(dp.describe(Net(product), batch()[0]))


@pytest.mark.parametrize("map_of", LINEAR.values(), ids=LINEAR)
def test_what_is_linear_in_states_is_not_named(map_of):
    assert "left to" not in report(Net(map_of))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(torch.sigmoid(self.b(h)) if len(x) > 3 else h)


def test_that_a_later_batch_ran_other_activations_is_told():
    """The report is of the first batch, and would be taken for all."""
    x, y = batch()
    network = dp.Network.from_module(Branching().double())
    RULE.gradients(network, x, y)
    first = str(network)
    RULE.gradients(network, x[:4], y[:4])
    assert str(network) == first
    RULE.gradients(network, x[:2], y[:2])
    assert "of the first batch; a later one ran tanh, output" in str(network)


class Several(nn.Module):
    """Takes a list, returns a dict."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = nn.Linear(5, 6), nn.Linear(6, 4)
        self.double()

    def forward(self, xs):
        return {"logits": self.c(torch.tanh(sum(self.a(x) for x in xs)))}


@pytest.mark.parametrize("output", ["logits", 0, ("logits",)], ids=repr)
def test_an_output_that_is_no_function_is_refused_with_the_remedy(output):
    """It would be called in the first step, with a bare TypeError."""
    with pytest.raises(dp.SettingError, match=r"output=lambda out: out\["):
        dp.Network.from_module(Several(), output=output)


@pytest.mark.parametrize(
    "pack", [lambda x: [x, x], lambda x: ([x, x],), lambda x: {"xs": [x, x]}], ids=["list", "tuple", "dict"]
)
def test_a_list_of_tensors_is_one_argument(pack):
    x, y = batch()
    net = Several()
    network = dp.Network.from_module(net, output=lambda out: out["logits"])
    small = dp.DualPropagation(engine="explicit", beta=1e-5)
    F.cross_entropy(net([x, x])["logits"], y).backward()
    for name, gradient in small.gradients(network, pack(x), y).gradients.items():
        torch.testing.assert_close(gradient, dict(net.named_parameters())[name].grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("beta", [{"a": 0.1}, {1: 0.1, "*": 0.2}], ids=str)
def test_a_rule_takes_betas_by_order_of_execution_and_says_so(beta):
    with pytest.raises(dp.SettingError, match=r"Give a tuple, in order of execution: print\(network\) counts"):
        dp.DualPropagation(beta=beta)


def test_betas_by_order_of_execution_are_of_the_layers_that_print_counts():
    """β_k nudges layer k: the one that print(network) numbers k."""
    net, (x, y) = Several(), batch()
    network = dp.Network.from_module(net, output=lambda out: out["logits"])
    given = dp.DualPropagation(engine="explicit", beta=(0.2, 0.4)).gradients(network, [x, x], y)
    assert ["1: tanh" in line for line in str(network).splitlines()[1:3]] == [True, False]
    with pytest.raises(dp.SettingError, match="beta lists 3 values"):
        dp.DualPropagation(engine="explicit", beta=(0.2, 0.4, 0.1)).gradients(network, [x, x], y)
    assert given.status.ok


def test_forward_hooks_are_told_and_are_part_of_the_model_in_every_pass():
    """What they change counts in each pass; what they note, they note as often."""
    x, y = batch()
    net, plain, seen = Several(), Several(), []
    forward = plain.a.forward
    plain.a.forward = lambda x: 2 * forward(x)
    net.a.register_forward_hook(lambda module, args, output: 2 * output)
    net.c.register_forward_pre_hook(lambda module, args: seen.append(1))
    network = dp.Network.from_module(net, output=lambda out: out["logits"])
    other = dp.Network.from_module(plain, output=lambda out: out["logits"])
    given, expected = (RULE.gradients(each, [x], y).gradients for each in (network, other))
    for name, gradient in given.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14)
    assert "in every pass of a step run the forward hooks of 'a', 'c'" in str(network)
    assert "hooks" not in str(other)
    seen.clear()
    outcome = RULE.gradients(network, [x], y)
    assert len(seen) == outcome.diagnostics["drives"] / 2
