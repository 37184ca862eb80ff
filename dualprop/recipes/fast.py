"""CIFAR in minutes: a small normalised network on whitened patches, ten epochs at a high learning
rate.

The parts and their settings are those of Jordan (2024), arXiv:2404.00498, and its repository
(cifar10-airbench, 94 and 95 %), for gradients of the mean loss. Other than there: the rate falls
along a cosine to zero, the averaged weights are tested and not trained on, the whitening has no
bias, and 1,000 of the training images validate. Nothing was tuned for any rule.
"""

from __future__ import annotations

import dataclasses

from dualprop.data import Augmentation
from dualprop.losses import CrossEntropy
from dualprop.models import FastConvNet
from dualprop.rules import DualPropagation
from dualprop.training.recipe import Optimizer, Recipe


def cifar10_fast() -> Recipe:
    """CIFAR-10 in ten epochs by DP: 94 % in minutes; no rule published is above. `--dtype bfloat16`
    where the processor multiplies it."""
    return Recipe(
        name="cifar10-fast",
        cites="",
        dataset="cifar10",
        augmentation=Augmentation(pad=2, padding="reflect", flip=True, flips="alternating"),
        model=FastConvNet(channels=(64, 256, 256)),
        rule=DualPropagation(alpha=0.5, beta=0.1, engine="fused", loss=CrossEntropy(label_smoothing=0.2)),
        optimizer=_optimizer(peak=11.5, epochs=10),
        averaging=20,
        select="last",
        views="flips_and_shifts",
        batch_size=_BATCH,
        epochs=10,
        budget_epochs=2,
        validation_fraction=0.02,
        seed_list=(0, 1, 2),
        align=False,
    )


def cifar10_fast_group() -> Recipe:
    """The same with GroupNorm, whose statistics are each example's own."""
    recipe = cifar10_fast()
    model = FastConvNet(channels=(64, 256, 256), norm="group")
    optimizer = dataclasses.replace(recipe.optimizer, norm_factor=1.0)
    return dataclasses.replace(recipe, name="cifar10-fast-group", model=model, optimizer=optimizer)


def cifar10_fast_95() -> Recipe:
    """The same by a wider network in fifteen epochs."""
    return dataclasses.replace(
        cifar10_fast(),
        name="cifar10-fast-95",
        model=FastConvNet(channels=(128, 384, 384)),
        optimizer=_optimizer(peak=10.0, epochs=15),
        epochs=15,
    )


def cifar100_fast() -> Recipe:
    """CIFAR-100 by the wider network in fifteen epochs."""
    return dataclasses.replace(cifar10_fast_95(), name="cifar100-fast", dataset="cifar100")


_BATCH = 1000
_MOMENTUM = 0.85


def _optimizer(peak: float, epochs: float) -> Optimizer:
    """SGD with Nesterov's momentum. `peak` is how far 1,024 examples move the weights by a constant
    gradient, whatever the momentum: 1,024 (1 + 1/(1 - m)) learning rates of their summed loss."""
    rate = peak / 1024 / (1 + 1 / (1 - _MOMENTUM)) * _BATCH
    return Optimizer(
        name="sgd", learning_rate=rate, momentum=_MOMENTUM, nesterov=True, weight_decay=0.0153 / peak, norm_factor=64,
        warmup_epochs=0.23 * epochs, warmup_from=0.2 * rate, cosine=True,
    )  # fmt: skip
