"""FLOPs of a step against a count by hand, and the machine's ceilings by their formula."""

from collections import Counter

import pytest
import torch

from dualprop.bench import ceilings, flops
from dualprop.models import MLP, ConvNet
from dualprop.rules import Backprop
from dualprop.training.recipe import Recipe


def _recipe(model, batch_size: int) -> Recipe:
    return Recipe(name="flops", dataset="none", model=model, rule=Backprop(), batch_size=batch_size)


# Multiply-adds of each layer at the batch sizes below.
CASES = [
    (MLP(widths=(20, 30)), (12,), 5, [5 * 12 * 20, 5 * 20 * 30, 5 * 30 * 10]),
    (
        ConvNet(channels=(4, 8), pool="before"),
        (3, 16, 16),
        2,
        [2 * 256 * 4 * 3 * 9, 2 * 64 * 8 * 4 * 9, 2 * (8 * 4 * 4) * 10],
    ),
    (
        ConvNet(channels=(4, 8), pool="stride"),
        (3, 16, 16),
        2,
        [2 * 64 * 4 * 3 * 9, 2 * 16 * 8 * 4 * 9, 2 * (8 * 4 * 4) * 10],
    ),
]


@pytest.mark.parametrize(("model", "shape", "batch_size", "multiply_adds"), CASES)
def test_a_step_takes_six_flops_per_multiply_add_less_the_first_layers_input_gradient(model, shape, batch_size, multiply_adds):
    """A factor of two or a forgotten gradient would put every achieved speed, and its share of the
    ceiling, wrong."""
    by_hand = 6 * sum(multiply_adds) - 2 * multiply_adds[0]
    recipe = _recipe(model, batch_size)
    assert flops.of_step(recipe, shape, 10) == by_hand
    assert sum(number * each.flops for each, number in flops.operations(recipe, shape, 10).items()) == by_hand


def test_the_operations_of_a_step_are_its_products_by_kind():
    """A gradient that is not listed would raise the ceiling; the first layer has no input
    gradient."""
    found = flops.operations(_recipe(ConvNet(channels=(4, 8)), 2), (3, 16, 16), 10)
    kinds = Counter({kind: sum(n for each, n in found.items() if each.kind == kind) for kind in {each.kind for each in found}})
    assert kinds == {flops.CONVOLUTION: 2, flops.INPUT_GRADIENT: 1, flops.WEIGHT_GRADIENT: 2, flops.PRODUCT: 3}


def test_the_models_ceiling_is_its_flops_by_the_summed_times_of_its_operations(monkeypatch):
    """A mean of speeds, weighted by FLOPs or not at all, would call a fast operation's speed the
    step's."""
    found = flops.operations(_recipe(ConvNet(channels=(4, 8)), 2), (3, 16, 16), 10)
    found += flops.operations(_recipe(MLP(widths=(8, 8, 8)), 2), (8,), 10)
    assert max(found.values()) > 1
    times = {each: 1e-3 * (1 + number) for number, each in enumerate(found)}

    def alone(operation, form, dtype, device):
        return times[operation] * (2 if form is torch.contiguous_format else 1)

    monkeypatch.setattr(ceilings, "_alone", alone)
    measured = ceilings.measure(found, torch.float32, "cpu", sides=(8,))
    seconds = sum(n * times[each] * (2 if each.kind == flops.PRODUCT else 1) for each, n in found.items())
    assert measured.model == pytest.approx(sum(n * each.flops for each, n in found.items()) / seconds / 1e9)
    assert measured.matmul > 0
    assert measured.matmul_side == 8


def test_every_operation_can_be_replayed_alone():
    """The ceilings need the arguments that PyTorch was called with, strides and all."""
    measured = ceilings.measure(
        flops.operations(_recipe(ConvNet(channels=(4, 8)), 2), (3, 16, 16), 10), torch.float32, "cpu", sides=(8,)
    )
    assert set(measured.kinds) == {flops.CONVOLUTION, flops.INPUT_GRADIENT, flops.WEIGHT_GRADIENT, flops.PRODUCT}
    assert all(speed > 0 for speed in measured.kinds.values())
    for row in measured.operations:
        assert ("channels_last" in row) == (not row["what"].startswith(flops.PRODUCT))
