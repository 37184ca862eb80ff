"""The user's own .npz: what is accepted and how it is read, and one line for each way in which it
can be wrong."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dualprop import memory
from dualprop.data import load
from dualprop.errors import DataError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (24, 6, 5), dtype=np.uint8)
VECTORS = RANDOM.normal(size=(24, 7))
LABELS = np.arange(24) % 3


def saved(tmp_path: Path, **arrays: object) -> str:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return str(path)


def failure(path: str) -> str:
    """The message of the DataError that loading `path` raises, proved to be one line that begins
    with the file."""
    with pytest.raises(DataError) as raised:
        load(path)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(path)
    assert message.endswith(".")
    return message


def test_vectors_become_float32_and_keep_their_test_set(tmp_path):
    """float64 inputs would meet float32 weights in the first matrix product, and fail there."""
    splits = load(saved(tmp_path, x_train=VECTORS, y_train=LABELS, x_test=VECTORS[:4] + 1, y_test=LABELS[:4]))
    assert splits.train.x.dtype == torch.float32
    assert splits.input_shape == (7,)
    assert splits.num_classes == 3
    np.testing.assert_array_equal(splits.test.x.numpy(), (VECTORS[:4] + 1).astype(np.float32))
    assert splits.test.y.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4", np.longdouble])
def test_every_floating_type_and_byte_order_is_read_as_numbers(tmp_path, dtype):
    """Big-endian bytes taken as they are would be noise that looks like data."""
    splits = load(saved(tmp_path, x_train=VECTORS.astype(dtype), y_train=LABELS.astype(">i2")))
    together = torch.cat([splits.train.x, splits.validation.x, splits.test.x])
    assert together.dtype == torch.float32
    assert np.isclose(together.double().sum(), VECTORS.sum(), rtol=1e-2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_are_channels_first_however_they_are_stored(tmp_path, channels):
    """(H, W, C) taken for (C, H, W) trains without an error and convolves over columns and
    colours."""
    images = RANDOM.integers(0, 256, (24, channels, 6, 5), dtype=np.uint8)
    first = load(saved(tmp_path, x_train=images, y_train=LABELS))
    last = load(saved(tmp_path, x_train=images.transpose(0, 2, 3, 1), y_train=LABELS))
    assert first.input_shape == last.input_shape == (channels, 6, 5)
    assert first.train.x.equal(last.train.x)
    assert first.train.mean.shape == (channels, 1, 1)
    assert last.train.x.is_contiguous()


def test_grey_images_gain_a_channel_axis(tmp_path):
    """A convolution needs (N, 1, H, W); (N, H, W) would be taken for one example of N channels."""
    assert load(saved(tmp_path, x_train=PIXELS, y_train=LABELS)).input_shape == (1, 6, 5)


UNCLEAR = [(24, 16, 8, 8), (24, 64, 2, 2), (24, 3, 3, 3), (24, 512, 1, 1), (24, 8, 16, 16), (24, 8, 8, 5)]


@pytest.mark.parametrize("shape", UNCLEAR)
def test_an_unclear_channel_axis_is_asked_about_and_layout_decides(tmp_path, shape):
    """A guess would be silent, and wrong for somebody."""
    x = RANDOM.normal(size=shape)
    assert "Add an entry layout='NCHW' or layout='NHWC'" in failure(saved(tmp_path, x_train=x, y_train=LABELS))
    assert load(saved(tmp_path, x_train=x, y_train=LABELS, layout="NCHW")).input_shape == shape[1:]
    shape = (shape[3], shape[1], shape[2])
    assert load(saved(tmp_path, x_train=x, y_train=LABELS, layout="NHWC")).input_shape == shape


def test_layout_outranks_the_sizes(tmp_path):
    """Sixteen-channel maps of 16×3 positions would look like colour images."""
    x = RANDOM.normal(size=(24, 16, 16, 3))
    assert load(saved(tmp_path, x_train=x, y_train=LABELS, layout="NCHW")).input_shape == (16, 16, 3)
    assert "layout must be" in failure(saved(tmp_path, x_train=x, y_train=LABELS, layout="CHWN"))


def test_without_a_test_set_the_same_sixth_is_taken_for_every_seed(tmp_path):
    """A test set that moved with the seed would make seeds incomparable."""
    path = saved(tmp_path, x_train=np.arange(48.0).reshape(24, 2), y_train=LABELS)
    one, other = load(path, seed=1), load(path, seed=2)
    assert len(one.test) == 4
    assert one.test.x.equal(other.test.x)
    parts = [one.train.x, one.validation.x, one.test.x]
    assert sorted(torch.cat(parts)[:, 0].tolist()) == list(range(0, 48, 2))


def test_statistics_are_those_of_the_training_part_alone(tmp_path):
    """Statistics over everything would leak the test set into training."""
    splits = load(saved(tmp_path, x_train=VECTORS, y_train=LABELS, x_test=VECTORS[:4] + 1e4, y_test=LABELS[:4]))
    x = splits.train.x.numpy().astype(np.float64)
    assert len(x) < 24
    np.testing.assert_allclose(splits.train.mean, x.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(splits.train.std, x.std(0), rtol=1e-6)
    assert splits.test.mean.equal(splits.train.mean)
    assert splits.validation.std.equal(splits.train.std)


def test_image_statistics_are_per_channel_and_exact_over_many_examples(tmp_path):
    """Summed thousand by thousand: a chunk left out or counted twice would bias every input a
    little."""
    images = RANDOM.integers(0, 256, (2500, 3, 5, 4), dtype=np.uint8)
    images[:, 1] //= 2
    splits = load(saved(tmp_path, x_train=images, y_train=np.arange(2500) % 2))
    x = splits.train.x.numpy().astype(np.float64)
    np.testing.assert_allclose(splits.train.mean.flatten(), x.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(splits.train.std.flatten(), x.std((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e30, 1e-40])
def test_a_constant_feature_becomes_zero_and_not_nan(tmp_path, constant):
    """0/0 is NaN in every weight after one step; and had the mean of 0.1 a rounding error, 0.1
    would become ±1."""
    x = VECTORS.copy()
    x[:, 2] = constant
    splits = load(saved(tmp_path, x_train=x, y_train=LABELS))
    normalised, _ = splits.train.batch(torch.arange(len(splits.train)))
    assert normalised.isfinite().all()
    assert normalised[:, 2].abs().max() <= 1e-6 * max(constant, 1)
    assert splits.train.std[2] == 1


def test_a_feature_whose_std_float32_can_not_hold_stays_finite(tmp_path):
    """The smallest number among zeros has a std that rounds to 0, and would become infinite."""
    x = np.zeros((600, 2), np.float32)
    x[::60, 1] = np.finfo(np.float32).smallest_subnormal
    splits = load(saved(tmp_path, x_train=x, y_train=np.arange(600) % 2))
    assert splits.train.x.max() > 0, "no tiny number is in the training part: nothing is tested"
    assert splits.train.batch(torch.arange(len(splits.train)))[0].isfinite().all()


def infected(value: float) -> np.ndarray:
    x = VECTORS.copy()
    x[3, 3] = value
    return x


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"x_train": None}, "has no array x_train; it holds ['y_train']"),
        ({"y_train": None}, "has no array y_train; it holds ['x_train']"),
        ({"x_test": VECTORS}, "has no array y_test"),
        ({"y_test": LABELS}, "has no array x_test"),
        ({"x_train": infected(np.nan)}, "x_train holds NaN, inf"),
        ({"x_train": infected(-np.inf)}, "x_train holds NaN, inf"),
        ({"x_train": infected(1e300)}, "x_train holds NaN, inf or numbers beyond float32"),
        ({"x_test": infected(np.nan), "y_test": LABELS}, "x_test holds NaN, inf"),
        ({"x_train": VECTORS.astype(np.int64)}, "x_train has dtype int64. Store it as uint8 or float32"),
        ({"x_train": VECTORS.astype(complex)}, "x_train has dtype complex128"),
        ({"x_train": VECTORS > 0}, "x_train has dtype bool"),
        ({"x_train": VECTORS[:, 0]}, "x_train has shape (24,)"),
        ({"x_train": np.float64(3)}, "x_train has shape ()"),
        ({"x_train": np.zeros((24, 1, 2, 3, 4))}, "x_train has shape (24, 1, 2, 3, 4)"),
        ({"x_train": VECTORS[:0], "y_train": LABELS[:0]}, "x_train is empty"),
        ({"x_train": VECTORS[:, :0]}, "x_train is empty"),
        ({"x_test": VECTORS[:0], "y_test": LABELS[:0]}, "x_test is empty"),
        ({"x_train": VECTORS[:1], "y_train": LABELS[:1]}, "can't be divided"),
        ({"x_train": VECTORS[:-1]}, "x_train holds 23 examples but y_train 24 labels"),
        ({"x_test": VECTORS, "y_test": LABELS[:-1]}, "x_test holds 24 examples but y_test 23 labels"),
        ({"x_test": VECTORS[:, 1:], "y_test": LABELS}, "(6,) in x_test, (7,) in x_train"),
        ({"x_test": VECTORS.astype(np.uint8), "y_test": LABELS}, "only one of x_train and x_test is uint8"),
        ({"y_train": LABELS.astype(float)}, "y_train has dtype float64; store labels as integers"),
        ({"y_train": LABELS > 0}, "y_train has dtype bool"),
        ({"y_train": LABELS.astype(str)}, "y_train has dtype <U"),
        ({"y_train": np.eye(3)[LABELS]}, "y_train has shape (24, 3), expected (24,)"),
        ({"y_train": LABELS - 1}, "y_train holds the label -1"),
        ({"y_train": LABELS + 1}, "the labels in y_train begin at 1"),
        ({"y_train": LABELS * 0}, "y_train holds only the class 0"),
        ({"y_train": LABELS * 1000}, "y_train holds the label 2000 but only"),
        ({"y_train": LABELS.astype(np.uint64) * 2**62}, "y_train holds the label 9223372036854775808 but only"),
        ({"x_test": VECTORS, "y_test": LABELS + 1}, "y_test holds the label 3, but y_train only 0 to 2"),
        ({"x_test": VECTORS, "y_test": -LABELS}, "y_test holds the label -2"),
        ({"x_test": VECTORS, "y_test": LABELS / 2}, "y_test has dtype float64"),
        ({"x_train": np.array([None] * 24)}, "'x_train' holds Python objects (a pickle), which is refused"),
        ({"y_train": np.array([{}] * 24)}, "'y_train' holds Python objects (a pickle), which is refused"),
    ],
)
def test_a_malformed_array_is_named_in_one_line(tmp_path, changes, complaint):
    """Each would be a traceback at best, and at worst a run whose numbers mean nothing."""
    arrays = {"x_train": VECTORS, "y_train": LABELS, **changes}
    assert complaint in failure(saved(tmp_path, **{name: a for name, a in arrays.items() if a is not None}))


def test_other_entries_do_not_matter_even_if_they_are_pickles(tmp_path):
    """Files of others carry class names and the like; what we don't need is not even read."""
    path = saved(tmp_path, x_train=VECTORS, y_train=LABELS, names=np.array([{"a": 1}]))
    assert load(path).num_classes == 3


