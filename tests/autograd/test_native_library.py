"""The library of the one-pass kernel: built once, kept whole, checked before it runs; whatever
stands in the cache, in $CC and on $PATH."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dualprop.kernels import building
from dualprop.system import processes

REAL = processes.find("gcc") or processes.find("cc")
pytestmark = pytest.mark.skipif(REAL is None, reason="there is no C compiler here")


def script(path, text):
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A compiler that takes no time: it copies what the real one built."""
    folder = tmp_path_factory.mktemp("quick")
    built = folder / "built.so"
    subprocess.run([REAL, "-shared", "-fPIC", *building.FLAGS, building.SOURCE, "-o", built], check=True)
    built.write_bytes(built.read_bytes())
    return script(folder / "compiler", f'case $1 in --version) echo 1;; -shared) cp {built} "$4";; *) : > "${{11}}";; esac')


@pytest.fixture
def cache(tmp_path, monkeypatch, quick):
    """The folder of libraries, not there yet, and the quick compiler; another folder stands in for
    the system's temporary one."""
    monkeypatch.setenv("CC", quick)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(building.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache/dualprop/native"


@pytest.fixture
def builds(monkeypatch):
    """The names of the libraries that are built."""
    built, build = [], building._build
    monkeypatch.setattr(building, "_build", lambda compiler, path, key: built.append(path.name) or build(compiler, path, key))
    return built


def kept(cache):
    """The one library that is kept."""
    (path,) = cache.iterdir()
    return path


def test_a_library_is_built_once(cache, builds):
    for _ in range(2):
        assert building.library().dyad_float32 is not None
    assert len(builds) == 1
    assert kept(cache).name == builds[0]


def test_a_system_without_files_in_memory_loads_a_copy_and_leaves_none(cache, tmp_path, monkeypatch):
    """macOS, and kernels that forbid to run them."""
    monkeypatch.delattr(os, "memfd_create")
    assert building.library().dyad_float32 is not None
    assert not list((tmp_path / "temporary").iterdir())


DAMAGES = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0]]) + b"\0" + path.read_bytes()[2:]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "text": lambda path: path.write_text("not a library"),
    "open to others": lambda path: path.chmod(0o666),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.rename(path.parents[1] / "moved"), path.symlink_to(path.parents[1] / "moved")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_library_that_is_not_whole_and_ours_is_built_anew(damage, cache, builds):
    """Loaded as it is it would be a bus error, or another's code."""
    building.library()
    whole = kept(cache).read_bytes()
    DAMAGES[damage](kept(cache))
    assert building.library().dyad_float32 is not None
    assert len(builds) == 2
    assert kept(cache).is_file()
    assert not kept(cache).is_symlink()
    assert building._read(kept(cache), building._key(building._compiler())) is not None
    assert len(kept(cache).read_bytes()) == len(whole)


def test_a_whole_library_of_another_key_is_not_loaded(cache, builds, monkeypatch):
    """Copied from a machine of another kind, say, and renamed."""
    building.library()
    path, content = kept(cache), kept(cache).read_bytes()
    other = building._digest(content[:-32], "another machine")
    path.write_bytes(content[:-32] + other)
    building.library()
    assert len(builds) == 2


def test_a_library_in_use_that_is_cut_short_brings_nobody_down(cache):
    """What is loaded is a copy in memory: a page of a file that is gone is a bus error."""
    code = """
import torch
from pathlib import Path
import dualprop as dp
from dualprop import kernels, neurons
from dualprop.kernels import native
assert native.is_available(), native.reason()
(path,) = Path(sys.argv[1]).iterdir()
open(path, "wb").close()
a = torch.randn(1000)
print(kernels.difference(neurons.ReLU(), a, torch.ones(1000), 0.5, 0.5, 1.0, "native").isfinite().all().item())
"""
    result = subprocess.run([sys.executable, "-c", f"import sys{code}", cache], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_a_build_that_is_killed_is_cleared_away_by_the_next(cache, tmp_path, monkeypatch):
    """And one that is still going on is not."""
    held, go = tmp_path / "held", tmp_path / "go"
    os.mkfifo(held)
    os.mkfifo(go)
    text = f"case $1 in --version) echo slow 1;; *) echo > {held}; read line < {go}; exit 1;; esac"
    slow = script(tmp_path / "slow", text)
    code = "from dualprop.kernels import building; building.library()"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CC": slow})
    held.read_bytes()
    (working,) = cache.glob(".build-*")
    building.library()
    assert working.is_dir(), "a build that goes on was cleared away"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert working.is_dir()
    (cache / "foreign").mkdir()
    for path in cache.glob("*.so"):
        path.unlink()
    building.library()
    assert not list(cache.glob(".build-*"))
    assert (cache / "foreign").is_dir(), "what no build made was removed"
    # The compiler of the killed one waits for a line, and then finds nobody.
    with open(go, "w") as file:
        file.write("go\n")


def test_two_processes_that_build_at_once_both_have_it(cache):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=building.library) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert kept(cache).suffix == ".so"


