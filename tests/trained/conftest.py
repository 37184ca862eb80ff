"""What the tests of trained models share: a run of digits that takes a fraction of a second."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dualprop import training
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.rules import DualPropagation
from dualprop.training import Optimizer, Recipe

TINY = Recipe(
    name="tiny",
    dataset="digits",
    model=MLP(widths=(16,)),
    rule=DualPropagation(loss=CrossEntropy()),
    optimizer=Optimizer(learning_rate=1e-2),
    batch_size=64,
    epochs=2,
    num_threads=1,
    align=False,
)


@pytest.fixture
def tiny() -> Recipe:
    """The recipe of `trained`."""
    return TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which no test may change but for its figures."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    training.train(training.create(folder, TINY, (3, 5)))
    return folder


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 8, 8) of whole numbers from 0 to 16 as floats, as scikit-learn ships them, and
    their classes."""
    read = load_digits()
    return read.images[:, None].astype(np.float32), read.target
