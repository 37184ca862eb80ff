"""A dualized model in what others build around it: checkpoints, threads, interrupts, copies,
exporters, compilers, distributed training. Each against the same model without."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
from comparison import assert_same, rounding
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import dualprop as dp
from dualprop.fused import dualization

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]
BETAS = [3.0, [1.0, 2.0, 3.0, 4.0], {1: 1.0, 3: 5.0, "*": 2.0}]


def problem(n=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.arange(n) % 3


class Parted(nn.Module):
    """Four activations, the middle two in a part that `how` runs."""

    def __init__(self, how=None):
        super().__init__()
        self.a, self.c, self.b, self.how = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3), how

    def part(self, h):
        return torch.sigmoid(self.c(torch.tanh(self.c(h))))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.how == "saved on the cpu":
            with torch.autograd.graph.save_on_cpu():
                h = self.part(h)
        elif self.how is None:
            h = self.part(h)
        elif self.how == "nested":
            h = checkpoint(
                lambda h: torch.sigmoid(self.c(checkpoint(lambda h: torch.tanh(self.c(h)), h, use_reentrant=True))),
                h, use_reentrant=True,
            )  # fmt: skip
        else:
            h = checkpoint(self.part, h, use_reentrant=self.how == "reentrant")
        return self.b(torch.tanh(h))


def made(how=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Parted(how).double()


def gradients(model, n=8, call=None):
    x, y = problem(n)
    model.zero_grad()
    F.cross_entropy((model if call is None else call)(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def dualized(how=None, **settings):
    return dp.dualize(made(how), **({"beta": 3.0, "alpha": 0.3} | settings))


EXPECTED = gradients(dualized())
PLAIN = gradients(made())


def test_dyadic_gradients_differ_from_plain_ones_here():
    """Else nothing below would be a test."""
    assert all(not torch.allclose(EXPECTED[n], PLAIN[n], rtol=1e-3, atol=0) for n in ("a.weight", "c.weight"))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "nested", "saved on the cpu"])
def test_a_part_in_a_checkpoint_or_other_hooks_is_dyadic_with_its_own_beta(how, recompute, beta):
    """What is computed again outside the mode would be plain, and its saved tensors mixed up."""
    settings = {"beta": beta, "recompute_states": recompute}
    assert_same(gradients(dualized(how, **settings)), gradients(dualized(**settings)), 1e-14)


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", [None, "reentrant", "not reentrant"])
def test_a_checkpoint_around_a_model_inside_or_outside_of_dualize(how, reentrant, inner):
    """Gradient checkpointing of whole blocks, as trainers switch it on."""

    class Around(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return checkpoint(self.model, x.clone().requires_grad_(), use_reentrant=reentrant)

    model = Around(dualized(how)) if inner else dp.dualize(Around(made(how)), beta=3.0, alpha=0.3)
    assert_same({n.removeprefix("model."): g for n, g in gradients(model).items()}, EXPECTED, 1e-14)


def test_hooks_of_others_around_the_model_stay_in_force():
    with torch.autograd.graph.save_on_cpu():
        assert_same(gradients(dualized()), EXPECTED, 0.0)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_after_an_interrupt_other_models_are_plain_and_this_one_is_dyadic():
    """PyTorch calls no hook then: a mode that leaks would make all later code dyadic."""
    model = dualized()
    model.c.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        model(problem()[0])
    assert_same(gradients(made()), PLAIN, 0.0)
    model.c._forward_pre_hooks.clear()
    assert_same(gradients(model), EXPECTED, 0.0)
    assert not dualization._running()
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_an_exception_in_a_model_inside_a_model_ends_both(error):
    outer = dp.dualize(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), dualized(), nn.Tanh()).double())
    with torch.no_grad():
        outer[0].weight.copy_(torch.eye(5))
        outer[0].bias.zero_()

    def fail(*_):
        raise error

    handle = outer[2].c.register_forward_hook(fail)
    with pytest.raises(error):
        outer(problem()[0])
    handle.remove()
    assert_same(gradients(made()), PLAIN, 0.0)
    assert_same(gradients(outer[2]), EXPECTED, 0.0)
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_dualized_module_inside_another_keeps_its_own_settings():
    inner, expected = dualized(), dualized()
    outer = dp.dualize(nn.Sequential(inner, nn.Identity()), beta=0.1, leave=())
    outer.add_module("2", nn.Tanh())
    x, y = problem()
    F.cross_entropy(outer(x), y).backward()
    with dp.dyadic(batch=8, beta=0.1):
        output = torch.tanh(expected(x))
    F.cross_entropy(output, y).backward()
    assert_same(*({n: p.grad for n, p in m.named_parameters()} for m in (inner, expected)), 1e-14)


def test_the_context_does_for_any_code_what_dualize_does():
    model = made()
    x, y = problem()
    with dp.dyadic(batch=8, beta=3.0, alpha=0.3):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    assert_same({n: p.grad for n, p in model.named_parameters()}, EXPECTED, 1e-14)
    with pytest.raises(dp.SettingError, match="Give batch="), dp.dyadic():
        pass
    assert_same(gradients(made()), PLAIN, 0.0)


def test_threads_do_not_see_each_other():
    found, sizes = {}, (4, 5, 6)
    expected = {n: gradients(dualized(), n) for n in sizes}
    # Models and batches are drawn from the process's generator: before the threads.
    models, batches = {n: dualized() for n in sizes}, {n: problem(n) for n in sizes}

    def work(n):
        (x, y), model = batches[n], models[n]
        for _ in range(10):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
        found[n] = {name: p.grad.clone() for name, p in model.named_parameters()}

    threads = [threading.Thread(target=work, args=(n,)) for n in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in sizes:
        assert_same(found[n], expected[n], 0.0)


COPIES = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "moving average": lambda m: AveragedModel(m).module,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_dyadic_and_undone_alone(how):
    model = dualized()
    twin = COPIES[how](model)
    assert_same(gradients(twin), EXPECTED, 0.0)
    dp.undualize(twin)
    assert_same(gradients(twin), PLAIN, 0.0)
    assert_same(gradients(model), EXPECTED, 0.0)
    del twin
    assert_same(gradients(dp.undualize(model)), PLAIN, 0.0)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert vars(model).keys() == vars(made()).keys()
    with pytest.raises(dp.SettingError, match="not dualized"):
        dp.undualize(model)


def test_exporters_and_tracers_see_the_plain_model():
    model, (x, _) = dualized(), problem()
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {name for name in names if "tanh" in name or "sigmoid" in name} == {"aten.tanh.default", "aten.sigmoid.default"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.trace(model, (x,))(x), model(x))


class Mixed(nn.Module):
    """Batch statistics, an activation in place, and activations of parameters and buffers alone."""

    def __init__(self):
        super().__init__()
        self.a, self.q, self.b, self.bn = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.BatchNorm1d(6)
        self.p, self.act = nn.Parameter(torch.randn(6)), nn.ReLU(inplace=True)
        self.register_buffer("position", torch.randn(6))

    def forward(self, x):
        h = torch.tanh(self.a(x)) + torch.tanh(self.q(self.position)) + torch.sigmoid(2 * self.p)
        return self.b(F.gelu(self.act(self.bn(self.q(h)))))


@pytest.mark.parametrize("how", ["torch.compile", "inlined", "model.compile"])
def test_compiled_in_one_graph_it_is_what_it_is_in_eager_for_changing_batches(how):
    """Both ways that PyTorch takes with hooks: called from outside, and followed."""
    torch.manual_seed(0)
    eager = dp.dualize((nn.Sequential(Mixed(), nn.Tanh()) if how == "inlined" else Mixed()).double(), beta=2.0, alpha=0.3)
    model = copy.deepcopy(eager)
    torch._dynamo.reset()
    if how == "model.compile":
        model.compile(backend="aot_eager", fullgraph=True)
        call = model
    else:
        call = torch.compile(model, backend="aot_eager", fullgraph=True)
    plain = dp.undualize(copy.deepcopy(eager))
    for n in (8, 6, 7):
        expected = gradients(eager, n)
        found = gradients(model, n, call)
        # Where BatchNorm takes the mean away, a bias has gradient zero: what remains is rounding.
        for each in (expected, found):
            for name in each:
                each[name] += 1
        assert_same(found, expected, rounding(1.0))
        assert any(not torch.allclose(g + 1, expected[name], rtol=1e-4) for name, g in gradients(plain, n).items())
    assert not torch.overrides._get_current_function_mode_stack()
