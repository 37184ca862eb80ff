"""Where the canonical files are: under the user's data folder, in this package's cache, or on a
mirror. Whatever the place, the uncompressed content is checked by SHA-256 before anything else
reads it.

The user's folder is only read. A download is checked under a temporary name in the cache and only
then gets its own, so that neither an interruption nor a wrong mirror leaves a damaged file
behind."""

import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

from dualprop.data import fetching
from dualprop.data.catalogue import SOURCES
from dualprop.errors import DataError

REPLACE = "Replace it, or move it away to have it downloaded."
# More than any canonical file or archive holds (CIFAR-100's archive has 169 MB): what is larger is
# not read to be told from it.
LARGEST = 400 << 20


def cache_folder() -> Path:
    """The operating system's cache folder for this package; downloads go there.

    Raises DataError where it is not absolute: it would be another one wherever one stands.
    """
    import pooch

    folder = Path(pooch.os_cache("dualprop"))
    if not folder.is_absolute():
        raise DataError(f"the cache folder {folder} is relative. Set $XDG_CACHE_HOME or $HOME to an absolute path.")
    return folder


def contents(name: str, *, root: Path | None, mirror: str | None) -> dict[str, bytes]:
    """The uncompressed, verified contents of the files of data set `name`, by their names. `root`,
    `mirror` as in `load`."""
    root = data_folder(root)
    source, unpacked = SOURCES[name], {}
    for file in source.sha256:
        if source.archive is None:
            unpacked[file] = _content(name, file, root, mirror)
        elif root is not None and (path := find(root, source.folders, file)):
            unpacked[file] = verified(path, name, file, str(path), REPLACE)
    if source.archive is not None and len(unpacked) < len(source.sha256):
        # Not some from here and some from there: whoever has an incomplete folder should hear of
        # it.
        if unpacked:
            missing = ", ".join(file for file in source.sha256 if file not in unpacked)
            raise DataError(f"{name} in {root} is incomplete: it lacks {missing}. Unpack {source.archive[0]} there again.")
        unpacked = members(name, _content(name, source.archive[0], root, mirror))
    return unpacked


def members(name: str, archive: bytes) -> dict[str, bytes]:
    """The verified files of data set `name` from its .tar.gz, read in memory: nothing that it holds
    is written anywhere."""
    source, contents = SOURCES[name], {}
    shown = f"{name}'s archive"
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                # Regular files alone: a link would name a file of the machine's.
                if file in source.sha256 and folder in source.folders and member.isreg():
                    opened = tar.extractfile(member)
                    contents[file] = b"" if opened is None else opened.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        raise DataError(f"{shown} is a truncated or damaged .tar.gz. {REPLACE}") from None
    for file in source.sha256:
        if file not in contents:
            raise DataError(f"{shown} lacks {file}. {REPLACE}")
        check(contents[file], name, file, f"{file} in {shown}", REPLACE)
    return contents


def data_folder(root: Path | None) -> Path | None:
    """The user's data folder: `root`, else $DUALPROP_DATA, else None. Raises DataError where there
    is no such folder."""
    folder = os.environ.get("DUALPROP_DATA")
    root = root or (Path(folder).expanduser() if folder else None)
    if root is not None and not os.path.isdir(root):
        raise DataError(f"the data folder {root} does not exist. Correct --data or $DUALPROP_DATA, or unset both.")
    return root


def _content(name: str, file: str, root: Path | None, mirror: str | None) -> bytes:
    if root is not None and (path := find(root, SOURCES[name].folders, file)):
        return verified(path, name, file, str(path), REPLACE)
    folder = cache_folder() / name
    if path := find(folder, (".",), file):
        try:
            return verified(path, name, file, str(path), "")
        except DataError:
            path.unlink(missing_ok=True)  # the cache is ours: what was damaged in it is fetched again
    return download(name, file, folder, root, mirror)


def find(root: Path, folders: tuple[str, ...], file: str) -> Path | None:
    """The first of root/folder/file and root/folder/file.gz that exists, over `folders` in
    order."""
    candidates = (root / folder / (file + suffix) for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if os.path.isfile(path)), None)


