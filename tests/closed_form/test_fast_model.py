"""The network that learns CIFAR in minutes: what its whitening makes of patches, and its layers."""

import dataclasses

import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop import recipes
from dualprop.errors import SettingError
from dualprop.models import FastConvNet, Whitening
from dualprop.recipes.variants import named


def images(number=200, channels=3, side=9):
    """Images of smooth noise, so that neighbouring pixels are correlated."""
    noise = torch.randn(number, channels, side + 4, side + 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 5, stride=1) * 4


def test_whitened_patches_are_uncorrelated_and_of_variance_one_but_for_epsilon():
    """λ / (λ + ε) is the variance of a component of variance λ; the second half is the first,
    negated."""
    x = images()
    whitening = Whitening(3, epsilon=1e-2)
    whitening.fit(x)
    outputs = whitening(x).transpose(0, 1).flatten(1).double()
    half = len(outputs) // 2
    assert outputs[:half].equal(-outputs[half:])
    covariance = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    patches = nn.functional.unfold(x, 2).transpose(1, 2).flatten(0, 1).double()
    variances = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    torch.testing.assert_close(covariance, torch.diag(variances / (variances + 1e-2)), rtol=1e-4, atol=1e-4)
    assert not whitening.weight.requires_grad


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("whitening", [0, 2, 3])
def test_a_layer_of_neurons_is_an_activation_and_the_output(norm, whitening):
    description = FastConvNet(channels=(16, 32), convolutions=3, norm=norm, whitening=whitening)
    model = description.build((3, 16, 16), 7)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    assert description.depth == sum(isinstance(module, nn.GELU) for module in model.modules()) + 1
    frozen = {type(module) for module in model.modules() for p in module.parameters(recurse=False) if not p.requires_grad}
    assert frozen == {kind for kind, there in ((Whitening, whitening > 0), (nn.BatchNorm2d, norm == "batch")) if there}
    biases = [module.bias is not None for module in model.modules() if type(module) is nn.Conv2d]
    assert biases == [norm == "none"] * 6


def test_a_normalised_convolution_begins_as_the_identity_on_its_first_channels():
    model = FastConvNet(channels=(32,), convolutions=1, whitening=0).build((3, 8, 8), 5)
    x = torch.randn(2, 3, 8, 8)
    assert model[0](x)[:, :3].equal(x)


@pytest.mark.parametrize(
    ("settings", "shape", "told"),
    [
        ({"norm": "group", "channels": (24,)}, (3, 8, 8), "norm='group' needs channels in multiples of 16"),
        ({"norm": "layer"}, (3, 8, 8), "norm must be one of 'batch', 'group', 'none'"),
        ({"activation": "relux"}, (3, 8, 8), "unknown neuron 'relux'"),
        ({"channels": (8, 8, 8)}, (3, 8, 8), "3 halvings leave nothing"),
        ({}, (48,), "reads images"),
    ],
)
def test_a_network_that_can_not_be_is_refused(settings, shape, told):
    with pytest.raises(SettingError) as caught:
        FastConvNet(**settings).build(shape, 10)
    assert told in str(caught.value)


RULES = {
    "dp": dp.DualPropagation(beta=1e-3),
    "dp, explicit": dp.DualPropagation(beta=1e-3, engine="explicit"),
    "dp-transposed": dp.DualPropagation(coupling="transposed", alpha=0.0, beta=1e-4),
    "ep": dp.EquilibriumPropagation(beta=1e-3),
}


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", RULES)
def test_rules_have_the_gradient_of_back_propagation(name, norm):
    """Frozen parts below the first weight that learns, statistics over the batch, GELUs that are no
    proximal maps: each was refused or left to exact derivatives once."""
    torch.manual_seed(0)
    model = FastConvNet(channels=(16, 16), convolutions=2, norm=norm).build((3, 8, 8), 10).double()
    model[0].fit(images(50, side=8).double())
    x, y = images(12, side=8).double(), torch.arange(12) % 10
    network = dp.Network.from_module(model)
    exact = dp.Backprop().gradients(network, x, y).gradients
    found = RULES[name].gradients(network, x, y).gradients
    assert found.keys() == exact.keys()
    for parameter, gradient in exact.items():
        error = float((found[parameter] - gradient).norm() / gradient.norm())
        assert error < 1e-2, f"{parameter}: off by {error:.2e}"


@pytest.mark.parametrize("variant", ["bp", "dp", "dp-transposed", "kp-dp", "ep", "pc-fixed"])
@pytest.mark.parametrize("name", ["cifar10-fast", "cifar10-fast-group", "cifar10-fast-95", "cifar100-fast"])
def test_the_recipe_trains_by_the_rules_that_it_is_for(name, variant):
    """Kolen-Pollack feedback starts elsewhere; all others have back-propagation's gradient."""
    made = named(variant).apply(recipes.from_name(name))
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, channels=(16, 16)))
    torch.manual_seed(0)
    model = made.build((3, 12, 12), 10)
    x, y = images(10, side=12), torch.arange(10)
    network = dp.Network.from_module(model)
    outcome = made.rule.gradients(network, x, y, generator=torch.Generator().manual_seed(0))
    assert outcome.status.ok, outcome.status.message
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert outcome.gradients.keys() == learned
    twin = dp.Backprop(loss=made.rule.loss).gradients(network, x, y).gradients
    for name in () if variant == "kp-dp" else learned:
        cosine = nn.functional.cosine_similarity(outcome.gradients[name].flatten(), twin[name].flatten(), dim=0)
        assert cosine > 0.999, f"{name}: {float(cosine):.5f}"
