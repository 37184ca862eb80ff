"""Memory of a fused step, in bytes of tensors alive at once, against back-propagation's."""

import dataclasses

import pytest

from dualprop.bench import memory
from dualprop.bench.contenders import Contender
from dualprop.models import VGG, ConvNet
from dualprop.rules import Backprop, DualPropagation
from dualprop.training.recipe import Optimizer, Recipe

# States and not weights are what these hold. Narrow inputs, so that memory is of the hidden layers.
NETWORKS = {
    "pool before": ConvNet(channels=(16, 16), pool="before"),
    "pool after": VGG(channels=(8, 8, 16, 16), pooled=(2, 4), dense=(16,), pool="after"),
    "no pool": VGG(channels=(8, 8, 8), pooled=(3,), dense=(16,)),
}


@pytest.mark.parametrize("how", ["rule", "dualized"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_fused_step_holds_what_back_propagation_holds_and_one_state_more(network, how):
    """A drive that the hooks or a cycle hold on to lives until the garbage collector comes by: half
    as much again on VGG16."""
    base = Recipe(
        name="memory", dataset="none", model=NETWORKS[network], rule=Backprop(), batch_size=40,
        optimizer=Optimizer(name="sgd", learning_rate=1e-3), channels_last="off",
    )  # fmt: skip
    plain = memory.peak_of_tensors(Contender("plain", base, "plain").step((3, 32, 32), 10), steps=3)
    rule = DualPropagation(coupling="transposed", alpha=0.0, engine="fused")
    fused = Contender("fused", dataclasses.replace(base, rule=rule), how)
    most = memory.peak_of_tensors(fused.step((3, 32, 32), 10), steps=3)
    largest = 4 * 40 * max(NETWORKS[network].channels[:2]) * 32 * 32
    assert most <= plain + 1.01 * largest, f"{most / plain:.2f} of back-propagation's memory"
