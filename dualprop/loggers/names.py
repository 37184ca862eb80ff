"""Loggers by name, and the names that a run folder keeps of its own.

RUN/logs.json    the names, and what the folder is known by: a resume logs on in the same runs
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from dualprop.errors import SettingError, closest
from dualprop.loggers.base import AbstractLogger
from dualprop.loggers.comma_separated import CSV
from dualprop.loggers.experiments import MLflow
from dualprop.loggers.scalars import TensorBoard
from dualprop.loggers.weights_and_biases import WandB
from dualprop.training import documents, files
from dualprop.training.records import LogsFile

LOGGERS: dict[str, Callable[[], AbstractLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "csv": CSV,
}


def parse(given: str | AbstractLogger | Sequence[str | AbstractLogger]) -> list[AbstractLogger]:
    """Loggers from names with commas between, or from several names and loggers.

    Raises SettingError for an unknown name, one that is given twice, or a package that is not
    installed.
    """
    several = [given] if isinstance(given, str | AbstractLogger) else list(given)
    parts = [part for each in several for part in (each.split(",") if isinstance(each, str) else [each]) if part != ""]
    loggers: list[AbstractLogger] = []
    for part in parts:
        if isinstance(part, str) and part.strip() not in LOGGERS:
            known = list(LOGGERS)
            raise SettingError(f"unknown log '{part}'.{closest(part, known)} Known: {', '.join(known)}.")
        if not isinstance(part, str | AbstractLogger):
            raise SettingError(f"log must be a name or a dp.loggers.AbstractLogger, got {part!r}.")
        loggers.append(LOGGERS[part.strip()]() if isinstance(part, str) else part)
    kinds = [type(each) for each in loggers if type(each) in LOGGERS.values()]
    if len(set(kinds)) < len(kinds):
        raise SettingError("log names a logger twice. Name each once.")
    for logger in loggers:
        if logger.package and importlib.util.find_spec(logger.package) is None:
            raise SettingError(f"{logger.package} is not installed. Install it: pip install 'dualprop[{logger.extra}]'.")
    return loggers


def keep(folder: Path, loggers: Sequence[AbstractLogger]) -> str:
    """Note those with a name for a resume; what the folder is known by in logs."""
    by_kind = {kind: name for name, kind in LOGGERS.items()}
    names = tuple(by_kind[type(each)] for each in loggers if type(each) in by_kind)
    before = _read(folder)
    identity = before.identity if before else secrets.token_hex(4)
    kept = LogsFile(log=tuple(dict.fromkeys((*(before.log if before else ()), *names))), identity=identity)
    if kept != before:
        files.write_json(folder / "logs.json", kept.to_plain())
    return identity


def beside(folder: Path, given: str | AbstractLogger | Sequence[str | AbstractLogger]) -> list[str | AbstractLogger]:
    """What a resume logs by: what was noted there, and what is given that is not among it."""
    file = _read(folder)
    noted = [] if file is None else list(file.log)
    several = [given] if isinstance(given, str | AbstractLogger) else list(given)
    parts = [part for each in several for part in (each.split(",") if isinstance(each, str) else [each])]
    return [*noted, *(part for part in parts if part and part not in noted)]


def _read(folder: Path) -> LogsFile | None:
    path = folder / "logs.json"
    if not files.exists(path):
        return None
    return documents.read(path, LogsFile.from_plain, "Restore it, or remove it to have nothing logged.")
