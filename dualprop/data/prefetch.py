"""Items made by a background thread while those before them are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in their order, up to `depth` of them made in advance; an error in making one
    is raised at its turn.

    The thread starts with the first item that is asked for, and ends where the iterator is closed
    or dropped.
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    is_closed = threading.Event()
    end = StopIteration()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not is_closed.is_set():
            try:
                made.put((item, error), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, end)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is end:
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_closed.set()
        thread.join()
