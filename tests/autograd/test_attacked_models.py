"""Models that remember, write over and derive in every way: one plain step, or refused by name."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import dualprop as dp
from dualprop.network.recorded import RecordedNetwork

RULES = [
    dp.DualPropagation(engine="explicit", beta=1e-5),
    dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=1e-5),
    dp.EquilibriumPropagation(beta=1e-5),
    dp.Backprop(),
]
NAMES = ["dp", "dp transposed", "ep", "bp"]


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.c, self.run = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4), run
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("later", None)
        self.tensor, self.nested = torch.ones(()).double(), {"n": [1]}
        self.draws = torch.Generator().manual_seed(1)
        self.python, self.numpy = random.Random(1), np.random.default_rng(1)
        self.norms = [nn.BatchNorm1d(6, affine=False).double()]

    def forward(self, x):
        return self.run(self, x)


def model_of(run):
    torch.manual_seed(0)
    return Model(run).double()


def batch():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4


def replaced(m, x):
    m.gain = 0.9 * m.gain + 0.1 * x.mean().detach()
    return m.c(torch.tanh(m.a(x) * m.gain))


def first_made(m, x):
    m.later = torch.ones(()).double() if m.later is None else m.later + 1
    return m.c(torch.tanh(m.a(x) * m.later))


def plain_tensor(m, x):
    m.tensor.mul_(0.5)
    return m.c(torch.tanh(m.a(x) * m.tensor))


def nested(m, x):
    m.nested["n"][0] += 1
    return m.c(torch.tanh(m.a(x) / m.nested["n"][0]))


def own_generators(m, x):
    drawn = torch.rand(6, generator=m.draws).double() + m.python.random() + m.numpy.random()
    return m.c(torch.tanh(m.b(torch.tanh(m.a(x))) * drawn))


def listed_norm(m, x):
    return m.c(m.norms[0](torch.tanh(m.a(x))))


def writes_input(m, x):
    x.sub_(0.5)
    return m.c(torch.tanh(m.a(x)))


def writes_drive(m, x):
    a = m.a(x)
    h = torch.tanh(a)
    a.mul_(2)
    return m.c(torch.tanh(m.b(h + a)))


def writes_part_of_drive(m, x):
    a = m.a(x)
    h = torch.tanh(a[:, :3])
    a[:, 3:] += 1
    a[:, :3] += 1
    return m.c(torch.tanh(m.b(torch.cat([h, a[:, 3:]], 1))))


def activates_state_in_place(m, x):
    h = F.hardtanh(m.a(x))
    F.hardtanh(h[:, ::2], -0.5, 0.5, inplace=True)
    return m.c(h)


def drops_in_place(m, x):
    return m.c(F.dropout(F.hardtanh(m.a(x)), 0.5, True, True))


def writes_past_autograd(m, x):
    h = F.hardtanh(m.a(x))
    h.data.mul_(2)
    h.detach()[:, 0] = 0
    return m.c(h)


def catches(m, x):
    h = F.hardtanh(m.a(x))
    try:
        h += 1
    except Exception:
        h = h * 0
    return m.c(h)


def scales_by_a_buffer(m, x):
    """Of a buffer and a parameter: no neuron, in no pass."""
    return m.c(torch.tanh(m.a(x)) * torch.sigmoid(m.gain * m.b.bias))


RIGHT = [
    replaced, first_made, plain_tensor, nested, own_generators, listed_norm, writes_input, writes_drive, writes_part_of_drive,
    activates_state_in_place, drops_in_place, writes_past_autograd, catches, scales_by_a_buffer,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("run", RIGHT, ids=lambda run: run.__name__)
def test_two_steps_are_two_plain_steps(run, rule):
    """Gradients, prediction, buffers, what attributes hold, inputs and random states."""
    model, twin = model_of(run), model_of(run)
    network = RecordedNetwork(model)
    for _ in range(2):
        (x, y), (given, _) = batch(), batch()
        torch.manual_seed(5)
        out = rule.gradients(network, x, y)
        after = torch.get_rng_state()
        torch.manual_seed(5)
        logits = twin(given)
        assert torch.equal(after, torch.get_rng_state())
        assert torch.equal(out.logits, logits.detach())
        assert torch.equal(x, given)
        assert (model.tensor, model.nested) == (twin.tensor, twin.nested)
        for module, other in ((model, twin), (model.norms[0], twin.norms[0])):
            buffers, expected = dict(module.named_buffers()), dict(other.named_buffers())
            assert buffers.keys() == expected.keys()
            assert all(torch.equal(buffer, expected[name]) for name, buffer in buffers.items())
        assert (model.python.getstate(), model.numpy.random()) == (twin.python.getstate(), twin.numpy.random())
        assert torch.equal(model.draws.get_state(), twin.draws.get_state())
        exact = torch.autograd.grad(
            F.cross_entropy(logits, y), list(twin.parameters()), materialize_grads=True, allow_unused=True
        )
        for (name, _), each in zip(twin.named_parameters(), exact, strict=True):
            assert (out.gradients[name] - each).norm() <= 1e-4 * each.norm() + 1e-9, name


COUNT = [0]


def counts_globally(m, x):
    COUNT[0] += 1
    return m.c(torch.tanh(m.b(torch.tanh(m.a(x))) * COUNT[0]))


def decays_weight(m, x):
    m.b.weight.data.mul_(0.9)
    return m.c(torch.tanh(m.b(torch.tanh(m.a(x)))))


def alternates(m, x):
    COUNT[0] += 1
    return m.c((torch.tanh if COUNT[0] % 2 else torch.relu)(m.a(x)))


def derives(m, x):
    x = x.clone().requires_grad_()
    energy = m.c(torch.tanh(m.a(x))) + x[:, :4]
    (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return m.c(torch.tanh(m.a(force)))


def derives_forward(m, x):
    with forward_ad.dual_level():
        energy = m.c(torch.tanh(m.a(forward_ad.make_dual(x, torch.ones_like(x)))))
        return forward_ad.unpack_dual(energy).tangent


def hooks(m, x):
    h = torch.tanh(m.a(x))
    h.register_hook(lambda g: g.clamp(-1e-2, 1e-2))
    return m.c(h)


def detaches(m, x):
    return m.c(torch.tanh(m.a(x))).detach()


@pytest.mark.filterwarnings("ignore:`torch.jit")  # PyTorch's own, at a forward derivative
@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (counts_globally, "run again on the same batch"),
        (decays_weight, "run again on the same batch"),
        (alternates, "run again on the same batch"),
        (derives, "takes derivatives"),
        (derives_forward, "takes derivatives"),
        (hooks, "hooks a function"),
        (detaches, "no gradient"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_be_silently_wrong_is_refused_by_name(run, reason):
    x, y = batch()
    with pytest.raises(dp.UnsupportedModuleError, match=reason):
        RULES[0].gradients(RecordedNetwork(model_of(run)), x, y)


@pytest.mark.parametrize(
    "last",
    [
        torch.sigmoid,
        lambda a: a.sigmoid_(),
        lambda a: a.view(6, 2, 2).sigmoid_(),
        lambda a: (a.view(-1), a.sigmoid_())[1],
        lambda a: (a.sigmoid(), a.mul_(2))[0],
    ],
    ids=["new", "in place", "in place of a view", "in place of what has views", "its drive written over"],
)
def test_a_state_that_is_returned_is_the_last_layer_however_it_was_written(last):
    model, (x, y) = model_of(lambda m, x: last(m.c(torch.tanh(m.a(x))))), batch()
    network = RecordedNetwork(model, output=lambda out: out)
    loss = dp.losses.from_function(lambda out, y: F.cross_entropy(out.reshape(6, 4), y))
    dp.DualPropagation(engine="explicit", loss=loss).gradients(network, x, y)
    assert [event.neuron.rstrip("_") for event in network.report.events] == ["tanh", "sigmoid"]


def test_what_is_made_in_place_of_a_replaced_buffer_is_no_buffer():
    """Python gives the new object the old one's id."""
    kept = []

    def run(m, x, keep):
        if keep:
            kept.append(m.gain)
        m.gain = 0.9 * m.gain + 0.1
        return m.c(sum(map(torch.tanh, [m.a(x) * m.gain for _ in range(8)])))

    models = [dp.dualize(model_of(lambda m, x, keep=keep: run(m, x, keep)), beta=100.0) for keep in (False, True)]
    x, y = batch()
    for _ in range(30):
        for model in models:
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
        assert torch.equal(models[0].a.weight.grad, models[1].a.weight.grad)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_model_that_returns_its_loss_is_refused_by_name(rule):
    model, (x, y) = model_of(lambda m, x: F.cross_entropy(m.c(torch.tanh(m.a(x))), torch.arange(6) % 4)), batch()
    with pytest.raises(dp.SettingError, match="one number for the whole batch"):
        rule.gradients(RecordedNetwork(model), x, y)


def test_inference_mode_is_refused():
    model, (x, y) = model_of(listed_norm), batch()
    with torch.inference_mode(), pytest.raises(dp.SettingError, match="Use torch"):
        RULES[0].gradients(RecordedNetwork(model), x, y)
