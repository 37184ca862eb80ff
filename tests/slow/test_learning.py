"""Statistics of learning: dual propagation reaches what back-propagation reaches, over seeds, on
real data."""

import dataclasses
from statistics import mean, stdev

import pytest

from dualprop import recipes, training

pytestmark = pytest.mark.slow


def accuracies(recipe, folder, root=None, num_seeds=3):
    results = training.train(training.create(folder, recipe, recipe.seeds(num_seeds)), root)
    return [result["test_accuracy"] for result in results["seeds"]]


def test_digits_are_learned_as_well_as_by_backprop(tmp_path):
    """97 % is what a good MLP has on digits; the difference of the means must be within three
    standard errors."""
    recipe = recipes.from_name("digits-mlp")
    found = accuracies(recipe, tmp_path / "dp", num_seeds=8)
    exact = accuracies(recipe.with_rule("backprop"), tmp_path / "bp", num_seeds=8)
    assert mean(found) >= 0.97, found
    error = ((stdev(found) ** 2 + stdev(exact) ** 2) / 8) ** 0.5
    assert abs(mean(found) - mean(exact)) <= 3 * max(error, 1 / 359), (found, exact)


def test_mnist_passes_96_percent_in_two_epochs_by_both_rules(tmp_path, shared_folder):
    """The first two epochs of the table's recipe on real MNIST, one seed."""
    recipe = dataclasses.replace(recipes.from_name("mnist-mlp"), epochs=2)
    found = accuracies(recipe, tmp_path / "dp", shared_folder / "data", num_seeds=1)
    exact = accuracies(recipe.with_rule("backprop"), tmp_path / "bp", shared_folder / "data", num_seeds=1)
    assert min(*found, *exact) > 0.96
