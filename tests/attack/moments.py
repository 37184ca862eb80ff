"""Moments of a process, counted exactly, and a signal at one of them.

A moment is the n-th of its kind: of all audit events (`sys.audit`), of writes (a file opened for
writing, synced, renamed, removed, …), of checkpoints renamed, of lines added to metrics, of
optimizer steps, or of Python calls. The clock has no part in it, so that a moment comes again.

Imports nothing slow: a fresh process counts from its first import on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

KINDS = ("event", "write", "checkpoint", "metrics", "step", "call")
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink", "fcntl.flock"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """Signal `signal` at the `number`-th event of `kind`. `torn`, in [0, 1), is the share of what
    is being synced that has reached the file when SIGKILL comes."""

    kind: str
    number: int
    signal: int
    torn: float = 1.0

    def __str__(self) -> str:
        torn = f", {self.torn:.0%} of it written" if self.signal == signal.SIGKILL and self.torn < 1 else ""
        return f"{signal.Signals(self.signal).name} at {self.kind} {self.number}{torn}"


class Watch:
    """Counts the moments of this process, and strikes at one."""

    def __init__(self, moment: Moment | None, counts_calls: bool = False) -> None:
        self.moment, self.counts = moment, Counter[str]()
        self.lengths: dict[str, int] = {}
        self.counts_calls = counts_calls or (moment is not None and moment.kind == "call")

    def install(self, has_torch: bool) -> None:
        """Put the watch around this process, for good."""
        self._fsync = os.fsync
        os.fsync = self._synced
        sys.addaudithook(self._audited)
        if has_torch:
            from dualprop.training.stepping import AbstractSteps

            self._take = AbstractSteps.take
            AbstractSteps.take = lambda *given: (self._take(*given), self("step"))  # type: ignore[method-assign]
        if self.counts_calls:
            sys.setprofile(self._called)

    def __call__(self, kind: str, descriptor: int | None = None) -> None:
        self.counts[kind] += 1
        moment = self.moment
        if moment is not None and (kind, self.counts[kind]) == (moment.kind, moment.number):
            if moment.signal == signal.SIGKILL and descriptor is not None and moment.torn < 1:
                self._tear(descriptor, moment.torn)
            os.kill(os.getpid(), moment.signal)

    def _audited(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            if isinstance(args[0], (str, bytes)):
                self.lengths[os.path.abspath(os.fsdecode(args[0]))] = _size(args[0])
            self("write")
        elif event in _WRITES:
            if event == "os.rename" and os.fsdecode(args[1]).endswith("last.safetensors"):
                self("checkpoint")
            self("write")
        self("event")

    def _synced(self, descriptor: int) -> None:
        path = _path(descriptor)
        if path.endswith("metrics.jsonl"):
            self("metrics", descriptor)
        self("write", descriptor)
        self._fsync(descriptor)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self("call")

    def _tear(self, descriptor: int, share: float) -> None:
        """Leave of what was written to the file since it was opened the first part alone."""
        path = _path(descriptor)
        if os.path.isfile(path):
            length = os.path.getsize(path)
            before = min(length, self.lengths.get(path, 0))
            os.truncate(path, before + int(share * (length - before)))


def _path(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _size(path: str | bytes) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def plain(moment: Moment | None) -> str:
    """The moment as text, for a fresh process."""
    return json.dumps(None if moment is None else asdict(moment))


def main() -> None:
    """`python -c 'import moments; moments.main()' MOMENT WORD …`: the command line, watched from
    its first import on."""
    text = sys.argv.pop(1)
    # A background process of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = json.loads(text)
    if given is not None:
        Watch(Moment(**given)).install(has_torch=False)
    from dualprop.cli import main as command

    command()
