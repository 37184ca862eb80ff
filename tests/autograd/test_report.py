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
