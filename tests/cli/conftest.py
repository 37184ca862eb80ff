"""What the tests of the command line share: the command called in this process, in a folder of its
own."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dualprop import cli

# A run of digits that takes a fraction of a second.
SHORT = ("--epochs", "1", "--batch-size", "64", "--num-threads", "1")


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, empty, with none of the user's settings and no way into the network."""
    for variable in ("DUALPROP_DATA", "DUALPROP_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DUALPROP_MIRROR", "https://127.0.0.1:1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dualprop(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """dualprop(*arguments): the answer of the command, called in this process."""

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(word) for word in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        told = capsys.readouterr()
        return Answer(code, told.out, told.err)

    return call


@pytest.fixture
def short() -> tuple[str, ...]:
    """Options that make a run of digits take a fraction of a second."""
    return SHORT


@pytest.fixture
def snapshot(folder: Path) -> Callable[[], dict[str, bytes]]:
    """snapshot(): every file below the present folder with its content, and every folder. Locks are
    left out."""

    def take() -> dict[str, bytes]:
        found = {}
        for where, folders, files in os.walk(folder):
            found |= {os.path.join(where, name): b"folder" for name in folders}
            paths = {os.path.join(where, name): Path(where, name) for name in files if name != ".lock"}
            # A pipe would be waited at.
            found |= {name: path.read_bytes() if path.is_file() else b"no file" for name, path in paths.items()}
        return found

    return take


@pytest.fixture
def refused(dualprop, snapshot) -> Callable[..., str]:
    """refused(*arguments): the one line that refuses them; exit code 2, no traceback, and no file
    touched."""

    def call(*arguments: str) -> str:
        before = snapshot()
        answer = dualprop(*arguments)
        assert answer.code == 2, answer
        assert answer.err.startswith("dualprop: error: ")
        assert answer.err.endswith("\n")
        assert answer.err.count("\n") == 1, f"more than one line:\n{answer.err}"
        assert "Traceback" not in answer.err
        assert snapshot() == before, "something was damaged or left behind"
        return answer.err

    return call
