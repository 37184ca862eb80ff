"""Standard output and standard error that never stop the work, whoever reads them.

A reader that goes away, a full disk under a log and a closed descriptor are no errors of a
training: what can't be written is left out, and the work goes on. A console whose encoding lacks α
or → gets their names.
"""

from __future__ import annotations

import codecs
import io
import os
import sys

from dualprop.cli.heartbeat import on_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from dualprop.cli.heartbeat import Heartbeat

# What is printed in place of a character that the console's encoding lacks, where its Unicode name
# and decomposition don't say it.
NAMES = {
    "→": "->", "←": "<-", "⇒": "=>", "↦": "->", "±": "+-", "∓": "-+", "×": "x", "·": "*", "⊙": "*", "∘": "o", "≤": "<=",
    "≥": ">=", "≈": "~", "≠": "!=", "∞": "inf", "√": "sqrt", "∂": "d", "∇": "grad", "∫": "integral", "°": " degrees", "⊤": "^T",
    "‖": "||", "∈": "in", "⟨": "<", "⟩": ">", "⌊": "floor(", "⌋": ")", "–": "-", "—": "-", "…": "...", "•": "*", "★": "*",
    "’": "'", "′": "'", "″": "''", "“": '"', "”": '"', "✓": "ok", "✗": "no", "⁻": "^-", "⁺": "^+", "\u0304": "_bar",
    "µ": "u", "ø": "o", "Ø": "O", "ß": "ss", "æ": "ae", "ł": "l", "─": "-", "━": "-", "│": "|", "┃": "|", "╭": "+",
    "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip
_SUBSTITUTES = "dualprop.names"


class Outlet(io.RawIOBase):
    """A descriptor that takes everything; `error` is the first one of writing to it.

    Attributes:
        told: where a loss is told; None where nobody could read of it.
        stops: whether a reader that goes away ends the command, whose output is all that it is for.
        heartbeat: the line that stands on the same terminal while nothing is written, if there is
            one.
    """

    def __init__(self, descriptor: int, told: TextIO | None = None) -> None:
        self.descriptor = descriptor
        self.told = told
        self.error: OSError | None = None
        self.stops = False
        self.heartbeat: Heartbeat | None = None

    def write(self, content: object) -> int:
        if self.heartbeat is None:
            return self._write(content)
        with self.heartbeat.lock:
            self.heartbeat.erase()
            self.heartbeat.wrote(bytes(memoryview(content)[-1:]))  # type: ignore[arg-type]
            return self._write(content)

    def _write(self, content: object) -> int:
        rest = memoryview(content)  # type: ignore[arg-type]
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:
                self._wait()
            except OSError as error:
                is_first, self.error = self.error is None, self.error or error
                if is_first and isinstance(error, BrokenPipeError) and self.stops:
                    raise SystemExit(0) from None
                if is_first and self.is_lost and self.told is not None:
                    print(f"dualprop: standard output is lost ({error.strerror}); the work goes on.", file=self.told)
                break
        return size

    def _wait(self) -> None:
        """Until there is room: some terminals and pipes don't block."""
        import select

        select.select([], [self.descriptor], [])

    @property
    def is_lost(self) -> bool:
        """Whether something could not be written that somebody may wait for."""
        return self.error is not None and not isinstance(self.error, BrokenPipeError)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


def open_outlets() -> Outlet:
    """Put outlets in place of this process's standard output and error; the former is returned.

    A standard descriptor that is closed is opened to nowhere, or the next file that is opened would
    be taken for it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    codecs.register_error(_SUBSTITUTES, _substitute)
    err = Outlet(2)
    sys.stderr = _text(err, sys.stderr, is_error=True)
    out = Outlet(1, sys.stderr)
    sys.stdout = _text(out, sys.stdout)
    out.heartbeat = on_terminal(1)
    # A line of the error stream would be written behind it, where both are one terminal.
    err.heartbeat = out.heartbeat if err.isatty() else None
    return out


def _text(outlet: Outlet, before: object, is_error: bool = False) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    if before is not None:
        before.flush()  # type: ignore[attr-defined]
    lines = is_error or outlet.isatty()
    return io.TextIOWrapper(io.BufferedWriter(outlet), encoding, _SUBSTITUTES, line_buffering=lines)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """The error handler of the codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def in_ascii(character: str) -> str:
    """Its name ("alpha", "^2", "->"), without its accents, or as an escape."""
    if character in NAMES or character.isascii():
        return NAMES.get(character, character)
    import unicodedata

    script, size, _, *words = f"{unicodedata.name(character, '')}   ".split(" ")
    if script == "GREEK" and words[0]:
        return words[0].lower() if size == "SMALL" else words[0].capitalize()
    mark = {"<super>": "^", "<sub>": "_"}.get(unicodedata.decomposition(character).split(" ")[0], "")
    plain = unicodedata.normalize("NFKD", character).replace("\u2044", "/").encode("ascii", "ignore").decode()
    return mark + plain if plain else character.encode("ascii", "backslashreplace").decode()


def shown(text: str) -> str:
    """The text with what would steer a terminal, or turn its direction, written as an escape."""
    return "".join(each if each == "\n" or not _steers(each) else ascii(each)[1:-1] for each in text)


def _steers(character: str) -> bool:
    code = ord(character)
    is_bidi = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in (0x200E, 0x200F, 0x061C)
    return code < 0x20 or 0x7F <= code < 0xA0 or code in (0x2028, 0x2029) or is_bidi
