"""Equilibrium propagation: predictive coding networks (Kerjan, Høier & Scellier 2026) and Hopfield
networks, holomorphic too.

`compare RECIPE --variants bp,ep,…` trains the twin and the estimators on the same network and
budget. Published figures are the papers' test errors taken from 100; three seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from dualprop.data import Augmentation
from dualprop.losses import AbstractLoss, CrossEntropy, SquaredError
from dualprop.models import MLP, VGG, vgg5, vgg10
from dualprop.rules import EquilibriumPropagation
from dualprop.training.recipe import Optimizer, Recipe

SEEDS = (0, 1, 2)
Published = tuple[tuple[str, str], ...]
# By data set and loss: (BP, EP) test accuracy, table 1.
PUBLISHED: dict[tuple[str, str], Published] = {
    ("mnist", "mse"): (("bp", "99.67 ± 0.00"), ("ep", "99.68 ± 0.01")),
    ("mnist", "ce"): (("bp", "99.52 ± 0.02"), ("ep", "99.55 ± 0.01")),
    ("cifar10", "mse"): (("bp", "92.0 ± 0.0"), ("ep", "92.2 ± 0.1")),
    ("cifar10", "ce"): (("bp", "90.5 ± 0.0"), ("ep", "90.3 ± 0.2")),
    ("cifar100", "mse"): (("bp", "69.9 ± 0.4"), ("ep", "69.9 ± 0.0")),
    ("cifar100", "ce"): (("bp", "65.8 ± 0.4"), ("ep", "65.3 ± 0.1")),
    ("imagenet32", "mse"): (("bp", "29.3 ± 0.1"), ("ep", "29.2 ± 0.2")),
    ("imagenet32", "ce"): (("bp", "40.2 ± 0.0"), ("ep", "40.0 ± 0.1")),
}
LOSSES: dict[str, AbstractLoss] = {"ce": CrossEntropy(), "mse": SquaredError()}


def _sgd(rate: float, weight_decay: float, final: float) -> Optimizer:
    return Optimizer(
        name="sgd", learning_rate=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay, cosine=True,
        final_learning_rate=final,
    )  # fmt: skip


def _vgg5_name(dataset: str, loss: str) -> str:
    return f"{dataset}-vgg5-ep" if loss == "ce" else f"{dataset}-vgg5-ep-mse"


def _vgg5(dataset: str, loss: str) -> Recipe:
    """VGG5 by centered EP, β = 0.02. The papers settle it by five even/odd iterations (variant
    ep-published); here one pair of error sweeps does. The crops' padding is not recorded: 4, as
    usual."""
    is_imagenet = dataset == "imagenet32"
    batch_size = 256 if is_imagenet else {"mse": 16, "ce": 64}[loss]
    model = vgg5()
    if is_imagenet and loss == "mse":
        model = dataclasses.replace(model, output_gain=0.2)
    return Recipe(
        name=_vgg5_name(dataset, loss),
        cites="Kerjan, Høier & Scellier 2026, table 1: test accuracy (%), three seeds, 100 epochs",
        published=PUBLISHED[dataset, loss],
        dataset=dataset,
        border=2 if dataset == "mnist" else 0,
        augmentation=Augmentation() if dataset == "mnist" else Augmentation(pad=4, flip=True),
        model=model,
        rule=EquilibriumPropagation(beta=0.02, loss=LOSSES[loss]),
        optimizer=_sgd({"mse": 0.04, "ce": 0.01}[loss], 3e-4, 1e-6),
        batch_size=batch_size,
        epochs=100,
        budget_epochs=2,
        seed_list=SEEDS,
    )


def _vgg10(name: str, skips: tuple[tuple[int, int], ...]) -> Recipe:
    """VGG10 with the settings for ImageNet at 224×224 (β = 0.05, K = 10), on ImageNet32, the
    largest that `data` reads: the papers' figures (top-5 error 13.23 % by EP, 12.20 % by BP) are of
    another data set."""
    return Recipe(
        name=name,
        cites="Kerjan, Høier & Scellier 2026; its figures are of ImageNet at 224×224",
        dataset="imagenet32",
        augmentation=Augmentation(pad=4, flip=True),
        model=dataclasses.replace(vgg10(), skips=skips),
        rule=EquilibriumPropagation(beta=0.05, loss=CrossEntropy()),
        optimizer=_sgd(0.02, 2e-4, 2e-6),
        batch_size=256,
        epochs=50,
        budget_epochs=1,
        seed_list=SEEDS,
    )


def vgg10_ep() -> Recipe:
    """ImageNet32 by VGG10 and centered EP."""
    return _vgg10("imagenet32-vgg10-ep", ())


def vgg10_skip_ep() -> Recipe:
    """The same with strided 1×1 skips from layer 2 to 5 and from 5 to 8."""
    return _vgg10("imagenet32-vgg10-skip-ep", ((2, 5), (5, 8)))


def cifar10_hopfield_ep() -> Recipe:
    """CIFAR-10 by a convolutional Hopfield network 128-256-512-512 and centered EP: the study of
    Scellier et al. (2023).

    β = 0.25, 60 free and 15 nudged iterations, hard sigmoid, squared error, a learning rate for
    each layer, gain ½.
    """
    return Recipe(
        name="cifar10-hopfield-ep",
        cites="Scellier et al. 2023, comparative study; its CIFAR-10 figure is not at hand",
        dataset="cifar10",
        augmentation=Augmentation(pad=4, flip=True),
        model=VGG(
            (128, 256, 512, 512), (1, 2, 3, 4), (), activation="hard_sigmoid", pool="before", init="uniform", gain=0.5,
        ),
        rule=EquilibriumPropagation(
            energy="hopfield", beta=0.25, relaxation="blocks(odd_even(15))", free_schedule="odd_even(60)",
            output_nudge="exact", loss=SquaredError(),
        ),
        optimizer=dataclasses.replace(
            _sgd(0.0625, 3e-4, 2e-6), nesterov=False, layer_factors=(1.0, 0.6, 0.4, 0.32, 0.2)
        ),
        batch_size=128,
        epochs=100,
        budget_epochs=1,
        seed_list=SEEDS,
    )  # fmt: skip


def cifar10_hopfield_laborieux() -> Recipe:
    """The same by Laborieux et al. (2021), squared error: 250 free and 30 nudged iterations, β = ½.

    Their 11.7 % test error is not known to be of this loss. Their σ(x) = clip(x/2, 0, 1) is here
    clip(x, 0, 1) with weights of half the size: half their β, a quarter of their learning rates,
    four times their weight decay. They update all layers together, here layers alternate.
    """
    return dataclasses.replace(
        cifar10_hopfield_ep(),
        name="cifar10-hopfield-ep-laborieux",
        cites="Laborieux et al. 2021, 120 epochs; no figure for this loss is at hand",
        rule=EquilibriumPropagation(
            energy="hopfield", beta=0.25, relaxation="blocks(odd_even(30))", free_schedule="odd_even(250)",
            output_nudge="exact", loss=SquaredError(),
        ),
        optimizer=Optimizer(
            name="sgd", learning_rate=0.0625, momentum=0.9, weight_decay=1.2e-3, cosine=True, cosine_epochs=100,
            final_learning_rate=2.5e-6, layer_factors=(1.0, 0.6, 0.4, 0.32, 0.2),
        ),
        epochs=120,
    )  # fmt: skip


def cifar10_hopfield_hep() -> Recipe:
    """CIFAR-10 by a convolutional Hopfield network with softmax pools and holomorphic EP, N = 2:
    Laborieux & Zenke (2022).

    β = 1, 250 free and 60 nudged iterations, 90 epochs, weight decay 2e-3, a learning rate for each
    layer; published 88.4 ± 0.3 (BP 88.3 ± 0.2). N = 2 is centered EP, in real numbers;
    `--rule.estimator "holomorphic(4)"` runs complex phases.

    Not theirs: the softmax readout outside the dynamics (here the linear output is a layer that the
    nudge pulls, as logits), the form of their activation (here the sigmoid), the last convolution's
    missing padding, layers that all move together (here they alternate). So their figures are not
    listed as this recipe's.
    """
    return dataclasses.replace(
        cifar10_hopfield_ep(),
        name="cifar10-hopfield-hep",
        cites="Laborieux & Zenke 2022; its figures are of a readout outside the dynamics",
        model=VGG(
            (128, 256, 512, 512), (1, 2, 3, 4), (), activation="sigmoid", pool="before", init="uniform", pooling="softmax",
        ),
        rule=EquilibriumPropagation(
            energy="hopfield", estimator="holomorphic(2)", beta=1.0, relaxation="blocks(odd_even(60))",
            free_schedule="odd_even(250)", loss=CrossEntropy(),
        ),
        optimizer=Optimizer(
            name="sgd", learning_rate=0.25, momentum=0.9, weight_decay=2e-3, cosine=True, final_learning_rate=1e-5,
            layer_factors=(1.0, 0.6, 0.4, 0.32, 0.2),
        ),
        epochs=90,
    )  # fmt: skip


def mnist_hopfield_hep() -> Recipe:
    """MNIST by a Hopfield network 784-512-10 of sigmoids and holomorphic EP, four points at β = ½;
    no published figure.

    Cross-entropy on the output layer's logits; the nudged phases stop where they have settled to a
    hundredth.
    """
    return Recipe(
        name="mnist-hopfield-hep",
        dataset="mnist",
        model=MLP(widths=(512,), activation="sigmoid"),
        rule=EquilibriumPropagation(
            energy="hopfield", estimator="holomorphic(4)", beta=0.5, relaxation="blocks(odd_even(60))",
            free_schedule="odd_even(100)", tolerance=0.01, loss=CrossEntropy(),
        ),
        optimizer=Optimizer(name="adam", learning_rate=1e-3),
        batch_size=100,
        epochs=20,
        budget_epochs=1,
        seed_list=SEEDS,
    )  # fmt: skip


def _maker(dataset: str, loss: str) -> Callable[[], Recipe]:
    def make() -> Recipe:
        return _vgg5(dataset, loss)

    words, published = {"ce": "cross-entropy", "mse": "squared error"}[loss], dict(PUBLISHED[dataset, loss])
    make.__doc__ = f"{dataset} by VGG5, {words} and centered EP. Published {published['ep']} % (BP {published['bp']})."
    return make


RECIPES: dict[str, Callable[[], Recipe]] = {
    **{_vgg5_name(dataset, loss): _maker(dataset, loss) for dataset, loss in PUBLISHED},
    "imagenet32-vgg10-ep": vgg10_ep,
    "imagenet32-vgg10-skip-ep": vgg10_skip_ep,
    "cifar10-hopfield-ep": cifar10_hopfield_ep,
    "cifar10-hopfield-ep-laborieux": cifar10_hopfield_laborieux,
    "cifar10-hopfield-hep": cifar10_hopfield_hep,
    "mnist-hopfield-hep": mnist_hopfield_hep,
}
