"""A small world for a trial: a folder to work in, and beside it what nobody may touch.

    outside/   a victim: files and folders that look like a run's, for links to point at
    tmp/       $TMPDIR, which every command must leave empty
    work/      where commands are run
    work/…     what hostile paths name: a file, a folder, links, a FIFO, devices of our own, …

`Sandbox.look` is a digest of all of it; `changes` tells two of them apart. Devices are nodes in the
sandbox, never the system's own: as root a command could replace those.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534
# A file of the user's whose name looks like a temporary one of ours.
NOVEL = "novel.writing"
# A folder that PyTorch makes when it imports its compiler.
OF_TORCH = "tmp/torchinductor_"
# The empty file by which Python's tempfile tries a folder. A kill may leave it.
OF_TEMPFILE = re.compile(r"tmp/[a-z0-9_]{8}")
# A digest: what each path is, relative to the sandbox.
Look = dict[str, tuple[object, ...]]


def is_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0


class Sandbox:
    """A sandbox in `root`, which must not exist. `user` is who the commands are run as, None for
    who we are."""

    def __init__(self, root: Path, user: int | None) -> None:
        self.root, self.user = root, user
        self.work, self.outside, self.temporary = root / "work", root / "outside", root / "tmp"
        for folder in (self.work, self.outside / "theirs", self.temporary):
            folder.mkdir(parents=True)
        (self.outside / "precious.txt").write_text("precious\nlast line")
        for name in ("metrics.jsonl", "timing.jsonl", "last.safetensors", "result.json", ".lock", NOVEL):
            (self.outside / "theirs" / name).write_text(f"their {name}\nlast line")

    def plant_paths(self) -> None:
        """Put everything that `hostile.PATHS` names into the folder of work."""
        work = self.work
        for folder in ("folder", "empty", "run [/x]", "foreign"):
            (work / folder).mkdir(parents=True)
        for path in ("file", "folder/notes.txt", f"folder/{NOVEL}", f"{NOVEL}", "real.json", "results.json"):
            (work / path).write_text("mine\nlast line")
        (work / "foreign" / "environment.json").write_text('{"mine": 1}')
        (work / "nested.json").write_text("[" * 100_000)
        (work / "null-bytes.npz").write_bytes(bytes(1000))
        with zipfile.ZipFile(work / "empty.npz", "w"):
            pass
        links = {"link": "file", "link.json": "real.json", "link-to-folder": "folder", "link-outside": "../outside/theirs",
                 "link-to-precious": "../outside/precious.txt", "dangling": "../outside/absent", "loop": "loop",
                 "link.npz": "../outside/precious.txt"}  # fmt: skip
        for name, target in links.items():
            (work / name).symlink_to(target)
        os.mkfifo(work / "fifo")
        os.mkfifo(work / "fifo.npz")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
            folder = os.open(work, os.O_RDONLY)
            # The name of a socket has room for a hundred bytes.
            end.bind(f"/proc/self/fd/{folder}/socket")
            os.close(folder)
        for name in ("no-access", "read-only"):
            (work / name).mkdir()
        if is_root():
            for name, number in (("null", 3), ("zero", 5), ("full", 7), ("zero.npz", 5)):
                os.mknod(work / name, stat.S_IFCHR | 0o666, os.makedev(1, number))
        self.hand_over()
        (work / "unreadable").write_text("secret")
        (work / "unreadable").chmod(0)
        (work / "no-access").chmod(0)
        (work / "read-only").chmod(0o555)

    def hand_over(self) -> None:
        """Give everything to the user that the commands are run as."""
        if self.user is None or not is_root():
            return
        for folder, folders, files in os.walk(self.root):
            for path in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):
                os.chown(path, self.user, self.user, follow_symlinks=False)

    def look(self) -> Look:
        """What every path below the root is: its type, mode and owner, its content or target, and
        of a file when it was written."""
        found: Look = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                found[os.path.relpath(path, self.root)] = _described(path)
        return found

    def remove(self) -> None:
        for name in ("no-access", "read-only"):
            with contextlib.suppress(OSError):
                (self.work / name).chmod(0o700)
        shutil.rmtree(self.root, ignore_errors=True)


def changes(before: Look, after: Look, may_change: Callable[[str], bool]) -> list[str]:
    """What is another, lost or new, but where it may be."""
    told = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and not may_change(path):
            told.append(f"{'new' if path not in before else 'lost' if path not in after else 'changed'}: {path}")
    return told


def _described(path: str) -> tuple[object, ...]:
    status = os.lstat(path)
    about: tuple[object, ...] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid)
    if stat.S_ISLNK(status.st_mode):
        return (*about, os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        content = ""
        # A sparse file of a terabyte takes no room, and an hour to read.
        if status.st_size < 1 << 26:
            with contextlib.suppress(PermissionError), open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        return (*about, status.st_size, content, status.st_mtime_ns)
    return (*about, status.st_rdev) if stat.S_ISCHR(status.st_mode) else about
