"""`dualprop bench`: what a training step costs, against a plain PyTorch loop beside it."""

from __future__ import annotations

from collections.abc import Sequence

from dualprop.bench.options import BenchOptions
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, show."""
    options = args.parse(BenchOptions, BenchOptions(), arguments, "bench")
    from dualprop.bench import tables

    tables.run(options, tables.Shown(OutputConsole()))
