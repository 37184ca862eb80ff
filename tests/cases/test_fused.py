"""What public bug reports of other projects do to `dp.dualize`, each with the right value: plain
PyTorch at β = 1e-5 in float64, the model's own prediction, or a refusal by name."""

import copy
import types

import pytest
import torch
from comparison import assert_same
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dualprop as dp


def problem():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 5, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def made(kind, *args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*args).double()


def gradients(model, x=None, y=None):
    x, y = problem() if x is None else (x, y)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_right(kind, *args):
    """At tiny β the dualized model has autograd's gradients, and none where autograd has none."""
    expected = gradients(made(kind, *args))
    found = gradients(dp.dualize(made(kind, *args), beta=1e-5))
    assert set(found) == set(expected)
    assert_same(found, expected, 1e-7)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 6)

    def forward(self, x):
        return self.b(torch.tanh(self.c(torch.tanh(self.a(x)))))


class FrozenStem(Two):  # pytorch#62043
    def forward(self, x):
        with torch.no_grad():
            h = torch.tanh(self.a(x))
        return self.b(torch.tanh(self.c(h)))


class Shift(Two):
    def forward(self, x):
        h = self.a(x)
        with torch.no_grad():
            m = h.mean(0)
        return self.b(torch.tanh(self.c(torch.tanh(h - m))))


class Reverse(torch.autograd.Function):  # fungtion/DANN#3
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class StraightThrough(torch.autograd.Function):  # pytorch#84515
    @staticmethod
    def forward(ctx, x):
        return x.clamp(-0.1, 0.1)

    @staticmethod
    def backward(ctx, g):
        return g


class Custom(Two):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.b(torch.tanh(self.c(self.function.apply(torch.tanh(self.a(x))))))


class Patched(Two):  # kohya sd-scripts#989
    def __init__(self):
        super().__init__()
        self.forward = types.MethodType(lambda self, x: self.b(2 * torch.tanh(self.a(x)) + torch.tanh(self.c.bias)), self)
        self.b.forward = lambda h, forward=self.b.forward: forward(torch.tanh(h))


