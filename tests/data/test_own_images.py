"""A folder of class folders of images: what it is read as, what is refused, and where that is
told."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualprop.data import Reading, load, own
from dualprop.data.own import images
from dualprop.errors import DataError

RANDOM = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **settings)
    return path


def folder(path: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6, shape: tuple[int, ...] = (6, 5, 3)) -> Path:
    """Random images of each class."""
    for name in classes:
        for i in range(count):
            save(path / name / f"{i}.png", RANDOM.integers(0, 256, shape, dtype=np.uint8))
    return path


def failure(path: Path, reading: Reading | None = None) -> str:
    """The message of the DataError, proved to be one line that names something below the path."""
    with pytest.raises(DataError) as raised:
        load(str(path), reading=reading)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    assert message.endswith(".")
    return message


def every_example(splits) -> list[tuple[str, np.ndarray]]:
    """Class name and pixels of all examples."""
    parts = (splits.train, splits.validation, splits.test)
    return [(splits.task.names[k], x) for part in parts for k, x in zip(part.y.tolist(), part.x.numpy(), strict=True)]


def test_folders_are_classes_and_pixels_are_theirs(tmp_path):
    """Each image must be of the folder that it lies in, upright and its colours in order."""
    folder(tmp_path, ("cat", "dog", "owl"))
    splits = load(str(tmp_path))
    assert splits.task.names == ("cat", "dog", "owl")
    assert splits.input_shape == (3, 6, 5)
    assert splits.train.x.dtype == torch.uint8
    stored = {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(): path.parent.name for path in tmp_path.glob("*/*.png")}
    told = every_example(splits)
    assert len(told) == 18
    assert all(stored[x.tobytes()] == name for name, x in told)


def test_train_and_test_folders_are_the_parts(tmp_path):
    """A test part drawn from both would test on what was trained on, as its makers divided it."""
    folder(tmp_path / "train", count=8)
    folder(tmp_path / "test", count=3)
    splits = load(str(tmp_path))
    assert len(splits.test) == 6
    assert len(splits.train) + len(splits.validation) == 16
    folder(tmp_path / "test", ("bird",), count=1)
    assert "holds the class 'bird'" in failure(tmp_path)


def test_images_of_different_sizes_need_a_size_and_then_have_it(tmp_path):
    folder(tmp_path, ("cat",), shape=(6, 5, 3))
    folder(tmp_path, ("dog",), shape=(9, 12, 3))
    message = failure(tmp_path)
    assert "12×9 pixels and 0.png 5×6" in message
    assert "--reading.size 32" in message
    for fit in ("crop", "pad", "stretch"):
        assert load(str(tmp_path), reading=Reading(size=4, fit=fit)).input_shape == (3, 4, 4)


def test_cropping_takes_the_middle_padding_adds_black_and_stretching_neither(tmp_path):
    """What an image loses by it must be what was said."""
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    for name in ("cat", "dog"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", wide)
    by_fit = {fit: load(str(tmp_path), reading=Reading(size=4, fit=fit)).train.x[0, 0] for fit in ("crop", "pad", "stretch")}
    assert (by_fit["crop"] == 200).all()
    assert (by_fit["pad"][0] == 0).all()
    assert (by_fit["pad"][-1] == 0).all()
    assert (by_fit["pad"][1:3].max() > 100).all()
    assert by_fit["stretch"][:, 1:3].min() > 100
    assert by_fit["stretch"][:, 0].max() < 100


def test_grey_images_have_one_channel_unless_some_have_colours(tmp_path):
    folder(tmp_path, shape=(6, 5))
    assert load(str(tmp_path)).input_shape == (1, 6, 5)
    assert load(str(tmp_path), reading=Reading(colour="rgb")).input_shape == (3, 6, 5)
    save(tmp_path / "cat" / "red.png", np.full((6, 5, 3), (255, 0, 0), np.uint8))
    assert load(str(tmp_path)).input_shape == (3, 6, 5)
    assert load(str(tmp_path), reading=Reading(colour="grey")).input_shape == (1, 6, 5)


def test_sixteen_bits_are_brought_to_eight_and_not_cut(tmp_path):
    """Pillow's own conversion makes white of all above 255."""
    pixels = np.linspace(0, 65535, 30, dtype=np.uint16).reshape(6, 5)
    for name in ("cat", "dog"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", pixels)
    np.testing.assert_array_equal(load(str(tmp_path)).train.x[0, 0].numpy(), pixels >> 8)


def test_transparent_pixels_are_black_and_cameras_turns_are_undone(tmp_path):
    """The colour below a transparent pixel is what its editor left there."""
    clear = np.full((6, 5, 4), 255, np.uint8)
    clear[:3, :, 3] = 0
    turned = np.zeros((6, 5, 3), np.uint8)
    turned[0] = 255
    told = Image.Exif()
    told[0x0112] = 6  # to be turned a quarter to the right: its first row is its last column
    for i in range(3):
        save(tmp_path / "clear" / f"{i}.png", clear)
        save(tmp_path / "turned" / f"{i}.png", turned.transpose(1, 0, 2).copy(), exif=told)
    by_name = dict(every_example(load(str(tmp_path))))
    assert (by_name["clear"][:, :3] == 0).all()
    assert (by_name["clear"][:, 3:] == 255).all()
    expected = np.rot90(turned.transpose(1, 0, 2), -1)
    np.testing.assert_array_equal(by_name["turned"], expected.transpose(2, 0, 1))


def test_other_files_are_told_and_hidden_ones_and_links_to_folders_left_alone(tmp_path):
    folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("mine")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    os.symlink(tmp_path, tmp_path / "cat" / "around")
    splits = load(str(tmp_path))
    assert [remark for remark in splits.remarks if "1 files are left out" in remark]
    assert len(every_example(splits)) == 12


def test_what_is_no_image_is_named(tmp_path):
    """Bytes of any kind, cut-off files, formats that are programs, pipes that never end."""
    path = folder(tmp_path) / "cat" / "1.png"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n"):
        path.write_bytes(content)
        assert str(path) in failure(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert "is no regular file" in failure(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is no regular file" in failure(tmp_path)


def test_a_small_file_that_declares_a_giant_image_is_not_decoded(tmp_path, monkeypatch):
    """Its pixels would fill any memory."""
    path = folder(tmp_path) / "cat" / "1.png"
    save(path, np.zeros((2000, 2000), np.uint8))
    monkeypatch.setattr(images, "MAX_PIXELS", 3_000_000)
    assert "declares 2000×2000 pixels" in failure(tmp_path, Reading(size=8))


def test_one_class_an_empty_class_and_an_empty_folder_are_told(tmp_path):
    assert "holds nothing that is read" in failure(tmp_path)
    folder(tmp_path, ("cat",))
    assert "Put each class into a folder of its name" in failure(tmp_path)
    (tmp_path / "dog").mkdir()
    assert "holds no image" in failure(tmp_path)


def test_images_are_decoded_once_until_one_changes(tmp_path):
    """Five seeds would decode all of them five times; a changed image must be seen."""
    folder(tmp_path)
    first = own.read(tmp_path, Reading())
    assert own.read(tmp_path, Reading()) is first
    save(tmp_path / "cat" / "1.png", np.zeros((6, 5, 3), np.uint8))
    again = own.read(tmp_path, Reading())
    assert again is not first
    assert (again.x == 0).all((1, 2, 3)).sum() == 1
    assert load(str(tmp_path)).digest == load(str(tmp_path), seed=3).digest
