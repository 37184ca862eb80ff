"""Numbers, one or several."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import Tags, column_or_1d

from dualprop.data import Task, tasks
from dualprop.errors import SettingError
from dualprop.sklearn.base import AbstractEstimator


class DualPropRegressor(RegressorMixin, AbstractEstimator):
    """A multi-layer perceptron that learns numbers by a local rule, for scikit-learn.

    It learns by the squared error, ½‖y - p‖². Parameters and attributes are those of
    `DualPropClassifier`, but for classes. A nudge is of the size of an error, so targets are
    standardised by mean and deviation of the first call, and predictions put back: units do not
    matter. Losses are of standardised targets. The score of a part that is held out is R².

    Attributes:
        target_mean_, target_std_: of the targets, one each.
    """

    _is_of_numbers = True

    def fit(self, X: Any, y: Any) -> Self:
        """Train on examples X (n, d) and numbers y, (n,) or (n, K)."""
        return self._learn(X, y)

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Train one epoch on these examples, from where the last call ended."""
        return self._learn(X, y, is_partial=True)

    def predict(self, X: Any) -> np.ndarray:
        """The numbers of each example, (n,) or (n, K)."""
        outputs = self._outputs(X).numpy()
        numbers: np.ndarray = (outputs * self.target_std_ + self.target_mean_).astype(outputs.dtype)
        return numbers[:, 0] if self._is_one else numbers

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _read(self, y: Any, is_first: bool, classes: Any) -> tuple[np.ndarray, Task]:
        y = np.asarray(y, dtype=np.float64)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        columns = y.reshape(len(y), -1)
        names = tuple(map(str, range(columns.shape[1])))
        if is_first:
            fitted = tasks.fitted(Task("regression", names), columns)
            self.target_mean_, self.target_std_ = np.array(fitted.mean), np.array(fitted.std)
            self._is_one = y.ndim == 1
        elif len(self.target_mean_) != len(names):
            raise SettingError(f"y has {len(names)} targets, and the first call had {len(self.target_mean_)}. Fit anew.")
        self.out_activation_ = "identity"
        task = Task("regression", names, tuple(self.target_mean_.tolist()), tuple(self.target_std_.tolist()))
        return (columns - self.target_mean_) / self.target_std_, task
