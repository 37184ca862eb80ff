"""Other programs: found by absolute paths, started without surprises, never waited for too long.

The current folder neither holds the program nor is the program's own current folder. Its input is
empty unless it is given, and what it says is bounded. It has a process group of its own, which is
killed with all that it started where time runs out or this process is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualprop.system.isolation import import_paths, is_current_folder

# Folders of the system: who stands in one still finds its programs.
SYSTEM = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
# What one program may say, in bytes.
MOST = 4 << 20


class ProgramError(Exception):
    """A program that could not be started or was stopped; the message goes on from its name."""


@dataclass(frozen=True)
class Finished:
    """A program that came to its end: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[0] if lines else f"exit code {self.code}"


def search_path() -> list[str]:
    """The folders of $PATH, without relative and empty ones and without the current folder."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return [path for path in folders if os.path.isabs(path) and (path in SYSTEM or not is_current_folder(path))]


def find(program: str) -> str | None:
    """The absolute path of a program; None where there is none, or a relative path names it."""
    if os.path.dirname(program):
        candidates = [program] if os.path.isabs(program) else []
    else:
        candidates = [os.path.join(folder, program) for folder in search_path()]
    return next((path for path in candidates if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with a safe $PATH, messages in English, and these changes."""
    return {**os.environ, "PATH": os.pathsep.join(search_path()), "LC_ALL": "C", **changes}


def python(program: str) -> list[str]:
    """The command that runs this text by the Python of this process, with this package.

    It imports from where this process does, but nothing from the current folder. Where this package
    itself lies there, it is found after all others.
    """
    paths = import_paths()
    home = str(Path(__file__).resolve().parents[2])
    paths += [] if home in paths else [home]
    # Isolated: no variable of Python's, no usercustomize, no current folder.
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = sys.argv[1:]; {program}", *paths]


def run(
    command: Sequence[str], *, seconds: float | None, folder: Path | str, env: Mapping[str, str] | None = None, text: str = ""
) -> Finished:
    """Run the command in that folder with `text` as its input, for at most so many seconds.

    Raises ProgramError.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            list(command), stdin=pipe if text else subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=folder,
            env=environment() if env is None else env, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ProgramError(f"could not be started: {getattr(error, 'strerror', None) or error}") from error
    with process:
        try:
            if process.stdin is not None:
                # It may have ended without reading.
                with contextlib.suppress(BrokenPipeError), process.stdin as given:
                    given.write(text.encode())
            out, err = _said(process, None if seconds is None else time.monotonic() + seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise ProgramError(f"took longer than {seconds:.0f} s and was stopped") from None
        except BaseException:
            _kill(process)
            raise
    return Finished(process.returncode, out, err)


def _said(process: subprocess.Popen[bytes], end: float | None) -> tuple[str, str]:
    """All that it says until it has come to its end. Raises ProgramError and TimeoutExpired."""
    assert process.stdout is not None
    assert process.stderr is not None
    said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for descriptor in said:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_left(process, end))
            for key, _ in ready:
                block = os.read(key.fd, 1 << 16)
                said[key.fd] += block
                if not block:
                    selector.unregister(key.fd)
                elif len(said[key.fd]) > MOST:
                    raise ProgramError(f"said more than {MOST >> 20} MiB and was stopped")
    process.wait(_left(process, end))
    out, err = (bytes(content).decode(errors="replace") for content in said.values())
    return out, err


def _left(process: subprocess.Popen[bytes], end: float | None) -> float | None:
    """The seconds that are left of a limit. Raises TimeoutExpired where none are."""
    if end is None:
        return None
    if (left := end - time.monotonic()) <= 0:
        raise subprocess.TimeoutExpired(process.args, 0)
    return left


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and all that it started and that did not leave its group."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
