"""The difference of two gradients at near points, taken without the difference of large sums
(`Synapse.contrast`)."""

import math

import pytest
import torch
from torch import nn

from dualprop import neurons
from dualprop.losses import SquaredError
from dualprop.network import Network
from dualprop.network.synapses import Synapse
from dualprop.rules import EquilibriumPropagation

SYNAPSES = {
    "linear": (lambda: {"w": nn.Linear(6, 4)}, (6,)),
    "linear without bias": (lambda: {"w": nn.Linear(6, 4, bias=False)}, (6,)),
    "linear on sequences": (lambda: {"w": nn.Linear(6, 4)}, (3, 6)),
    "convolution, groups, stride": (lambda: {"w": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)}, (4, 7, 7)),
    "pool before the activation": (lambda: {"w": nn.Conv2d(3, 4, 3, padding=1), "p": nn.MaxPool2d(2)}, (3, 6, 6)),
    "pool after the activation": (lambda: {"p": nn.MaxPool2d(2), "f": nn.Flatten(), "w": nn.Linear(12, 4)}, (3, 4, 4)),
    "two maps in a row": (lambda: {"w": nn.Linear(6, 5), "v": nn.Linear(5, 4)}, (6,)),
    "circular padding": (lambda: {"w": nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")}, (3, 7)),
}


@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
@pytest.mark.parametrize("case", SYNAPSES)
def test_a_contrast_is_the_difference_of_the_two_gradients(case, frozen):
    """At points far apart too: it is an identity, and no approximation. Switches of pools differ
    between the two."""
    torch.manual_seed(0)
    make, shape = SYNAPSES[case]
    modules = {name: module.double() for name, module in make().items()}
    for module in modules.values():
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name != frozen)
    synapse = Synapse(modules)
    tapes, signals = [], []
    for _ in range(2):
        drive, tape = synapse.drive(torch.randn(5, *shape, dtype=torch.float64))
        tapes.append(tape)
        signals.append(torch.randn_like(drive))
    found = synapse.contrast(tapes[0], signals[0], tapes[1], signals[1], 0.7)
    one, other = (synapse.gradient(tape, signal, 0.7) for tape, signal in zip(tapes, signals, strict=True))
    assert set(found) == set(one) == set(synapse.parameters)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, one[name] - other[name], rtol=1e-12, atol=1e-12)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("estimator", ["centered", "forward", "backward", "random_sign"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("padding", ["zeros", "circular", "hooked"])
def test_gradients_of_a_hopfield_network_keep_their_digits_in_float32(padding, pool, estimator):
    """Large states and a small pull, as in the first layers of a deep network: the energies'
    gradients are sums over all positions that differ in their last digits. Subtracted they were 30°
    to 50° off here, and 15° on CIFAR-10 at the paper's β.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), pool(2), neurons.module("hard_sigmoid"), nn.Conv2d(8, 12, 3, padding=1), pool(2),
        neurons.module("hard_sigmoid"), nn.Flatten(), nn.Linear(12 * 16, 10),
    )  # fmt: skip
    with torch.no_grad():
        for module in (model[0], model[3]):
            module.bias.add_(0.4)
            if padding == "circular":
                module.padding_mode = "circular"
            elif padding == "hooked":
                module.register_forward_hook(lambda *seen: None)
        model[7].weight.mul_(0.05)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    rule = EquilibriumPropagation(
        energy="hopfield", estimator=estimator, beta=2e-3, loss=SquaredError(), output_nudge="exact",
        free_schedule="odd_even(60)", relaxation="blocks(odd_even(30))",
    )  # fmt: skip
    found = []
    for dtype in (torch.float32, torch.float64):
        network = Network.from_module(model.to(dtype))
        draws = torch.Generator().manual_seed(0)
        found.append(rule.gradients(network, x.to(dtype), y, generator=draws).gradients)
    for name in found[0]:
        narrow, wide = found[0][name].double().flatten(), found[1][name].flatten()
        angle = math.degrees(torch.atan2((narrow - wide).norm(), wide.norm()))
        # What the states themselves have lost: eps by their displacement.
        assert angle < 5, f"{name}: {angle:.2f}°"