def test_a_file_that_is_not_there_or_no_zip_is_one_line(tmp_path):
    """np.load would take a lone .npy for the archive, and other content for a pickle."""
    path = tmp_path / "own.npz"
    assert "does not exist" in failure(str(path))
    path.mkdir()
    assert "holds nothing that is read" in failure(str(path))
    path.rmdir()
    for content in (b"", b"text", npy(VECTORS)):
        path.write_bytes(content)
        assert "is truncated or no .npz file" in failure(str(path))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_in_the_file_is_one_line_or_harmless(tmp_path, compressed):
    """Bit rot and cut-off copies: no other exception may escape, no file handle stay open, no wrong
    pixel pass."""
    path = tmp_path / "own.npz"
    (np.savez_compressed if compressed else np.savez)(path, x_train=PIXELS, y_train=LABELS)
    whole = path.read_bytes()
    clean = load(str(path))
    complaints = []
    for position in range(0, len(whole), 7):
        for content in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(content)
            try:
                splits = load(str(path))
            except DataError as error:
                complaints.append(str(error))
            else:
                assert splits.train.x.equal(clean.train.x)
                assert splits.train.y.equal(clean.train.y)
    assert len(complaints) > len(whole) // 7
    assert not [complaint for complaint in complaints if "\n" in complaint]


def test_a_forged_header_is_one_line(tmp_path):
    """A shape that asks for petabytes, or text that Python's tokenizer can't read: neither's error
    may escape."""
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999), }"
    forged = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"
    unclosed = forged.replace(b"}", b"(")
    members = {forged: "does not fit into memory", unclosed: "is damaged at 'x_train'", b"not npy": "is not an array"}
    for member, complaint in members.items():
        path = tmp_path / "own.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x_train.npy", member)
            archive.writestr("y_train.npy", npy(LABELS))
        assert complaint in failure(str(path))


def test_a_file_that_inflates_to_more_than_memory_is_one_line(tmp_path, monkeypatch):
    """Zeros compress a thousandfold: what a file declares is told before it is read."""
    path = tmp_path / "large.npz"
    np.savez_compressed(path, x_train=np.zeros((500, 3000), np.uint8), y_train=np.arange(500) % 2)
    monkeypatch.setattr(memory, "free", lambda: 2_000_000)
    with pytest.raises(DataError, match=r"inflates to 0\.0 GB, too much for this machine's memory\. Store less"):
        load(path)
