"""What a loss reaches of a model gets the gradient that it would get in plain PyTorch, or the loss
is refused: never a part of it without a word."""

import pytest
import torch
from loops import NUM_CLASSES, RULES, Residual, assert_as_plain, batch, chain, made, weights
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import dualprop as dp

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
# Those that cut the model at its activations, and may run it more than once.
CUTTING = {name: RULES[name] for name in ("dp", "ep")}


class TwoHeads(Residual):
    """One head a task; both run where `both`."""

    def __init__(self, both):
        super().__init__()
        self.other, self.task, self.both = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, NUM_CLASSES)), 0, both

    def forward(self, x):
        h = self.features(x)
        if self.both:
            return (self.head(h), self.other(h))[self.task]
        return self.other(h) if self.task else self.head(h)


@every_rule
@pytest.mark.parametrize("both", [False, True])
def test_a_head_that_the_output_does_not_read_gets_no_gradient_and_an_optimizer_leaves_it_alone(rule, both):
    """By a gradient of zero Adam would move it on, and weight decay shrink it."""

    def loop(model, loss):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
        for task in (0, 0, 1, 1):
            model.task = task
            optimizer.zero_grad()
            loss(*batch()).backward()
            unread = model.head if task else model.other
            assert all(p.grad is None for p in unread.parameters())
            optimizer.step()

    # Adam divides by what is small.
    assert_as_plain(rule, lambda: made(TwoHeads, both), loop, weights, 1e-2)


@every_rule
def test_backward_by_name_leaves_such_a_head_alone_too(rule):
    model = made(TwoHeads, False)
    outcome = rule.backward(dp.Network.from_module(model), *batch())
    assert all(p.grad is None for p in model.other.parameters())
    assert not outcome.gradients["other.0.weight"].any()


@every_rule
@pytest.mark.parametrize("make", [Residual, chain])
@pytest.mark.parametrize("way", ["loss", "backward"])
@pytest.mark.parametrize("which", ["x", "y"])
def test_inputs_and_targets_that_ask_for_a_gradient_are_refused(rule, make, way, which):
    """A generator, an encoder or a teacher beside the network would stay as it is."""
    network, (x, _), encoder = dp.Network.from_module(made(make)), batch(), made(nn.Linear, 5, 5)
    y = torch.full((len(x), NUM_CLASSES), 1 / NUM_CLASSES, dtype=torch.float64)
    given = {"x": encoder(x) if which == "x" else x, "y": encoder(x)[:, :NUM_CLASSES].softmax(1) if which == "y" else y}
    call = rule if way == "loss" else rule.backward
    with pytest.raises(dp.SettingError, match=rf"^{which} requires a gradient.*Pass {which}\.detach\(\)"):
        call(network, **given)
    with torch.no_grad():
        call(network, **given)


class Keeps(Residual):
    """Keeps a penalty on its features, as mixtures of experts do."""

    def forward(self, x):
        h = self.features(x)
        self.penalty = h.square().mean()
        return self.head(h)


@pytest.mark.parametrize("rule", CUTTING.values(), ids=CUTTING)
def test_a_loss_on_what_the_model_kept_is_refused_where_its_graph_is_cut(rule):
    """It would teach the last layer below, and none of the others."""
    model = made(Keeps)
    loss = rule(dp.Network.from_module(model), *batch())
    with pytest.raises(dp.SettingError, match=r"cuts at every activation.*dp\.dualize\(model\)"):
        (loss + model.penalty).backward()
    (rule(dp.Network.from_module(model), *batch()) + model.penalty.detach()).backward()


