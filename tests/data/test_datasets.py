"""`load`: every named data set arrives complete, divided without overlap, reproducibly, and
normalised."""

import hashlib
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch

from dualprop.data import Splits, batches, load, names
from dualprop.errors import DataError, SettingError


def parts(splits: Splits) -> dict[str, torch.Tensor]:
    return {"train": splits.train.x, "validation": splits.validation.x, "test": splits.test.x}


def test_digits_needs_no_file_and_arrives_complete():
    """The offline default: every example of scikit-learn's set is in exactly one part."""
    from sklearn.datasets import load_digits

    splits = load("digits")
    assert (splits.name, splits.num_classes, splits.input_shape) == ("digits", 10, (1, 8, 8))
    assert {name: len(x) for name, x in parts(splits).items()} == {"train": 1294, "validation": 144, "test": 359}
    ours = sorted(zip(torch.cat(list(parts(splits).values())).flatten(1).tolist(), labels(splits), strict=True))
    digits = load_digits()
    assert ours == sorted(zip(digits.data.tolist(), digits.target.tolist(), strict=True))


def labels(splits: Splits) -> list[int]:
    return torch.cat([splits.train.y, splits.validation.y, splits.test.y]).tolist()


def test_the_parts_of_digits_share_no_image():
    """An image in two parts would be training on the test set. (All 1797 images of digits
    differ.)"""
    images = {name: {x.numpy().tobytes() for x in part} for name, part in parts(load("digits")).items()}
    assert sum(map(len, images.values())) == 1797
    assert all(images[a].isdisjoint(images[b]) for a, b in combinations(images, 2))


def test_the_test_set_of_digits_is_the_same_for_every_seed_and_version():
    """Published numbers rest on it; a version of torch or scikit-learn that moves the division
    changes the digest."""
    one, other = load("digits", seed=1), load("digits", seed=2)
    assert one.test.x.equal(other.test.x)
    digest = hashlib.sha256(one.test.x.numpy().tobytes() + one.test.y.numpy().tobytes()).hexdigest()
    assert digest[:16] == "cb1438165d009c3f"
    share = one.test.y.bincount() / torch.tensor(labels(one)).bincount()
    assert (share - 0.2).abs().max() < 0.005, "the test set is not stratified"


