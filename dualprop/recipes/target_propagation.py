"""Difference target propagation with the local difference reconstruction loss: the study of Ernoult
et al. (2022).

`compare RECIPE --variants bp,dtp` trains the twin on the same network and budget.
"""

from __future__ import annotations

from collections.abc import Callable

from dualprop.data import Augmentation
from dualprop.losses import CrossEntropy
from dualprop.models import MLP, VGG
from dualprop.rules import TargetPropagation
from dualprop.training.recipe import Optimizer, Recipe

BETA = 0.7


def cifar10_vgg_dtp() -> Recipe:
    """CIFAR-10 by the SimpleVGG 128-128-256-256-512 and DTP: feedback of its own by 160 steps a
    batch, batch 128, 90 epochs.

    Ernoult et al. (2022), settings from the authors' code. They do not divide by β what forward
    weights learn from, so that learning rate and weight decay are here what they are there for β =
    0.7: 0.05 β and 1e-4/β. Their ELU is ReLU here, and crops after padding by 4 and flips are ours;
    their pool behind the activation gives the same states before it. They unpool the noisy pass by
    its own switches (`unpool="noisy"`), which B learns less by.
    """
    return Recipe(
        name="cifar10-vgg-dtp",
        cites="Ernoult et al. 2022, SimpleVGG with ELU, 90 epochs; its figure is not at hand",
        dataset="cifar10",
        augmentation=Augmentation(pad=4, flip=True),
        model=VGG((128, 128, 256, 256, 512), (1, 2, 3, 4, 5), (), pool="before", init="uniform"),
        rule=TargetPropagation(
            beta=BETA, iterations=(20, 30, 35, 55, 20), noise=(0.4, 0.4, 0.2, 0.2, 0.08),
            feedback_rate=(1e-4, 3.5e-4, 8e-3, 8e-3, 0.18), start="random", loss=CrossEntropy(),
        ),
        optimizer=Optimizer(
            name="sgd", learning_rate=0.05 * BETA, momentum=0.9, weight_decay=1e-4 / BETA, cosine=True, cosine_epochs=85,
            final_learning_rate=1e-5 * BETA,
        ),
        batch_size=128,
        epochs=90,
        budget_epochs=1,
        seed_list=(0, 1, 2),
    )  # fmt: skip


def mnist_mlp_dtp() -> Recipe:
    """MNIST by an MLP 784-256-256-10 and DTP whose feedback starts at the forward weights and
    follows them.

    Adam 1e-3, batch 100, 20 epochs; no published figure."""
    return Recipe(
        name="mnist-mlp-dtp",
        dataset="mnist",
        model=MLP(widths=(256, 256)),
        rule=TargetPropagation(loss=CrossEntropy()),
        optimizer=Optimizer(name="adam", learning_rate=1e-3),
        batch_size=100,
        epochs=20,
        budget_epochs=2,
        seed_list=(0, 1, 2),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"cifar10-vgg-dtp": cifar10_vgg_dtp, "mnist-mlp-dtp": mnist_mlp_dtp}
