"""The kernel that inductor compiles, against the eager one; slow, as compiling takes a C++ compiler
its seconds."""

import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop.kernels import dyadic as kernels

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("neuron", ["relu", "tanh", "hard_sigmoid", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("size", [(7, 5), (40, 16, 32, 32)])
def test_the_compiled_kernel_computes_what_the_eager_one_does(neuron, size):
    """Large tensors are walked in pieces eagerly, small ones whole, and compiled ones by one loop:
    three ways, one result."""
    generator = torch.Generator().manual_seed(0)
    a, delta = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    f = dp.neurons.from_name(neuron)
    for eager, compiled in zip(
        kernels.dyad(f, a, delta, 0.3, 0.7, 0.3), kernels.dyad(f, a, delta, 0.3, 0.7, 0.3, kernel="compiled"), strict=True
    ):
        assert torch.allclose(eager, compiled, rtol=0, atol=1e-14)
    eager = kernels.difference(f, a, delta, 1.0, 0.0, 0.5)
    assert torch.allclose(eager, kernels.difference(f, a, delta, 1.0, 0.0, 0.5, kernel="compiled"), rtol=0, atol=1e-14)


@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_gradients_by_the_compiled_kernel_are_those_by_the_eager_one(engine):
    """The option must change nothing but the time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).double()
    network, x, y = dp.Network.from_module(model), torch.randn(6, 3, 8, 8).double(), torch.arange(6) % 5
    eager = dp.DualPropagation(engine=engine).gradients(network, x, y).gradients
    with dp.kernels.using("compiled"):
        compiled = dp.DualPropagation(engine=engine).gradients(network, x, y).gradients
    for name, gradient in eager.items():
        assert torch.allclose(gradient, compiled[name], rtol=1e-12, atol=1e-14), name


# PyTorch's own tracer makes an instance of the autograd function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_dualized_model_compiles_as_one_graph_by_inductor():
    """A graph break would leave the speed of torch.compile on the table, and could leave an
    activation behind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 5))
    x, y = torch.randn(16, 20), torch.arange(16) % 5
    dp.dualize(model, coupling="transposed", alpha=0.0)
    nn.functional.cross_entropy(model(x), y).backward()
    eager = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    nn.functional.cross_entropy(torch.compile(model, fullgraph=True)(x), y).backward()
    for gradient, parameter in zip(eager, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
