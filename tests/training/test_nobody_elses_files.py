"""Files that are not ours: links, pipes, devices and folders where a file is to be; a stranger's
run folder that leads out of itself; folders that hold other things."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from dualprop import training
from dualprop.errors import DualpropError, RunError, SettingError
from dualprop.rules import DualPropagation
from dualprop.training import comparisons, files, folders, runs

TEMPORARY = ".dualprop-123-0123456789abcdef.writing"
PRECIOUS = "precious\nlast line"


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("missing"))


def pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def bound(path: Path, victim: Path) -> None:
    # The name of a socket is short: bound from its own folder.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def device(path: Path, victim: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))  # a node like /dev/null
    except PermissionError:
        pytest.skip("making a device node needs privileges that are not there")


def folder(path: Path, victim: Path) -> None:
    path.mkdir()


KINDS = [link, dangling, pipe, bound, device, folder]
WAYS = {
    "write": lambda path: files.write(path, b"new"),
    "append": lambda path: files.append(path, "new"),
    "truncate": lambda path: files.truncate(path, 0),
    "read": files.read,
    "lock": lambda path: files.opener(path, os.O_RDWR | os.O_CREAT),
}


@pytest.fixture
def victim(tmp_path):
    """A file of the user's outside of everything, as it was before and has to be afterwards."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "victim"
    path.write_text(PRECIOUS)
    yield path
    assert path.read_text() == PRECIOUS
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_no_file_of_its_own_is_neither_followed_nor_replaced_nor_waited_for(kind, way, tmp_path, victim):
    """A link would be written through, a device node replaced, a pipe waited for without end."""
    path = tmp_path / "metrics.jsonl"
    kind(path, victim)
    before = os.lstat(path)
    with pytest.raises(RunError, match="no file of its own") as caught:
        WAYS[way](path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert {entry.name for entry in tmp_path.iterdir()} == {"metrics.jsonl", "outside"}


@pytest.mark.parametrize("way", ["append", "truncate"])
def test_a_second_name_of_a_file_is_not_written_through(way, tmp_path, victim):
    """A backup of hard links would change with what it is a backup of."""
    os.link(victim, tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match="has a second name"):
        WAYS[way](tmp_path / "metrics.jsonl")
    files.write(tmp_path / "metrics.jsonl", b"new")  # a name of its own from here on
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"new"


def test_a_file_is_written_where_the_folders_above_are_reached_by_a_link(tmp_path):
    """A user's runs often lie on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    files.write(tmp_path / "runs" / "x.json", b"{}")
    assert files.read(tmp_path / "disk" / "x.json") == b"{}"


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path):
    """The temporary neighbour's must not be longer."""
    path = tmp_path / ("x" * 250 + ".json")
    with folders.held_file(path):
        files.write(path, b"{}")
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def run(recipe, train):
    """A run that still has something to do."""
    made = train(recipe(epochs=1))
    (made.folder / "seed-0/result.json").unlink()
    return made


@pytest.mark.parametrize("kind", [link, dangling, pipe], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "name",
    [".lock", "recipe.json", "environment.json", "results.json", "seed-0", "seed-0/metrics.jsonl", "seed-0/timing.jsonl",
     "seed-0/last.safetensors", "seed-0/best.safetensors", "seed-0/result.json"],
)  # fmt: skip
def test_a_strangers_run_folder_does_not_lead_out_of_itself(name, kind, run, victim):
    """To resume what came from elsewhere must not write, cut or read another file of the user's,
    nor wait for a pipe."""
    path = run.folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    kind(path, victim)
    before = os.lstat(path)
    with pytest.raises(DualpropError, match="of its own") as caught:
        training.train(training.load(run.folder))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.lstat(path).st_ino == before.st_ino


@pytest.mark.parametrize("kind", [link, folder], ids=lambda kind: kind.__name__)
def test_a_folder_of_a_run_that_is_a_link_is_refused(kind, recipe, run, tmp_path):
    """The link of a stranger leads into a folder of the user's: our files would be put there."""
    from dualprop.analysis import plots

    (tmp_path / "theirs").mkdir()
    for name in ("seed-0", "figures"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
        (run.folder / name).symlink_to(tmp_path / "theirs") if kind is link else (run.folder / name).write_text("a file")
    with pytest.raises(RunError, match="seed-0 is no folder of its own"):
        training.train(run)
    with pytest.raises(RunError, match="seed-0 is no folder of its own"):
        run.results()
    with pytest.raises(RunError, match="figures is no folder of its own"):
        plots.draw([("backprop", run)], run.folder / "figures")
    assert not list((tmp_path / "theirs").iterdir())


def test_temporary_files_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    """Each kill in mid-checkpoint would leave a file as large as the model; and a novel may be
    called anything."""
    others = ["novel.writing", "last.safetensors.123.writing", "writing.txt", f"{TEMPORARY}.txt", f"my{TEMPORARY}"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / TEMPORARY).write_bytes(b"part")
    (tmp_path / TEMPORARY.replace("123", "124")).mkdir()
    folders.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, TEMPORARY.replace("123", "124")}


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    "name", ["novel.writing", "environment.json", "notes.txt", ".lock", "recipe.json.12.writing", "seed-0"]
)
def test_a_folder_of_other_things_is_refused_before_anything_in_it_is_touched(name, recipe, tmp_path):
    """Deleted, overwritten or locked first and refused afterwards, the user's file is lost all the
    same."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).mkdir() if name == "seed-0" else (mine / name).write_text('{"my": 1}')
    before, time = everything(tmp_path), os.lstat(mine).st_mtime_ns
    with pytest.raises(RunError, match=rf"mine exists already and is no run: it holds '{name}'\. Choose another folder"):
        training.create(mine, recipe(), (0,))
    with pytest.raises(RunError, match="is no run"):
        comparisons.create(mine, {"bp": recipe()}, (0,))
    assert everything(tmp_path) == before
    assert os.lstat(mine).st_mtime_ns == time  # nor was a file made there for a moment


def test_a_folder_is_taken_that_is_empty_or_holds_what_a_start_that_was_killed_leaves(recipe, tmp_path):
    """After a kill in the first moment the command that was killed can be given again."""
    for number, names in enumerate(((), (".lock",), (TEMPORARY,), (".lock", TEMPORARY))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"part" if name == TEMPORARY else b"")
        training.create(folder, recipe(), (0,))
        assert {path.name for path in folder.iterdir()} == {"recipe.json"}


def test_a_run_without_its_environment_is_given_one(recipe, tmp_path):
    """Its start was killed after the recipe was there."""
    run = training.create(tmp_path / "run", recipe(epochs=1), (0,))
    training.train(run)
    (start,) = json.loads((run.folder / "environment.json").read_text())["starts"]
    assert {"torch", "processor", "execution"} <= start.keys()


NAMES = ["", ".", "..", "../escaped", "a/b", "/absolute/x", "a\\b", ".lock", "-\x1b[2J", "a\nb", "c:d", " dp", "dp.", "x" * 300,
         "\udcff", "a\u202eb", "$_$"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_label_that_is_a_path_is_refused(name, recipe, tmp_path):
    """The folder of that label would lie outside of the comparison's, and be trained into; between
    dollars, `report` would end in a traceback of matplotlib's mathematics."""
    with pytest.raises(SettingError, match="is no plain name") as caught:
        comparisons.create(tmp_path / "c", {"bp": recipe(), name: recipe()}, (0,))
    assert str(caught.value).isprintable()
    assert not (tmp_path / "c").exists()
    comparison = comparisons.create(tmp_path / "c", {"bp": recipe(), "dp": recipe()}, (0,))
    path = comparison.folder / "comparison.json"
    plain = json.loads(path.read_text())
    plain["rules"][name] = plain["rules"].pop("dp")
    path.write_text(json.dumps(plain))
    with pytest.raises(DualpropError, match=r"is no plain name|is no JSON") as caught:
        comparisons.load(comparison.folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["figures", "results.json"])
