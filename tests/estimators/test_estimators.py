"""The estimators as scikit-learn's users have them: its own checks, its pipelines and searches, and
the numbers that its own networks and classical formulas give."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import dualprop as dp
from dualprop.errors import SettingError
from dualprop.sklearn import DualPropClassifier, DualPropRegressor

# Few steps of a small network, which scikit-learn's checks have enough of.
QUICK = {"hidden_layer_sizes": (8,), "learning_rate_init": 0.1, "max_iter": 20}
IRIS = load_iris(return_X_y=True)


@pytest.fixture(autouse=True)
def _is_not_settled():
    """Short trainings are not over, which they say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def failures(estimator):
    """Of scikit-learn's own checks; what needs another package (pandas) is skipped by them."""
    return [check for check in check_estimator(estimator, on_fail=None, on_skip=None) if check["status"] == "failed"]


@pytest.mark.parametrize("kind", [DualPropClassifier, DualPropRegressor])
def test_scikit_learns_own_checks_pass_without_an_exception(kind):
    """All of them: none is marked as expected to fail."""
    assert failures(kind(**QUICK)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DualPropClassifier, DualPropRegressor])
def test_scikit_learns_own_checks_pass_at_the_defaults(kind):
    assert failures(kind()) == []


@pytest.mark.parametrize(("ours", "theirs"), [(DualPropClassifier, MLPClassifier), (DualPropRegressor, MLPRegressor)])
def test_a_parameter_of_both_has_the_same_default_here_as_in_scikit_learns_network(ours, theirs):
    """Who swaps one for the other should change what they mean to."""
    here, there = ours().get_params(deep=False), theirs().get_params()
    assert set(here) - set(there) == {"rule"} | ({"class_weight"} if ours is DualPropClassifier else set())
    assert {name: value for name, value in here.items() if name in there and there[name] != value} == {}


def test_back_propagation_takes_the_steps_that_scikit_learns_network_takes():
    """From the same weights, on the whole data set at once, by plain gradient descent with the L2
    penalty's scale: a factor of N, K or 2 would show."""
    X, y = IRIS
    X = StandardScaler().fit_transform(X)
    settings = {"hidden_layer_sizes": (5,), "activation": "tanh", "solver": "sgd", "momentum": 0.0, "alpha": 3.0}
    settings |= {"batch_size": 150, "learning_rate_init": 0.1, "random_state": 0}
    ours = DualPropClassifier(rule="backprop", max_iter=1, **settings).fit(X, y)
    theirs = MLPClassifier(max_iter=1, nesterovs_momentum=False, **settings).fit(X, y)
    theirs.coefs_ = [weights.copy() for weights in ours.coefs_]
    theirs.intercepts_ = [biases.copy() for biases in ours.intercepts_]
    ours.partial_fit(X, y)
    theirs.partial_fit(X, y)
    # Biases decay here, and there not.
    for here, there in zip(ours.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-9)


def test_a_network_without_hidden_layers_becomes_the_least_squares_solution():
    """Targets are put back into their unit, of several at once."""
    X, y = load_diabetes(return_X_y=True)
    X, Y = StandardScaler().fit_transform(X[:, :4]), np.stack([y, 1000 - 3 * y], axis=1)
    ours = DualPropRegressor(
        (), alpha=0.0, solver="sgd", learning_rate_init=0.3, max_iter=300, batch_size=442, tol=0.0, random_state=0
    )
    exact = LinearRegression().fit(X, Y).predict(X)
    assert np.abs(ours.fit(X, Y).predict(X) - exact).max() < 1e-3 * Y.std()
    assert ours.predict(X).shape == (442, 2)
    assert ours.fit(X, y).predict(X).shape == (442,)


RULES = [
    ("dp", dp.DualPropagation()),
    ("dp-transposed", dp.DualPropagation(coupling="transposed", alpha=0.0)),
    ("backprop", dp.Backprop()),
    ("predictive_coding", dp.PredictiveCoding()),
    (dp.DualPropagation(beta=0.25), dp.DualPropagation(beta=0.25)),
]


