"""The items themselves: recipes and variants that exist, and figures as the papers print them.

These are of the real table, not of that of the other tests.
"""

import re

import pytest

from dualprop import recipes
from dualprop.analysis.differences import Published
from dualprop.recipes import cifar, variants
from dualprop.reproduction import listing
from dualprop.reproduction.items import BETAS, ITEMS, ITERATIONS, Figure
from dualprop.reproduction.options import Setting

REAL = dict(ITEMS)
FIGURES = {figure.label: figure for item in REAL.values() for figure in item.figures}
THERE = [label for label, figure in FIGURES.items() if figure.is_there]
# Test errors of table 1 in Kerjan, Høier & Scellier (2026), per cent: EP MSE, BP MSE, EP CE, BP CE.
ERRORS = {
    "mnist": (0.32, 0.33, 0.45, 0.48),
    "cifar10": (7.8, 8.0, 9.7, 9.5),
    "cifar100": (30.1, 30.1, 34.7, 34.2),
}
# The slides of Høier, Staudt & Zach (2023): MNIST's six methods; CIFAR by BP, DP and KP-DP.
SLIDES = {
    "mnist-mlp.bp": "98.45 ± 0.04",
    "mnist-mlp.dp": "98.43 ± 0.03",
    "mnist-mlp.ms-dp": "98.40 ± 0.02",
    "mnist-mlp.l-dp": "98.42 ± 0.07",
    "mnist-mlp.p-dp": "98.47 ± 0.04",
    "mnist-mlp.r-dp-100": "98.48 ± 0.11",
    "cifar10-vgg16.bp": "92.26 ± 0.23",
    "cifar10-vgg16.dp": "92.30 ± 0.11",
    "cifar10-vgg16-kp.kp-dp": "91.84 ± 0.11",
    "cifar100-vgg16.bp": "69.63 ± 0.24",
    "cifar100-vgg16.dp": "69.57 ± 0.51",
    "cifar100-vgg16-kp.kp-dp": "70.40 ± 0.25",
}


@pytest.fixture(autouse=True)
def _real(monkeypatch, tiny):
    for name in list(ITEMS):
        monkeypatch.delitem(ITEMS, name)
    for name, item in REAL.items():
        monkeypatch.setitem(ITEMS, name, item)


@pytest.mark.parametrize("label", THERE)
def test_a_figure_is_of_a_recipe_and_a_variant_that_exist(label):
    """One that does not would be found after minutes of a borrowed machine."""
    figure = FIGURES[label]
    made = figure.made()
    assert made.name == figure.recipe
    assert figure.twin is None or figure.twin.made().rule_name == "backprop"
    if figure.published:
        Published.parse(figure.published, len(made.seed_list))


def test_only_the_recipes_that_are_being_made_are_waited_for():
    waiting = {figure.recipe for figure in FIGURES.values() if not figure.is_there}
    assert waiting <= {"cifar10-fast", "cifar100-fast"}


def test_published_figures_are_those_of_the_papers():
    published = {label: FIGURES[label].published for label in THERE if FIGURES[label].published}
    expected = dict(SLIDES)
    means = {}
    for dataset, (ep_mse, bp_mse, ep_ce, bp_ce) in ERRORS.items():
        means |= {f"{dataset}-vgg5-ep-mse.ep": ep_mse, f"{dataset}-vgg5-ep-mse.bp": bp_mse}
        means |= {f"{dataset}-vgg5-ep.ep": ep_ce, f"{dataset}-vgg5-ep.bp": bp_ce}
    assert set(expected) | set(means) == {label for label in published if "-fast" not in label}
    assert {label: published[label] for label in expected} == expected
    for label, error in means.items():
        assert Published.parse(published[label], 3).mean == pytest.approx(100 - error)


def test_items_want_the_seeds_of_the_published_runs():
    wanted = {name: {len(item.seeds(figure)) for figure in item.figures if figure.is_there} for name, item in REAL.items()}
    assert wanted["mnist"] == wanted["cifar10-vgg16"] == wanted["cifar100-vgg16"] == wanted["mnist-angles"] == {5}
    assert wanted["vgg5"] == wanted["cifar10-nudging"] == wanted["cifar100-nudging"] == {3}
    assert wanted["vgg5-iterations"] == {1}


def test_grids_are_those_of_the_papers():
    names = [figure.variant for figure in REAL["cifar10-nudging"].figures]
    assert names == variants.parse("grid", recipes.from_name("cifar10-vgg16-transposed"))
    assert len(names) == 1 + len(cifar.GRID_2024) == 11
    cells = [figure.made().rule for figure in REAL["vgg5-iterations"].figures[1:]]
    assert len(cells) == len(ITERATIONS) * len(BETAS)
    assert {(str(rule.relaxation), rule.beta) for rule in cells} >= {
        ("blocks(even_odd(5))", 0.02),
        ("blocks(even_odd(20))", 0.5),
    }


def test_what_shares_a_figure_shares_its_runs():
    """The twin of a K × β cell is that of the table, and its folder holds the seeds of both."""
    setting = Setting(items=("vgg5", "vgg5-iterations"), device="cpu")
    assert setting.seeds_by_label()["cifar100-vgg5-ep.bp"] == (0, 1, 2)
    assert setting.seeds_by_label()["cifar100-vgg5-ep.ep-k5-b0.02"] == (0,)


def test_kolen_pollacks_twin_is_that_of_its_table():
    assert FIGURES["cifar10-vgg16-kp.kp-dp"].twin == Figure("cifar10-vgg16", "bp")
    assert FIGURES["cifar10-vgg16.dp"].twin == Figure("cifar10-vgg16", "bp")
    assert FIGURES["cifar10-vgg16.bp"].twin is None


def test_each_item_is_listed_with_what_it_needs():
    told = listing.summaries()
    assert set(told) == set(REAL)
    assert "30 runs of 100 epochs, data: mnist" in told["mnist"]
    assert "20 runs of 130 epochs, data: cifar10" in told["cifar10-vgg16"]
    assert all(re.search(r"runs of|measured, not trained|waits for recipe", each) for each in told.values())
