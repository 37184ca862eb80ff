"""Ctrl-C that is not lost on its way through a library.

Python raises KeyboardInterrupt wherever it is: in a callback that can't pass it on, or in an import
that then ends in another error. `listen` has the program remember that it was asked to stop.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from types import FrameType

# Seconds after which an interrupt is raised again that a callback has lost.
AGAIN = 0.05

_asked = threading.Event()


def listen() -> None:
    """Remember interrupts from now on. A program that was started to ignore them goes on to."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
        sys.unraisablehook = _lost


def were_asked() -> bool:
    """Whether an interrupt has come since `listen`: what is raised now may be its consequence."""
    return _asked.is_set()


def end_at_the_next() -> None:
    """A next one ends the process at once, and not in a traceback from Python's own end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt


def _lost(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise the interrupt again, outside of what has lost it; tell all else as Python does."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(AGAIN, _thread.interrupt_main)
    again.daemon = True
    again.start()
