"""A run's model in a file that others read, without this package: it normalises its inputs itself.

    torch          a program of torch.export: torch.export.load(path).module()(x)
    torchscript    torch.jit.load(path)(x); PyTorch 2.13 calls TorchScript deprecated, and runs it
    onnx           onnxruntime.InferenceSession(path).run(None, {"x": x})
    safetensors    the weights alone, by the names of the plain model, beside "mean" and "std"

x (N, C, H, W) or (N, D) is float32 in the units of the data, of any N. Outputs (N, K) are the
model's own: logits, where it learned by cross-entropy. The names of the outputs and the shape of an
example go with it, as JSON under "dualprop". What is written is read again and compared first.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from dualprop import memory
from dualprop.analysis.keywords import by_keyword
from dualprop.errors import RunError, SettingError, UnsupportedModuleError
from dualprop.settings import SeedNumber, conform
from dualprop.trained.loading import chosen_seed, of_run
from dualprop.trained.model import Trained
from dualprop.training import files, folders, runs

Format = Literal["torch", "torchscript", "onnx", "safetensors"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "torchscript": ".pt", "onnx": ".onnx", "safetensors": ".safetensors"}
# How far outputs of the file may be from the model's, by their size.
AGREEMENT = 1e-5
# Examples that they are compared on; other numbers than those it is traced with.
_TRACED, _COMPARED = 3, 5


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's model for others: dualprop export RUN [--format NAME] [options].

    Attributes:
        run: the run's folder.
        format: "torch" (a program of torch.export), "torchscript", "onnx", or "safetensors"
            (weights alone).
        seed: one of the run's; by default the first that has weights.
        out: the file to write; by default model.pt2 and so on, in the run's folder.
        data: folder of the data sets; for runs of earlier versions, whose data is needed.
    """

    run: Path
    format: Format = "torch"
    seed: SeedNumber | None = None
    out: Path | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        conform(self)


@dataclass(frozen=True)
class Exported:
    """The file, and how far its outputs are from the model's on random examples, by their size;
    None where that was not compared."""

    path: Path
    format: Format
    difference: float | None


class Plain(nn.Module):
    """What is exported: normalises, then the run's network."""

    def __init__(self, model: Trained) -> None:
        super().__init__()
        self.standardisation, self.network = model.standardisation, model.network

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.standardisation(x))
        return outputs


@by_keyword(ExportOptions)
def export(options: ExportOptions) -> Exported:
    """Write a run's model in another format. The arguments are the fields of `ExportOptions`.

    Raises:
        SettingError: its predictions are an equilibrium's, or a package is not installed.
        UnsupportedModuleError: PyTorch can't put the model into this format.
        RunError: what was written does not compute what the model does.
        CheckpointError, DataError: as `load` does.
    """
    return run_export(options)


def run_export(options: ExportOptions) -> Exported:
    """What `export` does by options that are there already."""
    run = runs.load(options.run)
    seed = chosen_seed(run, options.seed)
    model = of_run(run, seed, data=options.data)
    if model.recipe.rule.predicts_by_equilibrium and options.format != "safetensors":
        raise SettingError(
            f"the predictions of {run.folder} are an equilibrium's, which no forward pass computes. Use dp.load in Python, or "
            "export its weights: --format safetensors."
        )
    out = options.out or run.folder / f"model{SUFFIXES[options.format]}"
    about = json.dumps(
        {
            **model.description.to_plain(),
            "run": run.recipe.name,
            "seed": seed,
            "loss": run.recipe.rule.loss.name,
            "network": str(model.network),
        }
    )
    content, compute = _WRITERS[options.format](model, about)
    difference = None if compute is None else _difference(model, compute)
    if difference is not None and not difference <= AGREEMENT:
        raise RunError(
            f"PyTorch's {options.format} export of this model does not compute what the model does: outputs differ by "
            f"{difference:.1e} of their size. Nothing was written. Take another --format."
        )
    with folders.held_file(out):
        files.write(out, content)
    return Exported(out, options.format, difference)


Writer = Callable[[Trained, str], tuple[bytes, Callable[[Tensor], Tensor] | None]]


def _torch(model: Trained, about: str) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    content = io.BytesIO()
    with _exporting("torch"):
        torch.export.save(_program(model), content, extra_files={"dualprop": about})
        content.seek(0)
        read = torch.export.load(content).module()
    return content.getvalue(), read


def _torchscript(model: Trained, about: str) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    content = io.BytesIO()
    with _exporting("torchscript"):
        traced = torch.jit.trace(Plain(model), _examples(model, _TRACED), check_trace=False)
        torch.jit.save(traced, content, _extra_files={"dualprop": about})
        content.seek(0)
        read = torch.jit.load(content)
    return content.getvalue(), read


def _onnx(model: Trained, about: str) -> tuple[bytes, Callable[[Tensor], Tensor] | None]:
    needed = "onnx is written by the packages onnx and onnxscript, which are not installed. Install them: "
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise SettingError(f"{needed}pip install 'dualprop[onnx]'.") from None
    with _exporting("onnx"):
        made: Any = torch.onnx.export(
            Plain(model), (_examples(model, _TRACED),), input_names=["x"], output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("N")},), dynamo=True, verbose=False,
        )  # fmt: skip
        made.model.metadata_props["dualprop"] = about
        content: bytes = made.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return content, None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def _safetensors(model: Trained, about: str) -> tuple[bytes, None]:
    tensors = {**model.network.state_dict(), "mean": model.standardisation.mean, "std": model.standardisation.std}
    # Tensors that share memory, tied weights say, are refused by the library.
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata={"dualprop": about}), None


_WRITERS: dict[Format, Writer] = {"torch": _torch, "torchscript": _torchscript, "onnx": _onnx, "safetensors": _safetensors}


def _program(model: Trained) -> torch.export.ExportedProgram:
    return torch.export.export(Plain(model), (_examples(model, _TRACED),), dynamic_shapes=({0: torch.export.Dim("N")},))


def _examples(model: Trained, number: int) -> Tensor:
    """Random examples of the range that it was trained on."""
    known = model.description
    generator = torch.Generator().manual_seed(number)
    x = torch.rand(number, *known.input_shape, generator=generator)
    return known.lowest + (known.largest - known.lowest) * x


@torch.no_grad()
def _difference(model: Trained, compute: Callable[[Tensor], Tensor]) -> float:
    """The largest difference, by the largest output."""
    x = _examples(model, _COMPARED)
    expected = Plain(model)(x)
    return float((compute(x) - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@contextmanager
def _exporting(name: str) -> Iterator[None]:
    """PyTorch's exporters warn of deprecations and log what is missing here; what they can't do
    becomes an error in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # nearly anything: they run the model on symbols
        if memory.is_lacking(error):
            raise
        raise UnsupportedModuleError(
            f"PyTorch can't put this model into {name} ({memory.first_line(error)[:200]}). Take another --format, or dp.load."
        ) from error
    finally:
        logging.disable(before)
