"""One file fetched over HTTPS, within a size and a time.

The server is not trusted: a reply without an end, one that drips, one that never begins and one
that leads away from HTTPS each end in a few words that say so.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import requests

# Without a byte for so long, a connection is given up. A whole download has a minute, and what it
# takes at 50 kB a second.
SECONDS_OF_SILENCE: float | None = 30
SECONDS_TO_BEGIN = 60.0
BYTES_PER_SECOND = 50_000
CHUNK = 1 << 16


def session() -> requests.Session:
    """A session that speaks HTTPS alone: to plain HTTP no redirect can lead it."""
    import requests

    speaking = requests.Session()
    speaking.adapters.pop("http://")
    return speaking


def fetch(url: str, path: Path, most: int) -> str | None:
    """Write what `url` sends, at most so many bytes, to `path`. None where it worked, else the
    reason in a few words."""
    if not url.lower().startswith("https://"):
        return "it is no https:// address, and what comes over others can be changed on its way"
    seconds = SECONDS_TO_BEGIN + most / BYTES_PER_SECOND
    # A thread of its own: name servers, headers and pieces of a reply can each take for ever, and
    # only this waits for all of them. It ends with its connection or with the process.
    ended: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    is_given_up = threading.Event()
    try:
        file = path.open("wb")
    except OSError as error:
        return error.strerror or str(error)

    def work() -> None:
        try:
            ended.put(_received(url, file, most, is_given_up))
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=work, name="download", daemon=True).start()
    try:
        answer = ended.get(timeout=seconds)
    except queue.Empty:
        return f"it was not there after {seconds:.0f} seconds"
    finally:
        is_given_up.set()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _received(url: str, file: IO[bytes], most: int, is_given_up: threading.Event) -> str | None:
    too_much = f"it sends more than the {most} bytes that the file can have"
    try:
        with file, session() as speaking, speaking.get(url, stream=True, timeout=SECONDS_OF_SILENCE) as reply:
            reply.raise_for_status()
            length = reply.headers.get("Content-Length", "")
            if length.isascii() and length.isdigit() and int(length[:20]) > most:
                return too_much
            for chunk in reply.iter_content(CHUNK):
                if is_given_up.is_set() or file.tell() + len(chunk) > most:
                    return too_much
                file.write(chunk)
    except (OSError, ValueError) as error:  # all of requests' errors are OSErrors
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    from requests.exceptions import InvalidSchema

    response = getattr(error, "response", None)
    if response is not None and response.status_code >= 400:
        return f"HTTP {response.status_code}"
    if isinstance(error, InvalidSchema):
        return "it leads away from https://"
    return getattr(error, "strerror", None) or type(error).__name__
