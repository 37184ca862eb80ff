"""CIFAR-10, CIFAR-100 and ImageNet32 by VGG16, the networks of both papers' tables; and a small one
for laptops.

Settings: Høier et al. (2023), table 6 in appendix C, and their code; Høier & Zach (2024), §6.2, and
their code. SGD with momentum 0.9 and weight decay 5e-4 on all parameters, warm-up and cosine, crops
after padding by 4, flips. A `compare --variants bp,dp,kp-dp` keeps the recipe's optimizer; KP-DP
with its own warm-up is a recipe of its own.
"""

from __future__ import annotations

import dataclasses

from dualprop.data import Augmentation
from dualprop.losses import CrossEntropy
from dualprop.models import ConvNet, vgg16
from dualprop.rules import DualPropagation
from dualprop.training.recipe import Optimizer, Recipe

SEEDS_2023 = (182, 271, 944, 583, 220)
SEEDS_2024 = (1988, 1542, 8697)
Grid = tuple[tuple[float, float], ...]
# α and β of the 2024 scripts on CIFAR.
GRID_2024: Grid = (
    *((0.0, beta) for beta in (0.01, 0.1, 1.0, 10.0)),
    *((0.5, beta) for beta in (0.01, 0.1, 1.0)),
    *((1.0, beta) for beta in (0.01, 0.1, 1.0)),
)


def _sgd(peak: float, warmup_from: float, warmup_epochs: float, cosine_epochs: float = 0.0, final: float = 0.0) -> Optimizer:
    return Optimizer(
        name="sgd", learning_rate=peak, momentum=0.9, weight_decay=5e-4, warmup_epochs=warmup_epochs,
        warmup_from=warmup_from, cosine=True, cosine_epochs=cosine_epochs, final_learning_rate=final,
    )  # fmt: skip


def _by_vgg16(dataset: str, batch_size: int, epochs: int, optimizer: Optimizer, table: str) -> Recipe:
    """VGG16 by DP, α = ½, fused. The authors' code averages the loss and takes β = 1 on either side
    on that scale, which is 2 / batch size per example."""
    return Recipe(
        name=f"{dataset}-vgg16",
        cites=f"Høier et al. 2023, {table}",
        dataset=dataset,
        augmentation=Augmentation(pad=4, flip=True),
        model=vgg16("after"),
        rule=DualPropagation(alpha=0.5, beta=2 / batch_size, engine="fused", loss=CrossEntropy()),
        optimizer=optimizer,
        batch_size=batch_size,
        epochs=epochs,
        budget_epochs=8,
        seed_list=SEEDS_2023,
    )


def _by_kolen_pollack(recipe: Recipe, warmup_epochs: float, published: str) -> Recipe:
    optimizer = dataclasses.replace(recipe.optimizer, warmup_from=1e-4, warmup_epochs=warmup_epochs)
    return dataclasses.replace(
        recipe, name=f"{recipe.name}-kp", feedback="kolen_pollack", optimizer=optimizer, published=(("kp-dp", published),)
    )


def _transposed(recipe: Recipe, optimizer: Optimizer, epochs: int, alpha: float, beta: float, grid: Grid) -> Recipe:
    """DP⊤ with the 2024 settings: pools before activations, L bottom-up passes (16, the depth). At
    α ∈ {0, 1} engine "auto" takes their fixed point in one downward sweep."""
    return dataclasses.replace(
        recipe,
        name=f"{recipe.name}-transposed",
        cites="Høier & Zach 2024, §6.2: three seeds; its tables are not at hand",
        published=(),
        model=vgg16("before"),
        rule=DualPropagation(coupling="transposed", alpha=alpha, beta=beta, schedule="bottom_up(16)", loss=CrossEntropy()),
        optimizer=optimizer,
        epochs=epochs,
        grid=grid,
        seed_list=SEEDS_2024,
    )


