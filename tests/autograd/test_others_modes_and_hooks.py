"""Modes and saved-tensor hooks of others around and inside a step: each ends its own."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import dualprop as dp

RULES = [dp.DualPropagation(engine="explicit"), dp.DualPropagation(engine="fused"), dp.EquilibriumPropagation(beta=0.1)]


class Counting(TorchFunctionMode):
    def __init__(self):
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.trouble, self.inside = nn.Linear(5, 6), nn.Linear(6, 4), None, []
        self.double()

    def forward(self, x):
        h = torch.tanh(self.a(x))
        for context in self.inside:
            with context():
                h = torch.tanh(h * 2)
                if self.trouble is not None:
                    raise self.trouble
        if self.trouble is not None:
            raise self.trouble
        return self.b(h)


def batch():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 4


@pytest.fixture(autouse=True)
def no_modes_of_other_tests():
    yield
    while modes():
        torch.overrides._pop_mode()
    while hooks() is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def modes():
    return torch.overrides._get_current_function_mode_stack()


def hooks():
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def dualized(net):
    model = dp.dualize(net)
    return lambda x, y: F.cross_entropy(model(x), y).backward()


def by_rule(rule):
    return lambda net: lambda x, y: rule(dp.Network.from_module(net, output=lambda out: out), x, y).backward()


STEPS = {"dualized": dualized} | {f"{type(rule).__name__} {number}": by_rule(rule) for number, rule in enumerate(RULES)}


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), ValueError("no")], ids=["interrupt", "error"])
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_after_an_interrupt_inside_anothers_mode_no_mode_is_left(make, trouble):
    """An interrupt calls no hook of a module: the other's end takes ours off, not its own."""
    net, (x, y) = Net(), batch()
    step = make(net)
    expected = gradients(step, net)
    net.trouble, one, other = trouble, Counting(), Counting()
    with pytest.raises(type(trouble)), one, other:
        step(x, y)
    net.trouble = None
    assert all(map(torch.equal, gradients(step, net), expected))
    assert modes() == []
    calls = one.calls, other.calls
    torch.ones(2) + 1
    assert (one.calls, other.calls) == calls


def gradients(step, net):
    net.zero_grad()
    step(*batch())
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_an_interrupt_leaves_the_modes_and_hooks_that_have_not_ended(make):
    net, (x, y) = Net(), batch()
    step = make(net)
    mode, outer = saved_tensors_hooks(lambda a: a, lambda a: a), Counting()
    with outer:
        net.trouble = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt), Counting():
            step(x, y)
        net.trouble = None
        with mode:
            step(x, y)
        assert modes() == [outer]
    assert modes() == []
    assert hooks() is None


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_saved_tensor_hooks_around_a_step_stay_in_force_after_it(make):
    """A step that held what it saves as it is would switch them off for what follows."""
    net, (x, y) = Net(), batch()
    step, packed = make(net), []
    w = torch.ones(3, requires_grad=True)
    with saved_tensors_hooks(lambda a: packed.append(a) or a, lambda a: a):
        step(x, y)
        before = len(packed)
        (w * w).sum()
        assert len(packed) > before
    assert hooks() is None


@pytest.mark.parametrize("trouble", [None, KeyboardInterrupt(), ValueError("no")], ids=["none", "interrupt", "error"])
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_modes_and_hooks_inside_a_model_end_whatever_happens(make, trouble):
    net, (x, y) = Net(), batch()
    step = make(net)
    net.inside = [Counting, lambda: saved_tensors_hooks(lambda a: a.clone(), lambda a: a), torch.autograd.graph.save_on_cpu]
    expected = gradients(step, net)
    if trouble is not None:
        net.trouble = trouble
        with pytest.raises(type(trouble)):
            step(x, y)
        net.trouble = None
    assert all(map(torch.equal, gradients(step, net), expected))
    assert modes() == []
    assert hooks() is None
