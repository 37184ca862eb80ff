"""Nudges that take units across a kink are told; beta="auto" chooses one whose nudges do not.

One network, small enough to do by head: two ReLU units with drives 1 and 0.04, an output that is
their sum, and ½(s - y)² with s - y = 1. At α = ½ each unit is nudged by β/2 to either side. So half
of the units cross at β = 0.1 and above, and none at β = 0.03.
"""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop.alignment import alignment
from dualprop.errors import NudgeWarning, SettingError
from dualprop.losses import SquaredError
from dualprop.rules import nudging

X, Y = torch.tensor([[1.0, 0.04]]), torch.tensor([[0.04]])


def model_of_two_units(activation=nn.ReLU):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), activation(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.fill_(1.0)
    return model


def rule(beta, **settings):
    return dp.DualPropagation(beta=beta, loss=SquaredError(), **settings)


@pytest.mark.parametrize(("beta", "share"), [(1.0, 0.5), (0.1, 0.5), (0.03, 0.0)])
def test_the_share_of_units_that_cross_is_counted(beta, share):
    network = dp.Network.from_module(model_of_two_units())
    assert nudging.shares(rule(beta), network, X, Y) == [share]


def test_the_largest_beta_that_takes_no_unit_across_is_chosen_and_said():
    """Of 1, 0.3, 0.1 and 0.03 the last."""
    network = dp.Network.from_module(model_of_two_units())
    chosen = nudging.choose(rule("auto"), network, X, Y)
    assert chosen.rule == rule(0.03)
    assert chosen.told.startswith("beta=0.03 chosen: at most 0 % ")
    assert "50 % at 1" in chosen.told
    assert dp.choose_beta(rule("auto"), network, X, Y) == rule(0.03)


def test_a_beta_that_is_a_number_is_left_as_it_is():
    assert dp.choose_beta(rule(0.7), dp.Network.from_module(model_of_two_units()), X, Y) == rule(0.7)


def test_looking_at_the_nudge_changes_nothing_of_the_model():
    """Buffers and the random numbers that a model draws are as without it, bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    x, y, ends = torch.randn(6, 4), torch.randint(0, 3, (6,)), []
    for is_looked_at in (True, False):
        own = copy.deepcopy(model)
        network = dp.Network.from_module(own)
        torch.manual_seed(1)
        if is_looked_at:
            assert nudging.shares(dp.DualPropagation(), network, x, y)
        dp.DualPropagation().backward(network, x, y)
        ends.append([*[p.grad for p in own.parameters()], *own.buffers(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def train_dualized(model, steps=5):
    for _ in range(steps):
        ((model(X) - Y).square() / 2).mean().backward()


def test_a_dualized_model_tells_once_after_its_first_step():
    model = dp.dualize(model_of_two_units())
    with pytest.warns(NudgeWarning, match=r"50 % of layer 1's units .* lower beta from 1, to 0\.03 say$") as told:
        train_dualized(model)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_dualized(dp.dualize(model_of_two_units(), beta=0.03))


@pytest.mark.parametrize(("beta", "activation"), [(0.03, nn.ReLU), (1.0, nn.Tanh)])
def test_a_small_beta_and_a_smooth_network_are_silent(beta, activation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_dualized(dp.dualize(model_of_two_units(activation), beta=beta))


def test_a_dualized_model_chooses_its_beta_in_the_first_step():
    model = dp.dualize(model_of_two_units(), beta="auto")
    with pytest.warns(NudgeWarning, match=r"beta=0\.03 chosen: .* 50 % at 1$") as told:
        train_dualized(model)
    assert len(told) == 1
    assert copy.deepcopy(model)._dualization.beta == 0.03


@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (lambda n: rule("auto").backward(n, X, Y), r"rule = dp\.choose_beta\(rule, network, x, y\)"),
        (lambda n: dp.PredictiveCoding(beta="auto"), "'auto' is of rules whose nudges may cross kinks"),
        (lambda n: dp.TargetPropagation(beta="auto"), "'auto' is of rules whose nudges may cross kinks"),
        (
            lambda n: dp.choose_beta(rule("auto"), dp.Network.from_module(model_of_two_units(nn.Tanh)), X, Y),
            r"no activation of this network has one\. Use beta=1\.",
        ),
    ],
)
def test_auto_is_refused_by_name_where_it_has_no_meaning(use, remedy):
    with pytest.raises(SettingError, match=remedy):
        use(dp.Network.from_module(model_of_two_units()))


def test_rounding_bounds_how_small_a_beta_is_chosen():
    """A Hopfield network, its output nearly right, y - s = 10⁻³, and whose second unit is at its
    kink, 6·10⁻⁸ below, so that it crosses at every β. The free phase is s = 0.3/0.91."""
    model, free = model_of_two_units(), 0.3 / 0.91
    with torch.no_grad():
        model[2].weight.fill_(0.3)
    x, y = torch.tensor([[1.0, -0.3 * free - 6e-8]]), torch.tensor([[free + 1e-3]])
    open_rule = dp.EquilibriumPropagation(energy="hopfield", beta="auto", loss=SquaredError())
    network = dp.Network.from_module(model)
    chosen = nudging.choose(open_rule, network, x, y)
    smaller = [beta for beta in nudging.candidates(open_rule) if beta < chosen.rule.beta]
    assert "only rounding is left in torch.float32" in chosen.told
    assert chosen.rule.gradients(network, x, y).status.ok
    assert not replace(open_rule, beta=smaller[0]).gradients(network, x, y).status.ok


def test_the_angles_of_a_model_that_is_read_by_running_it_are_told():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    network = dp.Network.from_module(model)
    assert network.is_recorded
    layers = alignment(network, dp.DualPropagation(beta=0.01), torch.randn(6, 4), torch.randint(0, 3, (6,)))
    assert len(layers) == 2
    assert all(layer.cosine > 0.9 for layer in layers)
