"""Two processes that want one folder, one comparison, one output or one picture: one has it, the
other is told so in a line and changes nothing.

The other process is a program of its own that runs a command up to the moment when it would write
a file of a given name, says so and waits; this process then tries the same.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dualprop import cli, training
from dualprop.bench import experiments
from dualprop.errors import RunError
from dualprop.training import comparisons, files, folders

OTHER = """
import io, json, sys, contextlib
from dualprop import cli
from dualprop.training import files
write = files.write
for line in sys.stdin:
    arguments, moments = json.loads(line)
    def waiting(path, content):
        if [path.name] == moments[:1]:
            del moments[0]
            print("waiting", file=sys.__stdout__, flush=True)
            sys.stdin.readline()
        write(path, content)
    files.write = waiting
    code, told = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, told.getvalue()]), flush=True)
"""


class Other:
    """The other process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @contextlib.contextmanager
    def at(self, *arguments: object, moments: tuple[str, ...]) -> Iterator[Callable[[], None]]:
        """Let it run the command up to the writing of the first of these files, to that of the next
        when what is yielded is called, and to its end afterwards, which must be a good one."""

        def go_on() -> None:
            self._say("")
            assert self._hear() == "waiting\n"

        self._say(json.dumps([[str(word) for word in arguments], moments]))
        assert self._hear() == "waiting\n"
        yield go_on
        self._say("")
        code, told = json.loads(self._hear())
        assert code == 0, told

    def _say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Other(process)
        process.stdin.close()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*arguments): the line that refuses the command, which changes no file or folder."""

    def call(*arguments: object) -> str:
        def everything() -> dict[str, tuple[int, bytes | None]]:
            paths = sorted(tmp_path.rglob("*"))
            return {str(p): (p.lstat().st_ino, p.read_bytes() if p.is_file() else None) for p in paths}

        before = everything()
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in arguments])
        told = capsys.readouterr().err
        assert stop.value.code == 2, told
        assert told.startswith("dualprop: error: ")
        assert told.count("\n") == 1
        assert everything() == before
        return told

    return call


SHORT = ("--epochs", "1", "--seeds", "1", "--no-align", "--batch-size", "64", "--num-threads", "1", "--model.widths", "4")
BENCH = ("bench", "--models", "mlp", "--rules", "dp", "--rounds", "1", "--seconds", "0", "--batch-size", "2", "--no-memory",
         "--no-ceilings")  # fmt: skip


def rate(plain: dict) -> float:
    return plain["optimizer"]["learning_rate"]


def test_of_two_that_begin_in_one_folder_one_trains_and_the_other_writes_nothing(other, refused, tmp_path):
    """The one that is refused must not have put its own recipe there before."""
    out = tmp_path / "run"
    begin = ("train", "digits-mlp", *SHORT, "--out", out, "--optimizer.learning-rate")
    with other.at(*begin, "0.01", moments=("recipe.json",)):
        assert f"{out} is being trained by another process" in refused(*begin, "0.02")
    assert rate(json.loads((out / "recipe.json").read_text())["recipe"]) == 0.01
    assert training.load(out).results()[0].epochs == 1
    assert not list(out.rglob("*.lock"))
    assert "exists already. Continue it with --resume" in refused(*begin, "0.02")


def test_a_run_that_is_being_trained_is_neither_begun_anew_nor_resumed(other, refused, tmp_path):
    """Both would append to the same metrics and replace each other's checkpoints."""
    out = tmp_path / "run"
    begin = ("train", "digits-mlp", *SHORT, "--out", out)
    with other.at(*begin, moments=("last.safetensors",)):
        assert "exists already" in refused(*begin)
        assert "is being trained by another process" in refused("train", "--resume", out)
        assert "is being trained by another process" in refused("compare", "--resume", out)


def test_of_two_comparisons_in_one_folder_each_result_is_of_the_recipe_of_one(other, refused, tmp_path):
    """Two of twenty had trained with the other's learning rate and ended well."""
    out = tmp_path / "c"
    begin = ("compare", "digits-mlp", *SHORT, "--variants", "bp,dp", "--no-costs", "--out", out, "--optimizer.learning-rate")
    with other.at(*begin, "0.01", moments=("comparison.json", "result.json")) as go_on:
        assert f"{out} is being trained by another process" in refused(*begin, "0.02")
        go_on()
        assert "exists already" in refused(*begin, "0.02")
        assert f"{out} is being trained by another process" in refused("compare", "--resume", out)
        assert f"{out / 'bp'} is being trained by another process" in refused("train", "--resume", out / "bp")
    comparison = comparisons.load(out)
    assert {rate(recipe.to_plain()) for recipe in comparison.recipes.values()} == {0.01}
    for label, run in comparison.runs.items():
        assert run.results()[0].belongs_to == f"{comparison.recipes[label].digest()} seed 0"


