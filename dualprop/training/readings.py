"""What a seed's folder holds when it is read back: its result and its metrics, checked against the
run that they should be of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualprop.errors import RunError
from dualprop.training import documents, files
from dualprop.training.records import HEADLINES, Epoch, Result


def result(folder: Path, seed: int, owners: Sequence[str] | None) -> Result | None:
    """The result of this seed; None where it is not finished, or was before the run was extended.

    Raises RunError where it is damaged, or of another recipe or seed. `owners` are what the trainer
    may have written into it, the last one first; None where that is not known.
    """
    path = folder / "result.json"
    if not files.exists(path):
        return None
    read = documents.read(path, Result.from_plain, _remedy(folder))
    told = read.belongs_to.rpartition(" seed ")[2] or str(seed)
    if read.seed != seed or told != str(seed) or (owners is not None and read.belongs_to not in owners):
        raise RunError(f"{path} belongs to another recipe or seed. Restore recipe.json, or remove {folder} to train anew.")
    return None if owners is not None and read.belongs_to in owners[1:] else read


def metrics(folder: Path, result: Result | None) -> list[Epoch]:
    """The metrics of a seed, an epoch each, the first before training; none where there are none.

    Raises RunError where they are damaged, or not those of the result.
    """
    path = folder / "metrics.jsonl"
    epochs = documents.read_lines(path, Epoch.from_plain, _remedy(folder))
    for number, each in enumerate(epochs):
        if each.epoch != number:
            error = f"line {number + 1}: epoch must be {number}, as an epoch follows another, got {each.epoch}"
            raise documents.damaged(path, error, _remedy(folder))
    if result is not None and epochs:
        best = epochs[result.best_epoch] if result.best_epoch < len(epochs) else None
        chosen_by = [f"validation_{name}" for name in HEADLINES]
        is_other = best is None or any(getattr(best, name) != getattr(result, name) for name in chosen_by)
        if len(epochs) != result.epochs + 1 or is_other:
            raise RunError(f"{path} is not of the same training as result.json beside it. {_remedy(folder)}")
    return epochs


def check_begun(folder: Path, length: int, epoch: int, best: dict[str, int | float]) -> None:
    """Raise RunError where the first `length` bytes of the metrics are not those of a training that
    came to this epoch with this best one."""
    path = folder / "metrics.jsonl"
    if not files.exists(path) or path.stat().st_size < length:
        return  # cutting it back says so
    epochs = documents.read_lines(path, Epoch.from_plain, _remedy(folder), length)
    names = [name for name in best if name.startswith("validation_")]
    at_best = [{name: getattr(each, name, None) for name in names} for each in epochs if each.epoch == best.get("epoch")]
    if [each.epoch for each in epochs] != list(range(epoch + 1)) or at_best != [{name: best[name] for name in names}]:
        raise RunError(f"{path} is not of the same training as the checkpoint beside it. {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"Restore it, or remove {folder} to train this seed anew."
