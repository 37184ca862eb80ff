"""Augmentation as options of the command line."""

import json

import pytest


def test_crops_and_flips_are_options_and_change_the_run(dualprop, folder, short):
    """Options that were parsed and not passed on would be recorded in every run and vary
    nothing."""
    for name, options in {"plain": (), "varied": ("--augmentation.pad", "1", "--augmentation.flip")}.items():
        answer = dualprop("train", *short, *options, "--seeds", "1", "--no-align", "--out", name)
        assert (answer.code, answer.err) == (0, "")
    recipe = json.loads((folder / "varied/recipe.json").read_text())["recipe"]
    assert recipe["augmentation"] == {"pad": 1, "padding": "zeros", "flip": True, "flips": "random"}
    plain, varied = (
        json.loads((folder / name / "seed-0/metrics.jsonl").read_text().splitlines()[-1]) for name in ("plain", "varied")
    )
    assert plain["train_loss"] != varied["train_loss"]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("train", "--augmentation.pad", "-1"), "pad must be at least 0, got -1"),
        (("train", "--augmentation.pad", "8"), "pad must be smaller than the images, 8×8, got 8"),
        (("train", "--augmentation.fliip"), "Did you mean '--augmentation.flip'?"),
    ],
)
def test_a_mistake_in_the_augmentation_is_told_in_one_line(arguments, remedy, refused):
    """Before a run folder is made."""
    assert remedy in refused(*arguments)
