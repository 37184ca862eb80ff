"""Where the canonical files are: under the user's data folder, in this package's cache, or on a mirror. Whatever the
place, the uncompressed content is checked by SHA-256 before anything else reads it.

The user's folder is only read. A download is checked under a temporary name in the cache and only then gets its own, so
that neither an interruption nor a wrong mirror leaves a damaged file behind."""

import gzip
import hashlib
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from dualprop.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Source:
    """A data set of four IDX files. mean, std: of the training pixels over 255, in the field's rounding."""

    description: str
    folders: tuple[str, ...]
    """Below the data folder, in the order of search."""
    mirror: str
    mean: float
    std: float
    sha256: tuple[str, str, str, str]
    """Of the uncompressed files, in the order of FILES."""


SOURCES = {
    "mnist": Source(
        description="handwritten digits, 28×28 grey, 60 000 + 10 000, 10 classes",
        folders=("mnist", "MNIST/raw", "."),
        mirror="https://ossci-datasets.s3.amazonaws.com/mnist",
        mean=0.1307,
        std=0.3081,
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion-mnist": Source(
        description="Zalando's articles, 28×28 grey, 60 000 + 10 000, 10 classes",
        folders=("fashion-mnist", "FashionMNIST/raw", "."),
        # Plain HTTP, as S3 website endpoints have no other; the checksum vouches for what comes.
        mirror="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        mean=0.2860,
        std=0.3530,
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


def cache_folder() -> Path:
    """The operating system's cache folder for this package; downloads go there."""
    import pooch

    return Path(pooch.os_cache("dualprop"))


def contents(name: str, *, root: Path | None, mirror: str | None) -> list[bytes]:
    """The uncompressed, verified contents of the FILES of data set `name`. `root` and `mirror` as in `load`."""
    root = root or _folder_from_environment()
    if root is not None and not os.path.isdir(root):
        raise DataError(f"the data folder {root} does not exist. Correct --data or $DUALPROP_DATA, or unset both.")
    return [_content(name, file, root, mirror) for file in FILES]


def _folder_from_environment() -> Path | None:
    folder = os.environ.get("DUALPROP_DATA")
    return Path(folder).expanduser() if folder else None


def _content(name: str, file: str, root: Path | None, mirror: str | None) -> bytes:
    if root is not None and (path := find(root, SOURCES[name].folders, file)):
        return verified(path, name, file, str(path), "Replace it, or move it away to have it downloaded.")
    folder = cache_folder() / name
    if path := find(folder, (".",), file):
        try:
            return verified(path, name, file, str(path), "")
        except DataError:
            path.unlink(missing_ok=True)  # the cache is ours: what was damaged in it is fetched again
    return download(name, file, folder, root, mirror)


def find(root: Path, folders: tuple[str, ...], file: str) -> Path | None:
    """The first of root/folder/file and root/folder/file.gz that exists, over `folders` in order."""
    candidates = (root / folder / (file + suffix) for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def verified(path: Path, name: str, file: str, shown: str, remedy: str) -> bytes:
    """The uncompressed content of `path`, proved by SHA-256 to be `file` of data set `name`.

    DataErrors call it `shown` and end in `remedy`.
    """
    try:
        content = path.read_bytes()
        # By content, not by suffix: some servers' transport encoding undoes the compression on the way.
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"{shown} is a truncated or damaged gzip file. {remedy}".rstrip()) from None
    except OSError as error:
        raise DataError(f"{shown} can't be read ({error.strerror or error}). {remedy}".rstrip()) from None
    digest = hashlib.sha256(content).hexdigest()
    expected = SOURCES[name].sha256[FILES.index(file)]
    if digest != expected:
        known = {d: f"{other}'s {f}" for other in SOURCES for d, f in zip(SOURCES[other].sha256, FILES, strict=True)}
        found = f"it is {known[digest]}" if digest in known else f"its SHA-256 is {digest[:12]}…, not {expected[:12]}…"
        raise DataError(f"{shown} is not {name}'s {file}: {found}. {remedy}".rstrip())
    return content


def download(name: str, file: str, folder: Path, root: Path | None, mirror: str | None) -> bytes:
    """The verified content of `file`, fetched into `folder`/`file`.gz. DataErrors say where to put the file by hand."""
    mirror = mirror or os.environ.get("DUALPROP_MIRROR") or None
    # Both data sets use the same file names, so a mirror of several keeps them in folders; a mirror of one need not.
    bases = [f"{mirror.rstrip('/')}/{name}", mirror.rstrip("/")] if mirror else [SOURCES[name].mirror]
    by_hand = f"Put {file}.gz into {root / name if root else folder} by hand, or set $DUALPROP_MIRROR to another URL."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise DataError(f"can't write to the cache folder {folder} ({error.strerror or error}). {by_hand}") from None
    part = Path(temporary)
    try:
        for base in bases:
            url = f"{base}/{file}.gz"
            reason = _fetch(url, part)
            if reason is None:
                content = verified(part, name, file, f"what {url} sent", f"It was deleted. {by_hand}")
                part.replace(folder / f"{file}.gz")
                return content
            if reason not in ("HTTP 403", "HTTP 404"):  # S3 answers 403 for what it does not have
                break
        raise DataError(f"can't download {url} ({reason}). {by_hand}")
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, path: Path) -> str | None:
    """Download `url` to `path`. None where it worked, else the reason in a few words."""
    import pooch

    try:
        pooch.HTTPDownloader(chunk_size=1 << 16)(url, str(path), None)
    except (OSError, ValueError) as error:  # all of requests' errors are OSErrors
        response = getattr(error, "response", None)
        if response is not None:
            return f"HTTP {response.status_code}"
        return getattr(error, "strerror", None) or type(error).__name__
    return None
