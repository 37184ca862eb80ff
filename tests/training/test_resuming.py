"""A run that was killed at any moment and resumed ends in the same bytes as one that was left
alone."""

import json
from pathlib import Path

import pytest
from killing import kill

from dualprop.data import Augmentation
from dualprop.losses import CrossEntropy
from dualprop.models import MLP, VGG, FastConvNet
from dualprop.rules import (
    Backprop,
    ContrastiveHebbian,
    DualPropagation,
    EquilibriumPropagation,
    PredictiveCoding,
    TargetPropagation,
)

# Times and the machine may differ; the lock is empty. Everything else must not.
MAY_DIFFER = ("timing.jsonl", "environment.json", ".lock")

RANDOM_ORDER = DualPropagation(start="previous", schedule="random_order(5)")
CASES = {
    "backprop, adamw": {"rule": Backprop(), "optimizer": {"name": "adamw", "cosine": True, "warmup_epochs": 0.5}},
    "backprop, sgd": {"rule": Backprop(), "optimizer": {"name": "sgd", "learning_rate": 0.05, "nesterov": True}},
    "dual propagation from previous states in random order, adamw": {"rule": RANDOM_ORDER, "optimizer": {"name": "adamw"}},
    "dual propagation from previous states in random order, sgd": {
        "rule": RANDOM_ORDER,
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "cosine": True},
    },
    "dual propagation on images cropped and flipped": {
        "rule": DualPropagation(),
        "augmentation": Augmentation(pad=2, flip=True),
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
    },
    "dual propagation of a network with statistics, its weights averaged": {
        "rule": DualPropagation(engine="fused", loss=CrossEntropy(label_smoothing=0.1)),
        "model": FastConvNet(channels=(3, 4), convolutions=1),
        "augmentation": Augmentation(pad=2, padding="reflect", flip=True, flips="alternating"),
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "nesterov": True, "norm_factor": 8.0},
        "averaging": 5.0,
        "select": "last",
        "views": "flips",
    },
    "dual propagation on convolutions with channels last": {
        "rule": DualPropagation(),
        "model": VGG((3, 4), (1, 2), (5,)),
        "feedback": "kolen_pollack",
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
    },
    "predictive coding from previous states": {
        "rule": PredictiveCoding(steps=2, start="previous"),
        "updates_per_batch": 2,
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
    },
    "target propagation with feedback weights that learn": {
        "rule": TargetPropagation(iterations=(2, 1), start="random", feedback_decay=1e-3),
        "model": VGG((3, 4), (1, 2), ()),
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
    },
    "equilibrium propagation with signs drawn for each example": {
        "rule": EquilibriumPropagation(estimator="random_sign"),
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
    },
    "holomorphic equilibrium propagation of a Hopfield network": {
        "rule": EquilibriumPropagation(
            energy="hopfield",
            estimator="holomorphic(4)",
            beta=0.5,
            relaxation="blocks(odd_even(4))",
            free_schedule="odd_even(6)",
        ),
        "model": MLP((5,), "sigmoid"),
    },
    "contrastive Hebbian learning": {"rule": ContrastiveHebbian(schedule="alternating_sweeps(3)")},
    "fused dual propagation in bfloat16": {
        "rule": DualPropagation(engine="fused"),
        "dtype": "bfloat16",
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
    },
}

# So many kills in every run of the tests, and more behind the marker.
KILLS = (5, pytest.param(20, marks=pytest.mark.slow))


def contents(folder: str) -> dict[str, bytes]:
    """Every file that must not differ, by its path in the folder."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if name.split("/")[-1] not in MAY_DIFFER}


def assert_all_equal(trials: list[dict]) -> None:
    """Each trial's files are the uninterrupted run's; on failure the moments of the kills are
    told."""
    first, *others = trials
    expected = contents(first["folder"])
    failures = []
    for trial in others:
        found = contents(trial["folder"])
        names = sorted(expected.keys() | found.keys())
        different = [name for name in names if expected.get(name) != found.get(name)]
        if different:
            failures.append(f"killed at {trial['kills']}: {different}")
    assert not failures, "\n".join(failures)


def test_a_run_killed_at_every_event_in_turn_ends_as_if_left_alone(recipe, tmp_path):
    """One unlucky moment (between the best and the last checkpoint, half-way through a line of
    metrics) would leave a run that resumes with another result, which nobody would notice: the
    curves look fine."""
    made = recipe(
        rule=Backprop(), model=MLP(widths=(4,)), optimizer={"name": "adamw", "cosine": True},
        batch_size=210, epochs=1, checkpoint_every=3,
    )  # fmt: skip
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0], "folder": str(tmp_path),
            "moments": "each", "only": ["step", "half of", "all of", "renamed", "renaming last"],
        }
    )  # fmt: skip
    died_at = {trial["kills"][0].split(": ")[1] for trial in trials[1:]}
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "result.json", "results.json"):
        assert {f"half of {name}", f"all of {name}"} <= died_at
    assert {"step", "renaming last.safetensors", "renamed last.safetensors", "renamed best.safetensors"} <= died_at
    assert_all_equal(trials)


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_events_ends_as_if_left_alone(case, kills, recipe, tmp_path):
    """What is missing from the checkpoint (momentum, the dyads of the last batch, the generator of
    the layer order, the examples' order) shows only where a run is resumed in mid-epoch."""
    # Twelve steps an epoch, so that a checkpoint falls on its last step; and eleven, where none
    # does.
    batch_size = 107 if "adamw" in case else 115
    made = recipe(**{"model": MLP(widths=(8, 6)), **CASES[case]}, batch_size=batch_size, epochs=3, checkpoint_every=3)
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0, 1], "folder": str(tmp_path),
            "moments": "random events", "kills": kills, "dice": len(case), "within": 40,
        }
    )  # fmt: skip
    assert sum(len(trial["kills"]) for trial in trials) >= kills
    assert_all_equal(trials)


