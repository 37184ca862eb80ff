"""What goes wrong at the edges of the command line: broken pipes, interrupts, half-made folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from holding import COMMAND, held


def test_a_reader_that_goes_away_is_no_error():
    """`dualprop list neurons | head -1`."""
    command = f"'{COMMAND}' list neurons | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("module", ["torch", "torch.nn", "tyro"])
def test_an_interrupt_during_the_imports_is_told_in_one_line(module):
    """The first seconds of every command are imports: the likeliest moment to think better of
    it."""
    before = f"""
class Holder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            hold()

sys.meta_path.insert(0, Holder())
"""
    with held(before, "train") as process:
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait() == 130
    assert told.strip().count("\n") == 0
    assert "stopped" in told


def test_a_report_of_a_run_that_is_being_written_is_shown(dualprop, folder, short):
    """A line of metrics that is half written, as in a run that was killed or goes on at this
    moment."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    (folder / "run/seed-0/result.json").unlink()
    with open(folder / "run/seed-0/metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "train_lo')
    answer = dualprop("report", "run")
    assert (answer.code, answer.err) == (0, "")


def test_a_report_of_a_run_that_has_not_begun_is_no_traceback(dualprop, folder, short):
    """Described, and not yet trained."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    for path in (folder / "run/seed-0").iterdir():
        path.unlink()
    answer = dualprop("report", "run")
    assert answer.code in (0, 2)
    assert answer.err.count("\n") <= 1


def test_a_report_of_a_comparison_that_has_not_begun_is_no_traceback(dualprop, folder, short):
    """Killed right after comparison.json was written."""
    assert dualprop("compare", *short, "--seeds", "1", "--no-costs", "--out", "cmp").code == 0
    (folder / "new").mkdir()
    (folder / "new/comparison.json").write_bytes((folder / "cmp/comparison.json").read_bytes())
    answer = dualprop("report", "new")
    assert answer.code in (0, 2)
    assert answer.err.count("\n") <= 1


@pytest.mark.parametrize("name", ["seed-0/result.json", "seed-0/metrics.jsonl"])
def test_a_damaged_result_is_told_in_one_line(name, dualprop, folder, short, refused):
    """Cut by a broken copy, or edited."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    (folder / "run" / name).write_text('{"seed": 0, "test_a\n{"epoch": 1}\n')
    assert name in refused("report", "run")


def test_a_run_without_seeds_is_refused(dualprop, folder, short, refused):
    """A recipe.json that was edited; there is no mean of nothing."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    path = folder / "run/recipe.json"
    plain = json.loads(path.read_text())
    for seeds in ([], ["a"], [-1], [0.5], [0, 0]):
        path.write_text(json.dumps(plain | {"seeds": seeds}))
        assert "recipe.json" in refused("train", "--resume", "run")


@pytest.mark.parametrize("words", [("mnist-mlp",), ("--batch-size", "30"), ("--seeds", "3")])
def test_resuming_with_a_word_that_says_otherwise_is_refused(words, dualprop, folder, short, refused):
    """Another recipe, or an option that happens to be the default: both are ignored, and the run's
    own is used."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    refused("train", *words, "--resume", "run")


def test_a_corrupt_best_checkpoint_can_be_remedied_as_its_message_says(dualprop, folder, short):
    """A remedy that does not work is worse than none."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    (folder / "run/seed-0/result.json").unlink()
    path = folder / "run/seed-0/best.safetensors"
    path.write_bytes(b"")
    told = dualprop("train", "--resume", "run").err
    assert f"remove {Path('run/seed-0')} to train this seed anew" in told
    shutil.rmtree(path.parent)
    answer = dualprop("train", "--resume", "run")
    assert (answer.code, answer.err) == (0, "")


def test_a_folder_whose_recipe_was_never_written_can_be_used(dualprop, folder, short):
    """Killed, or the disk full, between making the folder and describing the run: refused by --out,
    which points to --resume, which refuses it too."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "run").code == 0
    (folder / "again").mkdir()
    (folder / "again/environment.json").write_bytes((folder / "run/environment.json").read_bytes())
    told = dualprop("train", *short, "--seeds", "1", "--out", "again")
    resumed = dualprop("train", "--resume", "again")
    assert told.code == 0 or resumed.code == 0 or "--resume" not in told.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_a_folder_as_any_other_and_no_data_set(dualprop, folder, short, refused):
    """A checkpoint could not be read again, by its path alone, after the training; and a recipe
    can't hold such a name."""
    name = os.fsdecode(b"run \xff")
    assert dualprop("train", *short, "--seeds", "1", "--out", name).code == 0
    assert (folder / name / "results.json").is_file()
    assert dualprop("report", name).code == 0
    line = refused("train", *short, "--seeds", "1", "--dataset", os.fsdecode(b"d\xfe.npz"), "--out", "another")
    assert "dataset must be UTF-8, got 'd\\udcfe.npz'" in line
    assert not (folder / "another").exists()
