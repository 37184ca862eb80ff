"""Classes, or several labels at once."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from dualprop.data import Task
from dualprop.errors import SettingError
from dualprop.sklearn.base import AbstractEstimator


class DualPropClassifier(ClassifierMixin, AbstractEstimator):
    """A multi-layer perceptron that learns classes by a local rule, for scikit-learn.

    Parameters that `sklearn.neural_network.MLPClassifier` has mean the same here. Inputs are not
    scaled: put a `StandardScaler` before it. Numbers are those of X, float64 or float32.

    Classes are learned by the cross-entropy of a softmax. Where y is a matrix of 0 and 1, each
    column is a label by itself, by the binary cross-entropy.

    Attributes:
        hidden_layer_sizes: units of each hidden layer.
        activation: "relu", "tanh", "logistic" or "identity".
        rule: the learning rule: a name (`dualprop list rules`, `dualprop list variants`) or a rule,
            `dp.DualPropagation(beta=0.1)` say. Its settings are parameters too: `rule__beta`.
        solver: "adam", "adamw" or "sgd".
        alpha: the L2 penalty, of weights and biases. Its gradient is alpha / batch size × weight.
        batch_size: at most so many examples a step; "auto" is 200. Batches are of one size: an
            epoch leaves out fewer examples than it has batches, others each time.
        learning_rate_init: of the solver; constant.
        max_iter: the most epochs.
        random_state: draws the weights and the order of the examples.
        tol, n_iter_no_change: training ends when over so many epochs nothing is better by tol.
        verbose: print a line each epoch.
        warm_start: whether `fit` goes on from the last fit's weights.
        momentum, nesterovs_momentum: of "sgd".
        early_stopping: hold out a part of the examples, end by its score (accuracy; of labels F1),
            and keep the best weights.
        validation_fraction: how large a part.
        class_weight: of each class in the loss, {class: weight} or "balanced"; of mean 1 over
            the examples.
        classes_: the classes, or the labels' numbers.
        model_: the network as a PyTorch module, see `dualprop.trained.Trained`.
        coefs_, intercepts_: its weights and biases, a layer each.
        loss_curve_, loss_, best_loss_: the mean training loss of each epoch, the last, the least.
        validation_scores_, best_validation_score_: of the part that is held out, else None.
        n_iter_, t_: epochs of the last fit, examples met in all.

    Raises:
        SettingError: a ValueError: a parameter out of its range, or targets that don't fit.
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (100,),
        activation: str = "relu",
        *,
        rule: Any = "dp",
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.001,
        max_iter: int = 200,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes, activation, rule=rule, solver=solver, alpha=alpha, batch_size=batch_size,
            learning_rate_init=learning_rate_init, max_iter=max_iter, random_state=random_state, tol=tol, verbose=verbose,
            warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum, early_stopping=early_stopping,
            validation_fraction=validation_fraction, n_iter_no_change=n_iter_no_change,
        )  # fmt: skip
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> Self:
        """Train on examples X (n, d) and their classes (n,), or labels (n, K) of 0 and 1."""
        return self._learn(X, y)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Train one epoch on these examples, from where the last call ended. The first call needs
        all classes."""
        return self._learn(X, y, is_partial=True, classes=classes)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, or of each label, (n, K)."""
        outputs = self._outputs(X)
        proba: np.ndarray = self.model_.as_probabilities(outputs).numpy()
        return proba

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Its logarithm."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each example, (n,); or the labels of p > ½, (n, K)."""
        proba = self.predict_proba(X)
        if self.model_.description.task.kind == "multilabel":
            return (proba > 0.5).astype(np.int64)
        named: np.ndarray = self.classes_[proba.argmax(1)]
        return named

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _read(self, y: Any, is_first: bool, classes: Any) -> tuple[np.ndarray, Task]:
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind == "multiclass-multioutput":
            raise SettingError("several columns of classes are not supported. Give one, or a matrix of 0 and 1.")
        if kind == "multilabel-indicator":
            return self._labels(np.asarray(y), is_first)
        y = column_or_1d(y, warn=True)
        if is_first:
            self.classes_ = unique_labels(y) if classes is None else unique_labels(classes)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise SettingError(f"classes are {classes}, and in the first call were {self.classes_}. Leave them out.")
        if len(self.classes_) < 2:
            raise SettingError("there is nothing to learn from 1 class. Give examples of two classes or more.")
        if unknown := np.setdiff1d(y, self.classes_).tolist():
            raise SettingError(f"y holds classes that the first call did not know: {unknown[:3]}. Fit anew.")
        numbers = np.searchsorted(self.classes_, y)
        names = tuple(str(each) for each in self.classes_.tolist())
        if not all(names) or len(set(names)) < len(names):
            names = tuple(map(str, range(len(names))))
        counts = np.bincount(numbers, minlength=len(names))
        self.out_activation_ = "softmax"
        return numbers, Task("classification", names, counts=tuple(counts.tolist()))

    def _labels(self, y: np.ndarray, is_first: bool) -> tuple[np.ndarray, Task]:
        number = y.shape[1]
        if is_first:
            self.classes_ = np.arange(number)
        elif len(self.classes_) != number:
            raise SettingError(f"y has {number} labels, and the first call had {len(self.classes_)}. Fit anew.")
        self.out_activation_ = "logistic"
        counts = tuple(int(count) for count in y.sum(0))
        return y.astype(np.float32), Task("multilabel", tuple(map(str, range(number))), counts=counts)

    def _class_weights(self, y: np.ndarray, task: Task, is_partial: bool) -> tuple[float, ...]:
        if self.class_weight is None:
            return ()
        if task.kind == "multilabel":
            raise SettingError("class_weight is of classes, and y holds labels. Leave it out.")
        if is_partial and isinstance(self.class_weight, str):
            raise SettingError("partial_fit does not see all classes, so class_weight can't be 'balanced'. Give a dictionary.")
        present = np.unique(y)
        weights = np.ones(task.num_outputs)
        weights[present] = compute_class_weight(self.class_weight, classes=self.classes_[present], y=self.classes_[y])
        mean = float(weights[y].mean())
        if not (weights.min() >= 0 and mean > 0):
            raise SettingError(f"class_weight must hold numbers from 0 on, and one above it, got {self.class_weight}.")
        # Of mean 1 over the examples: a weight multiplies its example's nudge.
        return tuple((weights / mean).tolist())
