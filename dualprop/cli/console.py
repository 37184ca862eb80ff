"""The console that tables and progress go to."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class OutputConsole(Console):
    """A rich console for which a reader that goes away (head, less) is no error: there is nobody
    left to tell."""

    def on_broken_pipe(self) -> None:
        # Python flushes once more at exit; that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
