"""Attempts: the command run in a child, forked from a parent that has imported everything, or a
fresh process.

A forked child costs a tenth of a second where a fresh one costs three. It has its own session,
folder, user, environment, standard streams and limits, and really exits or dies. SIGALRM after
`HANG` seconds is what tells a hang.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from moments import Moment, Watch, plain

HANG = 60
# Of memory beyond the parent's, and of one file.
MEMORY, FILE = 2 << 30, 200 << 20
PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Attempt:
    """A command line, and what it is run in. `streams` may name an "encoding" of standard output,
    or "stdout" and "stderr" as "closed" or "full"."""

    words: tuple[str, ...]
    folder: Path
    environment: dict[str, str]
    user: int | None = None
    moment: Moment | None = None
    counts_calls: bool = False
    is_fresh: bool = False
    streams: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of it. A `code` below 0 is the signal that ended the process."""

    code: int
    out: str
    err: str
    counts: dict[str, int]

    @property
    def hangs(self) -> bool:
        return self.code == -signal.SIGALRM


def load() -> None:
    """Import everything that a command may need, so that children have it."""
    import pooch
    import sklearn.datasets
    import torch
    import torch._dynamo
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    import dualprop

    # Another user may not be able to read Python's own modules, below a home folder say.
    pooch.os_cache("dualprop")
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(dualprop.__path__, "dualprop."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    FigureCanvasAgg(Figure()).draw()  # finds the fonts
    # Drawing takes longer than a short run. Fresh processes draw.
    Figure.savefig = lambda figure, file, **_: file.write(b"a picture")
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()
    gc.collect()
    gc.freeze()


def make(attempt: Attempt) -> Answer:
    """Run it, and wait for its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as counts:
        child = _fresh(attempt, out, err) if attempt.is_fresh else _forked(attempt, out, err, counts)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        # What the child has started and left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err, counts):
            file.seek(0)
        told = counts.read()
        return Answer(
            code, out.read().decode(errors="replace"), err.read().decode(errors="replace"), json.loads(told) if told else {}
        )


def _forked(attempt: Attempt, out: IO[bytes], err: IO[bytes], counts: IO[bytes]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _settle_in(attempt, out.fileno(), err.fileno())
        watch = Watch(attempt.moment, attempt.counts_calls)
        code = _interpreted(attempt, watch, lambda told: os.pwrite(counts.fileno(), told, 0))
    except BaseException:
        os.write(err.fileno(), b"Traceback of the harness: " + traceback.format_exc().encode())
    os._exit(code)


def _settle_in(attempt: Attempt, out: int, err: int) -> None:
    """Make this process one that a shell has just started."""
    os.setsid()
    _limit()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name, file in ((1, "stdout", out), (2, "stderr", err)):
        match attempt.streams.get(name):
            case "closed":
                os.close(number)
            case "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), number)
            case _:
                os.dup2(file, number)
    encoding = attempt.streams.get("encoding", "utf-8")
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        stream = None
        if attempt.streams.get(name) != "closed":
            stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False)), encoding, errors)
        setattr(sys, name, stream)
    os.environ.clear()
    os.environ.update(attempt.environment)
    tempfile.tempdir = None
    _become(attempt.user)
    os.chdir(attempt.folder)
    sys.argv = ["dualprop", *attempt.words]
    # What is drawn from generators that nobody seeded must show.
    import random

    import numpy
    import torch

    random.seed()
    numpy.random.seed()  # noqa: NPY002
    torch.seed()


def _interpreted(attempt: Attempt, watch: Watch, tell: Callable[[bytes], object]) -> int:
    """The exit code of `dualprop` with these words, as the interpreter makes it."""
    from dualprop import cli

    code = 0
    try:
        try:
            watch.install(has_torch=True)
            cli.main()
        finally:
            sys.setprofile(None)
            watch.moment = None
            tell(json.dumps(watch.counts).encode())
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        code = 1
        with contextlib.suppress(OSError, AttributeError):
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(2, f"Exception ignored while flushing: {error}\n".encode())
            code = 120
    return code


def _fresh(attempt: Attempt, out: IO[bytes], err: IO[bytes]) -> int:
    """A process of its own, with what it is to import on its path."""
    path = os.pathsep.join((str(PACKAGE), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])))
    command = [sys.executable, "-c", "import moments; moments.main()", plain(attempt.moment), *attempt.words]
    settings: dict[str, Any] = {} if attempt.user is None else {"user": attempt.user, "group": attempt.user, "extra_groups": []}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=attempt.folder, start_new_session=True,
        env={**attempt.environment, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=_limit, **settings,
    )  # fmt: skip
    process.returncode = 0  # we wait for it ourselves
    return process.pid


@functools.cache
def may_start(user: int) -> bool:
    """Whether that user can run this Python: it may lie in a home that is closed to others."""
    child = os.fork()
    if child == 0:
        _become(user)
        os._exit(0 if os.access(os.path.realpath(sys.executable), os.X_OK) and os.access(os.__file__, os.R_OK) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _limit() -> None:
    signal.alarm(HANG)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    memory = pages * resource.getpagesize() + MEMORY
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))


def _become(user: int | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
