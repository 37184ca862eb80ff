"""Contrastive Hebbian learning (Xie & Seung 2003): shallow networks, as its window of γ closes with
depth.

The settings of their experiment on handwritten digits are not at hand; no published figures.
`compare RECIPE --variants bp,chl` trains the twin on the same network and budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from dualprop.losses import SquaredError
from dualprop.models import MLP, ConvNet
from dualprop.recipes.cifar import cifar10_cnn
from dualprop.rules import ContrastiveHebbian
from dualprop.training.recipe import Optimizer, Recipe

SEEDS = (0, 1, 2)


def mnist_mlp_chl() -> Recipe:
    """MNIST by an MLP 784-256-256-10 of sigmoids and linear outputs and CHL, γ = 0.05: squared
    error, Adam 1e-3, 20 epochs."""
    return Recipe(
        name="mnist-mlp-chl",
        dataset="mnist",
        model=MLP(widths=(256, 256), activation="sigmoid"),
        rule=ContrastiveHebbian(gamma=0.05, schedule="alternating_sweeps(30)", tolerance=1e-3, loss=SquaredError()),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, cosine=True),
        batch_size=100,
        epochs=20,
        budget_epochs=2,
        seed_list=SEEDS,
    )


def cifar10_cnn_chl() -> Recipe:
    """CIFAR-10 by three convolutions and CHL, γ = 0.1: the network of cifar10-cnn with pools before
    hard sigmoids.

    At γ = 0.02 float32 holds but rounding of what the clamp does in layer 1."""
    return dataclasses.replace(
        cifar10_cnn(),
        name="cifar10-cnn-chl",
        model=ConvNet(channels=(32, 64, 128), activation="hard_sigmoid", pool="before"),
        rule=ContrastiveHebbian(gamma=0.1, schedule="alternating_sweeps(30)", tolerance=1e-3),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, cosine=True),
        budget_epochs=1,
        seed_list=SEEDS,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"mnist-mlp-chl": mnist_mlp_chl, "cifar10-cnn-chl": cifar10_cnn_chl}
