"""Where inference ends before the error has reached the lowest layers, the outcome says so."""

import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop.network.recorded import RecordedNetwork

SHORT = {
    "random order": dp.DualPropagation(engine="explicit", schedule="random_order(5)"),
    "bottom up": dp.DualPropagation(engine="explicit", schedule="bottom_up(2)"),
    "transposed": dp.DualPropagation(coupling="transposed", alpha=0.0, schedule="bottom_up(2)"),
    "an order": dp.DualPropagation(schedule=(5, 4)),
    "from zeros": dp.DualPropagation(schedule="synchronous(6)", start="zeros"),
    "ep": dp.EquilibriumPropagation(beta=0.1, relaxation="blocks(bottom_up(2))"),
    "pc": dp.PredictiveCoding(beta=0.1, steps=2),
}
LONG = {
    "random order": dp.DualPropagation(engine="explicit", schedule="random_order(200)"),
    "bottom up": dp.DualPropagation(engine="explicit", schedule="bottom_up(5)"),
    "from zeros": dp.DualPropagation(schedule="synchronous(10)", start="zeros", beta=0.1),
    "ep": dp.EquilibriumPropagation(beta=0.1, relaxation="blocks(even_odd(12))"),
}


def problem(read):
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(6, 6), nn.Tanh())], nn.Linear(6, 4)).double()
    return read(model), torch.randn(6, 6).double(), torch.arange(6) % 4


def outcome(rule, read):
    network, x, y = problem(read)
    return rule.gradients(network, x, y, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("read", [dp.Network.from_module, RecordedNetwork], ids=["split", "run"])
@pytest.mark.parametrize("rule", SHORT.values(), ids=SHORT)
def test_a_layer_that_no_error_has_reached_is_told(rule, read):
    """Its gradient is zero, and it would not learn."""
    given = outcome(rule, read)
    assert not given.gradients["0.weight"].any()
    assert not given.status.ok
    assert given.status.is_finite
    assert "has not reached layer" in given.status.message


@pytest.mark.parametrize("read", [dp.Network.from_module, RecordedNetwork], ids=["split", "run"])
@pytest.mark.parametrize("rule", LONG.values(), ids=LONG)
def test_where_it_has_arrived_nothing_is_told(rule, read):
    given = outcome(rule, read)
    assert all(bool(gradient.any()) for gradient in given.gradients.values())
    assert "has not reached" not in given.status.message


@pytest.mark.parametrize("rule", [LONG["bottom up"], dp.EquilibriumPropagation(beta=0.1)], ids=["dp", "ep"])
def test_a_layer_that_does_not_lead_to_the_output_awaits_no_error(rule):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            self.seen = torch.tanh(self.b(h)).detach()
            return self.c(h)

    torch.manual_seed(0)
    network = dp.Network.from_module(Aside().double())
    given = rule.gradients(network, torch.randn(6, 6).double(), torch.arange(6) % 4)
    assert given.status.ok, given.status.message
