"""Items run within a time, stopped, resumed, failing: what is left in the folder, and what is told.

Time is counted in steps here: a second each.
"""

import dataclasses
import json
import threading

import numpy as np
import pytest
from tiny_items import STEPS, TINY

from dualprop import recipes, reproduction
from dualprop.errors import RunError, SettingError
from dualprop.reproduction import items, writing
from dualprop.reproduction.costs import Cost
from dualprop.reproduction.items import Figure, Item
from dualprop.reproduction.plan import Job
from dualprop.training import folders

RUN = 3 * STEPS
JOBS = [Job(label, (seed,)) for seed in (3, 4) for label in ("tiny.bp", "tiny.dp")]


def trained(folder):
    """What the runs in the folder came to, byte for byte."""
    names = ("metrics.jsonl", "result.json", "best.safetensors", "last.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("runs/*/seed-*/*") if path.name in names}


def minutes(runs):
    """In which so many runs of three epochs fit, and hardly more."""
    return runs * RUN / 0.95 / 0.96 / 60 + 0.01


@pytest.mark.usefixtures("pictures")
def test_without_a_limit_all_is_run_and_told_beside_the_published_figures(reproducing):
    came = reproducing("tiny")
    assert [step.job for step in reproducing.watch.plans[0].steps] == JOBS == reproducing.watch.trained
    assert came.is_well
    assert not came.plan.steps
    assert not came.plan.left
    bp, dp = came.results["items"]["tiny"]["rows"]
    assert came.results["items"]["tiny"]["is_whole"]
    assert (bp["published"], bp["seeds"], bp["wanted"], bp["epochs"], bp["dtype"]) == ("80.0 ± 0.5", [3, 4], 2, 3, "float32")
    assert dp["to_twin"]["num_seeds"] == 2
    assert "to_twin" not in bp
    text = (reproducing.folder / "results.md").read_text()
    assert "| tiny dp | " in text
    assert "Not whole" not in text
    assert "Published: a paper." in text
    assert json.loads((reproducing.folder / "results.json").read_text()) == json.loads(json.dumps(came.results))
    assert (reproducing.folder / "figures/tiny/angle_to_backprop.png").stat().st_size


def test_in_a_given_time_what_fits_is_whole_and_nothing_ends_late(reproducing):
    """A twin and its rule; what is left of the time goes into a third, which is begun."""
    came = reproducing("tiny", minutes=minutes(2))
    assert [step.job for step in reproducing.watch.plans[0].steps] == JOBS[:2]
    assert reproducing.time.now <= 60 * minutes(2)
    assert [row["num_seeds"] for row in came.results["items"]["tiny"]["rows"]] == [1, 1]
    assert {each.job for each in came.plan.left} == set(JOBS[2:])
    assert {row["verdict"] for row in came.results["items"]["tiny"]["rows"]} == {"too few to tell"}
    assert "Not whole: 2 of 4 runs" in (reproducing.folder / "results.md").read_text()


def test_a_resume_ends_in_the_bytes_of_an_uninterrupted_one(reproducing, tmp_path):
    """Cut off in the third run after its first epoch, and again; then left to its end."""
    for part in (2.5, 0.8):
        reproducing("tiny", minutes=minutes(part)) if part == 2.5 else reproducing.resume(minutes=minutes(part))
    assert not (reproducing.folder / "runs/tiny.dp/seed-4/result.json").exists()
    came = reproducing.resume()
    assert came.results["items"]["tiny"]["is_whole"]
    cut = trained(reproducing.folder)
    reproducing.folder = tmp_path / "uninterrupted"
    reproducing("tiny")
    assert cut == trained(reproducing.folder)
    assert len(cut) == 16


@pytest.mark.parametrize("refusing", [False, True])
def test_where_nothing_measured_fits_what_is_of_less_worth_is_measured(refusing, reproducing, monkeypatch):
    """The measuring of what is far too long, or fails, takes all the time that it has. The rest
    would else go by unused."""
    figures = Figure("long", "bp"), Figure("long", "dp")
    monkeypatch.setitem(recipes.RECIPES, "long", lambda: dataclasses.replace(TINY, name="long"))
    monkeypatch.setitem(items.ITEMS, "long", Item("of more worth", figures, worth=9))
    measured = []

    def measure(recipe, *_):
        reproducing.time.now += minutes(3) * 60 * 0.15
        measured.append(recipe.name)
        if refusing and recipe.name == "long":
            raise RuntimeError("no such luck")
        return Cost(setup=0.0, epoch=STEPS * (100 if recipe.name == "long" else 1), finish=0.0, of="a few steps")

    came = reproducing("long", "tiny", minutes=minutes(3), measure=measure)
    # A rule whose twin is far too long is not measured.
    assert measured[: 3 if refusing else 2] == (["long"] * 2 if refusing else ["long"]) + ["tiny"]
    assert reproducing.time.now <= 60 * minutes(3)
    assert came.results["items"]["tiny"]["rows"][0]["num_seeds"] >= 1
    assert reproducing.watch.plans[-1].steps
    assert "long.bp" in {failure.label for failure in came.failures} if refusing else not came.failures


def test_a_resume_writes_the_summary_that_a_kill_left_unwritten(reproducing):
    """All seeds of a run are finished, and the kill came before its results.json."""
    reproducing("tiny")
    summaries = {path: path.read_bytes() for path in reproducing.folder.glob("runs/*/results.json")}
    assert len(summaries) == 2
    for path in summaries:
        path.unlink()
    reproducing.resume()
    assert {path: path.read_bytes() for path in summaries} == summaries


def test_a_resume_goes_on_with_what_was_begun_and_measures_nothing_again(reproducing):
    reproducing("tiny", minutes=minutes(0.5))
    assert reproducing.watch.trained == JOBS[:1]  # nothing fits whole: an epoch at least

    def measure(*_):
        raise AssertionError("measured again")

    reproducing.resume(measure=measure)
    assert reproducing.watch.plans[0].steps[0].job == JOBS[0]
    assert reproducing.watch.plans[0].steps[0].seconds == 2 * STEPS


@pytest.mark.parametrize("times", [3, 100])
def test_a_run_that_is_slower_than_measured_stops_in_time(times, reproducing):
    """The measurement promised all of it; the epochs seen say otherwise, and what is done is
    kept."""

    def measure(*_):
        return Cost(setup=0.0, epoch=STEPS / times, finish=0.0, of="a few steps")

    came = reproducing("tiny", minutes=minutes(1.2), measure=measure)
    assert reproducing.time.now <= 60 * minutes(1.2)
    assert sum(row["num_seeds"] for row in came.results["items"]["tiny"]["rows"]) == 1
    kept = json.loads((reproducing.folder / "costs.json").read_text())["costs"]
    assert kept["tiny.bp"]["of"] == "its epochs"
    assert kept["tiny.bp"]["epoch"] == STEPS


def test_a_failure_is_recorded_with_its_traceback_and_the_next_goes_on(reproducing, monkeypatch, tmp_path):
    """The worthier item has no data; once they are there, a resume runs it and forgets the
    failure."""
    path = tmp_path / "mine.npz"
    broken = dataclasses.replace(TINY, name="broken", dataset=str(path), seed_list=(3,), batch_size=10)
    monkeypatch.setitem(recipes.RECIPES, "broken", lambda: broken)
    monkeypatch.setitem(items.ITEMS, "broken", Item("no data", (Figure("broken", "bp"),), worth=99))
    came = reproducing("broken", "tiny")
    assert not came.is_well
    assert [failure.label for failure in reproducing.watch.failures] == ["broken.bp"]
    recorded = json.loads((reproducing.folder / "failures.json").read_text())["broken.bp"]
    assert "DataError" in recorded["error"]
    assert "Traceback" in recorded["traceback"]
    assert "mine.npz" in recorded["traceback"]
    assert came.results["items"]["tiny"]["is_whole"]
    assert "broken.bp: DataError" in (reproducing.folder / "results.md").read_text()
    assert [each.reason for each in came.plan.left] == ["failed: DataError"]
    dice = np.random.default_rng(0)
    np.savez(path, x_train=dice.random((60, 4)), y_train=np.arange(60) % 2)
    came = reproducing.resume()
    assert came.is_well
    assert json.loads((reproducing.folder / "failures.json").read_text()) == {}
    assert came.results["items"]["broken"]["is_whole"]


def test_data_that_are_not_there_are_asked_for_once(reproducing, monkeypatch):
    """A download that fails takes its time, for each of seventy figures."""
    from dualprop.reproduction import costs
    from dualprop.training import runs

    asked = []

    def load(recipe, *_):
        asked.append(recipe.dataset)
        raise runs.DataError("there are none.")

    monkeypatch.setattr(runs, "load_data", load)
    came = reproducing("tiny", measure=costs.measure)
    assert asked == ["digits"]
    assert len(came.failures) == 1
    assert {each.reason for each in came.plan.left} == {"failed: DataError", "the data of digits can't be had"}


def test_an_item_whose_recipe_is_not_there_waits_for_it(reproducing, monkeypatch):
    came = reproducing()
    assert [(each.job.label, each.reason) for each in came.plan.left] == [
        ("not-there-yet.bp", "there is no recipe 'not-there-yet' yet")
    ]
    assert came.is_well
    later = dataclasses.replace(TINY, name="not-there-yet", seed_list=(5,))
    monkeypatch.setitem(recipes.RECIPES, "not-there-yet", lambda: later)
    assert reproducing.resume().results["items"]["waiting"]["is_whole"]


def test_a_wrong_run_is_told_to_be_below(reproducing):
    """Ten right of a hundred where eighty are published, and where the twin has them."""
    reproducing("tiny")
    for number, seed in enumerate((3, 4)):
        result, twin = (reproducing.folder / f"runs/tiny.{name}/seed-{seed}/result.json" for name in ("dp", "bp"))
        twin.write_text(json.dumps(json.loads(twin.read_text()) | {"test_accuracy": 0.8}))
        result.write_text(json.dumps(json.loads(result.read_text()) | {"test_accuracy": 0.1 + number / 1000}))
    bp, dp = reproducing.resume().results["items"]["tiny"]["rows"]
    assert dp["verdict"] == "below"
    assert dp["to_twin"]["verdict"] == "below back-propagation"
    assert bp["verdict"] != "below"
    assert "| below |" in (reproducing.folder / "results.md").read_text()


def test_shortened_runs_and_other_precisions_are_told_beside_their_verdicts(reproducing):
    came = reproducing("tiny", epochs=1, dtype="float64", seeds=1)
    row = came.results["items"]["tiny"]["rows"][1]
    assert (row["epochs"], row["dtype"], row["num_seeds"], row["wanted"]) == (1, "float64", 1, 2)
    assert row["deviations"] == ["1 of 3 epochs", "float64 for float32"]
    told = (reproducing.folder / "results.md").read_text()
    assert " (not the published setting: 1 of 3 epochs, float64 for float32) |" in told
    assert "1 epoch, float64" in told


def test_what_would_say_otherwise_than_the_folder_is_refused(reproducing):
    with pytest.raises(SettingError, match=r"unknown item 'tinyy'\. Did you mean 'tiny'"):
        reproducing("tinyy")
    with pytest.raises(SettingError, match="named twice"):
        reproducing("tiny", "tiny")
    with pytest.raises(SettingError, match="minutes"):
        reproducing("tiny", minutes=0)
    with pytest.raises(SettingError, match="allow_changed has no meaning"):
        reproducing("tiny", allow_changed=True)
    assert not reproducing.folder.exists()
    reproducing("tiny", minutes=0.01)
    with pytest.raises(SettingError, match="Leave out epochs"):
        reproducing.resume(epochs=1)
    with pytest.raises(RunError, match="Continue it with --resume"):
        reproducing("tiny")
    with pytest.raises(RunError, match=r"no reproduction\.json"):
        reproducing(resume=reproducing.folder / "runs")


def test_of_two_in_one_folder_one_is_refused(reproducing):
    refused = []

    def second():
        try:
            reproducing.resume()
        except RunError as error:
            refused.append(str(error))

    reproducing("tiny", minutes=0.01)
    before = trained(reproducing.folder)
    with folders.held(reproducing.folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert ["is being used by another process" in told for told in refused] == [True]
    assert trained(reproducing.folder) == before


def test_it_is_called_as_the_command_is(tmp_path):
    """The real clock and a real measurement, on a table of one row."""
    came = reproduction.reproduce(("tiny",), out=tmp_path / "called", device="cpu", epochs=1)
    assert came.results["items"]["tiny"]["done"] == 4
    costs = json.loads((came.folder / "costs.json").read_text())["costs"]
    assert {cost["of"] for cost in costs.values()} == {"a few steps"}
    assert not (came.folder / "measuring.safetensors").exists()


def test_a_mean_over_views_is_told_beside_the_plain_accuracy():
    row = {
        "recipe": "r", "variant": "dp", "mean": 94.0, "std": None, "mean_over_views": 94.5, "epochs": 1, "dtype": "bfloat16",
        "deviations": [], "num_seeds": 1, "wanted": 3, "published": None, "largest_angle": None,
    }  # fmt: skip
    assert writing.cells(row)[1] == "94.00 (94.50 over views)"
    assert writing.cells(row)[2:4] == ["1 of 3", "1 epoch, bfloat16"]
