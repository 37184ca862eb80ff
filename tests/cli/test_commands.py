"""Training, comparing, reporting and resuming, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from holding import COMMAND, PROGRAM, held


def recipe_of(folder: Path) -> dict:
    return json.loads((folder / "recipe.json").read_text())["recipe"]


def row_of(rule: str, out: str) -> str:
    """The line of the table that begins with the rule's name."""
    return next(line for line in out.splitlines() if line.strip("│┃ ").split(" ")[0] == rule)


def png_names(folder: Path) -> set[str]:
    found = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert all(content.startswith(b"\x89PNG") and b"IEND" in content[-12:] for content in found.values())
    return set(found)


def test_training_tells_its_progress_in_plain_lines_and_shows_a_table(dualprop, folder, short):
    """Not on a terminal there must be no control codes: the output lands in a log."""
    answer = dualprop("train", *short, "--epochs", "2", "--seeds", "1", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    assert "\x1b" not in answer.out
    assert "\r" not in answer.out
    lines = answer.out.splitlines()
    assert lines[0] == "digits-mlp by dual_propagation → run"
    epochs = [line for line in lines if line.startswith("dual_propagation, seed 0, epoch ")]
    assert len(epochs) == 2
    assert all(word in epochs[0] for word in ("loss", "accuracy", "validation", "examples/s", "s left"))
    accuracy = 100 * json.loads((folder / "run/results.json").read_text())["test_accuracy_mean"]
    assert any(line.startswith(f"dual_propagation, seed 0: test accuracy {accuracy:.2f} %") for line in lines)
    assert f"{accuracy:.2f}" in row_of("dual_propagation", answer.out)
    assert "picture: run/figures/training_curves.png" in lines
    assert png_names(folder / "run") == {"training_curves.png", "angle_to_backprop.png"}


def test_every_kind_of_option_reaches_the_recipe(dualprop, folder, short):
    """An option that is read and not used is the worst kind of mistake: the run succeeds, and is
    another one."""
    answer = dualprop(
        "train", "digits-mlp", *short,
        "--rule.beta", "0.1", "--rule.alpha", "0.25", "--rule.schedule", "bottom_up(4)", "--rule.loss", "squared_error",
        "--rule.coupling", "transposed", "--rule.start", "zeros", "--rule.linearize-at", "current",
        "--optimizer.name", "sgd", "--optimizer.learning-rate", "0.02", "--optimizer.no-cosine",
        "--validation-fraction", "0.2", "--seed-list", "5", "6", "--seeds", "1", "--no-align", "--checkpoint-every", "7",
        "--dtype", "float64", "--out", "run",
    )  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    recipe = recipe_of(folder / "run")
    expected_rule = {
        "name": "dual_propagation", "beta": 0.1, "alpha": 0.25, "schedule": "bottom_up(4)", "loss": "squared_error",
        "coupling": "transposed", "start": "zeros", "linearize_at": "current",
    }  # fmt: skip
    assert recipe["rule"] | expected_rule == recipe["rule"]
    assert recipe["optimizer"]["name"] == "sgd"
    assert recipe["optimizer"]["learning_rate"] == 0.02
    assert recipe["optimizer"]["cosine"] is False
    assert (recipe["epochs"], recipe["batch_size"], recipe["validation_fraction"]) == (1, 64, 0.2)
    assert (recipe["seed_list"], recipe["align"], recipe["checkpoint_every"]) == ([5, 6], False, 7)
    assert json.loads((folder / "run/recipe.json").read_text())["seeds"] == [5]
    weights = safetensors.torch.load_file(folder / "run/seed-5/last.safetensors")
    assert str(weights["model.1.weight"].dtype) == "torch.float64"


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (("--rule.beta", "0.1", "0.2", "0.3"), "beta", [0.1, 0.2, 0.3]),
        (("--rule.schedule", "2,1+2,1"), "schedule", "2,1+2,1"),
        (("--rule.damping", "0.5", "0"), "damping", [0.5, 0.0]),
        (("--rule.engine", "fused"), "engine", "fused"),
        (("--rule.output-nudge", "exact"), "output_nudge", "exact"),
        (("--rule.output_nudge=exact",), "output_nudge", "exact"),
    ],
)
def test_the_rarer_settings_of_the_rule_reach_the_recipe(options, field, value, dualprop, folder, short):
    """One value per layer, an order, and an option spelt as in Python."""
    answer = dualprop("train", *short, *options, "--seeds", "1", "--no-align", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    assert recipe_of(folder / "run")["rule"][field] == value


def test_the_rule_is_chosen_by_name(dualprop, folder, short):
    """`--rule backprop` is the twin that the README promises."""
    for words in (("--rule", "backprop"), ("--rule=backprop",)):
        name = f"run-{len(words)}"
        assert dualprop("train", *words, *short, "--seeds", "1", "--out", name).code == 0
        assert recipe_of(folder / name)["rule"] == {"name": "backprop", "loss": "cross_entropy"}


def test_the_twin_is_trained_beside_the_rule_from_the_same_seeds(dualprop, folder, short):
    """The plain way to see DP beside BP."""
    answer = dualprop("train", *short, "--twin", "--seeds", "2", "--out", "both")
    assert (answer.code, answer.err) == (0, "")
    results = json.loads((folder / "both/results.json").read_text())
    assert list(results["rules"]) == ["dual_propagation", "backprop"]
    seeds = {name: [each["seed"] for each in rule["seeds"]] for name, rule in results["rules"].items()}
    assert seeds == {"dual_propagation": [0, 1], "backprop": [0, 1]}
    assert recipe_of(folder / "both/backprop") | {"rule": None} == recipe_of(folder / "both/dual_propagation") | {"rule": None}
    assert png_names(folder / "both") == {"training_curves.png", "angle_to_backprop.png"}


def test_a_comparison_with_costs_shows_all_columns_and_writes_its_numbers(dualprop, folder, short):
    """The table is what is published: its numbers must be those of the files."""
    answer = dualprop("compare", *short, "--seeds", "2", "--out", "cmp", "--rules", "backprop,dual_propagation")
    assert (answer.code, answer.err) == (0, "")
    results = json.loads((folder / "cmp/results.json").read_text())
    assert results["seeds"] == [0, 1]
    assert results["environment"]["torch"]
    for heading in ("rule", "test (%)", "count/BP", "time/BP", "MB", "cosine"):
        assert heading in answer.out
    for name, rule in results["rules"].items():
        row = row_of(name, answer.out)
        assert f"{100 * rule['test_accuracy_mean']:.2f} ± {100 * rule['test_accuracy_std']:.2f}" in row
        cost = results["costs"][name]
        assert cost["milliseconds"] > 0
        assert f"{cost['ratio']:.3f}" in row
        assert (cost["drives"], cost["feedbacks"], cost["gradients"]) == (3, 2, 3)
        assert " 1.00 " in row
        assert 50 < cost["memory"]["peak"] < 5000
        each = [json.loads((folder / f"cmp/{name}/seed-{s}/result.json").read_text()) for s in (0, 1)]
        assert rule["seeds"] == each
        assert rule["test_accuracy_mean"] == pytest.approx(np.mean([r["test_accuracy"] for r in each]))
        assert (folder / f"cmp/{name}/environment.json").is_file()
    assert png_names(folder / "cmp") == {"training_curves.png", "angle_to_backprop.png"}
    assert "picture: cmp/figures/training_curves.png" in answer.out


def test_report_shows_the_table_and_redraws_the_figures(dualprop, folder, short):
    """Of a run and of a comparison, without training anything."""
    dualprop("train", *short, "--seeds", "1", "--out", "run")
    dualprop("compare", *short, "--seeds", "1", "--no-costs", "--out", "cmp")
    for name in ("run", "cmp"):
        for path in (folder / name / "figures").iterdir():
            path.write_bytes(b"old")
    weights = (folder / "run/seed-0/last.safetensors").stat().st_mtime_ns
    answers = [dualprop("report", name) for name in ("run", "cmp")]
    assert [(answer.code, answer.err) for answer in answers] == [(0, ""), (0, "")]
    assert [answer.out.count("picture: ") for answer in answers] == [2, 2]
    assert row_of("backprop", answers[1].out)
    for name in ("run", "cmp"):
        assert png_names(folder / name) == {"training_curves.png", "angle_to_backprop.png"}
    assert (folder / "run/seed-0/last.safetensors").stat().st_mtime_ns == weights


def test_resuming_a_finished_run_or_comparison_changes_none_of_its_numbers(dualprop, folder, short):
    """Typed once too often, it must do nothing."""
    dualprop("compare", *short, "--seeds", "1", "--no-costs", "--out", "cmp")
    kept = {p: p.read_bytes() for p in (folder / "cmp").rglob("*") if p.suffix in (".safetensors", ".jsonl")}
    assert len(kept) == 8
    for words in (("compare", "--resume", "cmp"), ("train", "--resume", "cmp"), ("train", "--resume", "cmp/backprop")):
        answer = dualprop(*words)
        assert (answer.code, answer.err) == (0, "")
        assert {path: path.read_bytes() for path in kept} == kept


def test_a_run_without_a_name_goes_to_a_new_folder_in_runs(dualprop, folder, short):
    """Two runs within a second must not meet in one folder."""
    for _ in range(2):
        assert dualprop("train", *short, "--seeds", "1", "--no-align").code == 0
    assert len(list((folder / "runs").iterdir())) == 2


def test_the_users_own_file_is_named_by_its_path_and_found_from_any_folder(dualprop, folder, short, monkeypatch):
    """A run that is resumed from elsewhere must find the same file, not one of the same name."""
    random = np.random.default_rng(0)
    np.savez(folder / "mine.npz", x_train=random.normal(size=(200, 5)), y_train=np.arange(200) % 3)
    answer = dualprop("train", *short, "--dataset", "mine.npz", "--batch-size", "20", "--seeds", "1", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    assert recipe_of(folder / "run")["dataset"] == str(folder / "mine.npz")
    (folder / "run/seed-0/result.json").unlink()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert dualprop("train", "--resume", "../run").code == 0
    assert (folder / "run/seed-0/result.json").is_file()


def run_files(folder: Path) -> dict[str, bytes]:
    names = ("best.safetensors", "last.safetensors", "metrics.jsonl", "result.json", "results.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.name in names}


# Hold the command in its 52nd step. An epoch of digits has 21 of 64 images.
IN_THE_THIRD_EPOCH = """
import itertools
from dualprop.training.stepping import AbstractSteps
take, steps = AbstractSteps.take, itertools.count(1)

def counted(*given):
    if next(steps) == 52:
        hold()
    take(*given)

AbstractSteps.take = counted
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_is_resumed_to_the_same_end(how, dualprop, folder):
    """As it happens: Ctrl-C, or the machine taken away, in the middle of an epoch."""
    options = ("--epochs", "5", "--batch-size", "64", "--num-threads", "1", "--seeds", "1", "--checkpoint-every", "7")
    with held(IN_THE_THIRD_EPOCH, "train", *options, "--out", "stopped") as process:
        assert (folder / "stopped/seed-0/metrics.jsonl").read_bytes().count(b"\n") == 3
        process.send_signal(how)
        told = process.stderr.read()
        assert process.wait() == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert told.strip() == "dualprop: stopped. Continue a training run with --resume and its folder."
    assert not (folder / "stopped/results.json").exists()
    assert dualprop("train", "--resume", "stopped").code == 0
    assert dualprop("train", *options, "--out", "straight").code == 0
    assert run_files(folder / "stopped") == run_files(folder / "straight")


def test_an_interrupt_exits_with_130_and_names_the_remedy(dualprop, short, monkeypatch):
    """Shells and schedulers read the code."""
    from dualprop.training import learner

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(learner, "evaluate", interrupted)
    answer = dualprop("train", *short, "--seeds", "1", "--out", "run")
    assert answer.code == 130
    assert answer.err.strip() == "dualprop: stopped. Continue a training run with --resume and its folder."
    monkeypatch.undo()


def test_a_second_interrupt_while_python_ends_leaves_no_traceback(folder):
    """Ctrl-C is held down: it reaches what libraries do at the end of a process."""
    again = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    with held(again + IN_THE_THIRD_EPOCH, "train", "--batch-size", "64", "--seeds", "1", "--out", "run") as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == "dualprop: stopped. Continue a training run with --resume and its folder."
        assert process.wait() == -signal.SIGINT  # which shells call 130


# In the 52nd step, Ctrl-C falls into what must not lose it.
IN_A_FINALIZER = """
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def fall():
    Closing()
"""
IN_A_FAILING_IMPORT = """
def fall():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RecursionError("a library of which half is imported") from None
"""


@pytest.mark.parametrize("fall", [IN_A_FINALIZER, IN_A_FAILING_IMPORT])
def test_an_interrupt_that_a_library_loses_stops_the_command(fall, folder):
    """Python prints "Exception ignored in" and goes on; a library ends in an error of its own."""
    program = "import os, signal" + fall + IN_THE_THIRD_EPOCH.replace("hold()", "fall()")
    words = ("train", "--batch-size", "64", "--seeds", "1", "--epochs", "200", "--num-threads", "1", "--out", "run")
    lines = PROGRAM.format(before=program)
    ended = subprocess.run([sys.executable, "-c", lines, str(COMMAND), *words], capture_output=True, text=True)
    assert ended.stderr.strip() == "dualprop: stopped. Continue a training run with --resume and its folder."
    assert ended.returncode == 130
    assert (folder / "run/seed-0/metrics.jsonl").read_bytes().count(b"\n") < 200


@pytest.mark.slow
def test_the_command_killed_twenty_times_ends_as_if_left_alone(dualprop, folder):
    """The whole of it, in processes that start from nothing."""
    import random

    dice = random.Random(0)
    options = ("--rule.start", "previous", "--rule.schedule", "random_order(4)", "--num-threads", "1",
               "--seeds", "2", "--epochs", "30", "--checkpoint-every", "3")  # fmt: skip
    subprocess.run([COMMAND, "train", *options, "--out", "straight"], check=True, stdout=subprocess.DEVNULL)
    recipe, words = folder / "killed/recipe.json", [*options, "--out", "killed"]
    for _ in range(20):
        with subprocess.Popen([COMMAND, "train", *words], stdout=subprocess.DEVNULL) as process:
            while not recipe.exists():
                assert process.poll() is None or recipe.exists(), "it ended before there was anything to resume"
                time.sleep(0.01)
            # It may have died anywhere by then, or have come to its end: all the same must hold.
            time.sleep(dice.uniform(0, 4))
            process.kill()
        words = ["--resume", "killed"]
    subprocess.run([COMMAND, "train", "--resume", "killed"], check=True, stdout=subprocess.DEVNULL)
    assert run_files(folder / "killed") == run_files(folder / "straight")
    assert os.listdir(folder / "killed/figures")
