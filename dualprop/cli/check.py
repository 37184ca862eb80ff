"""`dualprop check`: the evidence on this machine that the rules are right. Exits with 1 if any of it fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAVY
from rich.table import Table

from dualprop.alignment import LayerAlignment
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole


@dataclass(frozen=True)
class CheckOptions:
    """Show the evidence that the rules are right on this machine.

    Attributes:
        reference: folder of cases (.npz) computed by the authors' code; by default $DUALPROP_REFERENCE, where that is set.
        seed: of the random networks.
    """

    reference: Path | None = None
    seed: int = 0


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, show."""
    options = args.parse(CheckOptions, CheckOptions(), arguments, "check")
    from dualprop.analysis import evidence
    from dualprop.training import environment

    console = OutputConsole()
    about = environment.describe()
    console.print(
        f"dualprop {about['dualprop']}, torch {about['torch']}, {about['processor']}", highlight=False, soft_wrap=True
    )
    folder = options.reference or (Path(path) if (path := os.environ.get("DUALPROP_REFERENCE")) else None)
    found = list(evidence.reference_cases(folder)) if folder else []
    found += [*evidence.transcription_cases(options.seed), *evidence.autograd_cases(options.seed)]
    for item in found:
        mark = "[green]✓[/green]" if item.holds else "[bold red]✗[/bold red]"
        console.print(f"{mark} {item.claim}: {item.measured:.1e} (bound {item.bound:.0e})", highlight=False, soft_wrap=True)
    if folder is None:
        console.print("– authors' own cases: not given (--reference FOLDER, or $DUALPROP_REFERENCE)", highlight=False)
    console.print()
    console.print(_alignment_table(evidence.layer_alignments(options.seed)))
    failed = sum(not item.holds for item in found)
    console.print(f"{len(found) - failed} passed, {failed} failed", highlight=False)
    if failed:
        raise SystemExit(1)


def _alignment_table(found: list[tuple[str, list[LayerAlignment]]]) -> Table:
    table = Table(
        title="gradient against back-propagation: cosine and norm ratio per layer", title_justify="left", box=SIMPLE_HEAVY
    )
    table.add_column("rule, random network", no_wrap=True)
    for k in range(1, max(len(layers) for _, layers in found) + 1):
        table.add_column(str(k), justify="right", no_wrap=True)
    for label, layers in found:
        table.add_row(label, *(f"{layer.cosine:.3f}  {layer.norm_ratio:.2f}" for layer in layers))
    return table
