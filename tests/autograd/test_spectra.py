"""Spectral norms by power iteration, against singular values of matrices built column by column
from the module."""

import pytest
import torch
from networks import drawn
from torch import nn
from torch.nn.utils import parametrizations

import dualprop as dp
from dualprop.network import spectra
from dualprop.network.states import States
from dualprop.network.synapses import Synapse


def synapse(*modules):
    return Synapse({str(i): module for i, module in enumerate(modules)})


def dense(module, shape):
    """The matrix of the linear part: f(basis vector) - f(0), one column each."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (module(basis) - module(torch.zeros_like(basis))).flatten(1).T


def norm(module, shape):
    return float(torch.linalg.svdvals(dense(module, shape))[0])


CORES = {
    "dense, wide": ((9,), lambda: nn.Linear(9, 5)),
    "dense, tall": ((4,), lambda: nn.Linear(4, 11)),
    "dense on tokens": ((3, 4), lambda: nn.Linear(4, 6)),
    "convolution": ((2, 6, 6), lambda: nn.Conv2d(2, 3, 3)),
    "padded": ((2, 6, 5), lambda: nn.Conv2d(2, 3, 3, padding=(1, 2))),
    "same": ((2, 6, 6), lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2)),
    "strided, with a rest": ((2, 8, 6), lambda: nn.Conv2d(2, 3, 3, stride=(2, 1))),
    "dilated": ((2, 7, 7), lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2)),
    "grouped": ((4, 5, 5), lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1)),
    "depthwise": ((3, 5, 5), lambda: nn.Conv2d(3, 3, 3, groups=3)),
    "Conv1d": ((2, 9), lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1)),
    "Conv3d": ((2, 3, 4, 3), lambda: nn.Conv3d(2, 2, 2, padding=1)),
    "circular": ((2, 6, 6), lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")),
    "replicate": ((2, 6, 6), lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")),
    "transposed convolution": ((3, 4, 4), lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1)),
    "two maps in a row": ((6,), lambda: nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 8))),
    "pool between two maps": (
        (2, 6, 6),
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4)),
    ),
    "padding between two maps": (
        (2, 4, 4),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ZeroPad2d(1), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3)),
    ),
    "weight norm": ((5,), lambda: parametrizations.weight_norm(nn.Linear(5, 4))),
}
each_core = pytest.mark.parametrize("name", CORES)


def core(name):
    shape, make = CORES[name]
    module = drawn(make)
    return shape, module, synapse(*(module if isinstance(module, nn.Sequential) else [module]))


@each_core
def test_the_spectral_norm_is_the_largest_singular_value(name):
    """A transpose of the wrong stride or padding still converges, to the norm of another map."""
    shape, module, core_ = core(name)
    assert float(spectra.spectral_norm(core_, shape, 10000)) == pytest.approx(norm(module, shape), rel=1e-6)


@each_core
@torch.no_grad()
def test_the_linear_part_and_its_transpose_are_adjoint(name):
    """⟨u, W v⟩ = ⟨Wᵀ u, v⟩ for a batch; and W v is f(v) - f(0)."""
    shape, module, core_ = core(name)
    v = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    forward, transpose = core_.linear_part(v)
    torch.testing.assert_close(forward.flatten(1), v.flatten(1) @ dense(module, shape).T, rtol=1e-9, atol=1e-12)
    u = torch.randn(forward.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert float((u * forward).sum()) == pytest.approx(float((transpose(u) * v).sum()), rel=1e-9)


@each_core
def test_a_bias_has_no_influence(name):
    """It would drown the weights: f(v) of a unit v is mostly bias in a trained network."""
    shape, module, core_ = core(name)
    before = float(spectra.spectral_norm(core_, shape))
    with torch.no_grad():
        for bias_name, bias in module.named_parameters():
            if bias_name.endswith("bias"):
                bias.fill_(1e3)
    assert float(spectra.spectral_norm(core_, shape)) == pytest.approx(before, rel=1e-6)


def test_entry_and_exit_are_left_out():
    """As in the authors' code: a max-pool has no transpose of its own, and its norm is at most
    1."""
    conv, shape = drawn(lambda: nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4)
    alone = spectra.spectral_norm(synapse(conv), shape)
    pooled = synapse(nn.MaxPool2d(2), conv, nn.MaxPool2d(2), nn.Flatten())
    assert float(spectra.spectral_norm(pooled, shape)) == float(alone)
    assert float(spectra.spectral_norm(synapse(nn.Flatten()), (3, 4))) == pytest.approx(1)


def test_a_rule_learns_the_shape_at_the_core_from_its_drive():
    """Entry pools and flattens change the shape that the state has."""
    model = drawn(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)))
    network = dp.Network.from_module(model)
    activations = States(network, torch.randn(5, 2, 6, 6, dtype=torch.float64))
    activations.forward()
    assert activations.core_shape(1, 0) == (2, 6, 6)
    assert activations.core_shape(2, 1) == (12,)
    activations.means[1] = activations.means[1] * 2
    activations.feedback(1)
    v = spectra.start_vector(activations.core_shape(2, 1), torch.float64)
    spectra.power_step(network.into(2).synapse, v)


@pytest.mark.parametrize("name", ["dense, wide", "strided, with a rest", "two maps in a row"])
def test_the_estimate_rises_towards_the_norm_from_below_and_its_vector_stays_a_unit(name):
    """And is at least ‖W‖² |v₀·e|^(1/q) after q steps, which bounds how far off a rule's constant
    can be."""
    shape, module, core_ = core(name)
    _, singular, right = torch.linalg.svd(dense(module, shape))
    v, before = spectra.start_vector(shape, torch.float64), 0.0
    overlap = abs(float(v.flatten() @ right[0]))
    for q in range(1, 40):
        v, squared = spectra.power_step(core_, v)
        assert float(v.norm()) == pytest.approx(1, rel=1e-12)
        assert before * (1 - 1e-12) <= float(squared) <= float(singular[0] ** 2) * (1 + 1e-12)
        assert float(squared) >= float(singular[0] ** 2) * overlap ** (1 / q)
        before = float(squared)


@pytest.mark.parametrize("kind", [32, 64, 128, 256, "conv"])
def test_one_step_for_each_training_step_follows_the_norm(kind):
    """A rule pays for one pair of maps of one example, not for an iteration to convergence.

    While training turns the leading direction over, the estimate lags by some per cent, and then
    catches up.
    """
    if kind == "conv":
        module, shape = drawn(lambda: nn.Conv2d(3, 4, 3, padding=1)), (3, 5, 5)
    else:
        module, shape = drawn(lambda: nn.Linear(kind, kind)), (kind,)
    generator, far = torch.Generator().manual_seed(3), []
    x = torch.randn(16, *shape, dtype=torch.float64, generator=generator)
    target = torch.randn(module(x).shape, dtype=torch.float64, generator=generator)
    v = spectra.start_vector(shape, torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.03)
    at_first = norm(module, shape)
    for _ in range(100):
        optimizer.zero_grad()
        (module(x) - target).square().sum(1).mean().backward()
        optimizer.step()
        v, squared = spectra.power_step(synapse(module), v)
        far.append(abs(float(squared.sqrt()) / norm(module, shape) - 1))
    assert abs(norm(module, shape) / at_first - 1) > 0.3, "the weights must have moved for this to mean anything"
    assert max(far[10:]) < 0.15, far
    assert max(far[-50:]) < 1e-3, far


def test_zero_weights_give_zero_and_keep_the_vector():
    """A vector of NaN or zeros would stay so after the weights have grown."""
    module = drawn(lambda: nn.Linear(4, 3))
    v, weight = spectra.start_vector((4,), torch.float64), module.weight.detach().clone()
    for bad, expected in ((0.0, 0.0), (float("nan"), float("nan")), (float("inf"), None)):
        with torch.no_grad():
            module.weight.fill_(bad)
        after, squared = spectra.power_step(synapse(module), v)
        assert torch.equal(after, v)
        if expected is not None:
            assert float(squared) == pytest.approx(expected, nan_ok=True)
    assert not squared.isfinite()
    with torch.no_grad():
        module.weight.copy_(weight)
    assert float(spectra.power_step(synapse(module), v)[1]) > 0


def test_the_start_is_the_same_every_time_and_draws_from_no_global_generator():
    """A rule is a pure function."""
    state = torch.get_rng_state()
    first, second = (spectra.start_vector((3, 4), torch.float64) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(first.norm()) == pytest.approx(1)
    assert bool((first != 0).all())
    torch.testing.assert_close(spectra.start_vector((3, 4), torch.float32), first.float())
    drawn_ = spectra.start_vector((3, 4), torch.float64, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(drawn_, first)


def test_a_step_changes_no_parameter_and_leaves_no_gradient():
    """It runs in the middle of a training step."""
    for name in CORES:
        shape, module, core_ = core(name)
        v, squared = spectra.power_step(core_, spectra.start_vector(shape, torch.float64))
        assert not v.requires_grad
        assert not squared.requires_grad
        assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        (lambda: [nn.Linear(4, 6), nn.LayerNorm(6)], "LayerNorm"),
        (lambda: [nn.LayerNorm(4)], "LayerNorm"),
        (lambda: [nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 1), nn.MaxPool1d(2), nn.Conv1d(2, 1, 1)], "MaxPool1d"),
        (lambda: [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)], "Tanh"),
    ],
)
def test_a_core_that_is_not_affine_is_refused_by_name(modules, named):
    """f(v) - f(0) of a normalisation is no linear map, and its norm a number without a meaning."""
    with pytest.raises(dp.SettingError, match=named) as error:
        spectra.spectral_norm(synapse(*drawn(lambda: nn.Sequential(*modules()))), (4,))
    assert "damping=" in str(error.value)
    assert "synapse '" in str(error.value)


def test_a_vector_of_the_wrong_shape_is_refused():
    with pytest.raises(dp.SettingError, match="can't read"):
        spectra.spectral_norm(synapse(nn.Linear(4, 3)), (5,))


def pair_of(v):
    return torch.stack([v, torch.zeros_like(v)])


def test_momentum_parts_crowded_singular_values_in_a_hundred_steps():
    """As at the edge of a wide random matrix's: a plain step is still too short after 100, and a
    damping constant with it."""
    module = nn.Linear(1000, 1000, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.diag(torch.linspace(0.9, 1.0, 1000)))
    v = spectra.start_vector((1000,), torch.float32)
    pair = pair_of(v)
    for _ in range(100):
        pair, squared = spectra.accelerated_step(synapse(module), pair)
        v, plain = spectra.power_step(synapse(module), v)
        assert float(squared) <= 1 + 1e-5
    assert float(squared) ** 0.5 == pytest.approx(1, rel=1e-3)
    assert float(plain) ** 0.5 < 1 - 2e-3, "no better than without momentum"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", list(CORES))
def test_momentum_converges_to_the_same_norm_from_below(name):
    """The vector before must be scaled like the new one, or the recurrence is another."""
    shape, module, core_ = core(name)
    largest = norm(module, shape)
    pair = pair_of(spectra.start_vector(shape, torch.float64))
    for _ in range(2000):
        pair, squared = spectra.accelerated_step(core_, pair)
        assert float(squared) <= largest**2 * (1 + 1e-12)
        assert float(pair[0].norm()) == pytest.approx(1, rel=1e-12)
    assert float(squared) ** 0.5 == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_momentum_survives_weights_that_are_zero_or_not_finite(bad):
    """A pair of NaN would stay so after the weights have come back."""
    module = drawn(lambda: nn.Linear(4, 3))
    pair = pair_of(spectra.start_vector((4,), torch.float64))
    with torch.no_grad():
        module.weight.fill_(bad)
    after, _ = spectra.accelerated_step(synapse(module), pair)
    assert torch.equal(after, pair)
