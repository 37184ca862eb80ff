"""Every map that may stand in a synapse, against autograd through the whole model.

With nn.Identity as the neuron, DP⊤ equals BP to rounding for every β (its mean is the forward pass,
its difference BP's error), so each synapse's drive, feedback and gradient are compared exactly, at
the forward pass's own pool switches.
"""

import pytest
import torch
from comparison import assert_same, rounding
from networks import ACTIVATIONS, autograd_gradients, batch, drawn
from torch import nn
from torch.nn.utils import parametrizations

import dualprop as dp

# torch's own remark on such a padding's cost.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

A = nn.Module  # stands for "an activation here" in the tables below; replaced when the model is built


# name: (input shape without N, modules with A for activations)
SYNAPSES = {
    "grouped convolution": ((4, 6, 6), lambda: [nn.Conv2d(4, 6, 3, padding=1, groups=2), A(), nn.Conv2d(6, 6, 3, groups=3)]),
    "depthwise without bias": ((3, 6, 6), lambda: [nn.Conv2d(3, 6, 3, groups=3, bias=False), A(), nn.Conv2d(6, 4, 1)]),
    "strided, dilated, uneven": (
        (2, 9, 8),
        lambda: [nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), A(), nn.Conv2d(3, 3, 3, dilation=(1, 2))],
    ),
    "stride that leaves a rest": ((2, 8, 8), lambda: [nn.Conv2d(2, 3, 3, stride=2), A(), nn.Conv2d(3, 3, 2, stride=2)]),
    "same padding, odd kernel": (
        (2, 6, 6),
        lambda: [nn.Conv2d(2, 3, 3, padding="same", dilation=2), A(), nn.Conv2d(3, 3, (1, 3), padding="same")],
    ),
    "same padding, even kernel": (
        (2, 6, 6),
        lambda: [nn.Conv2d(2, 3, 4, padding="same"), A(), nn.Conv2d(3, 3, 2, padding="same")],
    ),
    "valid padding": ((2, 6, 6), lambda: [nn.Conv2d(2, 3, 3, padding="valid"), A(), nn.Conv2d(3, 3, 2, padding="valid")]),
    "reflect padding": (
        (2, 6, 6),
        lambda: [
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
            A(),
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
        ],
    ),
    "Conv1d": ((2, 12), lambda: [nn.Conv1d(2, 3, 3, padding=1, stride=2), A(), nn.Conv1d(3, 4, 2, dilation=2)]),
    "Conv3d": ((2, 4, 4, 4), lambda: [nn.Conv3d(2, 3, 3, padding=1), A(), nn.Conv3d(3, 2, 2, stride=2)]),
    "ConvTranspose2d": (
        (3, 4, 4),
        lambda: [nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), A(), nn.ConvTranspose2d(4, 2, 2, groups=2)],
    ),
    "ConvTranspose1d and 3d": (
        (2, 8),
        lambda: [nn.ConvTranspose1d(2, 8, 3), A(), nn.Unflatten(1, (2, 4, 1)), nn.ConvTranspose3d(2, 2, 2)],
    ),
    "Linear on three dimensions": ((5, 3), lambda: [nn.Linear(3, 4), A(), nn.Linear(4, 2)]),
    "Linear on four dimensions": ((2, 3, 4), lambda: [nn.Linear(4, 3), A(), nn.Linear(3, 2, bias=False)]),
    "max-pool before the neuron": (
        (2, 8, 8),
        lambda: [
            nn.Conv2d(2, 3, 3, padding=1),
            nn.MaxPool2d(2),
            A(),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.MaxPool2d(3, 2, 1),
            A(),
        ],
    ),
    "max-pool after the neuron": (
        (2, 8, 8),
        lambda: [
            nn.Conv2d(2, 3, 3, padding=1),
            A(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 3, 3, padding=1),
            A(),
            nn.MaxPool2d(2, ceil_mode=True),
        ],
    ),
    "average pools": (
        (2, 8, 8),
        lambda: [nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), A(), nn.Conv2d(3, 4, 2), nn.AdaptiveAvgPool2d(1)],
    ),
    "adaptive max-pool": ((2, 7, 7), lambda: [nn.Conv2d(2, 3, 3), A(), nn.AdaptiveMaxPool2d(2)]),
    "pools in one dimension": (
        (2, 12),
        lambda: [nn.Conv1d(2, 3, 3), nn.MaxPool1d(2), A(), nn.Conv1d(3, 3, 2), nn.AvgPool1d(2)],
    ),
    "pools in three dimensions": ((1, 6, 6, 6), lambda: [nn.Conv3d(1, 2, 3), nn.MaxPool3d(2), A(), nn.AvgPool3d(2)]),
    "pads, upsampling and shuffles": (
        (2, 4, 4),
        lambda: [
            nn.ZeroPad2d(1),
            nn.Conv2d(2, 4, 3),
            A(),
            nn.PixelShuffle(2),
            nn.Conv2d(1, 2, 3),
            A(),
            nn.Upsample(scale_factor=2),
            nn.ReflectionPad2d(1),
        ],
    ),
    "LayerNorm behind the map": ((5,), lambda: [nn.Linear(5, 6), nn.LayerNorm(6), A(), nn.Linear(6, 4), nn.LayerNorm(4)]),
    "LayerNorm before the map": ((5,), lambda: [nn.LayerNorm(5), nn.Linear(5, 6), A(), nn.LayerNorm(6), nn.Linear(6, 4)]),
    "GroupNorm": (
        (2, 6, 6),
        lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), A(), nn.Conv2d(4, 4, 3), nn.GroupNorm(1, 4), nn.MaxPool2d(2)],
    ),
    "RMSNorm": ((5,), lambda: [nn.Linear(5, 6), nn.RMSNorm(6), A(), nn.Linear(6, 4)]),
    "two linear maps in one synapse": ((5,), lambda: [nn.Linear(5, 6), nn.Linear(6, 7), A(), nn.Linear(7, 3), nn.Linear(3, 4)]),
    "two convolutions and a pool": (
        (2, 8, 8),
        lambda: [nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3), nn.MaxPool2d(2), A(), nn.AvgPool2d(2)],
    ),
    "weight norm": ((5,), lambda: [parametrizations.weight_norm(nn.Linear(5, 6)), A(), nn.Linear(6, 4)]),
    "a neuron behind another": ((5,), lambda: [nn.Linear(5, 6), A(), A(), nn.Linear(6, 4)]),
}


