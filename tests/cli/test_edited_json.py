"""JSON files edited by hand, or swapped, as the command line answers them: by one line."""

import json
import shutil

import pytest


@pytest.fixture
def run(dualprop, folder, short):
    """A finished run of one seed."""
    options = ("--rule", "dual_propagation", "--seeds", "1", "--no-align", "--model.widths", "8")
    assert dualprop("train", *short, *options, "--out", "run").code == 0
    return folder / "run"


def edit(path, change):
    """Replace the JSON file by what `change` makes of its value in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


EDITS = [
    ("device", ""), ("device", "gpu"), ("dataset", None), ("batch_size", 2.5), ("border", 2.5), ("flush_subnormals", None),
    ("num_threads", 2.5), ("published", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), EDITS)
def test_an_edited_setting_is_refused_by_its_name_before_anything_is_trained(name, value, run, refused):
    """It reached the middle of PyTorch, and a traceback."""
    edit(run / "recipe.json", lambda plain: plain["recipe"].update({name: value}))
    shutil.rmtree(run / "seed-0")
    told = refused("train", "--resume", "run")
    assert f"recipe.{name}" in told
    assert "run/recipe.json is damaged" in told
    assert "Restore it, or train anew." in told


DAMAGES = {
    "recipe.json": b"[" * 100_000, "seed-0/result.json": b"{}", "seed-0/metrics.jsonl": b"\xff\n",
    "./recipe.json": b'{"recipe": {"name": "\x1b[2J"}, "seeds": [0]}',
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_report_of_a_damaged_file_is_one_line_that_names_it(name, run, refused):
    (run / name).write_bytes(DAMAGES[name])
    assert f"run/{name.removeprefix('./')} is damaged" in refused("report", "run")
    if "recipe" in name:
        assert "is damaged" in refused("bench", "--table", "relaxations", "--run", "run")


def test_the_best_checkpoint_in_the_place_of_the_last_is_refused(run, refused):
    """It holds no optimizer: a resume from it would be another training."""
    (run / "seed-0/result.json").unlink()
    (run / "seed-0/last.safetensors").write_bytes((run / "seed-0/best.safetensors").read_bytes())
    assert "run/seed-0/last.safetensors is a best one, copied over the last one" in refused("train", "--resume", "run")


@pytest.mark.parametrize("words", [("--batch-size", "2.5"), ("--device", ""), ("--device", "gpu"), ("--dataset", "")])
def test_the_command_line_takes_no_setting_that_a_file_may_not_hold(words, refused):
    """What it took would be written into a recipe that can't be read."""
    name = words[0].removeprefix("--")
    assert any(word in refused("train", *words) for word in (name, name.replace("-", "_")))


EXTREMES = [
    ("validation_loss", 1e308), ("train_loss", 1e308), ("train_loss", -1e308), ("train_loss", None), ("train_loss", 5e-324),
    ("learning_rate", 1e308), ("validation_loss", None), ("drives", 10**40), ("unsettled_steps", 10**40),
]  # fmt: skip


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "value"), EXTREMES)
def test_a_report_draws_any_number_that_metrics_may_hold(name, value, run, dualprop):
    """A run that exploded without a NaN; or a file that was edited."""
    path = run / "seed-0/metrics.jsonl"
    first, last = map(json.loads, path.read_text().splitlines())
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, last | {name: value})))
    answer = dualprop("report", "run")
    assert (answer.code, answer.err) == (0, "")
