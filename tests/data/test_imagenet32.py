"""ImageNet32's files: the same examples from every form and place, streamed or resident, and one
line for each thing wrong."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from canonical import IMAGENET32_FORMS as FORMS
from canonical import IMAGENET32_SIZES as SIZES
from canonical import imagenet32_arrays as arrays
from canonical import write_imagenet32 as write

from dualprop import cli, memory
from dualprop.data import Augmentation, Splits, batches, imagenet32, load, npz_members
from dualprop.errors import DataError, SettingError


def stream(root: Path, **arguments: object) -> Splits:
    return load("imagenet32", root=root, residency="mapped", **arguments)


def failure(root: Path | None) -> str:
    """The message of the DataError that loading raises, proved to be one line that ends a
    sentence."""
    with pytest.raises(DataError) as raised:
        load("imagenet32", root=root)
    message = str(raised.value)
    assert message.isprintable()
    assert message.endswith((".", "https://image-net.org/download-images, and unpack them there."))
    return message


def together(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [part.rows(torch.arange(len(part))) for part in (splits.train, splits.validation)]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.parametrize("residency", ["mapped", "device", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_examples_with_labels_from_0(tmp_path, form, residency):
    """Rows of a neighbouring file, an offset one byte off, or labels one off, would look like a
    hard data set."""
    write(tmp_path / "imagenet32", form)
    splits = load("imagenet32", root=tmp_path, residency=residency, validation_fraction=0.05)
    made = arrays()
    num_train = sum(SIZES.values()) - 25
    assert (len(splits.train), len(splits.validation)) == (num_train - round(0.05 * num_train), round(0.05 * num_train))
    assert (splits.num_classes, splits.input_shape) == (7, (3, 32, 32))
    x, y = together(splits)
    expected = {row.tobytes(): label - 1 for name in imagenet32.TRAIN for row, label in zip(*pair(made[name]), strict=True)}
    assert {image.numpy().tobytes(): int(label) for image, label in zip(x, y, strict=True)} == expected
    test_x, test_y = splits.test.rows(torch.arange(25))
    assert np.array_equal(test_x.reshape(25, 3072).numpy(), made["val_data"]["data"])
    assert test_y.tolist() == [i % 7 for i in range(25)]
    assert splits.train.mean.flatten().tolist() == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406])
    assert splits.train.std.flatten().tolist() == pytest.approx([255 * 0.229, 255 * 0.224, 255 * 0.225])
    assert isinstance(splits.train.x, torch.Tensor) == (residency != "mapped")


def pair(entries: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return entries["data"], entries["labels"]


@pytest.mark.parametrize("augmentation", [None, Augmentation(pad=4, flip=True)])
def test_streamed_batches_are_those_of_the_resident_set(tmp_path, augmentation):
    """A run on a machine with less memory must give the same numbers, from any batch on."""
    write(tmp_path)
    streamed, resident = (load("imagenet32", root=tmp_path, residency=residency) for residency in ("mapped", "device"))
    for start in (0, 3):
        options = {"dtype": torch.float32, "augmentation": augmentation, "start": start, "drop_last": True}
        pairs = [
            list(batches(s.train, 30, generator=torch.Generator().manual_seed(1), **options)) for s in (streamed, resident)
        ]
        assert len(pairs[0]) == len(pairs[1]) == len(streamed.train) // 30 - start
        for (x, y), (expected_x, expected_y) in zip(*pairs, strict=True):
            assert x.equal(expected_x)
            assert y.equal(expected_y)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("imagenet32", "imagenet32"),
        ("Imagenet32_train", "Imagenet32_val"),
        ("imagenet32/Imagenet32_train", "imagenet32/Imagenet32_val"),
        ("Imagenet32_train_npz", "Imagenet32_val_npz"),
        (".", "."),
    ],
)
@pytest.mark.parametrize("form", ["pickle 3", "npz"])
def test_the_files_are_found_in_every_accepted_folder(tmp_path, form, train, val):
    """As the official archives unpack, and all in one."""
    made = arrays()
    write(tmp_path / val, form, {"val_data": made.pop("val_data")})
    write(tmp_path / train, form, made)
    assert len(load("imagenet32", root=tmp_path).test) == 25


def test_the_order_is_that_of_the_numbers_and_not_of_the_alphabet(tmp_path):
    """Batch 10 after batch 1 would move the validation set's examples with the way a folder is
    listed."""
    write(tmp_path)
    assert [path.name for path in imagenet32.find(tmp_path)] == [*imagenet32.TRAIN, "val_data"]


def test_residency_goes_by_the_free_memory(tmp_path, monkeypatch):
    """More than half of it, and the training itself would have too little."""
    write(tmp_path)
    num_bytes = 3072 * sum(SIZES.values())
    for free, is_resident in ((2 * num_bytes, True), (2 * num_bytes - 1, False)):
        monkeypatch.setattr(memory, "free", lambda device, free=free: free)
        assert isinstance(load("imagenet32", root=tmp_path).test.x, torch.Tensor) == is_resident


def test_the_free_memory_is_a_plausible_number():
    """Kibibytes taken for bytes would stream everything, and never fail."""
    assert 2**26 < memory.free() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_impossible_residencies_are_errors(tmp_path):
    """Ignored, the option would not do what it says."""
    with pytest.raises(SettingError, match="residency 'mapped' is for imagenet32, and digits is read into memory"):
        load("digits", residency="mapped")
    with pytest.raises(SettingError, match="residency must be auto, device or mapped, got 'disk'"):
        load("digits", residency="disk")


def test_reading_changes_no_file(tmp_path):
    """Even a write into a batch stays in memory."""
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    splits = stream(tmp_path)
    splits.train.rows(torch.arange(5))[0].zero_()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_compressed_file_is_unpacked_once_and_whole(tmp_path, cache, monkeypatch):
    """Four gigabytes unpacked at every start would take minutes; half of them under the right name
    would be trained on."""
    write(tmp_path, "compressed npz")
    (cache / "imagenet32").mkdir()
    leftover = cache / "imagenet32" / ".train_data_batch_1-data-0-0.npy.x.part"
    leftover.write_bytes(b"killed while writing")
    os.utime(leftover, (0, 0))
    stream(tmp_path)
    made = sorted((cache / "imagenet32").iterdir())
    assert len(made) == 11, "the leftover is there, or a file is missing"
    monkeypatch.setattr(npz_members.shutil, "copyfileobj", lambda *_: pytest.fail("unpacked again"))
    stream(tmp_path)
    assert sorted((cache / "imagenet32").iterdir()) == made


def test_an_unpacking_that_breaks_off_leaves_nothing_under_the_right_name(tmp_path, cache, monkeypatch):
    """A full disk, or damage that the CRC finds at the end."""
    write(tmp_path, "compressed npz")

    def break_off(source, target, _):
        target.write(source.read(1000))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(npz_members.shutil, "copyfileobj", break_off)
    assert "No space left on device" in failure(tmp_path)
    assert list((cache / "imagenet32").iterdir()) == []


def test_a_truncated_file_in_the_cache_is_unpacked_again(tmp_path, cache):
    """The cache is ours: a user should never be told to delete something in it."""
    write(tmp_path, "compressed npz")
    stream(tmp_path)
    victim = sorted((cache / "imagenet32").iterdir())[3]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    stream(tmp_path)
    assert victim.read_bytes() == whole


def test_too_little_space_is_told_before_anything_is_unpacked(tmp_path, cache, monkeypatch):
    """A full disk breaks other programs too."""
    write(tmp_path, "compressed npz")
    monkeypatch.setattr(npz_members.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 10**5, 10**5))
    message = failure(tmp_path)
    assert f"{cache / 'imagenet32'} needs 0.0 GB and has 0.0 GB free. Compressed .npz files are unpacked there once" in message
    assert list((cache / "imagenet32").iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_file_is_named(tmp_path, form):
    """With nine of ten batches everything would run, and reproduce nothing."""
    made = arrays()
    del made["train_data_batch_7"]
    write(tmp_path / "imagenet32", form, made)
    assert failure(tmp_path).startswith(f"{tmp_path / 'imagenet32'} lacks train_data_batch_7. Get 'Train' and 'Val'")


def test_without_the_files_or_the_folder_the_user_is_told_where_to_get_them(tmp_path):
    """They can't be downloaded without an account."""
    assert "imagenet32 is not downloaded by itself. Get 'Train' and 'Val'" in failure(None)
    assert f"{tmp_path / 'imagenet32'} has no train_data_batch_1. Get" in failure(tmp_path)
    made = arrays()
    del made["val_data"]
    write(tmp_path, made=made)
    assert "has no val_data. Get" in failure(tmp_path)


