"""The native kernel against the same written out in float64; states that are computed again against
states that are kept."""

import copy
import functools
import itertools
import os
import subprocess
import sys

import pytest
import torch
from comparison import assert_same
from networks import batch, conv_net, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop import neurons
from dualprop.fused import dualization, dyadic, recompute
from dualprop.kernels import building, formulas, native, predicted
from dualprop.kernels import dyadic as kernels

NEURONS = [neurons.ReLU(), neurons.LeakyReLU(0.2), neurons.HardSigmoid(-0.5, 1.0), neurons.GELU()]
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}
SETTINGS = [("original", 0.5), ("original", 0.2), ("transposed", 0.0), ("transposed", 1.0)]


@pytest.fixture(autouse=True)
def _needs_the_kernel():
    assert native.is_available(), f"the native kernel is not tested: {native.reason()}"


def drives(dtype, shape=(7, 3, 5, 4), size=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, delta = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.to(dtype), (size * delta).to(dtype)


def written_out(neuron, a, delta, up, down, alpha):
    plus, minus = neuron.f(a.double() + up * delta.double()), neuron.f(a.double() - down * delta.double())
    return alpha * plus + (1 - alpha) * minus, plus - minus


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_it_computes_the_dyad_of_the_definition(neuron, dtype, layout):
    """Each result to one rounding of its type: a swapped share, a lost α or a wrong stride is far
    beyond it."""
    a, delta = (LAYOUTS[layout](t) for t in drives(dtype))
    up, down, alpha = 0.7, 0.4, 0.3
    mean, difference = written_out(neuron, a, delta, up, down, alpha)
    # GELU's two states are rounded before they are subtracted, where they are far apart.
    eps = (8 if neuron == neurons.GELU() else 4) * torch.finfo(dtype).eps
    for kernel in ("native", "eager"):
        found = kernels.dyad(neuron, a, delta, up, down, alpha, kernel)
        assert all(t.dtype == dtype and t.shape == a.shape for t in found)
        torch.testing.assert_close(found[0].double(), mean, rtol=eps, atol=eps)
        torch.testing.assert_close(found[1].double(), difference, rtol=eps, atol=eps)
        scaled = kernels.difference(neuron, a, delta, up, down, 3.0, kernel)
        torch.testing.assert_close(scaled.double(), 3 * difference, rtol=eps, atol=3 * eps)
        for strength in (up, -down):
            free = neuron.f(a)
            one_sided = kernels.one_sided_difference(neuron, a, delta, strength, free, kernel)
            shares = (up, 0.0) if strength > 0 else (0.0, down)
            expected = written_out(neuron, a, delta, *shares, alpha)[1]
            torch.testing.assert_close(one_sided.double(), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("span", [0.01, 0.24, 0.26, 3.0])
def test_gelus_series_meets_its_difference(span):
    """Blocks of small nudges take a Taylor series: at its largest nudge it must not be seen."""
    a = torch.linspace(-16, 16, 100_001)
    delta = torch.full_like(a, span / 1.1)
    for found, expected in zip(kernels.dyad(neurons.GELU(), a, delta, 0.7, 0.4, 0.3, "native"),
                               written_out(neurons.GELU(), a, delta, 0.7, 0.4, 0.3), strict=True):  # fmt: skip
        torch.testing.assert_close(found.double(), expected, rtol=4e-7, atol=4e-7 * max(1, span) * 4)
    ends = torch.tensor([float("nan"), 1e30, -1e30])
    mean, difference = kernels.dyad(neurons.GELU(), ends, torch.full_like(ends, span), 0.5, 0.5, 0.5, "native")
    assert all(bool(each[0].isnan()) for each in (mean, difference))
    torch.testing.assert_close(mean[1:], torch.tensor([1e30, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_a_settled_gelu_is_its_value_and_its_slope(dtype, kernel):
    a, pull = drives(dtype)
    reference = a.double().requires_grad_()
    value = F.gelu(reference)
    (slope,) = torch.autograd.grad(value.sum(), reference)
    with kernels.using(kernel):
        state, signal = predicted.settled(neurons.GELU(), a, pull)
        assert torch.equal(predicted.signal(neurons.GELU(), a, pull), signal)
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(state.double(), value.detach() + pull.double(), rtol=eps, atol=eps)
    torch.testing.assert_close(signal.double(), slope * pull.double(), rtol=eps, atol=eps)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neuron", [neurons.ReLU(), neurons.HardSigmoid(-0.5, 1.0)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-12])
def test_a_settled_unit_is_that_of_the_definition(neuron, dtype, layout, size):
    """state = f(a + T), signal = f'(a) (state - a), in which small pulls would drown."""
    a, pull = (LAYOUTS[layout](t) for t in drives(dtype, size=size))
    a = torch.where(a.abs() < 0.1, torch.full_like(a, float("nan")), a) if size == 1 else a
    state = neuron.f(a.double() + pull.double())
    inside = neuron.derivative(a.double())
    room = torch.minimum(torch.maximum(pull.double(), neuron.reach[0] - a.double()), neuron.reach[1] - a.double())
    results = {}
    for kernel in ("native", "eager"):
        with kernels.using(kernel):
            results[kernel] = predicted.settled(neuron, a, pull)
            assert torch.equal(predicted.signal(neuron, a, pull).nan_to_num(7), results[kernel][1].nan_to_num(7))
        eps = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(results[kernel][0].double(), state, rtol=eps, atol=eps, equal_nan=True)
        torch.testing.assert_close(results[kernel][1].double(), inside * room, rtol=eps, atol=0, equal_nan=True)
    assert all(torch.equal(*(t.nan_to_num(7) for t in pair)) for pair in zip(*results.values(), strict=True))


def test_a_pragmas_if_is_the_threads_alone():
    """One that does not say so is the vectorisation's too, and one thread walks scalars."""
    lines = building.SOURCE.read_text() + building.GELU_SOURCE.read_text()
    pragmas = [line for line in lines.splitlines() if "omp parallel" in line]
    assert pragmas
    assert all("if (parallel :" in line for line in pragmas)


def difference_by(kernel):
    """The native kernel, or what inductor is given to make one pass of, run operation by
    operation."""
    if kernel == "native":
        return functools.partial(kernels.difference, kernel="native")
    torch._dynamo.reset()
    return torch.compile(formulas.difference, backend="eager", dynamic=True)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_what_is_compiled_is_the_definition_too(neuron):
    a, delta = drives(torch.float64)
    torch._dynamo.reset()
    mean, difference = torch.compile(formulas.dyad, backend="eager", dynamic=True)(neuron, a, delta, 0.7, 0.4, 0.3)
    expected = written_out(neuron, a, delta, 0.7, 0.4, 0.3)
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(difference, expected[1])
    broken = difference_by("traced")(neuron, a * torch.nan, delta, 0.7, 0.4, 1.0)
    assert broken.isnan().all()


@pytest.mark.parametrize(
    ("neuron", "kernel"), [*itertools.product(NEURONS, ["native"]), *itertools.product(NEURONS[:3], ["traced"])], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_cancels_where_no_kink_is_crossed(neuron, dtype, kernel):
    """At |Δ| = 1e-6 |a| float32 states agree in all but a digit, bfloat16 ones in all; the
    difference keeps its own."""
    a, delta = drives(dtype, size=1e-6)
    found = difference_by(kernel)(neuron, a, delta, 0.5, 0.5, 1.0).double()
    _, expected = written_out(neuron, a, delta, 0.5, 0.5, 0.5)
    crossed = neuron.crosses_kink(a.double() + 0.5 * delta.double(), a.double() - 0.5 * delta.double())
    assert crossed.double().mean() < 0.01
    error = (found - expected).abs()[~crossed] / delta.abs().double()[~crossed]
    assert float(error.max()) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_bfloat16_is_float32_rounded_once_to_the_nearest(neuron):
    """Cut off in place of rounded, every difference would lean towards zero, by half a digit on
    average."""
    a, delta = drives(torch.bfloat16, (50, 70))
    found = kernels.dyad(neuron, a, delta, 0.5, 0.5, 0.5, "native")
    expected = kernels.dyad(neuron, a.float(), delta.float(), 0.5, 0.5, 0.5, "native")
    assert torch.equal(found[0], expected[0].bfloat16())
    assert torch.equal(found[1], expected[1].bfloat16())


@pytest.mark.parametrize("size", [1, 31, 32768, 70001])
def test_every_element_is_written_whatever_the_size(size):
    """Threads share the elements out, and vectors leave a rest."""
    a, delta = drives(torch.float32, (1, size))
    out = kernels.difference(neurons.ReLU(), a, delta, 0.5, 0.5, 1.0, "native")
    torch.testing.assert_close(out, kernels.difference(neurons.ReLU(), a, delta, 0.5, 0.5, 1.0, "eager"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_numbers_that_are_not_finite_are_passed_on(neuron):
    """A kernel that maps NaN to 0 would hide a divergence."""
    a = torch.tensor([[float("nan"), 1.0, float("inf")]])
    found = kernels.difference(neuron, a, torch.tensor([[1.0, float("nan"), 1.0]]), 0.5, 0.5, 1.0, "native")
    assert found[0, :2].isnan().all()


def test_a_gelu_far_below_zero_is_zero_and_at_minus_infinity_no_number():
    """x P(x) with P(x) = 0, and -inf · 0."""
    a = torch.tensor([[-20.0, -1e30, -3e38, -float("inf")]])
    pull = torch.zeros_like(a)
    for state in (
        kernels.dyad(neurons.GELU(), a, pull, 0.5, 0.5, 0.5, "native")[0],
        predicted.settled(neurons.GELU(), a, pull)[0],
    ):
        assert (state[0, :3] == 0).all()
        assert state[0, 3].isnan()


def test_outputs_may_lie_over_the_inputs():
    a, delta = drives(torch.float32)
    expected = kernels.dyad(neurons.ReLU(), a.clone(), delta.clone(), 0.5, 0.5, 0.5, "native")
    found = kernels.dyad(neurons.ReLU(), a, delta, 0.5, 0.5, 0.5, "native", overwrite=True)
    assert found[0].data_ptr() == a.data_ptr()
    assert found[1].data_ptr() == delta.data_ptr()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_what_it_does_not_know_is_left_to_pytorch():
    a, delta = drives(torch.float64)
    for neuron in (neurons.Tanh(), neurons.Softmax(1)):
        assert not native.takes(neuron.piecewise, a, delta)
        found = kernels.difference(neuron, a, delta, 0.5, 0.5, 1.0, "native")
        torch.testing.assert_close(found, written_out(neuron, a, delta, 0.5, 0.5, 0.5)[1])


def run(code, **environment):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_it_shares_the_threads_that_pytorch_has():
    """A second OpenMP library would bring a second pool of threads, which fight over the cores."""
    code = """
import torch
from dualprop.kernels import native, predicted
assert native.is_available(), native.reason()
from pathlib import Path
print(len({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "gomp" in line or "iomp" in line}))
"""
    assert run(code) == "1"


def test_without_a_compiler_everything_runs_and_says_why(tmp_path):
    code = """
import torch, dualprop as dp
from dualprop.kernels import native, predicted
print(native.is_available(), "|", native.reason())
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
out = dp.DualPropagation().gradients(dp.Network.from_module(model), torch.randn(5, 3), torch.zeros(5).long())
try:
    with dp.kernels.using("native"):
        pass
except dp.SettingError as error:
    print(error)
"""
    printed = run(code, PATH=str(tmp_path), CC="")
    assert printed.startswith("False | no C compiler was found")
    assert "kernel='native' can't be had: no C compiler was found; install gcc" in printed
    assert "$DUALPROP_NATIVE is 0" in run(code, DUALPROP_NATIVE="0")


def test_a_compiler_that_fails_is_told_and_leaves_nothing_behind(tmp_path):
    broken = tmp_path / "gcc"
    broken.write_text("#!/bin/sh\ncase $1 in --version) echo broken 1;; *) echo 'no such flag' >&2; exit 1;; esac\n")
    broken.chmod(0o755)
    cache = tmp_path / "cache"
    code = "from dualprop.kernels import native; print(native.is_available(), native.reason())"
    assert "could not build it: no such flag" in run(code, CC=str(broken), XDG_CACHE_HOME=str(cache))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def gradients(model, x, y):
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("coupling", "alpha"), SETTINGS)
@pytest.mark.parametrize("pool", ["before", "after", "none"])
def test_states_that_are_computed_again_give_the_same_gradients(pool, coupling, alpha, layout):
    """To the last bit: a handle taken for a tensor that is not f(a), or a wrong stride, changes
    everything."""
    x, y = images()
    x, found = LAYOUTS[layout](x), []
    for again in (True, False):
        torch.manual_seed(0)
        model = LAYOUTS["contiguous"](conv_net("relu", pool))
        dp.dualize(model, coupling=coupling, alpha=alpha, recompute_states=again)
        found.append(gradients(model, x, y))
    assert_same(found[0], found[1], 0.0)


def handles(call):
    """How many states autograd computed again while `call` ran."""
    count, unpack = [0], recompute._unpack

    def counting(saved):
        count[0] += isinstance(saved, recompute._Handle)
        return unpack(saved)

    recompute._unpack = counting
    try:
        call()
    finally:
        recompute._unpack = unpack
    return count[0]


def test_each_state_is_computed_again_once_where_it_is_read_once():
    model, (x, y) = mlp("relu"), batch()
    hidden = sum(isinstance(module, nn.ReLU) for module in model)
    dp.dualize(model)
    assert handles(lambda: gradients(model, x, y)) == hidden


def test_a_state_that_was_written_over_is_kept_as_it_is():
    """Autograd saved the new content; f(a) would be the old one."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.act(self.first(x)).mul_(2))

    x, y = batch(classes=3)
    torch.manual_seed(0)
    model = Doubled().to(x.dtype)
    kept = dp.dualize(copy.deepcopy(model), recompute_states=False)
    dp.dualize(model)
    assert_same(gradients(model, x, y), gradients(kept, x, y), 0.0)


def test_an_exception_in_the_forward_pass_leaves_no_hooks_behind():
    """Hooks that stay would silently act on the rest of the user's program."""
    model, (x, _) = mlp("relu"), batch()
    dp.dualize(model)
    with pytest.raises(RuntimeError):
        model(x[:, :2])
    assert not recompute._stack()
    assert not dualization._running()
    assert not torch.overrides._get_current_function_mode_stack()
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        torch.ones(2, requires_grad=True).exp()
    assert len(seen) == 1
    model(x)
    assert not recompute._stack()
    assert not dualization._running()
    assert not torch.overrides._get_current_function_mode_stack()


def test_checkpointed_segments_and_nested_models_still_agree():
    """Both bring saved-tensor hooks of their own."""
    from torch.utils.checkpoint import checkpoint

    x, y = batch()

    class Wrapped(nn.Module):
        def __init__(self, inner, segments):
            super().__init__()
            self.inner, self.segments = inner, segments

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False) if self.segments else self.inner(x)

    found = []
    for segments in (True, False):
        inner = dp.dualize(mlp("relu"))
        found.append({n.removeprefix("inner."): g for n, g in gradients(Wrapped(inner, segments), x, y).items()})
    assert_same(found[0], found[1], 1e-14)


def test_other_hooks_around_the_model_keep_their_say():
    """PyTorch asks the innermost hooks alone: ours would switch off a checkpoint's or an
    offloading's."""
    model, (x, y) = mlp("relu"), batch()
    dp.dualize(model)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        loss = nn.functional.cross_entropy(model(x), y)
    assert len(packed) > 5
    loss.backward()
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        nn.functional.cross_entropy(model(x), y).backward()


def test_an_interrupt_from_the_keyboard_is_forgotten_at_the_next_forward_pass():
    """No hook is called for it; in a notebook the next cell would run inside the interrupted pass's
    hooks."""
    model, (x, y) = mlp("relu"), batch()
    dp.dualize(model)

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = model[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    gradients(model, x, y)
    assert not recompute._stack()
    assert not dualization._running()
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("size", [(3, 4), (700, 800)])
def test_the_backward_pass_can_itself_be_differentiated(size):
    """A kernel that writes to bare memory would cut the graph without a word: a gradient penalty
    would learn nothing."""
    a, dy = (t.requires_grad_() for t in drives(torch.float64, size))
    found = []
    for kernel in ("native", "eager"):
        nudge = dyadic.CotangentNudge(0.5, 0.5, 1.0, kernel)
        state = dyadic.dyadic_activation(a, neurons.LeakyReLU(0.2), nudge)
        (first,) = torch.autograd.grad(state, a, dy, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (a, dy)))
    assert float(found[0][1].abs().sum()) > 0
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize(
    "settings", [{"XDG_CACHE_HOME": "relative", "HOME": "alsorelative"}, {"XDG_CACHE_HOME": "", "HOME": "/dev/null"}]
)
def test_without_a_usable_home_it_is_built_among_temporary_files(settings, tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); from dualprop.kernels import native; "
    code += "print(native.is_available(), os.listdir('.'))"
    printed = run(code, TMPDIR=str(tmp_path / "t"), **settings) if (tmp_path / "t").mkdir() is None else ""
    assert printed == "True ['t']"


def test_a_kernel_that_there_is_not_is_refused_and_the_one_in_use_stays():
    """A misspelt kernel that fell back to another would be measured in its place."""
    with (
        pytest.raises(dp.SettingError, match="kernel must be auto, native, compiled or eager, got 'triton'"),
        dp.kernels.using("triton"),
    ):
        pass
    with dp.kernels.using("eager"):
        assert dp.kernels.current() == "eager"
        with pytest.raises(ZeroDivisionError), dp.kernels.using("native"):
            raise ZeroDivisionError
        assert dp.kernels.current() == "eager"
    assert dp.kernels.current() == "auto"
