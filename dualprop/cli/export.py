"""`dualprop export`: a run's model in a file that others read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from dualprop.bench.showing import say
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole
from dualprop.trained import exporting
from dualprop.trained.exporting import Exported

_READ = {
    "torch": "torch.export.load({path!r}).module()(x)",
    "torchscript": "torch.jit.load({path!r})(x)",
    "onnx": 'onnxruntime.InferenceSession({path!r}).run(None, {{"x": x}})',
    "safetensors": "safetensors.torch.load_file({path!r}): the plain model's weights, and mean and std",
}


@dataclass(frozen=True)
class ExportOptions(exporting.ExportOptions):
    __doc__ = exporting.ExportOptions.__doc__

    run: tyro.conf.Positional[Path]


def main(arguments: Sequence[str]) -> None:
    """Parse, export, show."""
    options = args.parse(ExportOptions, ExportOptions(tyro.MISSING), arguments, "export")
    show(exporting.run_export(options), OutputConsole())


def show(exported: Exported, console: Console) -> None:
    """What was written, how it is read, and whether it was compared."""
    if exported.format == "safetensors":
        compared = "weights alone: build the network, load_state_dict, and give it (x - mean) / std"
    elif exported.difference is None:
        compared = "not compared with the model: onnxruntime is not installed, pip install 'dualprop[onnx]'"
    else:
        compared = f"read again, its outputs differ from the model's by {exported.difference:.1e} of their size"
    read = _READ[exported.format].format(path=str(exported.path))
    say(console, f"model: {exported.path}", compared, f"read it: {read}")
