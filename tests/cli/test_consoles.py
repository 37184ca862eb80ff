"""Whoever reads what the command prints, and however: the work is done, and nothing is a
traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHORT
from rich.table import Table

from dualprop.cli.console import OutputConsole

COMMAND = Path(sys.executable).with_name("dualprop")
TRAIN = ("train", "digits-mlp", *SHORT, "--seeds", "1", "--no-align", "--model.widths", "8")
# Markup of rich, a sequence that colours a terminal, a bell, and the name of a smile.
NAME = "run [/x][bold] \x1b[31m\x07 :smile: α"


def told(*words, env=None, redirect="", cwd=None):
    """The command in a shell, so that its descriptors can be closed and redirected. A variable of
    None is taken away."""
    command = f'"$0" "$@" {redirect}'
    variables = {**os.environ, **(env or {})}
    return subprocess.run(
        ["bash", "-c", command, COMMAND, *words],
        env={name: value for name, value in variables.items() if value is not None},
        cwd=cwd, capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run whose reader went away after the first line, and what that read."""
    folder = tmp_path_factory.mktemp("consoles")
    read = told(*TRAIN, "--out", NAME, redirect="| head -1; exit ${PIPESTATUS[0]}", cwd=folder)
    return folder, read


def test_a_reader_that_goes_away_does_not_stop_the_training(trained):
    """The case f15: it ended after a line, with exit code 0 and nothing trained."""
    folder, read = trained
    assert (read.returncode, read.stderr) == (0, b"")
    assert read.stdout.count(b"\n") == 1
    assert (folder / NAME / "results.json").is_file()
    assert (folder / NAME / "figures/training_curves.png").is_file()


def test_brackets_and_escapes_in_a_folders_name_are_text(trained):
    """The case f17, and a name that would colour the terminal or ring its bell."""
    folder, read = trained
    shown = r"run [/x][bold] \x1b[31m\x07 :smile: α"
    assert f"→ {shown}\n" in read.stdout.decode()
    report = told("report", NAME, cwd=folder)
    assert (report.returncode, report.stderr) == (0, b"")
    assert f"picture: {shown}/figures/training_curves.png" in report.stdout.decode()
    refused = told(*TRAIN, "--out", NAME, cwd=folder)
    assert refused.returncode == 2
    assert f"--resume {shown}," in refused.stderr.decode()


def test_cells_and_titles_of_tables_are_text():
    """A network's run folder stands in a title of the bench, a rule's label in a cell."""
    for encoding, name in (("utf-8", "α²"), ("ascii", "alpha^2")):
        written = io.TextIOWrapper(io.BytesIO(), encoding)
        table = Table("[b]head", title="[/x] title :smile:")
        table.add_row("[bold]cell[/bold] \x1b[31m α²")
        OutputConsole(file=written, width=60).print(table)
        written.seek(0)
        shown = written.read()
        assert "[/x] title :smile:" in shown
        assert "[b]head" in shown
        assert rf"[bold]cell[/bold] \x1b[31m {name}" in shown
        assert len({len(line) for line in shown.splitlines()[1:]}) == 1, "substitutes are laid out too"


@pytest.mark.parametrize(
    ("words", "encoding", "code", "expected"),
    [
        (("report", NAME), "ascii", 0, ":smile: alpha/figures"),
        (("report", NAME), "utf-16", 0, ":smile: α/figures"),
        (("list", "rules"), "cp1252", 0, "DP and DP^T"),
        (("train", "--help"), "cp1252", 0, "pairs of alpha and beta that"),
        (("train", "--αβ"), "cp1252", 2, "unknown option '--alphabeta'"),
    ],
)
def test_a_console_that_lacks_a_character_gets_its_name(words, encoding, code, expected, trained):
    """The case f16: tracebacks, after the run folder was made."""
    folder, _ = trained
    answer = told(*words, env={"PYTHONIOENCODING": encoding}, cwd=folder)
    assert answer.returncode == code
    out, err = answer.stdout.decode(encoding), answer.stderr.decode(encoding)
    assert (expected in err and out == "") if code else (expected in out and err == "")


@pytest.mark.parametrize(
    ("redirect", "code", "err"),
    [
        (">&- 2>&- <&-", 0, b""),
        (">/dev/full", 2, b"dualprop: standard output is lost (No space left on device); the work goes on.\n"),
        pytest.param(">/dev/full 2>/dev/full", 2, b"", marks=pytest.mark.slow),
    ],
)
def test_an_output_that_takes_nothing_does_not_stop_the_training(redirect, code, err, folder):
    """It is told where it can be. A closed descriptor is not given to the next file either."""
    result = told(*TRAIN, "--out", "run", redirect=redirect)
    assert (result.returncode, result.stdout, result.stderr) == (code, b"", err)
    assert (folder / "run/results.json").is_file()
    assert (folder / "run/figures/training_curves.png").is_file()


@pytest.mark.parametrize("words", [("--help",), ("train", "--help")])
def test_an_answer_that_can_not_be_written_is_told_and_exits_with_2(words):
    """And it is no error that nobody wants the rest of it."""
    result = told(*words, redirect=">/dev/full")
    assert result.returncode == 2
    assert result.stderr == b"dualprop: standard output is lost (No space left on device); the work goes on.\n"
    gone = told(*words, redirect="| true; exit ${PIPESTATUS[0]}")
    assert (gone.returncode, gone.stderr) == (0, b"")


PLAIN = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "env",
    [
        {"COLUMNS": "20", "MPLBACKEND": "nonsense", "TERM": "dumb", **PLAIN},
        {"COLUMNS": "²", "LINES": "0", "HOME": None},
        {"COLUMNS": "99999999999999999999"},
    ],
    ids=["narrow and POSIX", "no number and no HOME", "too wide"],
)
def test_a_report_is_shown_whatever_the_variables_say(env, trained):
    folder, _ = trained
    report = told("report", NAME, env=env, cwd=folder)
    assert (report.returncode, report.stderr) == (0, b"")
    assert b"training_curves.png" in report.stdout
    assert len(report.stdout) < 10_000
    assert report.stdout.isascii() or "LC_ALL" not in env


def test_the_current_folders_matplotlibrc_is_not_read(trained, tmp_path):
    """It may have LaTeX started, and a pipe of that name would be waited for."""
    folder, _ = trained
    os.mkfifo(tmp_path / "matplotlibrc")
    report = told("report", folder / NAME, cwd=tmp_path)
    assert (report.returncode, report.stderr) == (0, b"")


@pytest.mark.parametrize("term", [pytest.param("dumb", marks=pytest.mark.slow), "xterm"])
def test_a_terminal_is_shown_a_bar_where_it_can_draw_one(term, folder):
    program = f"import os, pty; os.environ['TERM'] = {term!r}; " + (
        "import sys; seen = open('seen', 'wb'); "
        "code = pty.spawn(sys.argv[1:], lambda d: (lambda b: (seen.write(b), b)[1])(os.read(d, 65536))); "
        "sys.exit(os.waitstatus_to_exitcode(code))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, COMMAND, *TRAIN, "--out", "run"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    written = (folder / "seen").read_bytes()
    assert b"test accuracy" in written
    assert (b"\x1b" in written) == (term == "xterm")
