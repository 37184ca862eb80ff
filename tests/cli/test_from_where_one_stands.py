"""Nothing in the current folder is run, whatever its name, by the command or by what it starts."""

import os
import subprocess
import sys
from pathlib import Path

import dualprop
from dualprop.bench import memory
from dualprop.cli import main as answer
from dualprop.system import processes
from dualprop.training import environment

COMMAND = Path(sys.executable).with_name("dualprop")
PACKAGES = [
    "torch", "numpy", "scipy", "sklearn", "rich", "tyro", "safetensors", "pooch", "matplotlib", "PIL", "triton",
    "pandas", "IPython", "typing_extensions", "annotated_types", "sitecustomize", "usercustomize", "setuptools", "yaml",
]  # fmt: skip
# Modules that Python itself imports before it comes to us, wherever it is told to import from.
BEFORE_US = [
    "encodings", "codecs", "io", "abc", "site", "os", "stat", "posixpath", "genericpath", "importlib", "runpy",
    "collections", "contextlib", "functools", "types", "warnings", "keyword", "operator", "reprlib", "pkgutil",
    "weakref", "_collections_abc", "_sitebuiltins", "__future__", "_weakrefset", "zipimport", "sitecustomize",
    "usercustomize",
]  # fmt: skip


def strangers(folder, leave=()):
    """A file for each module of Python and of our dependencies, which says that it ran."""
    for name in {*sys.stdlib_module_names, *PACKAGES} - set(leave):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write('{name} ')\nraise SystemExit('mine')\n")


def test_a_comparison_runs_no_file_of_the_current_folder(folder, short):
    """Its memory is measured by a Python of its own. The case f01."""
    strangers(folder)
    (folder / "dualprop.py").write_text("raise SystemExit('mine')\n")
    for name in ("git", "gcc", "cc", "as", "ld"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> '{folder}/ran'\n")
        (folder / name).chmod(0o755)
    words = ("compare", "digits-mlp", *short, "--seeds", "1", "--no-align", "--model.widths", "8", "--rules", "backprop")
    environment = {**os.environ, "PATH": f".:{folder}:{os.environ['PATH']}", "CC": "./gcc -O2"}
    result = subprocess.run([COMMAND, *words, "--out", "c"], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert (folder / "c/costs.json").is_file()
    assert not (folder / "ran").exists(), (folder / "ran").read_text()


def test_the_module_is_the_command_and_runs_no_file_of_the_current_folder(folder):
    """`python -m` puts the current folder first, and so does an empty part of $PYTHONPATH."""
    strangers(folder, leave=BEFORE_US)
    path = os.pathsep.join(("", str(Path(dualprop.__file__).parents[1]), "."))
    result = subprocess.run(
        [sys.executable, "-m", "dualprop", "list", "rules"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "dual_propagation" in result.stdout
    assert not (folder / "ran").exists(), (folder / "ran").read_text()


def test_a_python_that_is_started_finds_this_package_and_what_this_process_does(folder, tmp_path_factory, monkeypatch):
    """Absolute paths are handed on; the current folder is not, by whatever name."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "of_the_user.py").write_text("")
    (folder / "json.py").write_text("raise SystemExit('mine')\n")
    (elsewhere / "link").symlink_to(folder)
    monkeypatch.setattr(sys, "path", ["", ".", str(folder), str(elsewhere / "link"), str(elsewhere), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(folder))
    program = "import json, dualprop, of_the_user; print(json.dumps([dualprop.__file__, sys.path]))"
    finished = processes.run(processes.python(program), seconds=None, folder=folder)
    assert finished.code == 0, finished.err
    assert dualprop.__file__ in finished.out
    assert str(folder) not in finished.out
    assert str(elsewhere / "link") not in finished.out


def test_a_comparison_whose_costs_can_not_be_measured_is_finished_as_its_message_says(dualprop, folder, short, monkeypatch):
    """Trained for days, and then refused for ever."""

    def fails(*_, **__):
        raise processes.ProgramError("was\nkilled")

    monkeypatch.setattr(memory.processes, "run", fails)
    monkeypatch.setattr("dualprop.training.environment.commit", lambda: None)
    words = ("--seeds", "1", "--no-align", "--model.widths", "8", "--rules", "backprop")
    told = dualprop("compare", *short, *words, "--out", "c")
    assert told.code == 2
    assert told.err.count("\n") == 1
    assert "was killed" in told.err
    assert "`dualprop compare --resume c --no-costs`" in told.err
    finished = dualprop("compare", "--resume", "c", "--no-costs")
    assert (finished.code, finished.err) == (0, "")
    assert (folder / "c/results.json").is_file()
    assert not (folder / "c/costs.json").exists()
    assert dualprop("report", "c").code == 0
    assert dualprop("compare", "--resume", "c").code == 2, "costs are tried again where they are not declined"


def test_the_commit_is_asked_of_our_own_checkout_alone_and_runs_nothing_of_it(folder, monkeypatch, tmp_path_factory):
    """A checkout's settings name programs that git runs: a monitor of files, hooks, filters."""
    checkout = tmp_path_factory.mktemp("checkout")
    package = checkout / "dualprop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    run = {"cwd": checkout, "check": True, "capture_output": True}
    name = ("-c", "user.name=n", "-c", "user.email=e")
    subprocess.run(["git", "init", "-q"], **run)
    subprocess.run(["git", "add", "."], **run)
    subprocess.run(["git", *name, "commit", "-qm", "first"], **run)
    ran = folder / "ran"
    monitor = folder / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {ran}\n")
    monitor.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(monitor)], **run)
    monkeypatch.setattr(dualprop, "__file__", str(package / "__init__.py"))
    monkeypatch.setenv("GIT_DIR", str(folder))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(monitor))
    head = environment.commit()
    assert head is not None
    assert len(head) == 40
    (package / "__init__.py").write_text("changed")
    assert environment.commit() == f"{head}-dirty"
    # Installed below another project's checkout: not ours to ask.
    inner = checkout / "env/dualprop"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("")
    monkeypatch.setattr(dualprop, "__file__", str(inner / "__init__.py"))
    assert environment.commit() is None
    assert not ran.exists()


def test_called_from_python_the_command_leaves_the_process_as_it_is(capsys):
    """Its import paths and outputs are the caller's."""
    before = (list(sys.path), sys.stdout, dict(os.environ))
    answer(["list", "rules"])
    assert (sys.path, sys.stdout, dict(os.environ)) == before
