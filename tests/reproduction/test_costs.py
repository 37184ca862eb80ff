"""What runs cost: a real measurement of a small one, and what of it is kept."""

import dataclasses
import json

import pytest
from tiny_items import TINY, Steps, Time

from dualprop.errors import RunError
from dualprop.reproduction import costs
from dualprop.reproduction.costs import Cost, Costs
from dualprop.reproduction.watching import Deadline, OutOfTime
from dualprop.training import Reporter, capture


@pytest.mark.parametrize(("captured", "before"), [("off", 0), ("on", capture.WARMUP)])
def test_a_measurement_takes_a_few_steps_and_leaves_nothing(tmp_path, monkeypatch, captured, before):
    taken = []
    step = costs.contenders.trainer_step

    def counted(*args):
        real = step(*args)
        return lambda x, y: (taken.append(len(x)), real(x, y))[1]

    monkeypatch.setattr(costs.contenders, "trainer_step", counted)
    monkeypatch.setattr(costs, "MOST_STEPS", 7)
    monkeypatch.setattr(costs, "LEAST_SECONDS", 1e9)  # however fast the machine: the most steps
    recipe = dataclasses.replace(TINY, device="cpu", capture=captured)
    cost = costs.measure(recipe, costs.Loaded(None), tmp_path)
    assert cost.of == "a few steps"
    assert min(cost.setup, cost.epoch, cost.finish) > 0
    assert set(taken) == {TINY.batch_size}
    assert len(taken) == before + 2 + 7
    assert list(tmp_path.iterdir()) == []
    assert cost.seconds(3) == pytest.approx(cost.setup + 3 * cost.epoch + cost.finish)


def test_what_is_far_too_long_is_known_after_one_step(tmp_path, monkeypatch):
    """Evaluating what will not be run costs minutes on a slow machine."""

    def evaluation(*_):
        raise AssertionError("evaluated")

    monkeypatch.setattr(costs._Stepping, "evaluation", evaluation)
    cost = costs.measure(dataclasses.replace(TINY, device="cpu"), costs.Loaded(None), tmp_path, longest=1e-6)
    assert cost.of == "one step"
    assert cost.epoch > 0


def test_a_slow_machine_is_content_with_one_step(tmp_path, monkeypatch):
    """Measuring must not take the time that it measures for."""
    monkeypatch.setattr(costs, "SHARE", 0.0)
    cost = costs.measure(dataclasses.replace(TINY, device="cpu"), costs.Loaded(None), tmp_path, longest=1e9)
    assert cost.of == "one step"


def test_costs_are_kept_for_this_machine(tmp_path, monkeypatch):
    kept, cost = Costs(tmp_path, "cpu"), Cost(setup=1.0, epoch=2.0, finish=3.0, of="a few steps")
    kept["tiny.bp"] = cost
    assert Costs(tmp_path, "cpu")["tiny.bp"] == cost
    assert Costs(tmp_path, "cpu")["tiny.dp"] is None
    monkeypatch.setattr(costs, "_machine", lambda _: "another")
    assert Costs(tmp_path, "cpu")["tiny.bp"] is None


def test_edited_costs_are_refused_by_the_field(tmp_path):
    kept = Costs(tmp_path, "cpu")
    kept["tiny.bp"] = Cost(setup=1.0, epoch=2.0, finish=3.0, of="a few steps")
    plain = json.loads(kept.path.read_text())
    plain["costs"]["tiny.bp"]["epoch"] = "long"
    kept.path.write_text(json.dumps(plain))
    with pytest.raises(RunError, match=r"costs\.json is damaged: costs\.tiny\.bp\.epoch must be a number, got 'long'"):
        Costs(tmp_path, "cpu")


def epochs(deadline, number, seconds):
    """The deadline's answers to so many epochs of these seconds."""
    deadline.seed_started(0, number, 0)
    deadline.epoch_done({"epoch": 0})
    for epoch in range(1, number + 1):
        deadline.clock.now += seconds
        deadline.epoch_done({"epoch": epoch})
        yield epoch


@pytest.mark.parametrize(("seconds", "last"), [(10, 10), (30, 3), (49, 2), (60, 1)])
def test_a_run_stops_after_the_last_epoch_that_another_fits_behind(seconds, last):
    """A hundred seconds, and epochs said to take one: each stop leaves less than an epoch."""
    time = Time()
    cost = Cost(setup=0.0, epoch=1.0, finish=0.0, of="a few steps")
    deadline = Deadline(Reporter(), time, 100.0, cost, 1000, whole=False)
    with pytest.raises(OutOfTime):
        list(epochs(deadline, 1000, seconds))
    assert time.now == last * seconds


def test_a_run_that_is_to_be_whole_stops_as_soon_as_it_can_not_be():
    time = Time()
    cost = Cost(setup=0.0, epoch=1.0, finish=0.0, of="a few steps")
    with pytest.raises(OutOfTime):
        list(epochs(Deadline(Reporter(), time, 100.0, cost, 50, whole=True), 50, 5))
    assert time.now == 10  # the first may have compiled, the second tells
    time.now = 0
    assert list(epochs(Deadline(Reporter(), time, 100.0, cost, 20, whole=True), 20, 5)) == list(range(1, 21))


def test_the_last_epoch_is_tested_and_not_stopped():
    time = Time()
    deadline = Deadline(Reporter(), time, 10.0, Cost(setup=0.0, epoch=9.0, finish=0.0, of="a few steps"), 1, whole=True)
    assert list(epochs(deadline, 1, 10)) == [1]


def test_a_step_that_ends_too_late_is_the_last():
    """Where an epoch takes half an hour, waiting for its end is no way to keep a time."""
    time = Time()
    reporter = Steps(time).training(None, TINY).__enter__()
    deadline = Deadline(reporter, time, 5.0, Cost(setup=0.0, epoch=1.0, finish=0.0, of="one step"), 1, whole=False)
    for step in range(5):
        deadline.step_done(step, 1, None, None)
    with pytest.raises(OutOfTime):
        deadline.step_done(5, 1, None, None)
