"""CIFAR-10 and CIFAR-100: the real files, every place in which they are found, and each way in
which they can be wrong."""

import pickle
import tarfile

import numpy as np
import pytest
import torch
from canonical import cifar, tar_gz, vouch_for

from dualprop.data import load, sources
from dualprop.data.cifar import batch
from dualprop.errors import DataError

CIFAR10 = tuple(sources.SOURCES["cifar10"].sha256)
CIFAR100 = tuple(sources.SOURCES["cifar100"].sha256)


def failure(name: str, **arguments: object) -> str:
    """The message of the DataError that loading raises, proved to be one line that ends a
    sentence."""
    with pytest.raises(DataError) as raised:
        load(name, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def small(monkeypatch):
    """Files, archive: a CIFAR-10 of 5 × 6 + 6 examples that the table knows."""
    files = {file: cifar(6, seed=seed, protocol=3 + seed % 2) for seed, file in enumerate(CIFAR10)}
    archive = tar_gz({f"cifar-10-batches-py/{file}": content for file, content in files.items()})
    vouch_for("cifar10", files, monkeypatch, archive)
    return files, archive


@pytest.fixture
def small100(monkeypatch):
    files = {file: cifar(30, "fine_labels", 30, seed) for seed, file in enumerate(CIFAR100)}
    archive = tar_gz({f"cifar-100-python/{file}": content for file, content in files.items()})
    vouch_for("cifar100", files, monkeypatch, archive)
    return files, archive


def test_the_real_cifar10_is_what_pythons_own_unpickler_reads(shared_cifar10):
    """The reader is our own: pixels of the wrong image, or labels one off, would look like a hard
    data set."""
    splits = load("cifar10", root=shared_cifar10, seed=7)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45000, 5000, 10000)
    assert (splits.num_classes, splits.input_shape) == (10, (3, 32, 32))
    folder = shared_cifar10 / "cifar-10-batches-py"
    held = pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")  # verified by its SHA-256 when it was loaded
    assert np.array_equal(splits.test.x.numpy().reshape(-1, 3072), held[b"data"])
    assert splits.test.y.tolist() == held[b"labels"]
    named = pickle.loads((folder / "batches.meta").read_bytes(), encoding="bytes")
    assert splits.task.names == tuple(name.decode() for name in named[b"label_names"])
    y = torch.cat([splits.train.y, splits.validation.y])
    assert y.bincount().tolist() == [5000] * 10
    x = torch.cat([splits.train.x, splits.validation.x]).double() / 255
    assert torch.allclose(x.mean((0, 2, 3)), torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64), atol=1e-4)
    # The field's std is the mean over images of each one's, which is smaller than that over all
    # pixels.
    normal, _ = splits.train.batch(torch.arange(1000))
    expected = (splits.train.x[:1000] / 255 - tensor(0.4914, 0.4822, 0.4465)) / tensor(0.2023, 0.1994, 0.2010)
    assert torch.allclose(normal, expected, atol=1e-4)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py", "."])
def test_unpacked_files_are_found_in_every_accepted_folder(small, tmp_path, lay_out, folder):
    """A layout that is missed would cost the user a download of 170 MB that is already there."""
    lay_out(small[0], tmp_path / folder, compress=False)
    splits = load("cifar10", root=tmp_path)
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (30, 6)


@pytest.mark.parametrize("folder", ["cifar10", "."])
def test_the_archive_is_read_where_it_lies_and_nothing_is_unpacked(small, tmp_path, cache, folder):
    """The user's folder is only read."""
    files, archive = small
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "cifar-10-python.tar.gz").write_bytes(archive)
    splits = load("cifar10", root=tmp_path)
    expected, _ = batch(files["test_batch"], "labels", "test_batch")
    assert np.array_equal(splits.test.x.numpy(), expected)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["cifar-10-python.tar.gz"]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("folder", ["", "/cifar10"])
def test_the_archive_is_downloaded_into_the_cache_once(small, mirror, cache, folder):
    """A second run must work offline."""
    mirror.pages[f"{folder}/cifar-10-python.tar.gz"] = small[1]
    first = load("cifar10", mirror=mirror.url)
    assert (cache / "cifar10" / "cifar-10-python.tar.gz").read_bytes() == small[1]
    asked = len(mirror.requests)
    assert load("cifar10", mirror=mirror.url).train.x.equal(first.train.x)
    assert len(mirror.requests) == asked


def test_a_failed_download_says_where_to_put_the_archive(small, mirror, cache, tmp_path):
    """Offline machines are common."""
    message = failure("cifar10", mirror=mirror.url, root=tmp_path)
    assert f"Put cifar-10-python.tar.gz into {tmp_path / 'cifar10'} by hand" in message


def test_cifar100_has_the_fine_labels(small100, tmp_path, lay_out):
    """The 20 coarse ones are in the same file."""
    lay_out(small100[0], tmp_path / "cifar-100-python", compress=False)
    splits = load("cifar100", root=tmp_path)
    assert splits.num_classes == 30
    assert splits.test.y.tolist() == list(range(30))
    (tmp_path / "tar").mkdir()
    (tmp_path / "tar" / "cifar-100-python.tar.gz").write_bytes(small100[1])
    assert load("cifar100", root=tmp_path / "tar").test.x.equal(splits.test.x)


