"""Folders that we make and write into: whose they are, and which process has them.

A process holds a folder, or a file that it is to write, from before its first byte there until its
last. Another that wants it is told so in a line, and has then changed nothing. The lock is an empty
file, locked by the system (flock), which lets go of it however the process ends; it is removed by
whoever held it. Where there is no flock (Windows) nobody is refused: each file is still written
whole, but two processes that train in one folder mix their steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from dualprop.errors import RunError, SettingError
from dualprop.training import files

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # pragma: no cover — not a POSIX system
    flock = None  # type: ignore[assignment]

_LOCK = ".lock"
# Of a run, a comparison, a reproduction: what their folder holds first, and is resumed by.
_DESCRIPTIONS = ("recipe.json", "comparison.json", "reproduction.json")
# Not only of paths: between two dollars matplotlib reads mathematics, where a figure has the name.
_FORBIDDEN = re.compile(r'[/\\:*?"<>|$]')
_LONGEST_NAME = 200
# The locks of this process, with the thread that holds each: it may ask for its own again.
_holders: dict[Path, int] = {}


def check_name(name: str) -> None:
    """Raise SettingError unless `name` is a plain name, which leads nowhere as a path: "dp" or
    "dp-transposed-a0-b0.01", but neither "..", "a/b", ".lock" nor a name that a console would
    obey."""
    plain = name.isprintable() and name == name.strip(" .") and not _FORBIDDEN.search(name)
    if not name or not plain or len(os.fsencode(name)) > _LONGEST_NAME:
        raise SettingError(f"{name[:80]!r} is no plain name: take letters, digits, dashes, and dots in between")


def inside(folder: Path, name: str) -> Path:
    """The path of the folder `name` in `folder`, which may not be there yet.

    Raises SettingError where the name is a path, and RunError where something else is there: a link
    above all, which would lead out of the folder.
    """
    check_name(name)
    path = folder / name
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise RunError(f"{path} is no folder of its own (a link, or a file). Move it away, or choose another folder.")
    return path


def make_inside(folder: Path, name: str) -> Path:
    """The same, made if it is not there."""
    path = inside(folder, name)
    files.make_folder(path)
    return path


def make_new(folder: Path, stem: str) -> Path:
    """Make a folder in `folder` that was not there: `stem`, else `stem`-2, and so on."""
    files.make_folder(folder)
    for number in itertools.count(1):
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            files.sync_folder(folder)
            break
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`, which is held: nobody is
    writing there."""
    for path in folder.iterdir():
        if files.is_temporary(path):
            path.unlink()


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a new folder, or take one that is empty or holds nothing but what a start that was
    killed leaves, and hold it. Raises RunError; then nothing in it was touched."""
    try:
        files.make_folder(folder)
    except FileExistsError:
        raise RunError(f"{folder} is a file. Choose another folder with --out.") from None
    _refuse_others(folder)
    with held(folder):
        _refuse_others(folder)  # another process may have begun here before the lock was ours
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def held(folder: Path, doing: str = "trained") -> Iterator[None]:
    """Hold the folder for this thread; within, it may be held again. Raises RunError where another
    has it."""
    with _locked(folder / _LOCK, f"{folder} is being {doing} by another process. Wait for it, or stop it."):
        yield


@contextlib.contextmanager
def held_file(path: Path) -> Iterator[None]:
    """Hold a file that is to be written anywhere, by a lock beside it. Raises RunError where it is
    no file or another process has it."""
    files.exists(path)
    # A name of its own length, since that of the file may be as long as the system allows.
    lock = path.with_name(f".dualprop-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.lock")
    with _locked(lock, f"{path} is being written by another process. Wait for it, or choose another path."):
        yield


def _refuse_others(folder: Path) -> None:
    others = sorted(path.name for path in folder.iterdir() if not _is_of_a_start(path))
    if set(_DESCRIPTIONS) & set(others):
        raise RunError(f"{folder} exists already. Continue it with --resume {folder}, or choose another folder with --out.")
    if others:
        raise RunError(f"{folder} exists already and is no run: it holds {others[0]!r}. Choose another folder with --out.")


def _is_of_a_start(path: Path) -> bool:
    try:
        status = os.lstat(path)
        # A lock that holds something is somebody's own.
        is_lock = path.name == _LOCK and stat.S_ISREG(status.st_mode) and status.st_size == 0
        return is_lock or files.is_temporary(path)
    except FileNotFoundError:  # gone since it was listed: the lock or temporary file of one that is at work
        return True


@contextlib.contextmanager
def _locked(path: Path, busy: str) -> Iterator[None]:
    if flock is None:
        yield
        return
    # The present folder may change until the end.
    path, thread = Path(os.path.realpath(path.parent), path.name), threading.get_ident()
    if _holders.get(path) == thread:
        yield
        return
    descriptor = _lock(path, busy)
    _holders[path] = thread
    try:
        yield
    finally:
        del _holders[path]
        # Removed before it is let go, so that it is never another's.
        with contextlib.suppress(OSError):
            if _is_at(path, descriptor):
                path.unlink()
        os.close(descriptor)


def _lock(path: Path, busy: str) -> int:
    """A descriptor of the file at `path`, locked for this process and nobody else."""
    while True:
        descriptor = files.opener(path, os.O_RDWR | os.O_CREAT)
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            if os.fstat(descriptor).st_size:
                raise RunError(f"{path} holds something, so it is no lock of dualprop. Move it away.")
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise RunError(busy) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it has removed it in the meantime


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
