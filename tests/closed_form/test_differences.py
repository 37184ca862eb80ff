"""The verdict on two accuracies, against numbers worked out by hand."""

import pytest

from dualprop.analysis.differences import difference, to_twin
from dualprop.training.records import Result


def results(*accuracies, size=10000):
    rest = {"num_test": size, "test_loss": 0.1, "best_epoch": 1, "validation_accuracy": 0.9, "epochs": 1, "stopped": ""}
    return [Result(seed=seed, test_accuracy=value, **rest) for seed, value in enumerate(accuracies)]


def test_one_seed_is_held_against_the_sampling_error_of_the_test_set():
    """90 % of 10000: one standard error is 0.3 points, of a difference √2 times that, twice it
    0.85."""
    found = difference(results(0.905), results(0.9))
    assert found.points == pytest.approx(0.5)
    assert found.chance == pytest.approx(2 * 100 * (0.9 * 0.1 / 1e4 + 0.905 * 0.095 / 1e4) ** 0.5)
    assert found.verdict == "no difference seen"
    assert difference(results(0.91), results(0.9)).verdict == "above back-propagation"
    assert difference(results(0.89), results(0.9)).verdict == "below back-propagation"


def test_several_seeds_are_paired():
    """Differences of 0.1, 0.2 and 0.3 points: mean 0.2, standard error 0.1/√3, times Student's
    4.30."""
    found = difference(results(0.901, 0.802, 0.703), results(0.9, 0.8, 0.7))
    assert found.points == pytest.approx(0.2)
    assert found.chance == pytest.approx(4.30 * 0.1 / 3**0.5)
    assert found.verdict == "above back-propagation" if found.chance < 0.2 else "no difference seen"
    assert "3 seeds" in str(found)


def test_only_seeds_of_both_are_compared_and_the_twin_is_found_by_either_name():
    own = results(0.91, 0.92)
    assert difference(own, results(0.9)).num_seeds == 1
    assert difference(own, []) is None
    assert difference(results(0.9, size=None), results(0.9, size=None)) is None
    for name in ("bp", "backprop"):
        assert list(to_twin({"dp": own, name: results(0.9, 0.9)})) == ["dp"]
    assert to_twin({"dp": own}) == {}
