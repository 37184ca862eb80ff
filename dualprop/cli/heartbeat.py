"""A line on the terminal that says that the command is at work, while it says nothing else.

PyTorch alone takes seconds to import, and nobody should wonder whether a command hangs. The line
stands from a second of silence on, and goes before anything else is written.
"""

from __future__ import annotations

import os
import sys
import threading
import time

SILENCE = 1.0  # seconds, after which the line appears
PERIOD = 0.5  # seconds between its changes
ERASE = b"\r\x1b[2K"


class Heartbeat:
    """The line on one terminal. Whoever writes there calls `erase` before, and tells `wrote`.

    Attributes:
        lock: held while the terminal is written to.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lock = threading.RLock()
        self.is_shown = self.is_over = False
        self.has_spoken = False
        # What others wrote last ended a line: a bar, or half a line, is not written over.
        self.is_free = True
        self.last = time.monotonic()

    def begin(self) -> None:
        """Watch the silence, beside the command."""
        os.register_at_fork(after_in_child=self._leave)
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def end(self) -> None:
        """Take the line away for good."""
        with self.lock:
            self.is_over = True
            self.erase()

    def erase(self) -> None:
        """Take the line away; the caller holds the lock."""
        if self.is_shown:
            self._write(ERASE)
            self.is_shown = False

    def wrote(self, content: bytes) -> None:
        """Something else stands on the terminal now; the caller holds the lock."""
        if content:
            self.last, self.has_spoken = time.monotonic(), True
            self.is_free = content.endswith(b"\n")

    def beat(self, now: float) -> None:
        """Show for how long nothing was said, where that is long enough."""
        with self.lock:
            silence = now - self.last
            if self.is_over or not self.is_free or silence < SILENCE:
                return
            what = "at work" if self.has_spoken else "starting"
            self._write(ERASE + f"dualprop: {what}, {silence:.0f} s".encode())
            self.is_shown = True

    def _watch(self) -> None:
        while not self.is_over:
            time.sleep(PERIOD)
            self.beat(time.monotonic())

    def _write(self, content: bytes) -> None:
        try:
            os.write(self.descriptor, content)
        except OSError:  # nobody looks any more
            self.is_over = True

    def _leave(self) -> None:
        """A forked process has no such thread, and nobody in it holds the lock."""
        self.lock = threading.RLock()
        self.is_over, self.is_shown = True, False


def on_terminal(descriptor: int) -> Heartbeat | None:
    """A heartbeat where the descriptor is a terminal that can take a line away again."""
    can_erase = sys.platform != "win32" and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return Heartbeat(descriptor) if can_erase and os.isatty(descriptor) else None
