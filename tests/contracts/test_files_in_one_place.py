"""Whatever is written or read in a run folder, and whatever a command is told to write, goes
through `training.files` and `training.folders`, which refuse links, pipes and devices; read from
the source."""

import ast
from pathlib import Path

import pytest

import dualprop

PACKAGE = Path(dualprop.__file__).parent
HOMES = ("training/files.py", "training/folders.py")
# What opens, makes, moves or removes something; and the libraries' functions that do.
DOING = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "rmdir",
         "rename", "renames", "symlink_to", "hardlink_to", "link", "symlink", "rmtree", "copyfile", "copy2", "copytree", "move",
         "save_file", "load_file", "safe_open"}  # fmt: skip
# What is no user's: the system's own files, those of this package, and those of a folder that is
# made for the moment. A checkpoint is looked at by `files` before the library maps it, and a seed's
# folder by `folders`.
ALLOWED = {
    "training/environment.py": {"read_text", "read_bytes"},
    "bench/memory.py": {"read_text"},
    "bench/loader.py": {"write_bytes"},
    "cli/outlets.py": {"open"},
    "cli/surroundings.py": {"open"},
    "training/checkpoint.py": {"safe_open"},
}


def doings(source: str) -> set[str]:
    """The names of the functions called that touch files."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)}
    return names & DOING


@pytest.mark.parametrize("room", ["training", "analysis", "trained", "bench", "reproduction", "cli", "recipes"])
def test_files_are_touched_in_one_place(room):
    """A second way to a file would follow what the first refuses."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in HOMES:
            assert doings(path.read_text(encoding="utf-8")) <= ALLOWED.get(name, set()), name


@pytest.mark.parametrize("source", ["open(path)", "path.open('w')", "path.write_text('x')", "os.mkdir(x)", "shutil.rmtree(x)"])
def test_a_way_round_is_noticed(source):
    """A check that sees none would let all of them pass."""
    assert doings(source)
