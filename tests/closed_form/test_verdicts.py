"""Verdicts of the benchmark against hand-made figures."""

import pytest

from dualprop.bench import verdicts
from dualprop.bench.timing import PLAIN, PLAIN_AGAIN
from dualprop.bench.verdicts import Verdict


def _row(label, rule="", engine="", ratio=1.0, memory=None, resident=None, spread=0.0, rounds=16, is_one_sweep=True):
    row = {"label": label, "rule": rule, "engine": engine, "ratio": ratio, "is_one_sweep": is_one_sweep, "rounds": rounds}
    row |= {"lower_quartile": ratio - spread / 2, "upper_quartile": ratio + spread / 2}
    return row | {"memory_ratio": memory, "resident_ratio": resident}


def _rows(*entries, again=1.01, spread=0.0, resident=1.02):
    return [_row(PLAIN), _row(PLAIN_AGAIN, ratio=again, spread=spread, resident=resident), *entries]


@pytest.mark.parametrize(
    ("measured", "noise", "result"),
    [
        (1.02, 0.0, "met"),
        (1.03, 0.02, "within the noise"),
        (1.05, 0.02, "missed"),
        (0.90, 0.2, "undecided"),
        (1.10, 0.2, "undecided"),
        (1.30, 0.2, "missed"),
    ],
)
def test_a_figure_is_judged_over_the_noise_floor(measured, noise, result):
    """A target that is passed within the noise is not missed, and one that is met in a storm is not
    met."""
    assert Verdict("dp", "best engine", "fused", measured, 1.02, noise).result == result


def test_the_floor_of_a_time_is_the_larger_of_offset_and_standard_error():
    """A second loop whose median falls on 1 by chance would claim that there is no noise."""
    assert verdicts.noise_of_time(_rows(again=0.97)) == pytest.approx(0.03)
    assert verdicts.noise_of_time(_rows(again=1.0, spread=0.2)) == pytest.approx(0.2 / 4)
    assert verdicts.noise_of_memory(_rows(resident=0.94)) == pytest.approx(0.06)


def test_a_row_is_judged_by_its_own_spread_where_that_is_larger():
    """The plain loop may be steady where a contender is not."""
    steady, shaken = (_row("a", "dp", "fused", 1.03, spread=spread, rounds=16) for spread in (0.0, 0.16))
    assert [each.noise for each in verdicts.judge(_rows(steady, again=1.0))] == [0.0]
    assert [each.noise for each in verdicts.judge(_rows(shaken, again=1.0))] == pytest.approx([0.16 / 4])


def test_the_best_engine_is_the_fastest_that_keeps_to_the_memory():
    """One a hair faster at twice the memory would hide that another keeps to both."""
    explicit, fused = _row("a", "dp", "explicit", 1.00, memory=2.0), _row("b", "dp", "fused", 1.01, memory=1.04)
    assert verdicts.best([explicit, fused])["dp"]["label"] == "b"
    assert verdicts.best([explicit, fused | {"memory_ratio": 1.2}])["dp"]["label"] == "a"
    assert verdicts.best([explicit | {"memory_ratio": None}, fused | {"memory_ratio": None}])["dp"]["label"] == "a"


def test_every_rule_is_judged_by_its_best_and_its_best_explicit_engine():
    """The targets differ: 1.02 for the best, 1.10 for explicit inference, 1.05 for the best one's
    memory."""
    rows = _rows(
        _row("a", "dp", "explicit", 1.08, memory=1.3, resident=1.2),
        _row("b", "dp", "explicit-compiled", 1.06, memory=1.3, resident=1.2),
        _row("c", "dp", "fused", 1.03, memory=1.0, resident=1.06),
        _row("d", "bp", ratio=1.5),
        _row("e", "l-dp", "explicit", 1.5, is_one_sweep=False),
    )
    found = {(each.rule, each.what): each for each in verdicts.judge(rows)}
    assert {rule for rule, _ in found} == {"dp"}
    told = {what: (each.engine, each.measured, each.target, each.result) for (_, what), each in found.items()}
    assert told == {
        "best engine": ("fused", 1.03, 1.02, "within the noise"),
        "explicit engine": ("explicit-compiled", 1.06, 1.10, "met"),
        "memory of tensors": ("fused", 1.0, 1.05, "met"),
        "memory resident": ("fused", 1.06, 1.05, "within the noise"),
    }
