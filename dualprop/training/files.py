"""Writing files so that a crash at any moment leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dualprop.errors import RunError

_TEMPORARY = ".writing"


def write(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` as a whole: a temporary neighbour is written, synced to the disk, and renamed.
    Raises OSError."""
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
    """Replace `path` by the value as indented JSON; numbers that are not finite become null."""
    write(path, (json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n").encode())


def to_json(value: Any) -> str:
    """The value as one line of JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value))


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises RunError where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Restore it, or remove it to have it made again.") from error


def read_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines; none where it does not exist. A last line without its end
    is still being written.

    Raises RunError where another line is damaged.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Restore it, or remove its folder to train this seed anew.") from error


def drop_partial_line(path: Path) -> None:
    """Cut off a last line that a killed writer left without its end."""
    if path.exists():
        truncate(path, path.read_bytes().rfind(b"\n") + 1)


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
        if file.tell() < length:
            raise RunError(
                f"{path} is shorter than its checkpoint says. Restore it, or remove its folder to train this seed anew."
            )
        file.truncate(length)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`."""
    for path in folder.glob(f"*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def claim(folder: Path) -> None:
    """Make a new folder, or take one that holds nothing but what a start that was killed leaves.
    Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(f"{folder} is a file. Choose another folder with --out.") from None
    remove_leftovers(folder)
    if {path.name for path in folder.iterdir()} - {"environment.json"}:
        raise RunError(f"{folder} exists already. Continue it with --resume {folder}, or choose another folder with --out.")


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


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk. Some systems can't open a folder; there is nothing to
    # sync there.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
