"""The IDX parser: order of the elements, and each way in which a file with the right checksum could
still be wrong."""

import numpy as np
import pytest
from canonical import FILES

from dualprop.data import load
from dualprop.data.idx import pair, parse
from dualprop.errors import DataError


def header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def test_elements_come_back_in_row_major_order():
    """Columns for rows would transpose every image; a network learns those as well, so nobody would
    see it."""
    array = parse(header(2, 2, 3) + bytes(range(12)), 3, "file")
    assert array.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert array.flags.writeable


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not an IDX file"),
        (b"\x00\x00\x08", "is not an IDX file"),
        (header(4) + bytes(4), "is not an IDX file of 3-dimensional bytes: it begins 00000801, not 00000803"),
        (b"\x00\x00\x0d\x03" + bytes(12), "is not an IDX file"),
        (header(2, 2, 2)[:-1], "ends within its IDX header"),
        (header(2, 2, 2) + bytes(7), "declares 2 × 2 × 2 bytes of data but holds 7"),
        (header(2, 2, 2) + bytes(9), "declares 2 × 2 × 2 bytes of data but holds 9"),
        (header(2**32 - 1, 2**32 - 1, 4) + bytes(4), "declares"),
        (header(0, 28, 28), "holds no examples"),
    ],
)
def test_a_malformed_file_is_named_in_one_line(content, complaint):
    """Each would else be a traceback from numpy, or a tensor of the wrong size."""
    with pytest.raises(DataError, match=complaint) as raised:
        parse(content, 3, "images.gz")
    assert str(raised.value).startswith("images.gz ")
    assert "\n" not in str(raised.value)


def test_images_and_labels_must_be_equally_many():
    """Pairs off by one are labels at random."""
    with pytest.raises(DataError, match="a holds 3 images but b 2 labels"):
        pair(header(3, 1, 1) + bytes(3), header(2) + bytes(2), ("a", "b"))


def test_the_channel_axis_is_added_behind_the_examples():
    """(1, N, H, W) would still index, and train on one 'image'."""
    x, y = pair(header(3, 2, 2) + bytes(12), header(3) + bytes(3), ("a", "b"))
    assert x.shape == (3, 1, 2, 2)
    assert y.shape == (3,)


def test_a_test_set_of_other_image_size_is_refused(tiny, vouch, lay_out, tmp_path):
    """It would fail in the first evaluation, an epoch later, in a matrix product."""
    files = {**tiny, FILES[2]: header(12, 5, 5) + bytes(12 * 25)}
    vouch(files)
    lay_out(files, tmp_path)
    with pytest.raises(DataError, match=r"holds images of \(5, 5\) pixels"):
        load("mnist", root=tmp_path)


def test_a_label_that_training_has_not_seen_is_refused(tiny, vouch, lay_out, tmp_path):
    """The loss would index past its outputs: an assertion on the GPU without a line number."""
    files = {**tiny, FILES[3]: header(12) + bytes([*[0] * 11, 3])}
    vouch(files)
    lay_out(files, tmp_path)
    with pytest.raises(DataError, match="y_test holds the label 3, but y_train only 0 to 2"):
        load("mnist", root=tmp_path)


def test_the_tiny_files_hold_what_they_claim(tiny, lay_out, tmp_path):
    """A precondition of the other tests: labels follow their images through the division."""
    lay_out(tiny, tmp_path)
    splits = load("mnist", root=tmp_path)
    images = parse(tiny[FILES[0]], 3, "images")
    labels = {image.tobytes(): index % 3 for index, image in enumerate(images)}
    for part in (splits.train, splits.validation):
        assert [labels[x.numpy().tobytes()] for x in part.x] == part.y.tolist()
    assert np.isclose(splits.train.mean.item(), 255 * 0.1307)
