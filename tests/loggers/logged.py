"""What a log should say: the run's own file of metrics; and loggers that the process ends in."""

import json
from pathlib import Path

from dualprop.loggers import flattening

EPOCHS = 2


def expected(folder: Path) -> dict[tuple[str, int], float]:
    """The number of each metric and epoch, as metrics.jsonl has it."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(name, line["epoch"]): value for line in lines for name, value in flattening.metrics(line).items()}


class Stopped(KeyboardInterrupt):
    """The process ends."""


def stopping(kind, at, half):
    """A logger that the process ends in: before an epoch is logged, or when half of it is."""

    class Stopping(kind):
        def epoch(self, seed, number, metrics):
            if number == at:
                if half:
                    super().epoch(seed, number, dict(list(metrics.items())[::2]))
                raise Stopped
            super().epoch(seed, number, metrics)

    return Stopping()
