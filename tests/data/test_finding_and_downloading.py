"""Canonical files: found in any accepted place, downloaded only where missing, never used if a
checksum fails."""

import dataclasses
import gzip
from pathlib import Path

import pytest
from canonical import FILES

from dualprop.data import load, sources
from dualprop.errors import DataError

IMAGES = FILES[0]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def failure(**arguments: object) -> str:
    """The message of the DataError that loading mnist raises, proved to be one line that ends a
    sentence."""
    with pytest.raises(DataError) as raised:
        load("mnist", **arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "."])
def test_files_are_found_in_every_accepted_folder_raw_or_compressed(tiny, lay_out, tmp_path, folder, compress):
    """A layout that is missed would cost the user a download of what is already there."""
    lay_out(tiny, tmp_path / folder, compress)
    splits = load("mnist", root=tmp_path)
    assert len(splits.train) + len(splits.validation) == 30
    assert len(splits.test) == 12
    assert splits.input_shape == (1, 4, 4)
    assert splits.num_classes == 3


def test_the_environment_names_the_root_and_the_argument_outranks_it(tiny, lay_out, tmp_path, monkeypatch):
    """With the order reversed `--data` would be ignored on machines where the variable is set."""
    lay_out(tiny, tmp_path / "good")
    lay_out(dict.fromkeys(tiny, b"junk"), tmp_path / "bad")
    monkeypatch.setenv("DUALPROP_DATA", str(tmp_path / "good"))
    assert len(load("mnist").test) == 12
    monkeypatch.setenv("DUALPROP_DATA", str(tmp_path / "bad"))
    assert len(load("mnist", root=tmp_path / "good").test) == 12
    assert str(tmp_path / "bad") in failure()


@pytest.mark.parametrize(("folder", "status"), [("", 404), ("", 403), ("/mnist", 404)])
def test_what_is_missing_is_downloaded_into_the_cache_once(tiny, mirror, cache, tmp_path, folder, status):
    """The user's folder must stay as it was, and a second run must work offline. (S3 answers 403
    for what it lacks.)"""
    mirror.status = status
    mirror.serve(tiny, folder)
    first = load("mnist", root=tmp_path, mirror=mirror.url)
    assert files_below(tmp_path) == set()
    assert files_below(cache) == {f"mnist/{name}.gz" for name in FILES}
    asked = len(mirror.requests)
    second = load("mnist", root=tmp_path, mirror=mirror.url)
    assert len(mirror.requests) == asked
    assert first.train.x.equal(second.train.x)


def test_only_the_files_that_the_root_lacks_are_downloaded(tiny, lay_out, mirror, tmp_path):
    """One missing label file must not fetch ten megabytes of images again."""
    lay_out({name: content for name, content in tiny.items() if name != FILES[3]}, tmp_path)
    mirror.serve(tiny)
    load("mnist", root=tmp_path, mirror=mirror.url + "/")
    assert mirror.requests == [f"/mnist/{FILES[3]}.gz", f"/{FILES[3]}.gz"]


def test_the_environment_names_the_mirror_and_the_argument_outranks_it(tiny, mirror, cache, monkeypatch):
    """Behind a firewall the variable is all that the user can set for a whole machine."""
    mirror.serve(tiny)
    monkeypatch.setenv("DUALPROP_MIRROR", "https://127.0.0.1:1")
    assert "https://127.0.0.1:1/" in failure()
    load("mnist", mirror=mirror.url)
    monkeypatch.setenv("DUALPROP_MIRROR", mirror.url)
    for path in cache.rglob("*.gz"):
        path.unlink()
    assert len(load("mnist").test) == 12


def test_without_a_mirror_the_table_decides(tiny, mirror, monkeypatch):
    """The default URL is used as it stands: no folder is added to it."""
    mirror.serve(tiny, "/canonical")
    source = dataclasses.replace(sources.SOURCES["mnist"], mirror=f"{mirror.url}/canonical")
    monkeypatch.setitem(sources.SOURCES, "mnist", source)
    load("mnist")
    assert mirror.requests == [f"/canonical/{name}.gz" for name in FILES]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_failed_download_says_why_and_where_to_put_the_files_by_hand(tiny, mirror, cache, tmp_path, status):
    """Offline machines are common; without the folder's name the user can't help themself."""
    mirror.status = status
    message = failure(mirror=mirror.url)
    assert f"HTTP {status}" in message
    assert f"Put {IMAGES}.gz into {cache / 'mnist'} by hand" in message
    assert f"into {tmp_path / 'mnist'} by hand" in failure(mirror=mirror.url, root=tmp_path)
    assert files_below(cache) == set()


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1", "http://127.0.0.1:1", "gopher://127.0.0.1", "https://[bad", "nonsense", "https://"]
)
def test_an_unreachable_or_malformed_mirror_is_one_line(tiny, cache, url):
    """requests raises many kinds of error; each that escapes would be a page of traceback."""
    assert "can't download" in failure(mirror=url)
    assert files_below(cache) == set()


