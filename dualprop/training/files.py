"""Writing files so that a crash at any moment leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = ".writing"


def write(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` as a whole: a temporary neighbour is written, synced to the disk, and renamed. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with _naming(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by the value as indented JSON."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def append(path: Path, line: str) -> int:
    """Append one line, sync it to the disk, and return the file's length in bytes."""
    with _naming(path), open(path, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def truncate(path: Path, length: int) -> None:
    """Cut the file back to `length` bytes; it is created if it is not there and length is 0."""
    with open(path, "ab") as file:
        file.truncate(length)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`."""
    for path in folder.glob(f"*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def remove_empty_run(folder: Path) -> None:
    """Remove a run folder that was killed before its recipe was written; nothing was trained in it."""
    if folder.is_dir():
        remove_leftovers(folder)
        (folder / "environment.json").unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing and syncing come without the file's name; give it to them."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk. Some systems can't open a folder; there is nothing to sync there.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