def cifar10_vgg16() -> Recipe:
    """CIFAR-10 by VGG16 and DP: 130 epochs, batch 100, learning rate 0.025, five seeds. Published
    92.30 ± 0.11 %."""
    recipe = _by_vgg16("cifar10", 100, 130, _sgd(0.025, 5e-3, 10), "CIFAR-10: test accuracy (%), five seeds, 130 epochs")
    return dataclasses.replace(recipe, published=(("bp", "92.26 ± 0.23"), ("dp", "92.30 ± 0.11")))


def cifar10_vgg16_kp() -> Recipe:
    """The same by KP-DP, with its own warm-up. Published 91.84 ± 0.11 %."""
    return _by_kolen_pollack(cifar10_vgg16(), 15, "91.84 ± 0.11")


def cifar10_vgg16_transposed() -> Recipe:
    """CIFAR-10 by VGG16 and DP⊤, α = 0, β = 0.1, three seeds; `compare --variants grid` trains the
    paper's α and β."""
    return _transposed(cifar10_vgg16(), _sgd(0.025, 1e-3, 10, 120, 2e-6), 130, 0.0, 0.1, GRID_2024)


def cifar100_vgg16() -> Recipe:
    """CIFAR-100 by VGG16 and DP: 200 epochs, batch 50, learning rate 0.015, five seeds. Published
    69.57 ± 0.51 %."""
    recipe = _by_vgg16("cifar100", 50, 200, _sgd(0.015, 5e-3, 10), "CIFAR-100: test accuracy (%), five seeds, 200 epochs")
    return dataclasses.replace(recipe, published=(("bp", "69.63 ± 0.24"), ("dp", "69.57 ± 0.51")))


def cifar100_vgg16_kp() -> Recipe:
    """The same by KP-DP, with its own warm-up. Published 70.40 ± 0.25 %."""
    return _by_kolen_pollack(cifar100_vgg16(), 30, "70.40 ± 0.25")


def cifar100_vgg16_transposed() -> Recipe:
    """CIFAR-100 by VGG16 and DP⊤, α = 0, β = 0.1, three seeds; `compare --variants grid` trains the
    paper's α and β."""
    return _transposed(cifar100_vgg16(), _sgd(0.015, 1e-3, 10, 190, 2e-6), 200, 0.0, 0.1, GRID_2024)


def imagenet32_vgg16() -> Recipe:
    """ImageNet32 by VGG16 and DP: 200 epochs, batch 250, learning rate 0.015, 5 % validation.
    Published 41.48 ± 0.19 %."""
    table = "ImageNet32×32: top-1 accuracy (%) on the public validation set, 200 epochs"
    recipe = _by_vgg16("imagenet32", 250, 200, _sgd(0.015, 5e-3, 10), table)
    return dataclasses.replace(
        recipe, validation_fraction=0.05, budget_epochs=1, published=(("bp", "41.28 ± 0.19"), ("dp", "41.48 ± 0.19"))
    )


def imagenet32_vgg16_kp() -> Recipe:
    """The same by KP-DP, of which no figure is published; the warm-up is CIFAR-100's."""
    return dataclasses.replace(_by_kolen_pollack(imagenet32_vgg16(), 30, ""), published=())


def imagenet32_vgg16_transposed() -> Recipe:
    """ImageNet32 by VGG16 and DP⊤, α = ½, β = 0.01: 130 epochs, learning rate 0.02 (Høier & Zach
    2024, §6.2)."""
    grid = ((0.5, 0.01), (0.0, 0.1))
    return _transposed(imagenet32_vgg16(), _sgd(0.02, 1e-3, 10, 120, 2e-6), 130, 0.5, 0.01, grid)


def cifar10_cnn() -> Recipe:
    """CIFAR-10 by three convolutions and DP: half a minute an epoch on a laptop; no published
    figure."""
    return dataclasses.replace(
        cifar10_vgg16(),
        name="cifar10-cnn",
        cites="",
        published=(),
        model=ConvNet(channels=(32, 64, 128), pool="after"),
        optimizer=_sgd(0.025, 5e-3, 2),
        epochs=30,
        budget_epochs=8,
        seed_list=(0, 1, 2),
    )
