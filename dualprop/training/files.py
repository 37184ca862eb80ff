"""Files that are written, and read again: a crash at any moment leaves the old content or the new,
never a part; and nobody else's file is touched.

Whatever is opened here is a file of its own. A symbolic link, a pipe, a device, a socket or a
folder at its path is refused: a run folder may be a stranger's, and its links lead anywhere. What
is written in place has one name only, since a hard link may be another's backup. The folders above
may be reached by links, see `folders` for those that we make.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dualprop.errors import RunError
from dualprop.system.syncing import sync_folder

# Not there on every system. A pipe is opened without waiting for its other end, then refused.
_GUARDS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
_KINDS = (
    (stat.S_ISLNK, "symbolic link"),
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
# Of writers of this package alone: the process, and 64 random bits.
_TEMPORARY = re.compile(r"\.dualprop-\d+-[0-9a-f]{16}\.writing")


def exists(path: Path) -> bool:
    """Whether a file is at `path`. Raises RunError where something else is."""
    try:
        _check(path, os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` as a whole: a temporary neighbour is written, synced to the disk, and renamed.
    Raises OSError, and RunError where `path` is no file."""
    exists(path)
    temporary = path.with_name(f".dualprop-{os.getpid()}-{secrets.token_hex(8)}.writing")
    try:
        with _naming(path), _open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the value as indented JSON; numbers that are not finite become null."""
    write(path, (json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n").encode())


def to_json(value: Any) -> str:
    """The value as one line of JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value))


def read(path: Path, largest: int | None = None) -> bytes:
    """The whole content. Raises OSError, and RunError where `path` is no file or has more than
    `largest` bytes."""
    with _open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if largest is not None and size > largest:
            raise RunError(f"{path} is damaged: its {size >> 20} MB are more than any such file has, {largest >> 20} MB.")
        return file.read() if largest is None else file.read(size)


def remove(path: Path) -> None:
    """Remove the file, where there is one. Raises RunError where something else is."""
    if exists(path):
        path.unlink()


def drop_partial_line(path: Path) -> None:
    """Cut off a last line that a killed writer left without its end."""
    if exists(path):
        truncate(path, read(path).rfind(b"\n") + 1)


def append(path: Path, line: str) -> int:
    """Append one line, sync it to the disk, and return the file's length in bytes."""
    with _naming(path), _open(path, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def truncate(path: Path, length: int) -> None:
    """Cut the file back to `length` bytes; it is created if it is not there and length is 0."""
    with _open(path, "ab") as file:
        if file.tell() < length:
            raise RunError(
                f"{path} is shorter than its checkpoint says. Restore it, or remove its folder to train this seed anew."
            )
        file.truncate(length)
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, where they are not there; each reaches the disk, or a
    power cut could take it with all that was synced in it. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def is_temporary(path: Path) -> bool:
    """Whether it is a temporary file of `write`, left where its process was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None and stat.S_ISREG(os.lstat(path).st_mode)


def opener(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file of its own, as `open(…, opener=opener)` asks for it. Raises RunError where it is
    none."""
    exists(Path(path))  # before it is opened: opening a device or a pipe may do something
    descriptor = os.open(path, flags | _GUARDS, 0o666)
    try:
        status = os.fstat(descriptor)
        _check(path, status)
        if flags & os.O_APPEND and status.st_nlink > 1:
            raise RunError(
                f"{path} has a second name (a hard link), through which its content would change too. Put a copy in its place."
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path, mode: str) -> BinaryIO:
    file: BinaryIO = open(path, mode, opener=opener)  # type: ignore[assignment]  # noqa: SIM115
    return file


def _check(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "special file")
        raise RunError(
            f"{path} is a {kind}, and no file of its own: it is neither read, written, followed nor replaced. "
            "Move it away, or choose another path."
        )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing and syncing come without the file's name; give it to them."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