@pytest.mark.parametrize("at", ["--version", "-O3"])
def test_a_compiler_that_hangs_is_stopped_with_all_that_it_started(at, cache, tmp_path, monkeypatch):
    """Its child keeps the pipe open. The time limit is passed at once here."""
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    text = f'[ "$1" = {at} ] && {{ (exec 3> {alive}; sleep 100000) & sleep 100000; }}; echo version 1'
    monkeypatch.setenv("CC", script(tmp_path / "slow", text))
    # Opened by its child, and at its end when the child is no more.
    seen = []
    reader = threading.Thread(target=lambda: seen.append(alive.read_bytes()))
    reader.start()
    monkeypatch.setattr(building, "VERSION_SECONDS", 1)
    monkeypatch.setattr(building, "BUILD_SECONDS", 1)
    with pytest.raises(building.BuildError, match="slow could not build it: took longer than 1 s and was stopped"):
        building.library()
    reader.join()
    assert seen == [b""]
    assert not list(tmp_path.rglob(".build-*"))


def test_a_compiler_that_never_stops_talking_is_stopped(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "yes --version=")
    monkeypatch.setattr(processes, "find", lambda program: script(tmp_path / program, "exec yes"))
    with pytest.raises(building.BuildError, match="said more than 4 MiB and was stopped"):
        building.library()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", [REAL]),
        ("gcc -m64", [REAL, "-m64"]),
        (f"{REAL} -pipe", [REAL, "-pipe"]),
        ("./gcc", [REAL]),
        ("here/gcc", [REAL]),
        ("../gcc", [REAL]),
        ("no-such-compiler", [REAL]),
        ("gcc; touch ran", [REAL]),
        ("'", [REAL]),
        ("/", [REAL]),
    ],
)
def test_the_compiler_is_named_by_an_absolute_path_or_found_on_the_path(given, words, tmp_path, monkeypatch):
    """A relative path would be another program in another folder."""
    (tmp_path / "here").mkdir()
    for name in ("gcc", "cc", "here/gcc"):
        script(tmp_path / name, "touch ran")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", given)
    for path in (os.environ["PATH"], f".:{os.environ['PATH']}", f":{os.environ['PATH']}", f"{tmp_path}:{os.environ['PATH']}"):
        monkeypatch.setenv("PATH", path)
        assert [os.path.realpath(building._compiler()[0]), *building._compiler()[1:]] == [os.path.realpath(REAL), *words[1:]]
        assert str(tmp_path) not in processes.environment()["PATH"].split(os.pathsep)
    assert not list(tmp_path.rglob("ran"))


def test_the_assembler_and_headers_of_the_current_folder_are_not_used(cache, tmp_path, monkeypatch, builds):
    """The compiler looks for its own programs on $PATH, and for headers where variables say."""
    for name in ("as", "ld", "collect2", "cc1"):
        script(tmp_path / name, f"touch {tmp_path}/ran; exit 1")
    (tmp_path / "math.h").write_text("#error not mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", f".::{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("C_INCLUDE_PATH", ":.")
    monkeypatch.setenv("COMPILER_PATH", ".")
    building.library()
    assert len(builds) == 1
    assert not (tmp_path / "ran").exists()


def test_a_cache_that_can_not_be_trusted_or_written_is_left_for_the_temporary_folder(cache, tmp_path, monkeypatch):
    """A link, a folder that others write to, a file in its place, one that can't be made."""
    second = tmp_path / f"temporary/dualprop-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache.parent.mkdir(parents=True)

    def replaced(make):
        if cache.is_symlink() or cache.is_file():
            cache.unlink()
        elif cache.exists():
            cache.rmdir()
        make()
        return building.library()

    for make in (
        lambda: cache.symlink_to(elsewhere),
        lambda: (cache.mkdir(), cache.chmod(0o777)),
        lambda: cache.write_text("mine"),
        lambda: (cache.mkdir(), cache.parent.chmod(0o777)),
    ):
        assert replaced(make).dyad_float32 is not None
        assert [path.suffix for path in second.iterdir()] == [".so"]
        assert not list(elsewhere.iterdir())
        assert not cache.is_dir() or not list(cache.iterdir())


@pytest.mark.parametrize("value", ["", "relative/cache", "."])
def test_a_cache_folder_that_is_not_absolute_is_ignored(value, monkeypatch, tmp_path):
    """As the XDG specification has it: it would be another folder wherever one stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "also/relative")
    assert [path.parent for path in building._folders()] == [Path(building.tempfile.gettempdir())]
    monkeypatch.setattr(building.tempfile, "tempdir", str(tmp_path))
    assert building._folders() == []