def test_a_connection_that_breaks_off_leaves_nothing_behind(tiny, mirror, cache):
    """Half a file that kept its name would fail in every later run."""
    mirror.serve(tiny)
    mirror.cut_short = True
    assert "can't download" in failure(mirror=mirror.url)
    assert files_below(cache) == set()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (gzip.compress(b"other content"), "its SHA-256 is"),
        (b"<html>please log in</html>", "its SHA-256 is"),
        (gzip.compress(b"a" * 1000)[:-9], "truncated or damaged"),
        (b"\x1f\x8bnot gzip at all", "truncated or damaged"),
    ],
    ids=["other content", "a page", "cut short", "no gzip"],
)
def test_a_damaged_download_is_deleted(tiny, mirror, cache, body, complaint):
    """Networks with a login page answer 200 to everything; what they send must be neither used nor
    kept."""
    mirror.serve(tiny)
    mirror.pages[f"/{IMAGES}.gz"] = body
    message = failure(mirror=mirror.url)
    assert complaint in message
    assert "It was deleted" in message
    assert files_below(cache) == set()


def test_a_server_that_undoes_the_compression_is_understood(tiny, mirror):
    """Some send .gz with a Content-Encoding, and what arrives is the raw file: the content decides,
    not the suffix."""
    mirror.pages = {f"/{name}.gz": content for name, content in tiny.items()}
    assert len(load("mnist", mirror=mirror.url).test) == 12


def test_a_damaged_file_in_the_cache_is_fetched_again(tiny, lay_out, mirror, cache):
    """The cache is ours: a user should never be told to go and delete something in it."""
    lay_out({**tiny, IMAGES: b"junk"}, cache / "mnist")
    mirror.serve(tiny)
    assert len(load("mnist", mirror=mirror.url).test) == 12
    assert gzip.decompress((cache / "mnist" / f"{IMAGES}.gz").read_bytes()) == tiny[IMAGES]


@pytest.mark.parametrize("damage", ["truncated", "wrong", "empty"])
def test_a_damaged_file_of_the_users_is_named_and_left_alone(tiny, lay_out, mirror, tmp_path, damage):
    """It must not be replaced in silence by a download, nor deleted: it is not ours."""
    lay_out(tiny, tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    content = {"truncated": path.read_bytes()[:-5], "wrong": gzip.compress(b"wrong"), "empty": b""}[damage]
    path.write_bytes(content)
    mirror.serve(tiny)
    assert failure(root=tmp_path, mirror=mirror.url).startswith(str(path))
    assert path.read_bytes() == content
    assert mirror.requests == []


def test_a_file_of_another_data_set_is_called_by_its_name(tiny, lay_out, tmp_path):
    """MNIST and Fashion-MNIST use the same file names; trained on unawares, the wrong one gives
    plausible numbers."""
    lay_out(tiny, tmp_path)
    with pytest.raises(DataError, match=f"is not fashion-mnist's {IMAGES}: it is mnist's {IMAGES}"):
        load("fashion-mnist", root=tmp_path)


def test_a_root_that_does_not_exist_is_an_error_and_no_download(tiny, mirror, tmp_path):
    """A typing error in --data would otherwise download what the user has."""
    mirror.serve(tiny)
    assert "does not exist" in failure(root=tmp_path / "typo", mirror=mirror.url)
    assert mirror.requests == []


def test_a_cache_that_can_not_be_written_is_one_line(tiny, mirror, tmp_path, monkeypatch):
    """A home folder that is read-only or full is common on clusters."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "file")
    assert "can't write to the cache folder" in failure(mirror=mirror.url)


@pytest.mark.parametrize("kind", ["bomb", "sparse"])
def test_what_is_larger_than_any_canonical_file_is_not_read_to_the_end(tiny, tmp_path, monkeypatch, kind):
    """A few megabytes of gzip inflate to gigabytes, and a sparse file takes none: memory would be
    full before a digest is."""
    monkeypatch.setattr(sources, "LARGEST", 1 << 20)
    folder = tmp_path / "mnist"
    folder.mkdir()
    path = folder / ("train-images-idx3-ubyte" + (".gz" if kind == "bomb" else ""))
    if kind == "bomb":
        path.write_bytes(gzip.compress(bytes(3 << 20)))
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    told = failure(root=tmp_path)
    assert ("inflates to more than any file of" if kind == "bomb" else "is larger than any file of") in told
    assert "\n" not in told
