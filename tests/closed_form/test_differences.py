"""The verdict on two accuracies, against numbers worked out by hand and Student's tables."""

import pytest

from dualprop.analysis.differences import Published, difference, student, to_published, to_twin
from dualprop.errors import SettingError
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


def test_where_a_point_would_not_be_seen_no_verdict_is_given():
    """90 test examples: chance explains 8 points. "No difference" would be read as "as good"."""
    assert difference(results(0.9, size=90), results(0.91, size=90)).verdict == "too few to tell"
    assert difference(results(0.9, size=90), results(0.5, size=90)).verdict == "above back-propagation"
    assert difference(results(0.90, 0.92), results(0.91, 0.91)).verdict == "too few to tell"


def test_several_seeds_are_paired():
    """Differences of 0.1, 0.2 and 0.3 points: mean 0.2, standard error 0.1/√3, times Student's
    4.303."""
    found = difference(results(0.901, 0.802, 0.703), results(0.9, 0.8, 0.7))
    assert found.points == pytest.approx(0.2)
    assert found.chance == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
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


@pytest.mark.parametrize(("degrees", "point"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (1e6, 1.960)])
def test_students_points_are_those_of_the_tables(degrees, point):
    assert student(degrees) == pytest.approx(point, abs=5e-4)


def test_a_published_figure_is_read_with_its_rounding():
    assert Published.parse("98.45 ± 0.04", 5) == Published(98.45, 0.04, 5, pytest.approx(0.01))
    assert Published.parse("92.0 ± 0.1", 3).digit == pytest.approx(0.1)
    assert Published.parse("88.6 ± 0.25", 3).digit == pytest.approx(0.1)
    assert Published.parse("93.92", 5) == Published(93.92, None, 5, pytest.approx(0.01))
    for text in ("98.45 +- 0.04", "98.45 ± 0.04 %", ""):
        with pytest.raises(SettingError, match="mean ± a deviation"):
            Published.parse(text, 5)


def test_a_published_figure_is_held_against_welchs_interval():
    """Ours: 92.0, 92.2, 92.4: mean 92.2, variance 0.04, over 3. Theirs: 92.0 ± 0.2 over 4, printed
    to 0.01. Welch's degrees of freedom by hand."""
    ours, theirs = 0.04 / 3, 0.205**2 / 4
    degrees = (ours + theirs) ** 2 / (ours**2 / 2 + theirs**2 / 3)
    found = to_published(results(0.92, 0.922, 0.924), Published(92.0, 0.2, 4, 0.01), wanted=3)
    assert found.points == pytest.approx(0.2)
    assert found.chance == pytest.approx(student(degrees) * (ours + theirs) ** 0.5 + 0.005)
    assert found.words == "no difference seen"


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.9226, 0.9229, 0.9232, 0.9230, 0.9231), "no difference seen"),
        ((0.9126, 0.9129, 0.9132, 0.9130, 0.9131), "below"),
        ((0.9326, 0.9329, 0.9332, 0.9330, 0.9331), "above"),
        # Two that agree with it by chance say nothing, two that are far off do.
        ((0.9226, 0.9229), "too few to tell"),
        ((0.8226, 0.8229), "below"),
        # One seed: a standard error of the test set is 0.27 points.
        ((0.9200,), "too few to tell"),
        ((0.9100,), "below"),
        ((0.9400,), "above"),
        ((), "too few to tell"),
    ],
)
def test_the_verdict_on_a_published_figure(accuracies, words):
    """92.30 ± 0.11 over five seeds, of which we want five: no difference is told of fewer."""
    found = to_published(results(*accuracies), Published.parse("92.30 ± 0.11", 5), wanted=5)
    assert found.words == words
    assert words in str(found)


def test_a_published_figure_without_a_spread_is_held_against_ours():
    found = to_published(results(0.92, 0.922, 0.924), Published.parse("93.92", 5), wanted=3)
    assert found.chance == pytest.approx(4.302653 * 0.2 / 3**0.5 + 0.005, rel=1e-6)
    assert found.words == "below"


def test_a_single_seed_whose_test_set_is_not_known_tells_nothing():
    assert to_published(results(0.5, size=None), Published.parse("92.30 ± 0.11", 5), 5).words == "too few to tell"
