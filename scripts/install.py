"""Install into the environment of this Python, as `pip install` does, and say all the while what is
done: `python scripts/install.py ARGUMENTS OF PIP`.

On a terminal it is one line that changes; elsewhere a line of each package, and one every ten
seconds. Where it fails, all that pip said is printed. Needs nothing but Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable

# Lines of pip that say what it is at.
TELLING = ("Collecting", "Processing", "Downloading", "Using cached", "Building", "Installing", "Successfully installed")
PERIOD = {True: 0.5, False: 10.0}  # seconds between lines, on a terminal and elsewhere


class Shown:
    """What is shown of pip's lines."""

    def __init__(self, write: Callable[[str], object], is_terminal: bool) -> None:
        self.write, self.is_terminal = write, is_terminal
        self.what, self.began = "starting pip", time.monotonic()

    def told(self, line: str) -> None:
        """pip said a line."""
        words = line.strip()
        if words.startswith(TELLING):
            is_end = words.startswith(("Installing collected", "Successfully"))
            doing, *rest = words.split()
            self.what = " ".join([doing, *(rest[:2] if is_end else [each.rsplit("/", 1)[-1] for each in rest[:1]])])
            if not self.is_terminal:
                self.write(f"{self.what}\n")

    def beat(self) -> None:
        """Say for how long it has been at it."""
        line = f"installing, {time.monotonic() - self.began:.0f} s: {self.what}"
        columns = shutil.get_terminal_size().columns
        self.write(f"\r\x1b[2K{line[: columns - 1]}" if self.is_terminal else f"{line}\n")

    def ended(self) -> None:
        """Leave nothing of the changing line."""
        if self.is_terminal:
            self.write("\r\x1b[2K")


def main() -> int:
    """The exit code of pip."""
    shown, said, over = Shown(_write, sys.stdout.isatty()), [], threading.Event()

    def beat() -> None:
        while not over.wait(PERIOD[shown.is_terminal]):
            shown.beat()

    threading.Thread(target=beat, daemon=True).start()
    # Compiling all modules takes longer than all else; Python compiles those that are imported.
    how = ["--disable-pip-version-check", "--progress-bar", "off", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *how, *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            said.append(line)
            shown.told(line)
    over.set()
    shown.ended()
    if pip.returncode:
        _write("".join(said))
    return pip.returncode


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