def test_a_folder_that_lacks_a_file_is_named_with_the_file(small, tmp_path, lay_out):
    """Completed in silence by a download, a half-copied folder would stay so."""
    lay_out({file: content for file, content in small[0].items() if file != "data_batch_3"}, tmp_path, compress=False)
    assert "is incomplete: it lacks data_batch_3" in failure("cifar10", root=tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "other"])
def test_a_damaged_file_is_refused_before_it_is_read(small, tmp_path, lay_out, damage):
    """A pickle that is not known to be the right one must not even be looked at."""
    whole = small[0]["data_batch_2"]
    changed = {
        "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "truncated": whole[:-1],
        "empty": b"",
        "other": small[0]["test_batch"],
    }[damage]
    lay_out({**small[0], "data_batch_2": changed}, tmp_path, compress=False)
    message = failure("cifar10", root=tmp_path)
    assert message.startswith(str(tmp_path / "data_batch_2"))
    assert ("it is cifar10's test_batch" if damage == "other" else "its SHA-256 is") in message


def test_a_damaged_archive_is_refused_before_it_is_read(small, tmp_path):
    """The same of the archive."""
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(small[1][:-20])
    assert failure("cifar10", root=tmp_path).startswith(str(tmp_path / "cifar-10-python.tar.gz"))


def test_links_and_paths_that_lead_out_of_an_archive_are_not_followed(small, tmp_path, monkeypatch):
    """Even an archive with the right checksum writes nothing, and reads nothing but its own regular
    files."""
    link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = {f"cifar-10-batches-py/{file}": small[0][file] for file in CIFAR10[1:]}
    archive = tar_gz({**members, "../../escaped": b"x", "/tmp/../data_batch_1": small[0]["data_batch_1"]}, (link,))
    vouch_for("cifar10", small[0], monkeypatch, archive)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cifar-10-python.tar.gz").write_bytes(archive)
    assert "cifar10's archive lacks data_batch_1" in failure("cifar10", root=tmp_path / "root")
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "cifar-10-python.tar.gz"]


def test_files_in_an_archive_are_verified_too(small, tmp_path, monkeypatch):
    """The archive's checksum alone would let a wrong table through."""
    files = {f"cifar-10-batches-py/{file}": content for file, content in small[0].items()}
    archive = tar_gz({**files, "cifar-10-batches-py/data_batch_4": b"junk"})
    vouch_for("cifar10", small[0], monkeypatch, archive)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    assert "data_batch_4 in cifar10's archive is not cifar10's data_batch_4" in failure("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8bnothing", tar_gz({})[:-12], b"text" * 1000],
    ids=["empty", "no gzip", "cut short", "text"],
)
def test_what_is_no_archive_is_one_line(small, tmp_path, monkeypatch, content):
    """tarfile, gzip and zlib each have their own errors."""
    vouch_for("cifar10", small[0], monkeypatch, content)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    assert "cifar10's archive" in failure("cifar10", root=tmp_path)


PIXELS = np.zeros((4, 3072), np.uint8)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"labels": [0] * 4}, "lacks 'data' or 'labels'; it holds ['labels']"),
        ({"data": PIXELS, "fine_labels": [0] * 4}, "lacks 'data' or 'labels'"),
        ({"data": [0], "labels": [0]}, "lacks 'data' or 'labels'"),
        ({"data": PIXELS[:, 1:].copy(), "labels": [0] * 4}, "holds pixels (4, 3071) uint8"),
        ({"data": PIXELS[0], "labels": [0] * 4}, "holds pixels (3072,) uint8"),
        ({"data": PIXELS[:0], "labels": []}, "holds pixels (0, 3072) uint8"),
        ({"data": PIXELS.astype(np.int64), "labels": [0] * 4}, "holds pixels (4, 3072) int64"),
        ({"data": PIXELS, "labels": [0] * 3}, "does not hold 4 labels"),
        ({"data": PIXELS, "labels": [0, 1, 2, -1]}, "does not hold 4 labels from 0 to 99"),
        ({"data": PIXELS, "labels": [0, 1, 2, 100]}, "does not hold 4 labels from 0 to 99"),
        ({"data": PIXELS, "labels": [0, 1, 2, "3"]}, "does not hold 4 labels from 0 to 99"),
        ({"data": PIXELS, "labels": [0, 1, 2, True]}, "does not hold 4 labels from 0 to 99"),
    ],
)
def test_a_malformed_batch_is_named_in_one_line(entries, complaint):
    """Each would else be a traceback from numpy, or labels that belong to other images."""
    with pytest.raises(DataError) as raised:
        batch(pickle.dumps(entries, 3), "labels", "cifar10's data_batch_1")
    assert complaint in str(raised.value)
    assert str(raised.value).startswith("cifar10's data_batch_1 ")
    assert "\n" not in str(raised.value)


def test_classes_have_the_names_that_their_numbers_are_sorted_by():
    """CIFAR's are in the order of the alphabet, Fashion-MNIST's in its authors'."""
    for name, number in (("cifar10", 10), ("cifar100", 100)):
        names = sources.SOURCES[name].classes
        assert len(set(names)) == number
        assert list(names) == sorted(names)
    assert len(set(sources.SOURCES["fashion-mnist"].classes)) == 10
