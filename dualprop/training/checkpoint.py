"""Checkpoints: tensors in a safetensors file that can't run code, with everything else as JSON in
its header.

A file is written as a whole or not at all. Its header holds a SHA-256 of the tensors, and the
digest of the recipe and the seed that it belongs to: a corrupt or a foreign checkpoint is refused
by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dualprop import memory
from dualprop.errors import CheckpointError, RunError
from dualprop.training import documents, files
from dualprop.training.records import Record

FORMAT = 2
# Format 1 had no "kind", and of a run nothing to compare a resume by.
READABLE = (1, FORMAT)


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` by name, and `about`: plain values. `belongs_to` is known of one that was read."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    belongs_to: str = ""

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix` and a dot, without it."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}


class Header(Record, frozen=True, kw_only=True):
    """What a checkpoint says of itself, beside `about`."""

    format: int
    belongs_to: str
    sha256: str
    about: dict[str, Any]


def write(path: Path, checkpoint: Checkpoint, belongs_to: str) -> None:
    """Write the checkpoint. `belongs_to` is compared on reading. Raises OSError."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    about = {
        "format": FORMAT,
        "belongs_to": belongs_to,
        "sha256": _digest(tensors, belongs_to, checkpoint.about),
        "about": checkpoint.about,
    }
    files.write(path, save(tensors, metadata={"dualprop": json.dumps(about)}))


def read(path: Path, belongs_to: str | Sequence[str] | None, kind: str = "") -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError where it is corrupt, of another run, or
    of another `kind`, "best" or "last", where one is asked for. `belongs_to` is what may have been
    written, None where that is not known."""
    advice = _advice(path)
    try:
        # Read, not mapped: a file that is cut short under a map ends the process.
        content = files.read(path)
        # The library's order is another each time.
        tensors = dict(sorted(load(content).items()))
        plain = _metadata(content)
    except (SafetensorError, ValueError, LookupError, TypeError, OSError, RuntimeError, RunError) as error:
        if memory.is_lacking(error):
            raise
        raise CheckpointError(f"checkpoint {path} can't be read ({memory.first_line(error)}). {advice}") from error
    if not isinstance(plain, dict) or plain.get("format") not in READABLE:
        raise CheckpointError(f"checkpoint {path} was not written by this version of dualprop. {advice}")
    try:
        header = Header.from_plain(plain)
    except documents.Misfit as error:
        raise CheckpointError(f"checkpoint {path} is corrupt: in its header, {error}. {advice}") from error
    if header.sha256 != _digest(tensors, header.belongs_to, header.about):
        raise CheckpointError(f"checkpoint {path} is corrupt: its checksum differs. {advice}")
    owners = (belongs_to,) if isinstance(belongs_to, str) else belongs_to
    if owners is not None and header.belongs_to not in owners:
        raise CheckpointError(f"checkpoint {path} belongs to another recipe or seed. {advice}")
    if kind and (its_kind := _kind(header.about)) not in ("", kind):
        raise CheckpointError(
            f"checkpoint {path} is a {documents.quoted(its_kind)[1:-1]} one, copied over the {kind} one. {advice}"
        )
    return Checkpoint(tensors, header.about, header.belongs_to)


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Where a checkpoint is given to a run: what it lacks, or holds in another shape, becomes a
    CheckpointError. Its checksum is right, so it is another program's, or of another moment."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if memory.is_lacking(error):
            raise
        lack = f"it holds no {error}" if isinstance(error, KeyError) else memory.first_line(error)
        raise CheckpointError(f"checkpoint {path} does not fit the run: {lack}. {_advice(path)}") from error


def model_tensors(model: nn.Module, prefix: str = "model") -> dict[str, Tensor]:
    """The model's state under "model.", or another prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in model.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under "optimizer.<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_model(model: nn.Module, checkpoint: Checkpoint, path: Path, prefix: str = "model") -> None:
    """Load the model's state in place. Raises CheckpointError where it does not fit."""
    with memory.told_as(lambda said: CheckpointError(f"checkpoint {path} does not fit the model: {said}"), RuntimeError):
        model.load_state_dict(checkpoint.under(prefix))


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Load the optimizer's state, each tensor laid out as its parameter is: a fused optimizer walks
    both as memory lies. Raises ValueError where one is missing or of another shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.under("optimizer").items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        alike = tensor.shape == parameter.shape
        if not alike and tensor.dim():
            raise ValueError(f"optimizer.{name} has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}")
        state.setdefault(int(index), {})[key] = torch.empty_like(parameter).copy_(tensor) if alike else tensor
    names = set().union(*state.values())
    for number, values in state.items():
        for lacked in sorted(names - values.keys()):
            raise ValueError(f"it holds no optimizer.{number}.{lacked}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _metadata(content: bytes) -> Any:
    """What `write` put into the header of a safetensors file that can be read."""
    length = int.from_bytes(content[:8], "little")
    words = documents.parse(content[8 : 8 + length]).get("__metadata__") or {}
    return documents.parse(words.get("dualprop", "null"))


def _kind(about: dict[str, Any]) -> str:
    """Whether it is the "best" or the "last" of a run, or "foreign"; format 1 tells by what it
    holds."""
    its_kind = about.get("kind", "last" if "step" in about else "best" if "epoch" in about else "foreign")
    # What is no word is told as what does not fit.
    return its_kind if isinstance(its_kind, str) else ""


def _digest(tensors: dict[str, Tensor], belongs_to: Any, about: Any) -> str:
    digest = hashlib.sha256(json.dumps([belongs_to, about], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _advice(path: Path) -> str:
    return f"Restore it from a copy, or remove {path.parent} to train this seed anew."