@pytest.mark.parametrize(("given", "meant"), RULES, ids=[str(given)[:20] for given, _ in RULES])
def test_a_pipeline_learns_wine_by_a_rule_a_variant_or_a_rule_of_ones_own(given, meant):
    X, y = load_wine(return_X_y=True)
    network = DualPropClassifier((16,), rule=given, learning_rate_init=0.02, max_iter=15, random_state=0)
    model = make_pipeline(StandardScaler(), network)
    assert cross_val_score(model, X, y, cv=2).mean() > 0.9
    assert model.fit(X, y)[-1].model_.recipe.rule == meant


def test_a_grid_search_runs_over_a_rules_settings_and_finds_the_one_that_learns():
    """The search must reach the rule itself, and leave the estimator that it began with alone."""
    X, y = IRIS
    X = StandardScaler().fit_transform(X)
    base = DualPropClassifier((8,), learning_rate_init=0.1, max_iter=20, random_state=0)
    grid = [{"rule": ["dp"], "rule__beta": [0.1, 0.5]}, {"rule": ["backprop"]}]
    search = GridSearchCV(base, grid, cv=3).fit(X, y)
    betas = [params.get("rule__beta") for params in search.cv_results_["params"]]
    assert betas == [0.1, 0.5, None]
    for beta in (0.1, 0.5):
        assert clone(base).set_params(rule="dp", rule__beta=beta).fit(X, y).model_.recipe.rule.beta == beta
    assert search.best_score_ > 0.9
    assert base.rule == "dp"


def test_a_rules_settings_are_parameters_and_others_are_refused_by_name():
    model = DualPropClassifier().set_params(rule__beta=0.25)
    assert model.get_params()["rule__beta"] == 0.25
    assert "rule__loss" not in model.get_params()
    with pytest.raises(ValueError, match=r"DualPropagation has no setting 'bta'. Did you mean 'beta'\?"):
        model.set_params(rule__bta=1.0)
    with pytest.raises(ValueError, match="beta must be"):
        model.set_params(rule__beta=-1.0)
    with pytest.raises(ValueError, match="unknown rule 'dpp'"):
        DualPropClassifier(rule="dpp").fit(*IRIS)
    with pytest.raises(ValueError, match="is more than a rule: it sets"):
        DualPropClassifier(rule="kp-dp").fit(*IRIS)
    with pytest.raises(ValueError, match=r"hidden_layer_sizes\[0\] must be at least 1"):
        DualPropClassifier((0,)).fit(*IRIS)


def test_a_fitted_estimator_predicts_the_same_after_pickling_and_a_clone_starts_anew():
    X, y = IRIS
    fitted = DualPropClassifier(random_state=3, **QUICK).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(fitted.predict_proba(X), again.predict_proba(X))
    np.testing.assert_array_equal(clone(fitted).fit(X, y).predict_proba(X), fitted.predict_proba(X))
    # And goes on from there as the original does.
    np.testing.assert_array_equal(again.partial_fit(X, y).coefs_[0], fitted.partial_fit(X, y).coefs_[0])


def test_fitting_leaves_torchs_own_random_numbers_alone():
    before = torch.random.get_rng_state()
    DualPropClassifier(random_state=0, **QUICK).fit(*IRIS)
    assert torch.equal(before, torch.random.get_rng_state())


def test_epochs_of_partial_fit_are_those_of_fit():
    """One network that learns on, its optimizer's moments and its order of examples with it."""
    X, y = IRIS
    settings = {**QUICK, "batch_size": 40, "tol": 0.0, "max_iter": 3}
    whole = DualPropClassifier(random_state=0, **settings).fit(X, y)
    parts = DualPropClassifier(random_state=0, **settings)
    for _ in range(3):
        parts.partial_fit(X, y, classes=[0, 1, 2])
    np.testing.assert_array_equal(whole.coefs_[0], parts.coefs_[0])
    assert (whole.n_iter_, whole.t_) == (parts.n_iter_, parts.t_) == (3, 450)
    with pytest.raises(ValueError, match="y holds classes that the first call did not know"):
        parts.partial_fit(X, y + 7)
    with pytest.raises(ValueError, match="can't change between fits"):
        parts.set_params(hidden_layer_sizes=(3,)).partial_fit(X, y)


