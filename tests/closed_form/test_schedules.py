"""Schedules: every order written out by hand for small depths, reading and printing, and
refusals."""

import numpy as np
import pytest
import torch

from dualprop import schedules
from dualprop.errors import SettingError
from dualprop.schedules import Schedule

# {schedule: {depth: its groups}}, written out by hand.
BY_HAND = {
    "alternating_sweeps(1)": {1: "1", 2: "2,1", 3: "3,2,1", 4: "4,3,2,1"},
    "alternating_sweeps(2)": {1: "1,1", 2: "2,1,2,1", 3: "3,2,1,2,3,2,1", 4: "4,3,2,1,2,3,4,3,2,1"},
    "alternating_sweeps(3)": {3: "3,2,1,2,3,2,1,2,3,2,1"},
    "up_down(1)": {1: "1", 2: "1,2,1", 3: "1,2,3,2,1", 4: "1,2,3,4,3,2,1"},
    "up_down(2)": {2: "1,2,1,1,2,1", 3: "1,2,3,2,1,1,2,3,2,1"},
    "bottom_up(1)": {1: "1", 3: "1,2,3"},
    "bottom_up(3)": {1: "1,1,1", 2: "1,2,1,2,1,2", 4: "1,2,3,4,1,2,3,4,1,2,3,4"},
    "odd_even(1)": {1: "1", 2: "1,2", 3: "1,3,2", 4: "1,3,2,4", 5: "1,3,5,2,4"},
    "odd_even(2)": {3: "1,3,2,1,3,2"},
    "even_odd(1)": {1: "1", 2: "2,1", 3: "2,1,3", 4: "2,4,1,3", 5: "2,4,1,3,5"},
    "even_odd(2)": {4: "2,4,1,3,2,4,1,3"},
    "synchronous(1)": {1: "1", 3: "1+2+3"},
    "synchronous(3)": {2: "1+2,1+2,1+2", 3: "1+2+3,1+2+3,1+2+3"},
}


def written(schedule, depth, generator=None):
    return ",".join("+".join(map(str, step.layers)) for step in schedules.parse(schedule).steps(depth, generator))


@pytest.mark.parametrize("text", BY_HAND)
def test_a_schedule_is_the_order_written_out_by_hand(text):
    """A schedule that misses one layer still trains, with one layer's error always a pass too
    old."""
    for depth, order in BY_HAND[text].items():
        assert written(text, depth) == order, f"depth {depth}"


@pytest.mark.parametrize("depth", range(1, 7))
def test_synchronous_steps_leave_the_output_unnudged_until_the_forward_signal_has_arrived(depth):
    """Nudged at once from zeros, the output would send an error that belongs to no input (P-DP:
    from step L on)."""
    before = [step.before_arrival for step in schedules.synchronous(2 * depth).steps(depth)]
    assert before == [True] * (depth - 1) + [False] * (depth + 1)


@pytest.mark.parametrize("name", [name for name in schedules.names() if name not in ("synchronous", "random_order")])
def test_no_other_schedule_leaves_the_output_unnudged(name):
    """A step that is never nudged would silently cost its count."""
    assert not any(step.before_arrival for step in Schedule(name, 3).steps(4))


@pytest.mark.parametrize("name", schedules.names())
def test_a_schedule_reads_what_it_prints(name):
    """Recipes are written to disk as text: a run must come back with the same schedule."""
    made = getattr(schedules, name)(7)
    assert str(made) == f"{name}(7)"
    assert schedules.parse(str(made)) == made
    assert schedules.parse(f" {name} ( 7 ) ") == made
    assert schedules.parse(name).count == 1
    assert schedules.parse(made) is made


@pytest.mark.parametrize("order", [[4, 3, 2, 1], [[1, 3], 2], [[2], [1]], (1,), np.array([2, 1])])
def test_an_explicit_order_reads_what_it_prints(order):
    """The authors' exact order is passed in this form."""
    made = schedules.parse(order)
    assert schedules.parse(str(made)) == made
    assert schedules.parse([[1, 3], 2]).groups == ((1, 3), (2,))
    assert schedules.parse("1+3,2").groups == ((1, 3), (2,))


def test_random_order_draws_single_layers_from_the_passed_generator_alone():
    """The global generator would make runs differ by what else was drawn; layer 0 or L+1 would
    crash."""
    torch.manual_seed(1)
    first = written("random_order(200)", 4, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert first == written("random_order(200)", 4, torch.Generator().manual_seed(3))
    assert first != written("random_order(200)", 4, torch.Generator().manual_seed(4))
    drawn = [int(k) for k in first.split(",")]
    assert len(drawn) == 200
    # Uniform: 200 draws, each layer expected 50 times with a standard deviation of √(200·¼·¾) ≈ 6;
    # four of them.
    assert all(26 <= drawn.count(k) <= 74 for k in range(1, 5))
    assert schedules.random_order(3).is_random
    assert not schedules.bottom_up(3).is_random


REFUSED = [
    (lambda: schedules.parse("bottom_upp(3)"), r"unknown schedule 'bottom_upp'.*Did you mean 'bottom_up'"),
    (lambda: schedules.parse("bottom_up(0)"), "count of schedule 'bottom_up' must be at least 1"),
    (lambda: schedules.bottom_up(-2), "at least 1, got -2"),
    (lambda: schedules.bottom_up(2.5), "whole number"),
    (lambda: schedules.bottom_up(True), "whole number"),
    (lambda: schedules.parse("3;2"), r"neither a name with a count, such as 'bottom_up\(4\)', nor an order"),
    (lambda: schedules.parse(""), "neither a name"),
    (lambda: schedules.parse([]), "non-empty sequence of layer numbers"),
    (lambda: schedules.parse([[], 1]), "non-empty sequence"),
    (lambda: schedules.parse([[1, 2, 1]]), r"updates a layer twice in the group \(1, 2, 1\)"),
    (lambda: schedules.parse("2+2,1"), "Name each once a group"),
    (lambda: schedules.parse([1.5]), "non-empty sequence of layer numbers"),
    (lambda: list(schedules.parse([3]).steps(2)), "names layer 3, but the network has layers 1 to 2"),
    (lambda: list(schedules.parse([0]).steps(2)), "names layer 0"),
    (lambda: list(schedules.random_order(2).steps(2)), r"pass generator=torch\.Generator"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_schedule_that_makes_no_sense_is_refused_in_one_line(make, message):
    """Skipped layers or an empty order would train, silently, on the forward pass alone."""
    with pytest.raises(SettingError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_what_sweeps_down_brings_an_error_through_any_depth_in_one_pass():
    """Of a network that is read by running it the depth is not known: asked for a large one, a
    schedule would be written out."""
    for name in schedules.names():
        schedule = schedules.Schedule(name, 1)
        expected = not schedule.is_random and all(schedule.brings_down(depth) for depth in (2, 3, 40, 41))
        assert schedule.brings_down(None) == expected, name
    assert not schedules.Schedule("bottom_up", 10**6).brings_down(None)
    assert schedules.Schedule("alternating_sweeps", 10**6).brings_down(None)