@pytest.mark.parametrize("kills", KILLS)
def test_a_run_killed_after_random_times_ends_as_if_left_alone(kills, recipe, tmp_path):
    """Kills at events come when Python has just told one; a kill after a time comes in the middle
    of anything."""
    made = recipe(rule=RANDOM_ORDER, model=MLP(widths=(8, 6)), batch_size=115, epochs=4, checkpoint_every=3)
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0], "folder": str(tmp_path), "figures": True,
            "moments": "random times", "kills": kills, "dice": 7,
        }
    )  # fmt: skip
    assert sum(len(trial["kills"]) for trial in trials) >= kills
    assert_all_equal(trials)


def test_a_run_killed_while_drawing_has_all_figures_after_resuming(recipe, tmp_path):
    """Half a picture under a picture's name would be shown by every viewer as a broken file, and
    never be drawn again."""
    made = recipe(rule=DualPropagation(), model=MLP(widths=(4,)), batch_size=210)
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0], "folder": str(tmp_path), "figures": True,
            "moments": "each", "only": ["half of training", "all of angle"],
        }
    )  # fmt: skip
    died_at = {trial["kills"][0].split(": ")[1] for trial in trials[1:]}
    assert died_at == {"half of training_curves.png", "all of angle_to_backprop.png"}
    assert sum(name.endswith(".png") for name in contents(trials[0]["folder"])) == 2
    assert_all_equal(trials)


@pytest.mark.parametrize("rate", [1e30, 1e3])
def test_a_diverging_run_killed_at_any_checkpoint_stops_with_the_same_results(rate, recipe, tmp_path):
    """A checkpoint of a run that has just diverged must still be followed by the epoch's end, or
    its metrics lack a line. An explosion that stays finite is judged by what the checkpoint
    holds."""
    made = recipe(
        rule=Backprop(), model=MLP(widths=(4,)), batch_size=107, checkpoint_every=3,
        optimizer={"name": "sgd", "learning_rate": rate, "momentum": 0.0},
    )  # fmt: skip
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0], "folder": str(tmp_path),
            "moments": "each", "only": ["renamed last", "half of metrics", "opening result"],
        }
    )  # fmt: skip
    assert b"diverged" in contents(trials[0]["folder"])["seed-0/result.json"]
    assert_all_equal(trials)


@pytest.mark.parametrize("kills", KILLS)
def test_a_comparison_killed_at_random_events_ends_as_if_left_alone(kills, recipe, tmp_path):
    """A comparison is killed between its rules too: where the next run folder is made but not yet
    described."""
    made = recipe(rule=DualPropagation(), model=MLP(widths=(6,)), batch_size=210, checkpoint_every=2)
    trials = kill(
        {
            "kind": "comparison", "recipe": made.to_plain(), "seeds": [0, 1], "folder": str(tmp_path),
            "moments": "random events", "kills": kills, "dice": 3, "within": 120,
        }
    )  # fmt: skip
    assert sum(len(trial["kills"]) for trial in trials) >= kills
    assert_all_equal(trials)


def test_a_comparison_killed_while_making_a_run_folder_is_resumed(recipe, tmp_path):
    """A folder without its recipe is refused by name everywhere else; here it must be made anew,
    not stop the comparison."""
    made = recipe(rule=DualPropagation(), model=MLP(widths=(6,)), batch_size=210)
    trials = kill(
        {
            "kind": "comparison", "recipe": made.to_plain(), "seeds": [0], "folder": str(tmp_path),
            "moments": "each", "only": ["half of environment", "half of recipe", "half of results"],
        }
    )  # fmt: skip
    assert len(trials) == 1 + 2 * 3 + 1
    assert_all_equal(trials)


def test_a_reproduction_killed_at_random_events_ends_as_if_left_alone(recipe, tmp_path):
    """It is killed while it measures, plans, trains, draws and writes tables; what it has measured
    and trained must be found again, and the tables be those of all runs."""
    made = recipe(rule=DualPropagation(), model=MLP(widths=(4,)), batch_size=210, checkpoint_every=2, seed_list=(0, 1))
    trials = kill(
        {
            "kind": "reproduction", "recipe": made.to_plain(), "seeds": [], "folder": str(tmp_path),
            "moments": "random events", "kills": 12, "dice": 5, "within": 150,
        }
    )  # fmt: skip
    assert sum(len(trial["kills"]) for trial in trials) >= 12
    results = [json.loads((Path(trial["folder"]) / "results.json").read_text()) for trial in trials]
    for trial, told in zip(trials, results, strict=True):
        assert told["items"] == results[0]["items"], trial["kills"]
        assert told["items"]["killed"]["is_whole"]
        assert runs_in(trial["folder"]) == runs_in(trials[0]["folder"]), trial["kills"]
        left = [path.name for path in Path(trial["folder"]).rglob("*") if path.name.startswith(".dualprop")]
        assert left == [], trial["kills"]


def runs_in(folder):
    """All files of the run folders, byte for byte."""
    return {name: content for name, content in contents(folder).items() if name.startswith("runs/")}