def built(name, activation):
    """The model with `activation` in place of A, flattened to a linear readout of three classes."""
    shape, modules = SYNAPSES[name]

    def make():
        layers = [ACTIVATIONS[activation]() if type(m) is A else m for m in modules()]
        width = nn.Sequential(*layers)(torch.zeros(1, *shape)).numel()
        return nn.Sequential(*layers, ACTIVATIONS[activation](), nn.Flatten(), nn.Linear(width, 3))

    return drawn(make), batch(shape, 3, n=3)


@pytest.mark.parametrize("name", SYNAPSES)
def test_a_synapse_between_linear_units_is_autograds_to_the_last_digits(name):
    """A convolution whose padding, stride or groups are lost in the feedback still gives gradients
    of the right shape."""
    model, (x, y) = built(name, "identity")
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    for alpha, beta in ((0.0, 1.0), (0.5, 0.1)):
        rule = dp.DualPropagation(engine="explicit", coupling="transposed", alpha=alpha, beta=beta)
        out = rule.gradients(network, x, y)
        assert_same({n: out.gradients[n] for n in expected}, expected, rounding(beta), f"alpha {alpha}")
        torch.testing.assert_close(out.logits, model(x).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SYNAPSES)
def test_a_synapse_between_tanh_units_approaches_autograd_at_a_small_beta(name):
    """The same through units that bend: the error is of second order, 1e-8 times curvature, and
    eps/β of rounding."""
    model, (x, y) = built(name, "tanh")
    out = dp.DualPropagation(beta=1e-4).gradients(dp.Network.from_module(model), x, y)
    expected = autograd_gradients(model, x, y)
    assert_same({n: out.gradients[n] for n in expected}, expected, 1e-6)


@pytest.mark.parametrize("name", ["max-pool after the neuron", "LayerNorm behind the map", "two linear maps in one synapse"])
@pytest.mark.parametrize("schedule", ["up_down(2)", "bottom_up(4)", "synchronous(6)"])
def test_longer_schedules_leave_linear_units_where_one_sweep_put_them(name, schedule):
    """A tape kept from an older state would show here, where states are linearised anew."""
    model, (x, y) = built(name, "identity")
    rule = dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, schedule=schedule)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    expected = autograd_gradients(model, x, y)
    assert_same({n: out.gradients[n] for n in expected}, expected, rounding(1.0))


@pytest.mark.parametrize("engine", ["explicit", "fused"])
@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias", "4.bias"])
@pytest.mark.parametrize("kind", ["linear", "conv", "taped"])
def test_a_frozen_parameter_gets_no_gradient_and_the_others_keep_theirs(engine, frozen, kind):
    """Fine-tuning freezes parameters: a gradient for one, or a neighbour's loss of its own, would
    train the wrong thing."""

    def make():
        if kind == "linear":
            layers = [nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 5), nn.Identity(), nn.Linear(5, 3)]
        elif kind == "conv":
            layers = [nn.Conv1d(1, 2, 3), nn.Identity(), nn.Conv1d(2, 3, 3), nn.Identity(), nn.Conv1d(3, 3, 1), nn.Flatten()]
        else:
            layers = [nn.LayerNorm(5), nn.Identity(), nn.LayerNorm(5), nn.Identity(), nn.LayerNorm(5)]
        return nn.Sequential(*layers)

    model = drawn(make)
    x, y = batch((1, 5) if kind == "conv" else (5,), 3)
    model.get_parameter(frozen).requires_grad_(False)
    rule = dp.DualPropagation(coupling="transposed", alpha=0.0, engine=engine)
    network = dp.Network.from_module(model)
    out = rule.backward(network, x, y)
    assert frozen not in out.gradients
    assert model.get_parameter(frozen).grad is None
    assert_same(out.gradients, autograd_gradients(model, x, y), rounding(1.0))


def test_hooks_of_the_user_still_run_and_are_differentiated():
    """The short formula of a plain Linear would skip what a hook does to its output."""
    model = drawn(lambda: nn.Sequential(nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 4)))
    model[0].register_forward_hook(lambda module, args, output: 3 * output)
    x, y = batch()
    out = dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0).gradients(dp.Network.from_module(model), x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), rounding(1.0))


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: nn.Linear(5, 4, bias=False)])
@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_a_model_that_is_one_linear_layer_is_a_network_of_depth_one(make, engine):
    """Its parameters are called weight and bias, without a dot."""
    model, (x, y) = drawn(make), batch()
    out = dp.DualPropagation(engine=engine).gradients(dp.Network.from_module(model), x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), rounding(1.0))


def test_a_layer_without_parameters_passes_the_error_on():
    """An activation directly behind another makes an empty synapse; so does one behind a pool
    alone."""
    pool = [nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten()]
    model = drawn(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), *pool, nn.ReLU(), nn.Linear(4, 3)))
    x, y = batch(classes=3)
    out = dp.DualPropagation(beta=1e-4).gradients(dp.Network.from_module(model), x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), 1e-6)