def verified(path: Path, name: str, file: str, shown: str, remedy: str) -> bytes:
    """The content of `path`, uncompressed unless it is an archive, proved by SHA-256 to be `file`
    of data set `name`.

    DataErrors call it `shown` and end in `remedy`.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{shown} is larger than any file of {name}. {remedy}".rstrip())
        content = path.read_bytes()
        # By content, not by suffix: some servers' transport encoding undoes the compression on the
        # way.
        if content.startswith(b"\x1f\x8b") and not _is_archive(name, file):
            content = _inflated(content)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"{shown} is a truncated or damaged gzip file. {remedy}".rstrip()) from None
    except _TooLarge:
        raise DataError(f"{shown} inflates to more than any file of {name} holds. {remedy}".rstrip()) from None
    except OSError as error:
        raise DataError(f"{shown} can't be read ({error.strerror or error}). {remedy}".rstrip()) from None
    check(content, name, file, shown, remedy)
    return content


class _TooLarge(Exception):
    """A gzip file that inflates beyond LARGEST."""


def _inflated(content: bytes) -> bytes:
    """The content of a gzip file, which is not believed to be of any size before it is there."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        inflated = file.read(LARGEST + 1)
        if len(inflated) > LARGEST:
            raise _TooLarge
        file.read(1)  # to the end, where the checksum is compared
        return inflated


def check(content: bytes, name: str, file: str, shown: str, remedy: str) -> None:
    """Raise DataError unless `content` is what the table has as `file` of data set `name`."""
    digest, digests = hashlib.sha256(content).hexdigest(), _digests(name)
    if digest != digests[file]:
        whose = {d: f"{other}'s {f}" for other in SOURCES for f, d in _digests(other).items()}
        wanted = digests[file][:12]
        reason = f"it is {whose[digest]}" if digest in whose else f"its SHA-256 is {digest[:12]}…, not {wanted}…"
        raise DataError(f"{shown} is not {name}'s {file}: {reason}. {remedy}".rstrip())


def _digests(name: str) -> dict[str, str]:
    """Of all that can be found or downloaded of a data set: its files, and the archive of them."""
    source = SOURCES[name]
    return source.sha256 | dict([source.archive] if source.archive else [])


def _is_archive(name: str, file: str) -> bool:
    return file not in SOURCES[name].sha256


def _most(name: str, file: str) -> int:
    """How many bytes a download of the file can have: its size, and what gzip adds to what it can't
    compress."""
    size = SOURCES[name].sizes[file]
    return size + size // 1000 + 1024


def download(name: str, file: str, folder: Path, root: Path | None, mirror: str | None) -> bytes:
    """The verified content of `file`, fetched into `folder` as FILE.gz, or as it is named where it
    is an archive.

    DataErrors say where to put the file by hand.
    """
    offered = file if _is_archive(name, file) else f"{file}.gz"
    mirror = mirror or os.environ.get("DUALPROP_MIRROR") or None
    # MNIST and Fashion-MNIST use the same file names, so a mirror of several keeps them in folders;
    # a mirror of one need not.
    bases = [f"{mirror.rstrip('/')}/{name}", mirror.rstrip("/")] if mirror else [SOURCES[name].mirror]
    by_hand = f"Put {offered} into {root / name if root else folder} by hand, or set $DUALPROP_MIRROR to another URL."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise DataError(f"can't write to the cache folder {folder} ({error.strerror or error}). {by_hand}") from None
    part = Path(temporary)
    try:
        for base in bases:
            url = f"{base}/{offered}"
            reason = fetching.fetch(url, part, _most(name, file))
            if reason is None:
                content = verified(part, name, file, f"what {url} sent", f"It was deleted. {by_hand}")
                part.replace(folder / offered)
                return content
            if reason not in ("HTTP 403", "HTTP 404"):  # S3 answers 403 for what it does not have
                break
        raise DataError(f"can't download {url} ({reason}). {by_hand}")
    finally:
        part.unlink(missing_ok=True)