@pytest.mark.parametrize("twice", [True, False])
def test_two_forms_are_not_mixed(tmp_path, twice):
    """Which one counts would depend on the order of search."""
    made = arrays()
    write(
        tmp_path,
        "pickle 3",
        made if twice else {name: made[name] for name in imagenet32.TRAIN[:9]} | {"val_data": made["val_data"]},
    )
    write(tmp_path, "npz", {"train_data_batch_10": made["train_data_batch_10"]})
    message = failure(tmp_path)
    assert "imagenet32 is there in two forms" in message
    assert "train_data_batch_10.npz; move one away" in message


@pytest.mark.parametrize("form", FORMS)
def test_swapped_files_are_noticed(tmp_path, form):
    """The test set among the training data, and nobody the wiser."""
    made = arrays()
    made["val_data"], made["train_data_batch_4"] = made["train_data_batch_4"], made["val_data"]
    write(tmp_path, form, made)
    assert "val_data" in failure(tmp_path)
    assert "they seem to be swapped" in failure(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_under_two_names_is_noticed(tmp_path, form):
    """A tenth of the data twice, and a tenth not at all."""
    write(tmp_path, form, arrays() | {"train_data_batch_5": arrays()["train_data_batch_3"]})
    assert "holds the same images as" in failure(tmp_path)


PIXELS = np.zeros((40, 3072), np.uint8)
LABELS = np.arange(40) % 7 + 1
WRONG = {
    "no data": ({"labels": LABELS}, "lacks 'data' or 'labels'; it holds ['labels']"),
    "no labels": ({"data": PIXELS}, "lacks 'data' or 'labels'; it holds ['data']"),
    "another size": ({"data": np.zeros((40, 12288), np.uint8), "labels": LABELS}, "holds pixels (40, 12288) uint8, not"),
    "images": ({"data": PIXELS.reshape(40, 3, 32, 32), "labels": LABELS}, "holds pixels (40, 3, 32, 32) uint8, not"),
    "another type": ({"data": PIXELS.astype(np.float32), "labels": LABELS}, "holds pixels (40, 3072) float32, not"),
    "no images": ({"data": PIXELS[:0], "labels": LABELS[:0]}, "holds pixels (0, 3072) uint8, not"),
    "a label too few": ({"data": PIXELS, "labels": LABELS[1:]}, "does not hold 40 labels, whole numbers from 1 to 1000"),
    "labels from 0": ({"data": PIXELS, "labels": LABELS - 1}, "holds labels from 0 to 6, not 1 to 1000"),
    "labels too high": ({"data": PIXELS, "labels": LABELS + 994}, "holds labels from 995 to 1001, not 1 to 1000"),
    "labels below 0": ({"data": PIXELS, "labels": -LABELS}, "holds labels from -7 to -1, not 1 to 1000"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_file_is_named_in_one_line(tmp_path, form, case):
    """Each would else be a traceback from numpy, or labels that belong to other images."""
    entries, complaint = WRONG[case]
    write(tmp_path, form, arrays() | {"train_data_batch_2": entries})
    message = failure(tmp_path)
    assert message.startswith(str(tmp_path / "train_data_batch_2"))
    assert complaint in message


@pytest.mark.parametrize("labels", [["1"] * 40, [1.5] * 40, [None] * 40, [2**80] * 40, "text", 3, {}])
def test_labels_that_are_no_numbers_are_told_so(tmp_path, labels):
    """Only a pickle can hold them."""
    write(tmp_path)
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": PIXELS, "labels": labels}, 3))
    assert failure(tmp_path).startswith(str(tmp_path / "val_data"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named_in_one_line(tmp_path, form, share):
    """A map beyond the end of a file kills the process when it is read, hours later."""
    write(tmp_path, form)
    path = next(tmp_path.glob("train_data_batch_6*"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert failure(tmp_path).startswith(str(path))


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_outside_the_pixels_is_one_line_or_harmless(tmp_path, form):
    """No other error may escape, whatever zipfile, zlib and numpy make of it."""
    write(tmp_path, form)
    path = next(tmp_path.glob("val_data*"))
    whole, refused = path.read_bytes(), 0
    random = np.random.default_rng(0)
    ends = [*range(200), *range(len(whole) - 700, len(whole))]
    for position in random.choice(ends, 60, replace=False):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ random.integers(1, 256)]) + whole[position + 1 :])
        try:
            splits = stream(tmp_path)
        except DataError as error:
            refused += str(error).isprintable()
        else:
            list(batches(splits.test, 10))
    assert refused > 5


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["pickle 4", "npz", "compressed npz"])
@pytest.mark.parametrize("entry", ["data", "labels", "mean"])
def test_a_malicious_file_is_refused_by_the_command_with_code_2_and_one_line(tmp_path, form, entry, capsys, monkeypatch):
    """These files have no checksums: the reader is the only guard. (What is not read, such as a
    .npz's mean, can't harm.)"""
    marker, made = tmp_path / "marker", arrays()
    made["train_data_batch_1"][entry] = np.array([Evil(marker)], object)
    if form == "pickle 4" and entry == "labels":
        made["train_data_batch_1"][entry] = [Evil(marker)]
    write(tmp_path, form, made)
    monkeypatch.chdir(tmp_path)
    if entry == "mean" and form != "pickle 4":
        stream(tmp_path)
    else:
        with pytest.raises(SystemExit) as raised:
            cli.main(["train", "digits-mlp", "--dataset", "imagenet32", "--data", str(tmp_path)])
        told = capsys.readouterr().err
        assert raised.value.code == 2
        assert told.startswith(f"dualprop: error: {tmp_path / 'train_data_batch_1'}")
        assert len(told.splitlines()) == 1
        assert not (tmp_path / "runs").exists()
    assert not marker.exists()


def test_members_that_a_zip_declares_where_they_are_not_are_refused(tmp_path):
    """A directory that points into another array would show other pixels."""
    write(tmp_path, "npz")
    path = tmp_path / "val_data.npz"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("data.npy")
        other = archive.getinfo("labels.npy")
    info.header_offset = other.header_offset
    with pytest.raises(DataError, match=r"is truncated, damaged or no \.npz file at 'data\.npy'"):
        npz_members.locate(path, info)


def test_a_member_that_goes_on_beyond_the_file_is_refused(tmp_path):
    """A file cut off while it is open: the directory was whole when it was read."""
    write(tmp_path, "npz")
    path = tmp_path / "val_data.npz"
    info = npz_members.members(path)["data"]
    path.write_bytes(path.read_bytes()[: info.header_offset + info.file_size // 2])
    with pytest.raises(DataError, match=r"is truncated, damaged or no \.npz file at 'data\.npy'"):
        npz_members.locate(path, info)


def test_a_member_that_inflates_to_less_than_it_declares_is_one_line(tmp_path, cache):
    """Its CRC is right, and so is the header: a map of the file would end in the middle of the
    images."""
    write(tmp_path, "compressed npz")
    path = next(tmp_path.rglob("train_data_batch_2.npz"))
    with np.load(path) as arrays:
        labels, pixels = arrays["labels"], arrays["data"]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(pixels))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header.getvalue() + b"\7" * 6144)
        content = io.BytesIO()
        np.save(content, labels)
        archive.writestr("labels.npy", content.getvalue())
        archive.getinfo("data.npy").file_size = len(header.getvalue()) + pixels.size
    assert "is truncated, damaged or no .npz file at 'data.npy'" in failure(tmp_path)
    assert not list((cache / "imagenet32").glob("train_data_batch_2*"))


def test_another_file_of_the_same_checksum_is_not_taken_for_one_unpacked_before(tmp_path, cache, monkeypatch):
    """CRC32 is made to any value with four bytes: a forged file would stay in the cache when it has
    been replaced."""
    monkeypatch.setattr(npz_members, "is_mappable", lambda info: False)
    write(tmp_path, "compressed npz")
    path = next(tmp_path.rglob("train_data_batch_2.npz"))
    (info,) = (i for n, i in npz_members.members(path).items() if n == "data")
    before = npz_members.unpacked(path, info, cache)
    os.utime(path, ns=(1, 1))
    assert npz_members.unpacked(path, info, cache) != before


@pytest.mark.parametrize("huge", [2**62, 2**100])
def test_an_array_of_no_rows_and_huge_ones_is_one_line(tmp_path, huge):
    """0 × 2⁶² elements are none, as the file has; numpy refuses to count them."""
    write(tmp_path, "pickle 4")
    path = next(p for p in tmp_path.rglob("train_data_batch_3") if p.is_file())
    made = pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": np.zeros((0, 7), np.int64)}, protocol=4)
    width = (huge.bit_length() + 8) // 8
    assert made.count(b"K\x00K\x07\x86") == 1
    path.write_bytes(made.replace(b"K\x00K\x07\x86", b"K\x00\x8a" + bytes([width]) + huge.to_bytes(width, "little") + b"\x86"))
    told = failure(tmp_path)
    assert "\n" not in told
    assert "train_data_batch_3" in told