def test_a_label_that_is_a_file_of_the_comparison_is_refused(name, recipe, tmp_path):
    """Results and run would be written in each other's place."""
    with pytest.raises(SettingError, match="the comparison has a file or folder of that name"):
        comparisons.create(tmp_path / "c", {name: recipe()}, (0,))


@pytest.mark.parametrize("name", ["dp", "dual_propagation", "dp-transposed-a0-b0.01", "r-dp-100", "DP⊤ α=½"])
def test_labels_of_rules_variants_and_of_ones_own_are_plain_names(name):
    """A check that refused all would be none."""
    folders.check_name(name)


def test_a_run_of_another_recipe_is_not_shown_as_this_comparisons(recipe, tmp_path):
    """Two folders changed places, or were trained with the learning rate of another comparison: the
    table would say the opposite."""
    recipes = {"bp": recipe(epochs=1), "dp": recipe(epochs=1, rule=DualPropagation())}
    comparison = comparisons.create(tmp_path / "c", recipes, (0,))
    for label, made in recipes.items():
        training.train(training.create(comparison.folder / label, made, (0,)))
    assert comparison.runs.keys() == recipes.keys()
    os.rename(tmp_path / "c/bp", tmp_path / "c/other")
    os.rename(tmp_path / "c/dp", tmp_path / "c/bp")
    os.rename(tmp_path / "c/other", tmp_path / "c/dp")
    with pytest.raises(RunError, match="c/bp holds a run of other settings or seeds"):
        _ = comparison.runs
    shutil.rmtree(tmp_path / "c/bp")
    assert comparison.begun("bp") is None
    with pytest.raises(RunError, match="c/dp holds a run of other settings or seeds"):
        comparison.begun("dp")
    shutil.rmtree(tmp_path / "c/dp")
    (tmp_path / "c/dp").symlink_to(runs.create(tmp_path / "elsewhere", recipes["dp"], (0,)).folder)
    with pytest.raises(RunError, match="c/dp is no folder of its own"):
        comparison.begun("dp")
