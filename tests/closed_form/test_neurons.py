"""Elementwise neurons against their potentials: hand-written G and f, and a numerical minimiser
that knows only G."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dualprop import neurons
from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.neurons import HardSigmoid, Identity, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh

EPS = torch.finfo(torch.float64).eps


def entropy(p):
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0)


def square(s):
    return s * s / 2


def leaky(c):
    return lambda s: np.where(s < 0, s * s / (2 * c), s * s / 2)


# neuron: (f, G inside its range, the range of the state), by hand; f(a) = argmin_s G(s) - s a.
CASES = {
    Identity(): (lambda a: a, square, (-math.inf, math.inf)),
    ReLU(): (lambda a: np.maximum(0, a), square, (0.0, math.inf)),
    LeakyReLU(0.01): (lambda a: np.maximum(a, 0.01 * a), leaky(0.01), (-math.inf, math.inf)),
    LeakyReLU(0.3): (lambda a: np.maximum(a, 0.3 * a), leaky(0.3), (-math.inf, math.inf)),
    HardSigmoid(): (lambda a: np.clip(a, 0, 1), square, (0.0, 1.0)),
    HardSigmoid(-1.0, 2.0): (lambda a: np.clip(a, -1, 2), square, (-1.0, 2.0)),
    Sigmoid(): (lambda a: 1 / (1 + np.exp(-a)), lambda s: entropy(s) + entropy(1 - s), (0.0, 1.0)),
    Tanh(): (np.tanh, lambda s: (entropy(1 + s) + entropy(1 - s)) / 2, (-1.0, 1.0)),
}  # fmt: skip
every_neuron = pytest.mark.parametrize("neuron", CASES, ids=repr)

DRIVES = np.concatenate([np.linspace(-8, 8, 65), [-30.0, 30.0, 0.0, 1.0, 2.0, -1.0, 1e-9, -1e-9]])
SCALES = [-0.95, -0.5, -0.1, 0.0, 0.3, 2.0, 40.0]


def minimiser(objective, low, high):
    """argmin of a convex function by golden-section search, elementwise between `low` and
    `high`."""
    shrink = (math.sqrt(5) - 1) / 2
    low, high = low.copy(), high.copy()
    for _ in range(120):
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        smaller = objective(left) <= objective(right)
        low, high = np.where(smaller, low, left), np.where(smaller, right, high)
    return (low + high) / 2


@every_neuron
def test_the_activation_and_the_potential_are_the_table_of_the_paper(neuron):
    """Otherwise the network would settle in another energy's minimum than the one it is said to
    minimise."""
    f, potential, (low, high) = CASES[neuron]
    a = torch.tensor(DRIVES)
    torch.testing.assert_close(neuron.f(a).numpy(), f(DRIVES), rtol=4 * EPS, atol=4 * EPS)
    s = np.linspace(max(low, -3.0), min(high, 3.0), 41)  # both ends of the range are among them
    torch.testing.assert_close(neuron.potential(torch.tensor(s)).numpy(), potential(s), rtol=8 * EPS, atol=8 * EPS)


@every_neuron
def test_the_potential_is_infinite_outside_the_range_of_the_activation(neuron):
    """A finite G there would let a solver settle at states that the activation can't produce."""
    low, high = CASES[neuron][2]
    outside = [end + step for end, step in ((low, -1e-6), (high, 1e-6)) if math.isfinite(end)]
    found = neuron.potential(torch.tensor(outside, dtype=torch.float64))
    assert bool(torch.isinf(found).all() and (found > 0).all()), found


@every_neuron
@pytest.mark.parametrize("scale", SCALES)
def test_prox_minimises_the_potential_plus_the_quadratic(neuron, scale):
    """A wrong prox would make damped and exactly nudged states plausible and wrong."""
    _, potential, (low, high) = CASES[neuron]
    reach = np.abs(DRIVES) / (1 + scale) + 1
    s = minimiser(lambda s: potential(s) + scale / 2 * s * s - s * DRIVES, np.maximum(low, -reach), np.minimum(high, reach))
    found = neuron.prox(torch.tensor(DRIVES), scale).numpy()
    # A search on values resolves the argmin to the root of what the values resolve, over the
    # curvature 1 + scale.
    size = np.abs(found * DRIVES) + (1 + abs(scale)) * found**2 + 1
    tolerance = 8 * np.sqrt(EPS * size / (1 + scale))
    worst = np.argmax(np.abs(found - s) / tolerance)
    assert np.all(np.abs(found - s) <= tolerance), f"u={DRIVES[worst]}: {found[worst]} instead of {s[worst]}"


