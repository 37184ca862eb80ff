"""PyTorch's check of tensors that were changed in place after they were saved, in a dualized model
whose own hooks keep them (pytorch#39141, pytorch#37573)."""

import copy

import pytest
import torch
from comparison import assert_same
from test_fused import Two, gradients, made
from torch import nn

import dualprop as dp


class Late(Two):
    """The drive is changed after its activation. tanh saves its result: plain PyTorch is right."""

    def forward(self, x):
        h = self.a(x)
        s = torch.tanh(h)
        h += 1
        return self.b(s + torch.tanh(h))


class Gate(Two):
    """A factor is changed after its product, which saved it: plain PyTorch raises."""

    def forward(self, x):
        h, g = torch.tanh(self.a(x)), self.c(torch.tanh(self.a(x)))
        z = h * g
        g += 1
        return self.b(z + g)


class StateOver(Two):
    """The state is changed after a map has saved it: plain PyTorch raises."""

    def forward(self, x):
        s = torch.tanh(self.a(x))
        z = self.c(s)
        s.mul_(2)
        return self.b(z + s)


class WeightOver(Two):
    """A parameter is changed after its use: plain PyTorch raises."""

    def forward(self, x):
        z = self.b(torch.tanh(self.c(torch.tanh(self.a(x)))))
        with torch.no_grad():
            self.c.weight.mul_(2)
        return z


class ReluOver(Two):
    """An activation written over what is changed once more: plain PyTorch raises."""

    def forward(self, x):
        h = self.a(x)
        s = h.relu_()
        z = self.c(s)
        s += 1
        return self.b(z + s)


class StateApart(Two):
    def forward(self, x):
        s = torch.tanh(self.a(x))
        return self.b(self.c(s) + s * 2)


class ReluApart(Two):
    def forward(self, x):
        s = torch.relu(self.a(x))
        return self.b(self.c(s) + (s + 1))


APART = {StateOver: StateApart, ReluOver: ReluApart}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("kind", [Late, Gate, StateOver, WeightOver, ReluOver])
def test_what_was_saved_and_then_changed_in_place_raises_or_is_right(kind, recompute):
    """PyTorch does not check what hooks keep: a gradient at new values would be silently wrong."""
    plain = made(kind)
    if kind is not Late:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(copy.deepcopy(plain))
    if recompute and kind in APART:
        # What the map above saved is computed again from a drive that no one changed.
        expected = gradients(dp.dualize(made(APART[kind]), beta=3.0))
        assert_same(gradients(dp.dualize(plain, beta=3.0)), expected, 1e-14)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(dp.dualize(plain, recompute_states=recompute))


def test_a_state_that_is_changed_before_anything_saves_it_is_right():
    """Its new values are what the map above saves."""

    class Early(Two):
        def forward(self, x):
            return self.b(self.c(torch.relu(self.a(x)).mul_(2)))

    class Apart(Two):
        def forward(self, x):
            return self.b(self.c(torch.relu(self.a(x)) * 2))

    for recompute in (True, False):
        found = [gradients(dp.dualize(made(kind), beta=3.0, recompute_states=recompute)) for kind in (Early, Apart)]
        assert_same(found[0], found[1], 1e-14)


def test_a_second_backward_pass_through_one_graph_is_refused_as_ever():
    """Hooks must not keep alive what backward has freed."""
    model = dp.dualize(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)).double())
    loss = model(torch.randn(3, 5, dtype=torch.float64)).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
