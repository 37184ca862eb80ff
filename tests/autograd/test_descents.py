"""A sweep down in one backward pass: what layer by layer gives, and what is shared walked once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import batch, drawn
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.network.descent import Descent, TooEarly
from dualprop.network.recorded import RecordedNetwork

BLOCKS = 5
BETAS = (0.1, 0.3, 0.2, 0.4)
RULES = {
    "dp": dp.DualPropagation(engine="explicit", beta=0.3),
    "dp, betas": dp.DualPropagation(engine="explicit", beta=BETAS),
    "dp, betas, alpha 0": dp.DualPropagation(engine="explicit", beta=BETAS, coupling="transposed", alpha=0.0),
    "dp, up and down": dp.DualPropagation(engine="explicit", beta=BETAS, schedule="up_down(3)"),
    "dp, top down": dp.DualPropagation(engine="explicit", beta=0.3, schedule="top_down(2)"),
    "dp, some layers": dp.DualPropagation(engine="explicit", beta=BETAS, schedule=[4, 3, 1, 4, 2, 1, 2, 3, 2, 1]),
    "dp, from zeros": dp.DualPropagation(engine="explicit", beta=0.1, schedule="up_down(3)", start="zeros"),
    "dp, synchronous": dp.DualPropagation(engine="explicit", beta=BETAS, schedule="synchronous(5)"),
    "ep": dp.EquilibriumPropagation(beta=0.1),
    "ep, two pairs": dp.EquilibriumPropagation(beta=0.1, relaxation="error_sweeps(2)"),
    "ep, blocks": dp.EquilibriumPropagation(beta=0.1, relaxation="blocks(even_odd(6))"),
    "pc": dp.PredictiveCoding(beta=0.1, steps=6),
}


def skips():
    """Layer 3 reads 2 and 1, layer 4 reads 3 and 1."""
    one, two, three, four = ({0: (5, 6)}, {1: (6, 7)}, {2: (7, 5), 1: (6, 5)}, {3: (5, 3), 1: (6, 3)})
    layers = [(nn.Tanh(), one), (nn.ReLU(), two), (nn.Tanh(), three), (None, four)]
    return drawn(lambda: dp.Layered([(f, {k: nn.Linear(*size) for k, size in each.items()}) for f, each in layers]))


class Walked(torch.autograd.Function):
    """The identity, which counts how often a gradient passes it."""

    times = 0

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        Walked.times += 1
        return gradient


class Stream(nn.Module):
    """Blocks that add to a stream which every later one reads; a number of them in a thread."""

    def __init__(self, blocks=BLOCKS, threads=()):
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 6), nn.Linear(6, 3)
        self.up = nn.ModuleList(nn.Linear(6, 7) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(7, 6) for _ in range(blocks))
        self.threads = threads

    def forward(self, x):
        h = self.enter(x)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            h = Walked.apply(h)
            s = F.gelu(up(h))
            if i in self.threads:
                with ThreadPoolExecutor(1) as pool:
                    h = h + pool.submit(down, s).result()
            else:
                h = h + down(s)
        return self.leave(h)


def far(gradients, expected):
    return max(float((gradients[name] - each).norm() / each.norm()) for name, each in expected.items())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_layers_that_read_several_get_what_their_synapses_give(rule):
    """Split, the network evaluates every synapse for itself, and sums."""
    model, (x, y) = skips(), batch((5,), 3, 6)
    one = rule.gradients(dp.Network.from_module(model), x, y)
    other = rule.gradients(RecordedNetwork(model), x, y)
    assert not dp.Network.from_module(model).is_recorded
    assert other.unsettled == one.unsettled
    assert far(other.gradients, one.gradients) < 1e-11


@pytest.mark.parametrize(
    ("rule", "walks"),
    [
        (dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0), BLOCKS),
        # Down to the first state, and again for the gradients at the new means.
        (dp.DualPropagation(engine="explicit"), BLOCKS - 1 + BLOCKS),
        (dp.EquilibriumPropagation(), 2 * (BLOCKS - 1 + BLOCKS)),
        # A step sends down the signals of all layers: first the output's, at the end for learning.
        (dp.PredictiveCoding(steps=3), 3 * (BLOCKS - 1) + BLOCKS),
    ],
)
def test_a_stream_is_walked_once_a_sweep_however_many_layers_read_it(rule, walks):
    model, (x, y) = drawn(Stream), batch((5,), 3, 6)
    network = dp.Network.from_module(model)
    rule.gradients(network, x, y)
    Walked.times = 0
    rule.gradients(network, x, y)
    assert Walked.times == walks


@pytest.mark.parametrize("threads", [(4,), (1, 3), range(BLOCKS)])
@pytest.mark.parametrize(
    "rule",
    [
        dp.DualPropagation(engine="explicit", beta=0.3),
        dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=0.3),
        dp.EquilibriumPropagation(beta=0.1),
    ],
)
def test_threads_in_the_forward_pass_change_no_gradient(rule, threads, monkeypatch):
    """Autograd numbers the nodes of each thread for themselves, and walks by number."""
    early, update = [], Descent.run

    def watched(self, *args, **kwargs):
        try:
            return update(self, *args, **kwargs)
        except TooEarly:
            early.append(self)
            raise

    monkeypatch.setattr(Descent, "run", watched)
    x, y = batch((5,), 3, 6)
    plain, threaded = drawn(Stream), drawn(lambda: Stream(threads=threads))
    expected = rule.gradients(dp.Network.from_module(plain), x, y).gradients
    found = rule.gradients(dp.Network.from_module(threaded), x, y).gradients
    assert early
    assert far(found, expected) < 1e-11


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_drives_that_are_states_or_are_read_twice_get_what_their_synapses_give(rule):
    """relu(tanh(a)) has a state for its second drive; the output reads b beside its state."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.up = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            a = self.one(x)
            s = torch.relu(torch.tanh(a))
            b = self.two(s)
            return torch.tanh(b) + self.up(s) + b

    class Split(nn.Module):
        """The output's drive written out in states alone: b is the map of s again."""

        def __init__(self):
            super().__init__()
            self.one, self.two, self.up = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            s = torch.relu(torch.tanh(self.one(x)) + 0)
            return torch.tanh(self.two(s)) + self.up(s) + self.two(s)

    x, y = batch((5,), 3, 6)
    one, other = (rule.gradients(RecordedNetwork(drawn(make)), x, y) for make in (Twice, Split))
    assert far(other.gradients, one.gradients) < 1e-11


def test_an_interrupt_in_the_middle_of_a_descent_leaves_nothing_behind(monkeypatch):
    model, (x, y) = drawn(Stream), batch((5,), 3, 6)
    rule, network = dp.DualPropagation(engine="explicit"), dp.Network.from_module(model)
    expected, dyad = rule.gradients(network, x, y).gradients, dp.DualPropagation.dyad
    layers = []

    def interrupted(self, states, k, *args, **kwargs):
        layers.append(k)
        if len(layers) == 3:
            raise KeyboardInterrupt
        return dyad(self, states, k, *args, **kwargs)

    monkeypatch.setattr(dp.DualPropagation, "dyad", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rule.gradients(network, x, y)
    assert layers == [6, 5, 4]
    monkeypatch.undo()
    assert far(rule.gradients(network, x, y).gradients, expected) == 0