@every_neuron
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_prox_settles_to_the_last_digits(neuron, scale, dtype):
    """s = prox(u, scale) is s = f(u - scale·s) (Moreau); a solver that stops early would leave a
    residue."""
    eps = torch.finfo(dtype).eps
    u = torch.tensor(DRIVES, dtype=dtype)
    s = neuron.prox(u, scale)
    expected = torch.tensor(CASES[neuron][0]((u.double() - scale * s.double()).numpy()))
    # Rounding of s returns scale-fold in the argument of f.
    tolerance = 8 * eps * (1 + abs(scale)) * (1 + u.abs().double() + s.abs().double())
    assert s.dtype == dtype
    assert bool(((s.double() - expected).abs() <= tolerance).all()), (s.double() - expected).abs() / tolerance


@every_neuron
def test_the_activation_is_the_prox_without_a_quadratic(neuron):
    """f(u) = prox(u, 0), or damping zero would be another algorithm than no damping."""
    u = torch.tensor(DRIVES)
    torch.testing.assert_close(neuron.prox(u, 0.0), neuron.f(u), rtol=8 * EPS, atol=8 * EPS)


@pytest.mark.parametrize("neuron", [neurons.Sigmoid(), neurons.Tanh()], ids=["sigmoid", "tanh"])
def test_prox_of_a_saturating_neuron_takes_few_steps(neuron, monkeypatch):
    """Damped inference calls it for every layer, state and pass; a solver that bisects takes five
    times as long."""
    monkeypatch.setattr(neurons.units, "MOST_STEPS", 16)
    u = torch.linspace(-300, 300, 6001, dtype=torch.float64)
    for scale in (0.01, 1.0, 30.0, 200.0):
        s = neuron.prox(u, scale)
        torch.testing.assert_close(s, neuron.f(u - scale * s), rtol=0, atol=1e-12)


