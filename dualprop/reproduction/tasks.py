"""Items that are measured and not trained: the table of runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dualprop.bench import runtime, tables
from dualprop.bench.options import BenchOptions, Group
from dualprop.reproduction.watching import Clock, OutOfTime
from dualprop.training import files

RUNTIME = "runtime"
# Seconds and batch size by the device's kind: five rounds of every method's step, most of it that
# of holomorphic EP.
EXPECTED = {"cuda": (150.0, 100), "cpu": (1500.0, 16)}


class RuntimeTable:
    """`dualprop bench --table runtime` on a device, in a file."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self.seconds, self.batch_size = EXPECTED.get(torch.device(device).type, EXPECTED["cpu"])

    @property
    def is_done(self) -> bool:
        """Whether every method has its row, or a reason why it has none."""
        return bool(groups := self.groups()) and sum(map(_methods, groups)) == len(runtime.METHODS)

    def groups(self) -> list[Group]:
        """Those that are measured, none where the file is not there or holds something else."""
        if not files.exists(self.path):
            return []
        try:
            groups: Any = json.loads(files.read(self.path))["groups"]
            return [group for group in groups if _methods(group) >= 0]
        except (ValueError, TypeError, KeyError):
            return []

    def measure(self, clock: Clock, deadline: float) -> None:
        """Measure it. Raises OutOfTime where that is over between two networks; what is measured is
        in the file."""
        options = BenchOptions(
            table=RUNTIME, batch_size=self.batch_size, device=self.device, memory=False, rounds=10, seconds=5, out=self.path
        )
        tables.run(options, _Stopping(clock, deadline))


class _Stopping(tables.Watch):
    def __init__(self, clock: Clock, deadline: float) -> None:
        self.clock, self.deadline = clock, deadline

    def group_done(self, group: Group, results: dict[str, Any]) -> None:
        if self.clock() > self.deadline:
            raise OutOfTime


def _methods(group: Group) -> int:
    return len(group["rows"]) - 2 + len(group["refused"])
