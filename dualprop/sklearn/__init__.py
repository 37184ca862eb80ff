"""Estimators for scikit-learn: networks trained by any rule, in pipelines, cross-validation and
grid search.

    from dualprop.sklearn import DualPropClassifier
    DualPropClassifier(hidden_layer_sizes=(64,), rule="dp").fit(X, y).score(X_test, y_test)
"""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.sklearn.classifier import DualPropClassifier
    from dualprop.sklearn.regressor import DualPropRegressor

__all__ = ["DualPropClassifier", "DualPropRegressor"]

# Where each name lives. They are fetched when first used.
_HOMES = {"DualPropClassifier": "classifier", "DualPropRegressor": "regressor"}
__getattr__, __dir__ = lazy(__name__, _HOMES)