class OwnCall(nn.Module):  # pyg#5021
    class Child(nn.Linear):
        def __call__(self, x):
            return super().__call__(torch.tanh(x))

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), self.Child(6, 3)

    def forward(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize(
    "arguments",
    [(FrozenStem,), (Shift,), (Custom, Reverse), (Custom, StraightThrough), (Patched,), (OwnCall,)],
    ids=["no_grad stem", "no_grad mean", "reversal", "straight through", "patched", "own __call__"],
)
def test_what_code_does_beside_its_calls_is_done(arguments):
    """A reader of code drops blocks, functions and patches, and trains another model."""
    assert_right(*arguments)


def test_an_attribute_that_is_set_in_forward_is_a_tensor_that_trains():
    """torchtitan#2061: an auxiliary loss that is read after the pass."""

    class Auxiliary(Two):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            self.aux = h.square().mean()
            return self.b(torch.tanh(self.c(h)))

    x, y = problem()
    found = []
    for model in (made(Auxiliary), dp.dualize(made(Auxiliary), beta=1e-5)):
        (F.cross_entropy(model(x), y) + 0.1 * model.aux).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    assert_same(found[1], found[0], 1e-7)


def test_a_state_that_the_module_keeps_serves_the_next_call():
    """norse#130: a recurrent state in an attribute."""

    class Recurrent(Two):
        state = None

        def forward(self, x):
            self.state = torch.tanh(self.a(x) if self.state is None else self.a(x) + self.c(self.state))
            return self.b(self.state)

    x, _ = problem()
    plain, dual = made(Recurrent), dp.dualize(made(Recurrent))
    for _ in range(3):
        assert torch.equal(plain(x), dual(x))


def test_a_childs_training_flag_is_read_at_each_pass():
    """microsoft/nni#5470: after eval() two calls agree, after train() they do not."""

    class Flag(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.drop, self.b = nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3)

        def forward(self, x):
            return self.b(F.dropout(torch.tanh(self.a(x)), self.drop.p, training=self.drop.training))

    x, _ = problem()
    dual = dp.dualize(made(Flag).eval())
    assert torch.equal(dual(x), dual(x))
    assert not torch.equal(dual.train()(x), dual(x))
    assert torch.equal(dual.eval()(x), made(Flag).eval()(x))


def replica(model, values):
    """As torch.nn.parallel.replicate makes one, without devices."""
    modules = list(model.modules())
    copies = {m: m._replicate_for_data_parallel() for m in modules}
    for each in copies.values():
        each._former_parameters = {}
    for m in modules:
        for name, child in m._modules.items():
            setattr(copies[m], name, copies[child])
        for name, parameter in m._parameters.items():
            setattr(copies[m], name, values(parameter))
            copies[m]._former_parameters[name] = getattr(copies[m], name)
    return copies[model]


def test_a_replica_and_a_shallow_copy_compute_with_their_own_parameters_and_are_dyadic():
    """nncf#3310, aimet#2708: a forward bound to the original runs the original's weights."""
    x, y = problem()
    dual = dp.dualize(made(Two), beta=2.0)
    assert not replica(dual, torch.zeros_like)(x).any()
    shallow = copy.copy(dual)
    shallow._modules = dict(dual._modules, b=nn.Linear(6, 3).double())
    assert not torch.equal(shallow(x), dual(x))
    leaves = {}

    def leaf(parameter):
        leaves[id(parameter)] = parameter.detach().clone().requires_grad_()
        return leaves[id(parameter)]

    F.cross_entropy(replica(dual, leaf)(x), y).backward()
    expected = gradients(dual)
    assert_same({n: leaves[id(p)].grad for n, p in dual.named_parameters()}, expected, 0.0)


def test_an_expert_without_tokens_has_gradient_zero():
    """trlx#609: an empty part has no examples, and 1/(β·0) is no number."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))

        def forward(self, x):
            rows = [torch.arange(len(x)), torch.arange(0)]
            return sum(x.new_zeros(len(x), 3).index_add(0, r, e(x[r])) for r, e in zip(rows, self.experts, strict=True))

    found = gradients(dp.dualize(made(Routed)))
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert all(not g.any() for n, g in found.items() if n.startswith("experts.1"))
    parts = made(Routed)
    for expert in parts.experts:
        dp.dualize(expert)
    assert all(bool(g.isfinite().all()) for g in gradients(parts).values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_runs_its_part_twice_and_no_more_and_is_dyadic(reentrant):
    """pytorch#49038: memory is saved, and what is computed again is the same."""

    class Checked(Two):
        runs = 0

        def part(self, h):
            self.runs += 1
            return torch.tanh(self.c(h))

        def forward(self, x):
            return self.b(checkpoint(self.part, torch.tanh(self.a(x)), use_reentrant=reentrant))

    model = dp.dualize(made(Checked), beta=3.0)
    found = gradients(model)
    assert model.runs == 2
    assert_same(found, gradients(dp.dualize(made(Two), beta=3.0)), 1e-14)


class Island(Two):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        with torch.autocast("cpu", enabled=False):
            h = torch.tanh(self.c(h.float()))
        return self.b(h)


class Decorated(Two):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return super().forward(x)


class NoGrad(Two):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("kind", [Island, Decorated, NoGrad])
def test_an_autocast_island_and_a_decorated_forward_keep_their_precision(kind):
    """pytorch#58190: the island is there for float32."""
    x = problem()[0].float()
    seen = []
    for model in (made(kind).float(), dp.dualize(made(kind).float())):
        types_ = {}
        for name, child in model.named_children():
            child.register_forward_hook(lambda m, i, o, name=name, types_=types_: types_.__setitem__(name, o.dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is Island):
            output = model(x)
        seen.append((types_, output.requires_grad, output.dtype))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_on_an_activation_are_called_as_before(register):
    """torch-cam#80: a hook that is lost shows nothing."""
    counts = []
    for prepare in (lambda m: m, dp.dualize):
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        calls = []
        getattr(model[1], register)(lambda *_, calls=calls: calls.append(1))
        gradients(prepare(model))
        counts.append(len(calls))
    assert counts == [1, 1]
