"""`dualprop check`: the evidence on this machine that the rules are right.

Exits with 1 if any of it fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAVY
from rich.table import Table

from dualprop.alignment import LayerAlignment
from dualprop.analysis import evidence
from dualprop.analysis.evidence import CheckOptions
from dualprop.bench.showing import say
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.training import environment


def main(arguments: Sequence[str]) -> None:
    """Parse, check, show."""
    options = args.parse(CheckOptions, CheckOptions(), arguments, "check")
    console = OutputConsole()
    about = environment.describe()
    say(console, f"dualprop {about['dualprop']}, torch {about['torch']}, {about['processor']}")
    check = evidence.run_check(options)
    for item in check.evidence:
        told = f"{item.claim}: {item.measured:.1e} (bound {item.bound:.0e})"
        say(console, f"✓ {told}" if item.holds else f"✗ {told}", style=None if item.holds else "bold red")
    if check.reference is None:
        say(console, "– authors' own cases: not given (--reference FOLDER, or $DUALPROP_REFERENCE)")
    console.print()
    console.print(_alignment_table(check.alignments))
    num_failed = len(check.failed)
    say(console, f"{len(check.evidence) - num_failed} passed, {num_failed} failed")
    if num_failed:
        raise SystemExit(1)


def _alignment_table(alignments: list[tuple[str, list[LayerAlignment]]]) -> Table:
    table = Table(
        title="gradient against back-propagation: cosine and norm ratio per layer", title_justify="left", box=SIMPLE_HEAVY
    )
    table.add_column("rule, random network", no_wrap=True)
    for k in range(1, max(len(layers) for _, layers in alignments) + 1):
        table.add_column(str(k), justify="right", no_wrap=True)
    for label, layers in alignments:
        table.add_row(label, *(f"{layer.cosine:.3f}  {layer.norm_ratio:.2f}" for layer in layers))
    return table
