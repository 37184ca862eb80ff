"""`dualprop predict`: what a run's model says of new files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dualprop.bench.showing import say
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.cli.outlets import shown
from dualprop.trained import predicting
from dualprop.trained.predicting import Predicted


@dataclass(frozen=True)
class PredictOptions(predicting.PredictOptions):
    __doc__ = predicting.PredictOptions.__doc__

    run: tyro.conf.Positional[Path]
    files: tyro.conf.Positional[tuple[Path, ...]] = ()


def main(arguments: Sequence[str]) -> None:
    """Parse, predict, print."""
    options = args.parse(PredictOptions, PredictOptions(tyro.MISSING), arguments, "predict")
    show(predicting.run_prediction(options), options)


def show(predicted: Predicted, options: predicting.PredictOptions) -> None:
    """The predictions, or where they were written."""
    # Beside the predictions, which may be read by another program.
    for remark in predicted.remarks:
        print(f"dualprop: note: {shown(remark)}", file=sys.stderr)
    if options.out is None:
        sys.stdout.writelines(predicted.lines(options.format))
        return
    say(OutputConsole(), f"{len(predicted.predictions)} predictions: {options.out}")
