"""Crops and flips: what a slow loop over examples gives, drawn fairly, and brought back by a
generator's state."""

import pytest
import torch
from torch import Tensor

from dualprop.data import Augmentation, Examples, batches
from dualprop.errors import SettingError

BOTH = Augmentation(pad=4, flip=True)
REFLECTED = Augmentation(pad=5, padding="reflect", flip=True, flips="alternating")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num_examples: int = 40, height: int = 9, width: int = 7, channels: int = 3, dtype=torch.uint8) -> Examples:
    x = torch.randint(1, 256, (num_examples, channels, height, width), generator=seeded()).to(dtype)
    mean, std = (
        torch.tensor([120.0, 30.0, 200.0])[:channels, None, None],
        torch.tensor([60.0, 2.5, 90.0])[:channels, None, None],
    )
    return Examples(x, torch.arange(num_examples), mean, std)


def mirrored(position: int, side: int) -> int:
    """A position outside of 0 … side - 1, mirrored at the pixel of that edge."""
    return -position if position < 0 else 2 * (side - 1) - position if position >= side else position


def slowly(image: Tensor, reflects: bool, pad: int, top: int, left: int, flipped: bool) -> Tensor:
    """One image's window, pixel by pixel, from the definition."""
    channels, height, width = image.shape
    window = torch.zeros_like(image)
    for c in range(channels):
        for h in range(height):
            for w in range(width):
                row, column = h + top - pad, (width - 1 - w if flipped else w) + left - pad
                if reflects:
                    row, column = mirrored(row, height), mirrored(column, width)
                if 0 <= row < height and 0 <= column < width:
                    window[c, h, w] = image[c, row, column]
    return window


@pytest.mark.parametrize("augmentation", [BOTH, Augmentation(pad=2), Augmentation(flip=True), REFLECTED])
@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.uint8), (1, torch.uint8), (3, torch.float32)])
def test_a_batch_is_what_a_loop_over_its_examples_and_pixels_gives(augmentation, channels, dtype):
    """A window of the wrong image, of another's crop, or with rows for columns, still trains; only
    slower."""
    examples = images(channels=channels, dtype=dtype)
    generator = seeded(3)
    order = torch.randperm(40, generator=generator)
    draws = augmentation.draw(order, generator)
    assert draws is not None
    raw = torch.stack(
        [
            slowly(examples.x[i], augmentation.padding == "reflect", augmentation.pad, *move)
            for i, move in zip(order, draws.moves.tolist(), strict=True)
        ]
    )
    expected = (raw.double() - examples.mean.double()) / examples.std.double()
    x, y = zip(*batches(examples, 16, generator=seeded(3), augmentation=augmentation, dtype=torch.float64), strict=True)
    torch.testing.assert_close(torch.cat(x), expected, rtol=1e-6, atol=1e-6)
    assert torch.cat(y).equal(order)
    assert not raw.equal(examples.x[order]), "nothing was moved: the comparison shows nothing"


def test_padding_is_black_and_not_the_mean():
    """torchvision pads before it normalises; the mean's colour at the edges is another, easier
    task."""
    examples = images()
    top_left = BOTH.draw(torch.tensor([5]), seeded())
    assert top_left is not None
    top_left.moves[:] = torch.tensor([0, 0, 0])
    x, _ = examples.batch(torch.tensor([5]), torch.float64, draws=top_left)
    assert torch.allclose(x[0, :, :4].mean((1, 2)), (-examples.mean / examples.std).flatten().double())
    assert x[0, 0, 4, 4] == (examples.x[5, 0, 0, 0].double() - 120) / 60


def test_offsets_are_uniform_and_half_of_the_images_are_flipped_independently():
    """An offset that never reaches its end, or a flip tied to it, would vary the images less than
    is claimed."""
    draws = BOTH.draw(torch.arange(81_000), seeded(1))
    assert draws is not None
    top, left, flipped = draws.moves.T
    counts = (top * 9 + left).bincount(minlength=81)
    assert len(counts) == 81
    # 1000 expected in each of 81 cells: χ² with 80 degrees of freedom exceeds 125 once in a
    # thousand times.
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 125
    flips = torch.stack([(top * 9 + left)[flipped == 1].bincount(minlength=81) / counts, torch.full((81,), 0.5)])
    assert flipped.unique().tolist() == [0, 1]
    assert (flips[0] - flips[1]).abs().max() < 4 * 0.5 / 1000**0.5
    assert abs(flipped.double().mean() - 0.5) < 4 * 0.5 / 81_000**0.5


def test_each_epoch_draws_anew_and_every_example_for_itself():
    """The same crop in each epoch, or for a whole batch, would be a fixed data set."""
    generator = seeded()
    first, second = (BOTH.draw(torch.arange(1000), generator) for _ in range(2))
    assert first is not None
    assert second is not None
    assert not first.moves.equal(second.moves)
    assert len(first.moves.unique(dim=0)) > 150  # of 162


