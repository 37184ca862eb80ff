"""The power is cut at any moment of a run, and what was not synced is lost: the run goes on from
what the disk has, to the same end bit for bit, and no epoch that was told is lost."""

import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from power import cut

from dualprop.data import npz_members
from dualprop.rules import DualPropagation

FILES = ("best.safetensors", "last.safetensors", "metrics.jsonl", "result.json")


def check(answer, least):
    """Every state was resumed to the end of the uninterrupted run."""
    whole = Path(answer["whole"])
    assert len(answer["states"]) >= least, "the states are too few to have been looked for"
    for state in answer["states"]:
        resumed, about = Path(state["folder"]) / "run", f"{state['kind']} at {state['events'][:3]}"
        for name in FILES:
            assert (resumed / "seed-0" / name).read_bytes() == (whole / "seed-0" / name).read_bytes(), f"{name} of {about}"
        assert (resumed / "results.json").read_bytes() == (whole / "results.json").read_bytes(), about
        assert state["epochs"] >= state["told"], f"epoch {state['told']} was told and is lost with {about}"
    assert answer["renamed_unsynced"] == []


def task(recipe, tmp_path, disk, **changes):
    made = recipe(rule=DualPropagation(start="previous", schedule="up_down(1)"), checkpoint_every=15, align=False, **changes)
    return {"recipe": made.to_plain(), "folder": str(tmp_path), "disk": disk}


def test_a_power_cut_loses_nothing_that_was_told_by_what_posix_promises(recipe, tmp_path):
    """File before rename, folder after: renamed first, a checkpoint may come back empty; and a
    folder that was made and not synced may come back without any."""
    answer = cut(task(recipe, tmp_path, "model"))
    check(answer, least=30)
    kinds = {state["kind"] for state in answer["states"]}
    assert kinds == {"all names, synced contents", "synced names and contents", "synced names, all contents"}


@pytest.mark.slow
def test_a_power_cut_loses_nothing_that_was_told_on_a_real_file_system(recipe, tmp_path):
    """ext4 on a block device that is copied as it is at each event, its journal played back."""
    answer = None
    if os.geteuid() == 0 and Path("/dev/loop-control").exists():
        trial = tmp_path / "trial.image"
        trial.write_bytes(bytes(1 << 20))
        made = subprocess.run(["mkfs.ext4", "-q", "-F", trial], capture_output=True, check=False)
        (tmp_path / "trial").mkdir()
        mounted = subprocess.run(["mount", "-o", "loop", trial, tmp_path / "trial"], capture_output=True, check=False)
        if made.returncode == 0 and mounted.returncode == 0:
            subprocess.run(["umount", tmp_path / "trial"], check=True)
            answer = cut(task(recipe, tmp_path, "ext4"))
    if answer is None:
        pytest.skip("mounting a file as a block device needs privileges that are not there")
    check(answer, least=20)


def test_what_is_unpacked_into_the_cache_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    """Its name and size alone say that it is whole: after a power cut it could be gigabytes of
    zeros, and be trained on."""
    path = tmp_path / "some.npz"
    np.savez_compressed(path, data=np.arange(100_000) % 256)
    (tmp_path / "cache").mkdir()
    fsync, replace, order = os.fsync, os.replace, []

    def synced(descriptor):
        order.append(("synced", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renamed(source, target):
        order.append(("renamed", os.stat(source).st_ino, os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
    target = npz_members.unpack(path, info, tmp_path / "cache")
    number, size = target.stat().st_ino, info.file_size
    folder = (tmp_path / "cache").stat()
    assert [each[:2] for each in order] == [("synced", number), ("renamed", number), ("synced", folder.st_ino)]
    assert order[0][2] == order[1][2] == size
