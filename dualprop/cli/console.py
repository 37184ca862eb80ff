"""The console that tables and progress go to."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from dualprop.cli.outlets import in_ascii, shown


class OutputConsole(Console):
    """A rich console to which a string is text, and nothing else.

    Neither brackets nor colons in it are markup, and an escape sequence of a folder's name is shown
    and not obeyed. What the encoding lacks is named before a table is laid out.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(self.plain(text), **settings)

    def plain(self, text: str) -> str:
        """The text as this console can show it."""
        text = shown(text)
        return text if self._has(text) else "".join(each if self._has(each) else in_ascii(each) for each in text)

    def _has(self, text: str) -> bool:
        try:
            text.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True