def test_a_run_resumes_in_mid_epoch_with_the_same_crops():
    """Bit-exact resumption rests on this: the crops of the batches done must be drawn again, or
    skipped alike."""
    examples, generator = images(), seeded(5)
    list(batches(examples, 6, generator=generator, augmentation=BOTH))
    state = generator.get_state()
    whole = list(batches(examples, 6, generator=generator, augmentation=BOTH))
    following = generator.get_state()
    for start in range(8):
        resumed = torch.Generator()
        resumed.set_state(state)
        rest = list(batches(examples, 6, generator=resumed, augmentation=BOTH, start=start))
        assert len(rest) == 7 - start
        for (x, y), (expected_x, expected_y) in zip(rest, whole[start:], strict=True):
            assert x.equal(expected_x)
            assert y.equal(expected_y)
        assert resumed.get_state().equal(following)


def test_without_augmentation_no_number_is_drawn():
    """One draw too many would change every run that was made before there was augmentation."""
    one, other = seeded(), seeded()
    list(batches(images(), 6, generator=one, augmentation=Augmentation()))
    torch.randperm(40, generator=other)
    assert one.get_state().equal(other.get_state())


def test_the_order_is_that_of_a_run_without_augmentation():
    """Runs with and without are then compared on the same batches."""
    plain = torch.cat([y for _, y in batches(images(), 6, generator=seeded(2))])
    varied = torch.cat([y for _, y in batches(images(), 6, generator=seeded(2), augmentation=BOTH)])
    assert varied.equal(plain)


def test_the_global_generator_and_the_examples_are_left_alone():
    """A crop in place would shift the images further in each epoch."""
    examples, state = images(), torch.get_rng_state()
    before = examples.x.clone()
    list(batches(examples, 6, generator=seeded(), augmentation=BOTH))
    assert torch.get_rng_state().equal(state)
    assert examples.x.equal(before)


@pytest.mark.parametrize("augmentation", [None, BOTH])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_channels_last_changes_the_memory_and_no_value(augmentation, dtype):
    """Convolutions are half as fast again in the other format; a permuted view of the wrong axes
    has the same shape."""
    examples = images(height=7, width=7)
    first, last = (
        [x for x, _ in batches(examples, 6, dtype=dtype, generator=seeded(), augmentation=augmentation, channels_last=flag)]
        for flag in (False, True)
    )
    for x, expected in zip(last, first, strict=True):
        assert x.dtype == dtype
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert x.equal(expected)


def test_impossible_settings_are_errors_at_the_call():
    """A crop of nothing but black, or of a vector, would train on nothing."""
    vectors = Examples(torch.zeros(5, 7), torch.arange(5), torch.zeros(()), torch.ones(()))
    with pytest.raises(SettingError, match="pad must be at least 0, got -1"):
        Augmentation(pad=-1)
    with pytest.raises(SettingError, match="pad must be smaller than the images, 9×7, got 7"):
        batches(images(), 6, generator=seeded(), augmentation=Augmentation(pad=7))
    with pytest.raises(SettingError, match="only images can be cropped and flipped"):
        batches(vectors, 2, generator=seeded(), augmentation=Augmentation(flip=True))
    with pytest.raises(SettingError, match="augmentation needs a generator"):
        batches(images(), 6, augmentation=BOTH)
    with pytest.raises(SettingError, match="channels_last is a memory format of images"):
        batches(vectors, 2, channels_last=True)


def test_flips_that_alternate_show_every_image_in_both_forms_in_two_epochs():
    """Drawn anew, a quarter of the images is never seen mirrored in two epochs. Drawn by place and
    not by example, they would not alternate."""
    examples = images(num_examples=200)
    augmentation, generator, shown = Augmentation(flip=True, flips="alternating"), seeded(1), []
    for epoch in range(3):
        x, y = zip(*batches(examples, 50, generator=generator, augmentation=augmentation, epoch=epoch), strict=True)
        plain = examples.batch(torch.cat(y))[0]
        is_flipped = (torch.cat(x) == plain.flip(-1)).flatten(1).all(1)
        assert ((torch.cat(x) == plain).flatten(1).all(1) | is_flipped).all()
        shown.append(torch.zeros(200, dtype=torch.bool).scatter_(0, torch.cat(y), is_flipped))
    assert (shown[0] ^ shown[1]).all()
    assert shown[0].equal(shown[2])
    assert 70 < int(shown[0].sum()) < 130


@pytest.mark.parametrize("settings", [{"padding": "reflect"}, {"flips": "alternating"}])
def test_a_way_of_what_is_not_done_is_refused(settings):
    """It would seem to have been used."""
    with pytest.raises(SettingError, match="has no meaning without"):
        Augmentation(**settings)
