"""What a model that is read by running it does at other states, and what it is told to leave."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dualprop as dp

BIG = {
    "dual_propagation": dp.DualPropagation(beta=1.0, alpha=1.0, engine="explicit"),
    "equilibrium_propagation": dp.EquilibriumPropagation(beta=1.0),
}


class Experts(nn.Module):
    """One of two experts of the same shape, by the mean of the states below."""

    def __init__(self):
        super().__init__()
        self.a, self.one, self.other, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.threshold = 0.0

    def forward(self, x):
        h = torch.tanh(self.a(x))
        expert = self.one if h.mean() > self.threshold else self.other
        return self.c(F.gelu(expert(h)))


def problem():
    torch.manual_seed(0)
    model, x = Experts().double(), torch.randn(4, 5).double()
    return model, x, torch.arange(4) % 3


@pytest.mark.parametrize("rule", BIG.values(), ids=BIG)
def test_another_expert_of_the_same_shape_is_refused(rule):
    """Its weights would learn, and those of the expert that the prediction used would not.

    Whichever way inference moves the mean, it crosses a threshold next to it on one side.
    """
    refusals = []
    for side in (1e-6, -1e-6):
        model, x, y = problem()
        model.threshold = float(torch.tanh(model.a(x)).detach().mean()) + side
        try:
            rule.gradients(dp.Network.from_module(model), x, y)
        except dp.SettingError as refusal:
            refusals.append(str(refusal))
    assert refusals
    assert all("branches on its states" in each for each in refusals)


@pytest.mark.parametrize("rule", BIG.values(), ids=BIG)
def test_a_branch_that_the_states_keep_to_is_no_obstacle(rule):
    model, x, y = problem()
    model.threshold = float(torch.tanh(model.a(x)).detach().mean()) - 1.0
    gradients = rule.gradients(dp.Network.from_module(model), x, y).gradients
    assert bool(gradients["one.weight"].any())
    assert not gradients["other.weight"].any()


@pytest.mark.parametrize("leave", ["gelu", ("gelu",), ["gelu"]])
def test_what_is_named_is_left_be_it_in_a_tuple_or_alone(leave):
    """A name alone, taken letter by letter, would leave nothing."""
    model, x, y = problem()
    network = dp.Network.from_module(model, leave=leave)
    BIG["dual_propagation"].gradients(network, x, y)
    assert network.on(x).depth == 2
    assert "left to exact derivatives inside a synapse: gelu" in str(network)


@pytest.mark.parametrize("leave", ["gleu", ("gelu", "experts"), (nn.GELU,)], ids=str)
def test_a_name_of_nothing_is_refused(leave):
    """A misspelt one would leave nothing, silently."""
    with pytest.raises(dp.SettingError, match="leave names"):
        dp.Network.from_module(problem()[0], leave=leave)
