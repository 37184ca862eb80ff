"""Items whose seeds are trained as one job, since they step together: planned, measured, stopped,
resumed, failing. Against the same item seed by seed."""

import dataclasses
import json

import pytest
from test_reproducing import RUN, minutes, trained
from tiny_items import STEPS, TINY

from dualprop import recipes
from dualprop.models import MLP
from dualprop.reproduction import costs, items
from dualprop.reproduction.items import Figure, Item
from dualprop.reproduction.options import Setting
from dualprop.reproduction.plan import Job
from dualprop.training import runs

BP, DP = Job("small.bp", (3, 4)), Job("small.dp", (3, 4))
ALONE = [Job("small.dtp", (3,)), Job("small.dtp", (4,))]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """An item of two rules whose seeds step together."""
    made = dataclasses.replace(TINY, name="small", stack_seeds="auto", published=())
    monkeypatch.setitem(recipes.RECIPES, "small", lambda: made)
    monkeypatch.setitem(items.ITEMS, "small", Item("a table", (Figure("small", "bp"), Figure("small", "dp"))))
    return made


def test_seeds_are_trained_together_where_that_pays_which_the_plan_says(reproducing, monkeypatch):
    """But not by a rule that can't; and all of them take the steps of one."""
    figures = tuple(Figure("small", each) for each in ("bp", "dp", "dtp"))
    monkeypatch.setitem(items.ITEMS, "small", Item("a table", figures))
    came = reproducing("small")
    assert [step.job for step in reproducing.watch.plans[0].steps] == [BP, DP, *ALONE] == reproducing.watch.trained
    assert came.is_well
    assert reproducing.time.now == 4 * RUN
    assert [row["seeds"] for row in came.results["items"]["small"]["rows"]] == [[3, 4]] * 3
    for label, is_stacked in (("bp", True), ("dp", True), ("dtp", False)):
        (start,) = json.loads((reproducing.folder / f"runs/small.{label}/environment.json").read_text())["starts"][:1]
        assert ("2 seeds stacked" in start["execution"]) == is_stacked


@pytest.mark.parametrize(("changes", "pays"), [({}, True), ({"batch_size": 6000}, False), ({"stack_seeds": "off"}, False)])
def test_a_device_that_one_seed_fills_trains_one_after_another(changes, pays, small, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "small", lambda: dataclasses.replace(small, **changes))
    chosen = Setting(items=("small",), device="cpu").recipe(Figure("small", "dp")).stack_seeds
    assert (chosen == "on") == pays
    papers = dataclasses.replace(small, model=MLP((1000, 1000, 1000)), batch_size=100)
    monkeypatch.setitem(recipes.RECIPES, "small", lambda: papers)
    assert Setting(items=("small",), device="cpu").recipe(Figure("small", "dp")).stack_seeds == "auto"


def test_a_resume_ends_in_the_bytes_of_an_uninterrupted_one(reproducing, tmp_path):
    """Cut off in the second job after an epoch of both seeds."""
    reproducing("small", minutes=minutes(1.5))
    assert json.loads((reproducing.folder / "plan.json").read_text())["left"][0]["seeds"] == [3, 4]
    runs_of_dp = [reproducing.folder / f"runs/small.dp/seed-{seed}" for seed in (3, 4)]
    assert [len((each / "metrics.jsonl").read_text().splitlines()) for each in runs_of_dp] == [2, 2]
    came = reproducing.resume()
    assert reproducing.watch.trained[0] == DP
    assert reproducing.watch.plans[0].steps[0].seconds == 2 * STEPS
    assert came.results["items"]["small"]["is_whole"]
    cut = trained(reproducing.folder)
    reproducing.folder = tmp_path / "uninterrupted"
    reproducing("small")
    assert cut == trained(reproducing.folder)
    assert len(cut) == 16


def test_a_seed_that_a_kill_left_behind_alone_is_what_is_left_of_its_job(reproducing):
    """Killed after the first one's result: the job is not done."""
    reproducing("small")
    whole = trained(reproducing.folder)
    (reproducing.folder / "runs/small.dp/seed-4/result.json").unlink()
    reproducing.resume()
    assert reproducing.watch.trained == [DP]
    assert trained(reproducing.folder) == whole


def test_a_failure_of_a_job_is_recorded_and_the_next_goes_on(reproducing, monkeypatch):
    train = runs.train

    def failing(run, *others, seeds, **options):
        if run.folder.name == "small.bp" and seeds:
            raise RuntimeError(f"no training of {list(seeds)}")
        return train(run, *others, seeds=seeds, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", failing)
        came = reproducing("small")
    assert [failure.label for failure in came.failures] == ["small.bp"]
    recorded = json.loads((reproducing.folder / "failures.json").read_text())["small.bp"]
    assert recorded["error"] == "RuntimeError: no training of [3, 4]"
    assert "Traceback" in recorded["traceback"]
    assert [row["num_seeds"] for row in came.results["items"]["small"]["rows"]] == [0, 2]
    assert reproducing.resume().is_well
    assert reproducing.watch.trained == [BP]


def test_a_measurement_takes_the_steps_of_all_seeds_at_once(reproducing, monkeypatch):
    """Measured as one seed, a plan would take them for as long as one; or for as long as all in
    turn."""
    sizes, step = set(), costs.contenders.trainer_step

    def counted(*args):
        real = step(*args)
        return lambda x, y: (sizes.add(len(x)), real(x, y))[1]

    monkeypatch.setattr(costs.contenders, "trainer_step", counted)
    came = reproducing("small", measure=costs.measure, epochs=1)
    assert came.is_well
    assert sizes == {2 * TINY.batch_size}
