"""Handwritten digits of 8×8 pixels, which ship with scikit-learn: the offline first run."""

from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.rules import DualPropagation
from dualprop.training.recipe import Optimizer, Recipe


def digits_mlp() -> Recipe:
    """An MLP 64-256-256-10 by DP; seconds on a laptop. No published figure: a good MLP has about 97
    %."""
    return Recipe(
        name="digits-mlp",
        dataset="digits",
        model=MLP(widths=(256, 256)),
        rule=DualPropagation(loss=CrossEntropy()),
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.01, cosine=True),
        batch_size=32,
        epochs=30,
        seed_list=(0, 1, 2),
    )
