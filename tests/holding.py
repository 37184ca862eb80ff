"""The installed command held at one event, where a test may stop it however fast or slow the
machine is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = Path(sys.executable).with_name("dualprop")
PROGRAM = """
import runpy, sys

def hold():
    print("held", flush=True)
    sys.stdin.read()

{before}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def held(before: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`dualprop WORDS` in a process that has come to a call of hold(), which waits for ever; it is
    killed in the end.

    before: lines of Python that run before the command, and put the call of hold() where it is
    wanted.
    """
    program = [sys.executable, "-c", PROGRAM.format(before=before), str(COMMAND), *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert "held\n" in iter(process.stdout.readline, ""), f"it ended before it was held: {process.stderr.read()}"
            yield process
        finally:
            process.kill()
