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


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.gate, self.c = nn.Linear(5, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 4)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h * self.gate(h[:, None])[0][:, 0])


@pytest.mark.parametrize("named", [("mul", "lstm"), ("mul", "gate"), ("mul", "LSTM"), ("Gated",)], ids=str)
def test_strict_lets_pass_what_leave_names_and_refuses_what_it_does_not(named):
    """Who has named it knows of it."""
    x, y = torch.randn(6, 5).double(), torch.arange(6) % 4
    names = {"mul", "lstm"} if named == ("Gated",) else {"mul"}
    network = dp.Network.from_module(Gated(), leave=named, strict=True)
    BIG["dual_propagation"].gradients(network, x, y)
    assert all(f"synapse: {name}" in str(network) for name in names | {"lstm"})
    if named != ("Gated",):
        dp.dualize(Gated(), leave=named, strict=True)(x)
    for few in (named[1:], ()):
        with pytest.raises(dp.UnsupportedModuleError, match=r"(mul|lstm)"):
            BIG["dual_propagation"].gradients(dp.Network.from_module(Gated(), leave=few, strict=True), x, y)
        with pytest.raises(dp.UnsupportedModuleError, match=r"(mul|lstm)"):
            dp.dualize(Gated(), leave=few, strict=True)(x)
