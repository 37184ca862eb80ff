"""Checkpoints and files: written whole or not at all, read back exactly, and refused by name where
anything is wrong."""

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from dualprop import training
from dualprop.errors import CheckpointError
from dualprop.rules import packing
from dualprop.rules.target_propagation import FeedbackWeights
from dualprop.training import checkpoint, files
from dualprop.training.checkpoint import Checkpoint

TENSORS = {
    "model.0.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "loss_sum": torch.tensor(0.1, dtype=torch.float64),
    "num_correct": torch.tensor(3, dtype=torch.int64),
    "order": torch.Generator().manual_seed(3).get_state(),
    "empty": torch.zeros(0, 4),
    "columns": torch.arange(6.0).reshape(2, 3).T,
    "extremes": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
}
ABOUT = {"epoch": 3, "best": {"validation_accuracy": 0.1 + 0.2}, "stopped": "s⁺ diverged"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good checkpoint of "this run"."""
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, Checkpoint(TENSORS, ABOUT), "this run")
    return path


def assert_refused(path: Path, reason: str, belongs_to: str = "this run") -> None:
    content = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path, belongs_to)
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert f"Restore it from a copy, or remove {path.parent} to train this seed anew" in message
    assert "\n" not in message
    assert path.read_bytes() == content, "a refused file must be left as it is"


def test_a_checkpoint_is_read_as_it_was_written(path):
    """Rounded in the last bit, a resumed run is another run."""
    found = checkpoint.read(path, "this run")
    assert found.about == ABOUT
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        read = found.tensors[name]
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape), name
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8).tolist() for t in (read, tensor)]
        assert as_bytes[0] == as_bytes[1], name
    assert list(found.under("model")) == ["0.weight"]


def test_every_changed_byte_of_the_tensors_is_found(path):
    """A flipped bit in a weight would be trained on without a word."""
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    assert header < len(good) - 100
    for position in range(header, len(good), 5):
        for flip in (0x01, 0x80):
            path.write_bytes(good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :])
            with pytest.raises(CheckpointError, match="its checksum differs"):
                checkpoint.read(path, "this run")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(path, share):
    """What a full disk or a broken copy leaves."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, "can't be read")


def test_a_checkpoint_of_another_run_is_refused(path):
    """Copied between folders it would go on with foreign weights under this recipe's name."""
    assert_refused(path, "belongs to another recipe or seed", belongs_to="another run")


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a checkpoint" * 9, b"\x00" * 100, b"\xff" * 100, b"{}"])
def test_what_is_no_safetensors_file_is_refused(path, content):
    """A pickle under this name must not even be opened as one: it could run code."""
    path.write_bytes(content)
    assert_refused(path, "can't be read")


@pytest.mark.parametrize("metadata", [None, {"dualprop": "null"}, {"dualprop": "[]"}, {"dualprop": '{"format": 99}'}])
def test_a_safetensors_file_of_another_program_or_version_is_refused(path, metadata):
    """Anybody's weights are a valid safetensors file."""
    path.write_bytes(safetensors.torch.save({"w": torch.zeros(2)}, metadata=metadata))
    assert_refused(path, "was not written by this version of dualprop")


def test_a_checkpoint_that_is_a_folder_or_missing_is_refused(tmp_path):
    """Not a traceback from the depths of the reader."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="can't be read"):
            checkpoint.read(path, "x")


def test_weights_that_do_not_fit_the_model_are_refused_in_one_line(path):
    """Loaded loosely, missing layers would keep their random weights."""
    saved = checkpoint.read(path, "this run")
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        checkpoint.restore_model(nn.Sequential(nn.Linear(4, 2)), saved, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["one byte", "half", "empty", "another seed's"])
def test_resuming_from_a_bad_checkpoint_touches_nothing_in_the_run(damage, recipe, tmp_path):
    """The user may still have a copy: what is there must stay until it is decided."""
    run = training.create(tmp_path / "run", recipe(), (0, 1))
    training.train(run)
    folder = run.seed_folder(0)
    (folder / "result.json").unlink()
    path = folder / "last.safetensors"
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "one byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "half": content[:middle],
            "empty": b"",
            "another seed's": (run.seed_folder(1) / "last.safetensors").read_bytes(),
        }[damage]
    )
    before = {p: p.read_bytes() for p in sorted(run.folder.rglob("*")) if p.is_file()}
    with pytest.raises(CheckpointError) as caught:
        training.train(training.load(run.folder))
    assert str(path) in str(caught.value)
    assert "to train this seed anew" in str(caught.value)
    assert {p: p.read_bytes() for p in sorted(run.folder.rglob("*")) if p.is_file()} == before

    path.unlink()  # the remedy that the message names
    results = training.train(training.load(run.folder))
    assert path.read_bytes() == content
    assert results["num_seeds"] == 2


def full_disk(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Let writing fail for want of space, at the write itself or only when the file is synced."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if at == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    else:

        class Full:
            def __init__(self, path: Path, mode: str, **how: object) -> None:
                self.file = open(path, mode, **how)  # noqa: SIM115 — closed by __exit__

            def __enter__(self) -> "Full":
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            def write(self, content: bytes) -> None:
                self.file.write(content[: len(content) // 2])
                fail()

        monkeypatch.setattr(files, "open", Full, raising=False)


@pytest.mark.parametrize("at", ["write", "sync"])
def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(at, tmp_path, monkeypatch):
    """The checkpoint of the last hour must survive the one that did not fit."""
    path = tmp_path / "last.safetensors"
    files.write(path, b"old")
    with monkeypatch.context() as patch:
        full_disk(patch, at)
        with pytest.raises(OSError, match="No space left"):
            files.write(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    files.write(path, b"new content")
    assert path.read_bytes() == b"new content"


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    """Ctrl-C is no OSError."""
    path = tmp_path / "recipe.json"
    files.write(path, b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_appended_lines_are_counted_in_bytes_and_cut_back_exactly(tmp_path):
    """The checkpoint remembers how long the metrics were: counted in letters, an α would cut a line
    short."""
    path = tmp_path / "metrics.jsonl"
    files.truncate(path, 0)
    first = files.append(path, json.dumps({"note": "α"}, ensure_ascii=False))
    assert first == path.stat().st_size == len('{"note": "α"}\n'.encode())
    files.append(path, "half a li")
    files.truncate(path, first)
    assert path.read_text() == '{"note": "α"}\n'


def test_every_single_changed_byte_is_found(path):
    """A flipped bit in a weight, or in the number of the step, would be trained on without a
    word."""
    good, unharmed = path.read_bytes(), []
    for position in range(0, len(good), 3):
        for flip in (0x01, 0x80):
            path.write_bytes(good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :])
            with contextlib.suppress(CheckpointError):
                unharmed.append((position, checkpoint.read(path, "this run").about))
    assert all(about == ABOUT for _, about in unharmed), unharmed


def test_memory_that_is_lacking_is_not_told_as_a_damaged_checkpoint(tmp_path, monkeypatch):
    """Its advice is to remove the folder, and two weeks of training with it."""
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint({"a": torch.ones(3)}, {}), "r")
    words = "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."

    def full(*args, **kwargs):
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match="can't allocate memory"), checkpoint.fitting(path):
        full()
    monkeypatch.setattr(checkpoint, "load", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        checkpoint.read(path, "r")


def test_a_rules_state_is_in_the_order_of_its_layers_however_a_file_lists_it(tmp_path):
    """Target propagation draws noise layer by layer: in another order it draws other noise. A file
    lists "weights.10" before "weights.2", and the library that reads it in any order."""
    weights = {k: torch.full((2,), float(k)) for k in range(2, 13)}
    state = FeedbackWeights(weights, {k: -weight for k, weight in weights.items()})
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, Checkpoint({f"rule.{name}": t for name, t in packing.pack(state).items()}, {}), "a run")
    orders = {tuple(checkpoint.read(path, "a run").tensors) for _ in range(20)}
    assert len(orders) == 1
    shuffled = dict(reversed(checkpoint.read(path, "a run").under("rule").items()))
    for held in (packing.unpack(FeedbackWeights, shuffled).weights, packing.unpack(FeedbackWeights, shuffled).momenta):
        assert list(held) == list(range(2, 13))