def test_the_seed_decides_the_validation_set_and_nothing_else_does():
    """Compared rules must see the same division; different seeds must not."""
    torch.manual_seed(1)
    first = load("digits", seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = load("digits", seed=3), load("digits", seed=4)
    assert torch.get_rng_state().equal(state)
    assert first.validation.x.equal(again.validation.x)
    assert first.train.y.equal(again.train.y)
    assert not first.validation.x.equal(other.validation.x)


@pytest.mark.parametrize(("fraction", "num_validation"), [(0.5, 719), (1e-9, 1), (1 - 1e-9, 1437)])
def test_the_validation_fraction_is_of_the_training_set_and_leaves_neither_part_empty(fraction, num_validation):
    """An empty part divides by zero examples in its mean."""
    splits = load("digits", validation_fraction=fraction)
    assert (len(splits.validation), len(splits.train)) == (num_validation, 1438 - num_validation)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_a_validation_fraction_outside_0_to_1_is_an_error(fraction):
    """10 for 10 % would leave nothing to train on."""
    with pytest.raises(SettingError, match=r"validation_fraction must be in \(0, 1\)"):
        load("digits", validation_fraction=fraction)


def test_a_device_that_is_not_there_is_an_error_before_anything_is_read():
    """torch's own message is a page about build flags, after a download of ten megabytes."""
    with pytest.raises(SettingError, match="device 'nonsense' is not available") as raised:
        load("digits", device="nonsense")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnits", " Did you mean 'mnist'?"),
        ("MNIST", " Did you mean 'mnist'?"),
        ("fashion_mnist", " Did you mean 'fashion-mnist'?"),
        ("data.np", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest_known_one(name, hint):
    """A path without a known suffix, or a near miss, must say what is known."""
    with pytest.raises(DataError) as raised:
        load(name)
    assert str(raised.value).startswith(f"unknown data set '{name}'.{hint} Known are digits, mnist, fashion-mnist, cifar10, ")
    assert "\n" not in str(raised.value)


def test_every_name_listed_is_described_in_one_line():
    """`dualprop list datasets` prints these."""
    assert list(names()) == ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet32", "PATH"]
    assert all(text and "\n" not in text for text in names().values())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files_pass_their_checksums_and_are_normalised(shared, name):
    """The wrong constants, or those of x/255 applied to bytes, would train slowly and never
    fail."""
    splits = load(name, root=shared, seed=7)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (54000, 6000, 10000)
    assert (splits.num_classes, splits.input_shape) == (10, (1, 28, 28))
    assert splits.train.x.dtype == torch.uint8
    x = torch.cat([x for x, _ in batches(splits.train, 6000)] + [x for x, _ in batches(splits.validation, 6000)])
    assert abs(x.mean(dtype=torch.float64).item()) < 1e-3
    assert abs(x.std().item() - 1) < 1e-3
    counts = torch.cat([splits.train.y, splits.validation.y]).bincount()
    assert counts.sum() == 60000
    expected = 5923 if name == "mnist" else 6000  # examples of class 0, as the data sets' pages give them
    assert counts[0] == expected


def test_digits_are_normalised_by_constants_of_their_training_set():
    """Its pixels run from 0 to 16: over 255 they would all but vanish."""
    splits = load("digits")
    x = torch.cat([x for part in (splits.train, splits.validation) for x, _ in batches(part, 100)])
    assert abs(x.mean().item()) < 1e-3
    assert abs(x.std().item() - 1) < 1e-3


def test_importing_the_package_loads_neither_scikit_learn_nor_pooch():
    """They cost a second at every start of the command line, `--help` included."""
    program = "import dualprop.data, sys; print(sorted({'sklearn', 'pooch', 'requests'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_border_is_black_around_every_image_of_every_part_and_the_constants_stay():
    """A PCN's MNIST is 32×32; a border of the normalised zero would be grey, and statistics over it
    another data set."""
    plain, wide = load("digits"), load("digits", border=3)
    assert wide.input_shape == (1, 14, 14)
    for part in ("train", "validation", "test"):
        one, other = getattr(plain, part), getattr(wide, part)
        assert torch.equal(other.x[:, :, 3:-3, 3:-3], one.x)
        assert int(other.x.sum()) == int(one.x.sum())
        assert torch.equal(other.mean, one.mean)
        assert torch.equal(other.y, one.y)
    x, _ = wide.train.batch(torch.arange(2))
    assert float(x[0, 0, 0, 0]) == pytest.approx(float(-wide.train.mean / wide.train.std))


def test_a_border_around_what_is_no_image_is_refused(tmp_path):
    np.savez(tmp_path / "vectors.npz", x_train=np.ones((40, 3), np.float32) * np.arange(40)[:, None], y_train=np.arange(40) % 2)
    with pytest.raises(SettingError, match="border is put around images in memory"):
        load(tmp_path / "vectors.npz", border=1)
    with pytest.raises(SettingError, match="border must be at least 0"):
        load("digits", border=-1)


def test_fewer_training_examples_leave_validation_test_and_constants_as_they_are():
    """Learning from less is compared on the same examples; and a larger number holds the smaller
    one's."""
    whole, some, more = load("digits"), load("digits", train_examples=100), load("digits", train_examples=300)
    assert (len(some.train), len(more.train)) == (100, 300)
    for part in ("validation", "test"):
        assert torch.equal(getattr(some, part).x, getattr(whole, part).x)
        assert torch.equal(getattr(some, part).y, getattr(whole, part).y)
    assert torch.equal(some.train.mean, whole.train.mean)
    kinds = [{image.numpy().tobytes() for image in splits.train.x} for splits in (some, more, whole)]
    assert kinds[0] < kinds[1] < kinds[2]
    assert not torch.equal(some.train.x, whole.train.x[:100]), "files may be sorted by class"
    assert len(load("digits", train_examples=10**6).train) == len(whole.train)
    other = load("digits", train_examples=100, seed=1)
    assert not torch.equal(other.train.x, some.train.x)


def test_a_negative_number_of_training_examples_is_refused():
    with pytest.raises(SettingError, match="train_examples must be at least 0, got -1"):
        load("digits", train_examples=-1)
