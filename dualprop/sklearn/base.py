"""What classifier and regressor share: parameters as scikit-learn's MLPs name them, and how they
become a recipe and are trained.

n examples, d features, K outputs.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from annotated_types import Gt, Interval
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from dualprop import losses
from dualprop.data import Examples, Splits, Task
from dualprop.data.description import Description
from dualprop.data.own.inputs import Inputs
from dualprop.data.tasks import LOSS_OF
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.models import MLP
from dualprop.rules import Backprop
from dualprop.settings import Count, Units, conform
from dualprop.sklearn import rules
from dualprop.sklearn.fitting import Fit, Progress
from dualprop.trained import Trained
from dualprop.training.recipe import Optimizer, Recipe

_NEURONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
# Examples that are predicted at once.
_AT_ONCE = 4096


@dataclass(frozen=True)
class _Checked:
    """The parameters with their ranges, under their own names."""

    hidden_layer_sizes: Units
    activation: Literal["identity", "logistic", "tanh", "relu"]
    solver: Literal["adam", "adamw", "sgd"]
    alpha: Annotated[float, Interval(ge=0)]
    batch_size: Literal["auto"] | Count
    learning_rate_init: Annotated[float, Gt(0)]
    max_iter: Count
    tol: Annotated[float, Interval(ge=0)]
    n_iter_no_change: Count
    momentum: Annotated[float, Interval(ge=0, lt=1)]
    validation_fraction: Annotated[float, Interval(gt=0, lt=1)]

    def __post_init__(self) -> None:
        conform(self)


class AbstractEstimator(BaseEstimator):
    """An MLP that learns by a rule."""

    _is_of_numbers = False

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
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.rule = rule
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; with `deep` the rule's too, as `rule__beta` say."""
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            try:
                params |= rules.settings(self._recipe(CrossEntropy()).rule)
            except SettingError:
                return params  # of a rule that is none, or other parameters that are to be changed
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters; `rule__beta` and the like are of the rule. Raises SettingError, which is
        a ValueError, for one that there is not."""
        of_rule = {name.removeprefix(rules.PREFIX): params.pop(name) for name in list(params) if name.startswith(rules.PREFIX)}
        super().set_params(**params)
        if of_rule:
            self.rule = rules.changed(self._recipe(CrossEntropy()).rule, of_rule)
        return self

    @abstractmethod
    def _read(self, y: Any, is_first: bool, classes: Any) -> tuple[np.ndarray, Task]:
        """Targets as training has them, and the task. The first call decides what the outputs
        are."""

    def _class_weights(self, y: np.ndarray, task: Task, is_partial: bool) -> tuple[float, ...]:
        """Of each class in the loss; empty for 1 each."""
        return ()

    def _learn(self, X: Any, y: Any, *, is_partial: bool = False, classes: Any = None) -> Self:
        """Read and check all, train, and keep what scikit-learn's networks keep."""
        checked = self._checked()
        if is_partial and self.early_stopping:
            raise SettingError("partial_fit does not support early_stopping=True. Use fit, or early_stopping=False.")
        is_first = not (hasattr(self, "model_") and (is_partial or self.warm_start))
        X, y = validate_data(
            self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=self._is_of_numbers, reset=is_first
        )
        y, task = self._read(y, is_first, classes)
        if is_first:
            self._seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
            self._state: dict[str, Tensor] = {}
            self._dtype = X.dtype
            self.loss_curve_: list[float] = []
            self.t_ = 0
            self._weights = self._class_weights(y, task, is_partial)
        held_out: tuple[np.ndarray, ...] = (X[:0], y[:0])
        if stops_early := bool(self.early_stopping):
            kept, drawn = self._divided(y, task)
            held_out = X[drawn], y[drawn]
            X, y = X[kept], y[kept]
        loss = losses.from_name(LOSS_OF[task.kind])
        recipe = self._recipe(
            replace(loss, class_weights=self._weights) if isinstance(loss, CrossEntropy) else loss,
            _batch_size(len(X), checked.batch_size),
            1 if is_partial else None,
        )
        if not is_first:
            self._check_going_on(recipe)
        splits = self._splits((X, y), held_out, task)
        fit = Fit(recipe, self._seed, splits, self._state)
        progress = fit.epochs(self.tol, self.n_iter_no_change, stops_early, self._tell if self.verbose else None)
        self._state = fit.state()
        self.model_ = Trained(fit.learner.model, splits.description, recipe)
        self._note(progress, len(X), is_partial)
        if not is_partial and not progress.is_settled:
            told = f"the {self.max_iter} epochs of max_iter are over, and training was still getting better. Raise max_iter."
            warnings.warn(f"{type(self).__name__}: {told}", ConvergenceWarning, stacklevel=3)
        if progress.unsettled:
            warnings.warn(f"{type(self).__name__}: in the last step {progress.unsettled}", ConvergenceWarning, stacklevel=3)
        return self

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights of each layer, (inputs, outputs)."""
        return [layer.weight.detach().numpy().T for layer in self._linear()]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases of each layer."""
        return [layer.bias.detach().numpy() for layer in self._linear()]

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.model_.network.modules() if isinstance(layer, nn.Linear)]

    def _outputs(self, X: Any) -> Tensor:
        """The network's outputs for these examples, (n, K)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        x = _tensor(X.astype(self._dtype, copy=False))
        with torch.no_grad():
            return torch.cat([self.model_.of_normalised(part) for part in x.split(_AT_ONCE)])

    def _checked(self) -> _Checked:
        return _Checked(**{each.name: getattr(self, each.name) for each in fields(_Checked)})

    def _recipe(self, loss: AbstractLoss, batch_size: int = 1, epochs: int | None = None) -> Recipe:
        """What is trained. Raises SettingError, which names the parameter."""
        checked = self._checked()
        recipe = Recipe(
            name=type(self).__name__,
            dataset="X",
            model=MLP(widths=checked.hidden_layer_sizes, activation=_NEURONS[checked.activation]),
            rule=Backprop(loss=loss),
            optimizer=Optimizer(
                name=checked.solver,
                learning_rate=checked.learning_rate_init,
                # As scikit-learn has it: the penalty is of a batch's sum.
                weight_decay=checked.alpha / batch_size,
                momentum=checked.momentum,
                nesterov=bool(self.nesterovs_momentum) and checked.solver == "sgd" and checked.momentum > 0,
            ),
            batch_size=batch_size,
            epochs=checked.max_iter if epochs is None else epochs,
            align=False,
            # Class weights are made anew at each step.
            capture="off" if isinstance(loss, CrossEntropy) and loss.class_weights else "auto",
            dtype="float64" if getattr(self, "_dtype", np.dtype(float)) == np.float64 else "float32",
        )
        return rules.applied(self.rule, recipe)

    def _check_going_on(self, recipe: Recipe) -> None:
        """Raise SettingError where what was learned before is of another network or optimizer."""
        before = self.model_.recipe
        if (recipe.model, recipe.optimizer.name) != (before.model, before.optimizer.name):
            raise SettingError(
                "hidden_layer_sizes, activation and solver can't change between fits that go on from each other. "
                "Use warm_start=False, or a clone."
            )

    def _divided(self, y: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Which examples train, and which are held out to stop by."""
        kept, drawn = train_test_split(
            np.arange(len(y)),
            test_size=self.validation_fraction,
            random_state=self._seed,
            stratify=y if task.kind == "classification" else None,
        )
        return kept, drawn

    def _splits(self, train: tuple[np.ndarray, ...], held_out: tuple[np.ndarray, ...], task: Task) -> Splits:
        """The arrays as the trainer has its data. Inputs stay as they are: a pipeline scales
        them."""
        zero, one = torch.zeros(()), torch.ones(())
        training, validation = (Examples(_tensor(x), _tensor(y), zero, one) for x, y in (train, held_out))
        shape = tuple(training.x.shape[1:])
        description = Description(
            "X", task, Inputs("arrays"), shape, zero, one, lowest=float(train[0].min()), largest=float(train[0].max())
        )
        return Splits("X", training, validation, validation, task.num_outputs, shape, description, task)

    def _note(self, progress: Progress, num_examples: int, is_partial: bool) -> None:
        self.loss_curve_ = [*self.loss_curve_, *progress.losses]
        self.loss_, self.best_loss_ = progress.losses[-1], min(self.loss_curve_)
        self.n_iter_: int = len(progress.losses) + (getattr(self, "n_iter_", 0) if is_partial else 0)
        self.t_ += num_examples * len(progress.losses)
        self.n_layers_ = len(self._checked().hidden_layer_sizes) + 2
        self.n_outputs_ = self.model_.description.task.num_outputs
        self.validation_scores_ = progress.scores or None
        self.best_validation_score_ = max(progress.scores, default=None)

    def _tell(self, line: str) -> None:
        print(f"{type(self).__name__}: {line}")


def _batch_size(num_examples: int, wanted: int | str) -> int:
    """At most the size that is wanted, so that batches of one size leave out fewer examples of an
    epoch than there are batches."""
    largest = min(200 if isinstance(wanted, str) else wanted, num_examples)
    return num_examples // -(-num_examples // largest)


def _tensor(array: np.ndarray) -> Tensor:
    # Copied: what is given may be read-only, or run backwards.
    return torch.from_numpy(np.array(array))
