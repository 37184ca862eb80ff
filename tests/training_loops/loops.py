"""Small models, and one loop run twice: by a rule with a tiny nudge, and in plain PyTorch."""

import torch
from comparison import assert_same
from torch import nn
from torch.nn import functional as F

import dualprop as dp

BETA = 1e-6
RULES = {
    "dp": dp.DualPropagation(beta=BETA),
    "dp transposed": dp.DualPropagation(beta=BETA, coupling="transposed", alpha=0.0),
    "dp fused": dp.DualPropagation(beta=BETA, engine="fused"),
    "ep": dp.EquilibriumPropagation(beta=1e-4),
    "bp": dp.Backprop(),
}
NUM_CLASSES = 4


class Residual(nn.Module):
    """A model that is read by running it: BatchNorm, a skip, dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8)
        self.branch, self.head, self.dropout = nn.Linear(8, 8), nn.Linear(8, NUM_CLASSES), dropout

    def features(self, x):
        h = torch.tanh(self.norm(self.stem(x)))
        return h + F.gelu(self.branch(F.dropout(h, self.dropout, self.training)))

    def forward(self, x):
        return self.head(self.features(x))


def chain():
    """A model that is split into synapses: some are formulas, one has a tape."""
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, NUM_CLASSES))


def made(kind, *args, **options):
    """A model in float64, drawn from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*args, **options).double()


def batch(n=6):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(NUM_CLASSES, (n,), generator=generator)


def grads(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_as_plain(rule, make, loop, result=grads, tolerance=1e-4):
    """`loop(model, loss)` does the same with a rule's loss(x, y) as with PyTorch's own."""
    model, twin = make(), make()
    network = dp.Network.from_module(model)
    torch.manual_seed(1)
    loop(model, lambda x, y: rule(network, x, y))
    torch.manual_seed(1)
    loop(twin, lambda x, y: F.cross_entropy(twin(x), y))
    assert_same(result(model), result(twin), tolerance)
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)