@pytest.mark.parametrize("rule", CUTTING.values(), ids=CUTTING)
@pytest.mark.parametrize("where", ["branch", "3"])
def test_a_loss_on_what_a_forward_hook_saw_is_refused_where_its_graph_is_cut(rule, where):
    """The hook runs in every pass. The graph of one may be gone by then, which PyTorch tells."""
    model, seen = made(chain if where == "3" else Residual), []
    model.get_submodule(where).register_forward_hook(lambda module, args, output: seen.append(output))
    loss = rule(dp.Network.from_module(model), *batch())
    for output in seen:
        with pytest.raises((dp.SettingError, RuntimeError), match=r"a hook's output|second time"):
            (loss + output.square().mean()).backward(retain_graph=True)


class Unregistered(Residual):
    """Holds a layer in a plain list, where PyTorch does not see it."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(8, 8).double()]

    def features(self, x):
        return torch.tanh(self.layers[0](super().features(x)))


@every_rule
def test_a_trainable_tensor_that_the_model_does_not_hold_is_refused(rule):
    """Plain PyTorch gives it a gradient, which an optimizer may wait for."""
    model = made(Unregistered)
    with pytest.raises(dp.UnsupportedModuleError, match=r"is no parameter of the model.*nn\.ModuleList"):
        rule(dp.Network.from_module(model), *batch())
    model.layers[0].requires_grad_(False)
    rule(dp.Network.from_module(model), *batch()).backward()


class MakesItsOwn(Residual):
    """Makes a tensor that asks for a gradient in every pass, which nothing waits for."""

    def forward(self, x):
        shift = torch.zeros(8, dtype=x.dtype, requires_grad=True)
        return self.head(self.features(x.requires_grad_()) + shift)


@every_rule
def test_what_the_model_makes_for_itself_is_no_such_tensor(rule):
    assert_as_plain(rule, lambda: made(MakesItsOwn), lambda model, loss: loss(*batch()).backward())


@every_rule
@pytest.mark.parametrize("make", [Residual, chain])
def test_parameters_that_are_functions_of_others_are_refused(rule, make):
    """The weights after an inner step of meta-learning: their gradients would be lost."""
    model = made(make)
    network, fast = dp.Network.from_module(model), {name: 0.9 * p for name, p in model.named_parameters()}

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, y):
            return rule(network, x, y)

    step = Step()
    step(*batch())
    with pytest.raises(dp.SettingError, match="weight' was replaced by a tensor that is computed of others"):
        functional_call(step, {f"model.{name}": value for name, value in fast.items()}, batch())


@every_rule
@pytest.mark.parametrize("make", [Residual, chain])
def test_the_transforms_of_torch_func_are_refused_by_name(rule, make):
    network, (x, y) = dp.Network.from_module(made(make)), batch()
    for transformed in (vmap(lambda a: rule(network, a, y)), grad(lambda a: rule(network, x, y) * a.sum())):
        with pytest.raises(dp.SettingError, match=r"torch\.func's transforms"):
            transformed(x[None])


@pytest.mark.parametrize("rule", [dp.DualPropagation, dp.Backprop])
def test_class_indices_in_floating_point_are_refused_by_name(rule):
    x, y = batch()
    with pytest.raises(dp.SettingError, match="class indices y must be integers"):
        rule(loss=F.cross_entropy)(dp.Network.from_module(made(chain)), x, y.double())


class BatchedProduct(nn.Module):
    """Its weights are read transposed by a batched product, by which autograd lays their gradient
    out transposed too."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))), nn.Linear(6, 4)

    def forward(self, x):
        h = torch.bmm(x.expand(2, -1, -1), self.weight.mT)
        return self.head(h.relu().transpose(0, 1).flatten(1))


def test_a_gradient_by_backward_is_laid_out_as_its_parameter_is():
    """A fused optimizer walks both as memory lies: it would learn each number from another's
    gradient."""
    model = BatchedProduct()
    dp.rules.Backprop().backward(dp.Network.from_module(model), torch.randn(7, 5), torch.arange(7) % 4)
    expected = {name: p.detach() - p.grad for name, p in model.named_parameters()}
    assert model.weight.grad.any()
    torch.optim.SGD(model.parameters(), lr=1.0, fused=True).step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