def test_early_stopping_keeps_the_weights_that_were_best_on_the_part_held_out():
    X, y = load_wine(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    settings = {"learning_rate_init": 0.5, "batch_size": 30, "n_iter_no_change": 4, "validation_fraction": 0.3}
    model = DualPropClassifier((8,), early_stopping=True, random_state=0, **settings).fit(X, y)
    scores = model.validation_scores_
    assert model.n_iter_ == len(scores) == len(model.loss_curve_) < 200
    assert model.best_validation_score_ == max(scores) > scores[-1], "the last weights must not be the best"
    # Nothing was better by tol in the last epochs.
    assert all(score < max(scores[: -1 - k]) + model.tol for k, score in enumerate(reversed(scores[-4:])))
    _, held_out = model._divided(y, model.model_.description.task)
    assert len(held_out) == 54
    assert accuracy_score(y[held_out], model.predict(X[held_out])) == max(scores)


def test_classes_keep_their_names_and_probabilities_are_in_their_order():
    X, y = IRIS
    names = np.array(["setosa", "versicolor", "virginica"])
    model = DualPropClassifier(random_state=0, **QUICK).fit(X, names[y])
    assert model.classes_.tolist() == names.tolist()
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (model.predict(X) == names[proba.argmax(1)]).all()
    assert model.score(X, names[y]) > 0.9


def test_class_weights_are_of_mean_one_and_move_the_border():
    """Weight (1, 0): the other class does not count, and is never said."""
    X, y = IRIS[0][50:], IRIS[1][50:]
    model = DualPropClassifier(random_state=0, class_weight={1: 1.0, 2: 0.0}, **QUICK).fit(X, y)
    assert model.model_.recipe.rule.loss.class_weights == (2.0, 0.0)
    assert set(model.predict(X)) == {1}
    balanced = DualPropClassifier(class_weight="balanced", **QUICK).fit(X[:75], y[:75])
    assert balanced.model_.recipe.rule.loss.class_weights == pytest.approx((0.75, 1.5))


def test_labels_are_learned_each_by_itself():
    """Petals are long, wide: four combinations, which no one class says."""
    X = StandardScaler().fit_transform(IRIS[0])
    Y = (X[:, 2:] > 0).astype(int)
    model = DualPropClassifier((16,), learning_rate_init=0.02, max_iter=100, random_state=0).fit(X, Y)
    assert model.predict(X).shape == (150, 2)
    assert (model.predict(X) == Y).mean() > 0.95
    assert ((model.predict_proba(X) > 0.5) == model.predict(X)).all()


def test_the_numbers_are_those_of_the_inputs():
    """float32 stays float32, weights and probabilities."""
    X, y = IRIS
    for dtype in (np.float32, np.float64):
        model = DualPropClassifier(random_state=0, **QUICK).fit(X.astype(dtype), y)
        assert model.predict_proba(X.astype(dtype)).dtype == dtype == model.coefs_[0].dtype


def test_a_training_that_is_cut_off_says_so():
    with pytest.warns(ConvergenceWarning, match="the 2 epochs of max_iter are over"):
        DualPropClassifier(max_iter=2).fit(*IRIS)


def test_a_training_that_diverges_is_an_error_with_its_remedy():
    with pytest.raises(SettingError, match="training diverged in epoch"):
        DualPropClassifier((8,), solver="sgd", learning_rate_init=1e6, max_iter=50).fit(*IRIS)


def test_inputs_that_are_read_only_or_reversed_are_read():
    """As joblib's memory maps are, in a search of several processes."""
    X, y = IRIS
    frozen = X.copy()
    frozen.setflags(write=False)
    expected = DualPropClassifier(random_state=0, **QUICK).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(DualPropClassifier(random_state=0, **QUICK).fit(frozen, y).predict_proba(frozen), expected)
    np.testing.assert_array_equal(DualPropClassifier(random_state=0, **QUICK).fit(X, y).predict_proba(X[::-1])[::-1], expected)