def test_of_two_benches_that_write_one_file_or_one_picture_one_does(other, refused, tmp_path):
    """Each would replace the other's numbers after every group: the file would be of neither."""
    out = tmp_path / "x.json"
    with other.at(*BENCH, "--out", out, moments=("x.json",)):
        assert f"{out} is being written by another process" in refused(*BENCH, "--out", out)
        picture = (*BENCH, "--out", tmp_path / "y.json", "--figure", tmp_path / "x.png")
        assert f"{tmp_path / 'x.png'} is being written by another process" in refused(*picture)
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x.png"}
    assert json.loads(out.read_text())["groups"]


def test_of_two_reports_one_draws(other, refused, recipe, train):
    """Each would remove the other's half-written picture as a leftover."""
    run = train(recipe(epochs=1))
    with other.at("report", run.folder, moments=("training_curves.png",)):
        assert "figures is being drawn by another process" in refused("report", run.folder)
    assert [path.name for path in (run.folder / "figures").iterdir()] == ["training_curves.png"]


def test_two_runs_that_are_named_by_one_second_have_a_folder_each(tmp_path, monkeypatch):
    """A machine starts many at once, and none has said where to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments.time, "strftime", lambda _: "20260101-000000")
    names = [experiments._new_folder("digits-mlp").name for _ in range(3)]
    assert names == ["digits-mlp-20260101-000000", "digits-mlp-20260101-000000-2", "digits-mlp-20260101-000000-3"]


def test_a_lock_is_held_against_other_threads_and_again_by_its_own(tmp_path):
    """Two threads of a notebook are as two processes."""
    refusals: list[Exception] = []

    def try_it() -> None:
        try:
            with folders.held(tmp_path):
                pass
        except RunError as error:
            refusals.append(error)

    with folders.held(tmp_path), folders.held(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert "another process" in str(refusals[0])
    try_it()
    assert len(refusals) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_taken_away_and_made_anew_is_left_to_its_holder(tmp_path):
    """Somebody cleans up the folder while it is trained in: the next one's lock is not ours to
    remove."""
    with folders.held(tmp_path):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").touch()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_that_its_holder_removes_while_it_is_waited_for_is_not_taken(tmp_path, monkeypatch):
    """Locked, but no longer to be found, it would keep nobody out."""
    real, times = folders.flock, []

    def late(descriptor: int, how: int) -> None:
        if not times:
            (tmp_path / ".lock").unlink()  # as its holder does, between our opening and our locking
        times.append(1)
        real(descriptor, how)

    monkeypatch.setattr(folders, "flock", late)
    with folders.held(tmp_path):
        assert len(times) == 2
        assert (tmp_path / ".lock").exists()


def test_a_folder_that_another_has_begun_before_the_lock_was_ours_is_refused(recipe, tmp_path, monkeypatch):
    """It was empty when it was looked at, and the other has ended since: its recipe would be
    overwritten."""
    real, folder = folders.flock, tmp_path / "run"

    def late(descriptor: int, how: int) -> None:
        (folder / "recipe.json").write_text("the other's")
        real(descriptor, how)

    monkeypatch.setattr(folders, "flock", late)
    with pytest.raises(RunError, match="exists already"):
        training.create(folder, recipe(), (0,))
    assert [path.name for path in folder.iterdir()] == ["recipe.json"]
    assert (folder / "recipe.json").read_text() == "the other's"


def test_a_file_that_holds_something_is_no_lock(tmp_path):
    """It is somebody's, and would be removed with the lock."""
    (tmp_path / ".lock").write_text("yarn")
    with pytest.raises(RunError, match="holds something, so it is no lock"), folders.held(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "yarn"


def test_where_the_system_has_no_locks_runs_are_trained_without(recipe, tmp_path, monkeypatch):
    """Windows has no flock."""
    monkeypatch.setattr(folders, "flock", None)
    monkeypatch.setattr(files, "_GUARDS", 0)
    training.train(training.create(tmp_path / "run", recipe(epochs=1), (0,)))
    assert not list(tmp_path.rglob(".lock"))
    with folders.held(tmp_path), folders.held_file(tmp_path / "x.json"):
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
