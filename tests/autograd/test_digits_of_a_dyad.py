"""No digit of a difference is lost that the nudge has, by any kernel and for any activation."""

import functools

import pytest
import torch
from torch.nn import functional as F

from dualprop import neurons
from dualprop.kernels import dyadic as kernels
from dualprop.kernels import formulas
from dualprop.reading import mode


def drives(dtype, shape=(40, 50), size=1.0):
    generator = torch.Generator().manual_seed(0)
    a, delta = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.to(dtype), (size * delta).to(dtype)


FUNCTIONS = [
    F.silu, F.mish, F.hardswish, F.hardsigmoid, F.elu, F.selu, F.celu, F.softplus, F.softsign, F.logsigmoid, F.tanhshrink,
    F.softshrink, torch.hardshrink, F.gelu, F.relu6, functools.partial(F.gelu, approximate="tanh"), F.relu, F.leaky_relu,
    torch.sigmoid, torch.tanh, functools.partial(torch.softmax, dim=1),
]  # fmt: skip


@pytest.mark.parametrize("sides", [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize(
    "activation", FUNCTIONS, ids=lambda f: getattr(f, "__name__", None) or f"{f.func.__name__}, {f.keywords}"
)
def test_no_activation_loses_the_digits_that_its_two_states_share(activation, sides):
    """Written out in float32, states at |Δ| = 1e-6 |a| agree in all but a digit. Read as a model
    reads it, by the engine that differentiates and by the one that infers."""
    kinks = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0])
    a, delta = drives(torch.float32, size=1e-6)
    a = torch.where(((a[..., None] - kinks).abs() < 1e-3).any(-1), torch.full_like(a, 0.3), 2 * a)
    up, down = sides
    expected = activation(a.double() + up * delta.double()) - activation(a.double() - down * delta.double())
    # The slope of no function here is above 1.8, nor what SiLU and its like multiply by a.
    bound = 8 * torch.finfo(torch.float32).eps * (1 + a.abs()) * delta.abs().amax(1, keepdim=True)
    found = {}
    neuron = of(activation)
    with kernels.using("eager"):
        found["fused"] = kernels.difference(neuron, a, delta, up, down)
        found["dyad"] = kernels.dyad(neuron, a, delta, up, down, 0.3)[1]
        if 0 in sides:
            strength = up if up else -down
            found["one state given"] = kernels.one_sided_difference(neuron, a, delta, strength, neuron.f(a))
    if 0 not in sides:
        torch._dynamo.reset()
        found["traced"] = torch.compile(formulas.difference, backend="eager")(neuron, a, delta, up, down, 1.0)
    for way, each in found.items():
        assert bool(((each.double() - expected).abs() <= bound).all()), way


def of(activation):
    """The neuron that reading a model of this activation finds."""
    seen = []

    class Seeing(mode.Reading):
        def emit(self, neuron, a, inplace=False):
            seen.append(neuron)
            return a

    a = torch.zeros(3, 4, requires_grad=True)
    with Seeing():
        activation(a)
    (neuron,) = seen
    return neuron


@pytest.mark.parametrize(
    "neuron", [neurons.Tanh(), neurons.Sigmoid(), neurons.Softmax(1), neurons.SiLU()], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("size", [1e-3, 0.3, 1.0, 3.0, 100.0])
def test_a_rise_is_the_difference_of_the_states_however_far(neuron, size):
    """A form that is right for small nudges alone would be wrong for large ones."""
    a, delta = drives(torch.float64, size=size)
    for scale in (1.0, 30.0):
        expected = neuron.f(scale * a + delta) - neuron.f(scale * a)
        atol = 1e-13 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(neuron.rise(scale * a, delta), expected, rtol=1e-12, atol=atol)
