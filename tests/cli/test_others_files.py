"""Commands that are told to write where something else is than a file, or to continue a stranger's
folder, end in one line and touch nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest

BENCH = ("bench", "--models", "mlp", "--rules", "dp", "--rounds", "1", "--seconds", "0", "--batch-size", "2", "--no-memory",
         "--no-ceilings")  # fmt: skip


def link(path: Path) -> None:
    path.symlink_to("real")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))  # a node like /dev/null
    except PermissionError:
        pytest.skip("making a device node needs privileges that are not there")


@pytest.mark.parametrize("kind", [link, pipe, device], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--out", "x.json"), "x.json"),
        (("--out", "x.json"), "x.png"),  # which is drawn beside it
        (("--figure", "x.png"), "x.png"),
    ],
)
def test_the_bench_neither_replaces_nor_follows_what_is_no_file(kind, options, name, refused, folder):
    """As root, `--out /dev/null` would leave a file where the device was. Refused before anything
    is measured."""
    (folder / "real").write_text("{}")
    kind(folder / name)
    before = os.lstat(folder / name)
    told = refused(*BENCH, *options)
    assert f"{name} is a" in told
    assert "no file of its own" in told
    after = os.lstat(folder / name)
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert (folder / "real").read_text() == "{}"


@pytest.mark.parametrize("out", [".", "..", "/", "folder"])
def test_the_bench_does_not_write_in_the_place_of_a_folder(out, refused, folder):
    """Nor does it end in a traceback where a path has no name."""
    (folder / "folder").mkdir()
    assert "is a folder, and no file of its own" in refused(*BENCH, "--out", out)


def test_the_bench_draws_over_no_picture_that_nobody_named(dualprop, refused, folder):
    """`--out holiday.json` would replace holiday.png; of its own pair it draws both again."""
    (folder / "holiday.png").write_text("mine")
    assert "holiday.png is there already" in refused(*BENCH, "--out", "holiday.json")
    assert (folder / "holiday.png").read_text() == "mine"
    for _ in range(2):
        assert dualprop(*BENCH, "--out", "again.json").code == 0


@pytest.fixture
def comparison(dualprop, short, folder) -> Path:
    arguments = ("digits-mlp", *short, "--seeds", "1", "--no-align", "--no-costs", "--variants", "bp,dp", "--model.widths", "4")
    assert dualprop("compare", *arguments, "--out", "c").code == 0
    return folder / "c"


def test_a_strangers_comparison_is_continued_and_shown_in_its_own_folder_only(comparison, refused, folder):
    """A label that is a path would have us train and write there; another recipe's results would be
    shown under its name."""
    path = comparison / "comparison.json"
    plain = json.loads(path.read_text())
    for label in ("../escaped", str(folder / "absolute"), "dp/../../escaped"):
        path.write_text(json.dumps(plain | {"rules": {"bp": plain["rules"]["bp"], label: plain["rules"]["dp"]}}))
        for command in (("compare", "--resume", "c"), ("report", "c")):
            assert "is no plain name" in refused(*command)
    plain["rules"]["dp"]["optimizer"]["learning_rate"] = 0.5
    path.write_text(json.dumps(plain))
    for command in (("compare", "--resume", "c"), ("report", "c")):
        assert "c/dp holds a run of other settings or seeds" in refused(*command)
    shutil.rmtree(comparison / "dp")
    (folder / "mine").mkdir()
    (comparison / "dp").symlink_to(folder / "mine")
    for command in (("compare", "--resume", "c"), ("report", "c")):
        assert "c/dp is no folder of its own" in refused(*command)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [".lock", "seed-0/metrics.jsonl", "seed-0/timing.jsonl", "seed-0/last.safetensors", "figures"])
@pytest.mark.parametrize("kind", [link, pipe], ids=lambda kind: kind.__name__)
def test_a_strangers_run_is_continued_in_its_own_folder_only(name, kind, comparison, refused, folder):
    """Links would be written through and cut, pipes waited at."""
    (folder / "real").write_text("precious\nlast line")
    (comparison / "dp/seed-0/result.json").unlink()
    path = comparison / "dp" / name
    path.unlink(missing_ok=True)
    path.symlink_to(folder / "real") if kind is link else kind(path)
    if name == "figures":
        assert "figures is no folder of its own" in refused("report", "c/dp")
    else:
        assert f"c/dp/{name} is a" in refused("train", "--resume", "c/dp")
    assert (folder / "real").read_text() == "precious\nlast line"