@every_neuron
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_prox_keeps_the_digits_of_small_drives_and_the_ends_of_infinite_ones(neuron, dtype):
    """The signal of a small nudge is a difference of such states: flattened to f(0) it would be
    nothing."""
    u = torch.tensor([1e-30, 3e-7, -1e-7, 1e-3], dtype=dtype)
    for scale in (0.0, 0.1, 3.0):
        expected = neuron.prox(u.double(), scale)
        torch.testing.assert_close(neuron.prox(u, scale).double(), expected, rtol=32 * torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(neuron.prox(u, 0.0), neuron.f(u), rtol=8 * torch.finfo(dtype).eps, atol=0)
    ends = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    for scale in (0.0, 1.0, 50.0):
        assert torch.equal(neuron.prox(ends, scale), neuron.f(ends)), scale
    assert bool(neuron.prox(torch.tensor([torch.nan], dtype=dtype), 1.0).isnan())
    assert neuron.prox(torch.zeros(5, dtype=dtype), torch.ones(3, 5, dtype=dtype)).shape == (3, 5)


@every_neuron
def test_prox_takes_one_scale_per_unit(neuron):
    """A scale that broadcasts wrongly would damp the wrong units."""
    u = torch.tensor([[-1.3, 0.4, 2.1], [0.7, -0.2, 5.0]], dtype=torch.float64)
    scale = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    expected = torch.stack([neuron.prox(u[:, i], float(scale[i])) for i in range(3)], dim=1)
    torch.testing.assert_close(neuron.prox(u, scale), expected, rtol=8 * EPS, atol=8 * EPS)


def test_every_neuron_is_held_against_its_potential_here_or_is_not_elementwise():
    """A new neuron that no table names would be tested by nobody."""
    known = {type(neuron) for neuron in CASES}
    for name in neurons.names():
        neuron = neurons.from_name(name)
        assert neuron.is_elementwise == (type(neuron) in known), name


MODULES = {
    Identity(): nn.Identity(),
    ReLU(): nn.ReLU(),
    LeakyReLU(0.01): nn.LeakyReLU(0.01),
    LeakyReLU(0.3): nn.LeakyReLU(0.3),
    HardSigmoid(): nn.Hardtanh(0.0, 1.0),
    HardSigmoid(-1.0, 2.0): nn.Hardtanh(-1.0, 2.0),
    Sigmoid(): nn.Sigmoid(),
    Tanh(): nn.Tanh(),
}


@pytest.mark.parametrize("neuron", MODULES, ids=repr)
def test_the_derivative_is_what_autograd_takes_of_the_module_even_at_the_kinks(neuron):
    """BP and DP would otherwise disagree at units that rest exactly on a kink, as many do from zero
    states."""
    a = torch.tensor([*DRIVES.tolist(), *neuron.kinks], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(MODULES[neuron](a).sum(), a)
    torch.testing.assert_close(neuron.derivative(a.detach()), expected, rtol=16 * EPS, atol=16 * EPS)
    assert neuron.derivative(a.detach()).dtype == a.dtype


@every_neuron
def test_the_derivative_jumps_at_the_declared_kinks_and_nowhere_else(neuron):
    """Tests of exactness assert that no unit crosses a kink; an undeclared kink would make them
    hollow."""
    step = 1e-3
    a = torch.arange(-7, 7, step, dtype=torch.float64) + step / 3
    change = neuron.derivative(a).diff().abs()
    jumps = {round(float(at)) for at in a[:-1][change > 10 * step]}
    assert jumps == set(neuron.kinks)
    for kink in neuron.kinks:
        left, right = neuron.derivative(torch.tensor([kink - 1e-9, kink + 1e-9], dtype=torch.float64))
        assert abs(float(left - right)) > 0.5


@every_neuron
def test_the_activation_never_stretches(neuron):
    """0 ≤ f' ≤ 1 is what makes G 1-strongly convex and every scale above -1 well posed."""
    slopes = neuron.derivative(torch.tensor(DRIVES))
    assert bool(((slopes >= 0) & (slopes <= 1)).all())


@every_neuron
def test_a_neuron_leaves_its_argument_alone_and_keeps_shape_and_dtype(neuron):
    """An in-place activation would overwrite a drive that later steps reuse."""
    for dtype in (torch.float32, torch.float64):
        a = torch.linspace(-2, 2, 12, dtype=dtype).reshape(3, 4)
        before = a.clone()
        for found in (neuron.f(a), neuron.potential(a), neuron.derivative(a), neuron.prox(a, 0.5)):
            assert found.shape == a.shape
            assert found.dtype == dtype
        assert torch.equal(a, before)


@pytest.mark.parametrize("slope", [0.0, -0.1, 1.5])
def test_a_leaky_slope_outside_its_range_is_refused(slope):
    """A slope above 1 makes the unit expansive, at 0 the potential is infinite: both would be
    trained silently."""
    with pytest.raises(SettingError, match=r"slope.*\(0, 1\]"):
        LeakyReLU(slope)


def test_an_unknown_neuron_is_named_with_the_nearest_known_one():
    """Else a misspelt recipe would fail far from its cause."""
    with pytest.raises(SettingError, match=r"unknown neuron 'rleu'.*Did you mean 'relu'"):
        neurons.from_name("rleu")
    with pytest.raises(UnsupportedModuleError, match="no known neuron"):
        neurons.from_module(nn.Softplus(), "3")


@pytest.mark.parametrize("name", neurons.names())
def test_a_neuron_and_its_pytorch_module_are_one_function(name):
    """A recipe names the neuron and builds the module: they must not drift apart."""
    module = neurons.module(name)
    assert neurons.from_module(module, name) == neurons.from_name(name)
    a = torch.tensor(DRIVES).reshape(1, -1)
    assert torch.equal(module(a), neurons.from_name(name).f(a))
    custom = {nn.LeakyReLU(0.2): LeakyReLU(0.2), nn.Hardtanh(-2, 3): HardSigmoid(-2, 3), nn.ReLU6(): HardSigmoid(0, 6)}
    custom |= {nn.Softmax(-1): Softmax(-1)}
    for module, neuron in custom.items():
        assert neurons.from_module(module, "") == neuron
        torch.testing.assert_close(module(a), neuron.f(a))
