"""The states of predictive coding, one pass over memory by the native kernel: as by PyTorch's
operations, bit for bit, and as by the definition in float64."""

import pytest
import torch

from dualprop import neurons
from dualprop.kernels import dyadic, native, predicted

NEURONS = [neurons.ReLU(), neurons.LeakyReLU(0.2), neurons.HardSigmoid(-0.5, 1.0), neurons.Identity(), neurons.Tanh()]


def drawn(number, dtype, shape=(5, 3, 7, 11)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(number)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("is_predicted", [True, False])
def test_an_error_is_what_the_state_moved_less_what_its_prediction_did(neuron, dtype, is_predicted):
    """A resume on a machine without a compiler would else go on with other bits."""
    assert native.is_available(), native.reason()
    a, free, move = drawn(3, dtype)
    free = free if is_predicted else None
    found = {}
    for kernel in ("native", "eager"):
        with dyadic.using(kernel):
            found[kernel] = predicted.errors(neuron, a, free, move)
    assert all(map(torch.equal, found["native"], found["eager"]))
    wide = move.double() - (0 if free is None else neuron.f(a.double()) - free.double())
    torch.testing.assert_close(found["native"][0].double(), wide, rtol=0, atol=4 * torch.finfo(dtype).eps * 4)
    slope = neuron.derivative(a.double())
    torch.testing.assert_close(found["native"][1].double(), slope * wide, rtol=0, atol=4 * torch.finfo(dtype).eps * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_moves_by_its_velocity_and_the_force_on_it(dtype):
    assert native.is_available(), native.reason()
    pull, error, velocity, move, free = given = drawn(5, dtype)
    found = {}
    for kernel in ("native", "eager"):
        with dyadic.using(kernel):
            found[kernel] = predicted.moved(*given, 0.3, 0.7)
    assert all(map(torch.equal, found["native"], found["eager"]))
    speed = 0.7 * velocity.double() + 0.3 * (pull.double() - error.double())
    wide = speed, move.double() + speed, free.double() + move.double() + speed
    for part, expected in zip(found["native"], wide, strict=True):
        torch.testing.assert_close(part.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("missing", range(4))
def test_what_has_not_come_yet_is_zero(missing):
    """Pull, error, velocity and move are there from some step on."""
    given = drawn(5, torch.float64)
    zero = [torch.zeros_like(t) if i == missing else t for i, t in enumerate(given)]
    given[missing] = None
    for part, expected in zip(predicted.moved(*given, 0.3, 0.7), predicted.moved(*zero, 0.3, 0.7), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-15)


def test_a_move_of_1e_minus_12_keeps_its_digits_beside_a_state_of_1():
    """Read off the states it would have lost four of float64's sixteen, and in float32 all."""
    free, move = torch.ones(8), torch.full((8,), 1e-12)
    with dyadic.using("eager"):
        _, moved, _ = predicted.moved(None, None, move, move, free, 0.1, 1.0)
    torch.testing.assert_close(moved, torch.full((8,), 2e-12), rtol=1e-6, atol=0)
