"""A run that was killed at any moment and resumed ends in the same bytes as one that was left alone."""

from pathlib import Path

from killing import kill

from dualprop.models import MLP
from dualprop.rules import DualPropagation

# Times and the machine may differ; the lock is empty. Everything else must not.
MAY_DIFFER = ("timing.jsonl", "environment.json", ".lock")


def contents(folder: str) -> dict[str, bytes]:
    """Every file that must not differ, by its path in the folder."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if name.split("/")[-1] not in MAY_DIFFER}


def assert_all_equal(trials: list[dict]) -> None:
    """Each trial's files are the uninterrupted run's; on failure the moments of the kills are told."""
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


def test_a_run_killed_while_drawing_has_all_figures_after_resuming(recipe, tmp_path):
    """Half a picture under a picture's name would be shown by every viewer as a broken file, and never be drawn again."""
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
