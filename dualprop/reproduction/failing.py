"""Failures: each is recorded with its traceback, and the next job goes on."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dualprop.memory import first_line
from dualprop.training import documents, files
from dualprop.training.records import Record, by_name

FILE = "failures.json"


class Failure(Record, frozen=True, kw_only=True):
    """What failed, a figure's label or a check's name; the error in one line, and its traceback."""

    label: str
    error: str
    traceback: str

    @classmethod
    def of(cls, label: str, error: Exception) -> Failure:
        told = f"{type(error).__name__}: {' '.join(first_line(error).split())}"
        return cls(label=label, error=told, traceback="".join(traceback.format_exception(error)))


class Failures:
    """Those of a folder by label, kept until what failed has been done. `tell` is called with each
    new one."""

    def __init__(self, folder: Path, tell: Callable[[Failure], None]) -> None:
        self.path, self.tell = folder / FILE, tell
        self.by_label: dict[str, Failure] = {}
        if files.exists(self.path):
            remedy = f"Remove {self.path}."
            self.by_label = documents.read(self.path, lambda plain: by_name(plain, Failure, ""), remedy)

    def add(self, failure: Failure) -> None:
        self.by_label[failure.label] = failure
        self._write()
        self.tell(failure)

    def remove(self, label: str) -> None:
        """What has this label is done."""
        if self.by_label.pop(label, None) is not None:
            self._write()

    @contextlib.contextmanager
    def noting(self, label: str) -> Iterator[None]:
        """Record an exception from within. What ends the process, an interrupt say, goes
        through."""
        try:
            yield
        except Exception as error:
            self.add(Failure.of(label, error))
            # Tensors that the traceback holds on the device are not to fail the next job.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _write(self) -> None:
        files.write_json(self.path, {label: each.to_plain() for label, each in self.by_label.items()})
