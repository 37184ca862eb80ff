"""The papers' networks, against their tables: layers, parameters and shapes counted by hand.

VGG16: Høier et al. (2023), appendix C. VGG5 and VGG10: Kerjan et al. (2026), table 5.
"""

import itertools

import pytest
import torch
from torch import nn

from dualprop import Network, models
from dualprop.errors import SettingError
from dualprop.models import VGG, ConvNet, vgg5, vgg10, vgg16


def kinds(model):
    return [type(module).__name__ for module in model]


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def by_hand(channels, dense, classes, inputs=3):
    """Weights and biases of 3×3 convolutions and fully connected layers; `dense` begins with the
    flattened width."""
    convs = sum(9 * before * after + after for before, after in zip((inputs, *channels), channels, strict=False))
    widths = (*dense, classes)
    return convs + sum(before * after + after for before, after in itertools.pairwise(widths))


@pytest.mark.parametrize("pool", ["after", "before"])
def test_vgg16_has_thirteen_convolutions_and_three_fully_connected_layers(pool):
    """The papers' VGG16 has no batch norm, and 512 inputs to its first fully connected layer."""
    model = vgg16(pool).build((3, 32, 32), 10)
    channels = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    assert [m.out_channels for m in model if isinstance(m, nn.Conv2d)] == list(channels)
    assert num_parameters(model) == by_hand(channels, (512, 4096, 4096), 10)
    pooled = ["ReLU", "MaxPool2d"] if pool == "after" else ["MaxPool2d", "ReLU"]
    assert kinds(model)[:5] == ["Conv2d", "ReLU", "Conv2d", *pooled]
    assert kinds(model)[-6:] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert Network.from_module(model).depth == vgg16(pool).depth == 16
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vgg5_is_the_list_of_its_table():
    """Five convolutions and the output, though called a network of five layers."""
    model = vgg5().build((3, 32, 32), 100)
    channels = (128, 256, 512, 512, 512)
    assert num_parameters(model) == by_hand(channels, (512 * 4,), 100)
    assert kinds(model)[:5] == ["Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU"]
    assert vgg5().depth == 6
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 100)


def test_vgg10_reads_images_of_224_pixels():
    model = vgg10().build((3, 224, 224), 1000)
    channels = (64, 128, 256, 256, 512, 512, 512, 512)
    assert num_parameters(model) == by_hand(channels, (512 * 7 * 7, 2048), 1000)
    assert vgg10().depth == 10
    pools = [i for i, name in enumerate(kinds(model)) if name == "MaxPool2d"]
    assert len(pools) == 5


def test_prediction_does_not_depend_on_the_order_of_pool_and_activation():
    """A monotone activation commutes with the maximum; what differs is where the states live."""
    torch.manual_seed(0)
    before = VGG((4, 5), (1, 2), (6,), pool="before").build((2, 8, 8), 3)
    after = VGG((4, 5), (1, 2), (6,), pool="after").build((2, 8, 8), 3)
    for own, other in zip(after.parameters(), before.parameters(), strict=True):
        own.data.copy_(other)
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(before(x), after(x))


def test_he_weights_keep_the_signal_through_sixteen_layers():
    """PyTorch's own would shrink it by 0.4 a layer, to a millionth: the network would not train
    without batch norm."""
    torch.manual_seed(0)
    x = torch.randn(20, 3, 32, 32)
    with torch.no_grad():
        assert 0.1 < float(vgg16().build((3, 32, 32), 10)(x).std()) < 10
        assert float(VGG(init="uniform").build((3, 32, 32), 10)(x).std()) < 0.1


def test_uniform_weights_have_the_bounds_of_their_fans():
    torch.manual_seed(0)
    model = vgg10().build((3, 32, 32), 10)
    second = model[3]
    assert isinstance(second, nn.Conv2d)
    bound = (9 * 128) ** -0.5
    assert 0.98 * bound < float(second.weight.detach().abs().max()) <= bound
    first = vgg5().build((3, 32, 32), 10)[2]
    bound = (9 * 128) ** -0.5
    assert 0.98 * bound < float(first.weight.detach().abs().max()) <= bound


def test_the_output_gain_scales_the_last_weights_alone():
    models = []
    for gain in (1.0, 0.2):
        torch.manual_seed(0)
        models.append(VGG((4,), (1,), (6,), output_gain=gain).build((2, 8, 8), 3))
    for name, weight in models[0].named_parameters():
        factor = 0.2 if name == "6.weight" else 1.0
        torch.testing.assert_close(dict(models[1].named_parameters())[name], factor * weight)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"channels": (4, 0)}, "channels[1] must be at least 1"),
        ({"pooled": (2, 1)}, "pooled must be rising numbers from 1 to 13"),
        ({"pooled": (14,)}, "pooled must be rising numbers from 1 to 13"),
        ({"pool": "stride"}, "pool must be 'before' or 'after'"),
        ({"init": "xavier"}, "init must be 'he', 'uniform' or 'uniform_fan_out'"),
        ({"output_gain": 0.0}, "output_gain must be positive"),
        ({"activation": "rellu"}, "Did you mean 'relu'"),
    ],
)
def test_a_network_that_can_not_be_is_refused_when_it_is_described(settings, remedy):
    with pytest.raises(SettingError) as caught:
        VGG(**settings)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [vgg16(), ConvNet()])
def test_vectors_and_images_that_are_too_small_are_refused(model):
    with pytest.raises(SettingError, match="Use an MLP"):
        model.build((784,), 10)
    with pytest.raises(SettingError, match="leave nothing of"):
        model.build((3, 4, 4), 10)


@pytest.mark.parametrize("pool", ["before", "after"])
@pytest.mark.parametrize("side", [32, 64])
def test_vgg10_skip_adds_two_strided_convolutions_to_vgg10(pool, side):
    """Kerjan et al. 2026: from layer 2 to 5 and from 5 to 8; the paths must meet at one size
    whatever the images'."""
    model = models.vgg10_skip(pool).build((3, side, side), 7)
    assert model.sources == [(0,), (1,), (2,), (3,), (4, 2), (5,), (6,), (7, 5), (8,), (9,)]
    skips = model.maps(5)[2], model.maps(8)[5]
    assert [type(skip) for skip in skips] == [nn.Conv2d, nn.Conv2d]
    assert [(skip.in_channels, skip.out_channels, skip.kernel_size) for skip in skips] == [
        (128, 512, (1, 1)),
        (512, 512, (1, 1)),
    ]
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 7)
    plain = models.vgg10(pool).build((3, side, side), 7)
    more = sum(p.numel() for skip in skips for p in skip.parameters())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + more


def test_a_gain_multiplies_every_weight_and_no_bias():
    torch.manual_seed(0)
    one = models.VGG((4,), (1,), (5,), init="uniform").build((2, 8, 8), 3)
    torch.manual_seed(0)
    half = models.VGG((4,), (1,), (5,), init="uniform", gain=0.5).build((2, 8, 8), 3)
    for (name, a), (_, b) in zip(one.named_parameters(), half.named_parameters(), strict=True):
        torch.testing.assert_close(b, a * (0.5 if name.endswith("weight") else 1.0))


@pytest.mark.parametrize("skips", [((1, 2),), ((0, 2),), ((2, 1),), ((1, 4),)])
def test_skips_between_what_are_no_convolutions_apart_are_refused(skips):
    with pytest.raises(SettingError, match="skips must be pairs of convolutions from 1 to 3"):
        models.VGG((4, 4, 4), (3,), (), skips=skips)
