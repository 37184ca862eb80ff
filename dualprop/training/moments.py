"""Where a seed's run stands, and whether its files are of one moment.

A run's metrics are appended, then its best weights replaced, then its last checkpoint. So a kill
leaves the metrics and the best weights of that moment or of the epoch after it, and nothing else.
The checkpoint holds the digest of the metrics that go with it, and the epoch of the best weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualprop.errors import CheckpointError
from dualprop.training import files


@dataclass
class Progress:
    """Where a run stands: the plain part of its last checkpoint.

    Attributes:
        kind: of the checkpoint, not the "best" one.
        conditions: that it was computed under, see `conditions`; none in older ones.
        unsettled: how many steps of this epoch did not settle in their inference.
        metrics_bytes, metrics_digest: of the metrics that go with it; no digest in older ones.
        loss_scale: see `divergence`; 0 in older ones.
        best: the epoch of the best weights, and what it was chosen by: their validation scores, as
            "validation_accuracy", and loss.
        stopped: why training ended early.
        remarks: what is to be known of the result: conditions that changed under way.
        is_advised: whether it was said that the rule's nudge is too strong.
        doubt: what is wrong with the losses of the last epoch, at which the network learns.
    """

    kind: str = "last"
    conditions: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    unsettled: int = 0
    metrics_bytes: int = 0
    metrics_digest: str = ""
    loss_scale: float = 0.0
    # A whole number stays one when it is read: a resumed run writes the same header.
    best: dict[str, int | float] = field(default_factory=dict)
    stopped: str = ""
    remarks: tuple[str, ...] = ()
    doubt: str = ""
    is_advised: bool = False


def chained(digest: str, line: str) -> str:
    """The digest of a sequence of lines, from that of all but the last."""
    return hashlib.sha256(f"{digest}\n{line}".encode()).hexdigest()


def agree(progress: Progress, best: dict[str, Any], folder: Path, allow_changed: bool, is_changed: bool) -> str:
    """Have `progress` agree with the metrics in `folder` and with what `best` says of its weights.

    Args:
        allow_changed: take an older checkpoint than the metrics are of; what is said then comes
            back.
        is_changed: whether the run goes on under other conditions, so that the epoch after this
            moment will not be the same again.

    Raises:
        CheckpointError: they are of different moments.
    """
    metrics, last = folder / "metrics.jsonl", folder / "last.safetensors"
    advice = f"Restore what belongs together from a copy, or remove {folder} to train this seed anew."
    content = files.read(metrics) if files.exists(metrics) else b""
    ours, after = content[: progress.metrics_bytes], content[progress.metrics_bytes :]
    digest = ""
    for line in ours.decode(errors="replace").splitlines():
        digest = chained(digest, line)
    # What is shorter is refused where it is cut back.
    if len(ours) == progress.metrics_bytes and progress.metrics_digest not in ("", digest):
        raise CheckpointError(f"{metrics} and {last} are not of one run, or one was edited. {advice}")
    older = ""
    if after.count(b"\n") > 1:
        older = f"{last} is of epoch {progress.epoch}, and {metrics.name} goes on after it"
        if not allow_changed:
            raise CheckpointError(f"{older}. {advice} To go on from that epoch, give --allow-changed.")
    if best["epoch"] != progress.best["epoch"]:
        if best["epoch"] != progress.epoch + 1 and not older:
            told = f"is of epoch {best['epoch']}, and the best epoch was {progress.best['epoch']}"
            raise CheckpointError(f"{folder / 'best.safetensors'} {told}. {advice}")
        scores = {name: value for name, value in best.items() if name.startswith("validation_")}
        if (is_changed or older) and scores:
            # Those weights are replaced by better ones only.
            progress.best = {"epoch": best["epoch"], **scores}
    return older
