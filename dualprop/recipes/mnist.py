"""MNIST by an MLP, the table of six variants in Høier et al. (2023):
`dualprop compare mnist-mlp --variants published`."""

from dualprop.losses import CrossEntropy, SquaredError
from dualprop.models import MLP
from dualprop.rules import DualPropagation
from dualprop.training.recipe import Optimizer, Recipe


def mnist_mlp() -> Recipe:
    """MLP 784-1000-1000-1000-10, ReLU, squared error, Adam 3e-5, batch 100, 10 % validation, 100
    epochs, five seeds.

    Høier et al. (2023), MNIST table; settings and seeds from the authors' code. How they scale the
    pixels is not recorded; here they are standardised by MNIST's mean and deviation.
    """
    return Recipe(
        name="mnist-mlp",
        cites="Høier et al. 2023, MNIST table: test accuracy (%), five seeds, 100 epochs",
        published=(
            ("bp", "98.45 ± 0.04"),
            ("dp", "98.43 ± 0.03"),
            ("ms-dp", "98.40 ± 0.02"),
            ("l-dp", "98.42 ± 0.07"),
            ("p-dp", "98.47 ± 0.04"),
            ("r-dp-100", "98.48 ± 0.11"),
        ),
        dataset="mnist",
        model=MLP(widths=(1000, 1000, 1000)),
        rule=DualPropagation(loss=SquaredError()),
        optimizer=Optimizer(name="adam", learning_rate=3e-5),
        batch_size=100,
        epochs=100,
        seed_list=(139, 946, 992, 640, 731),
    )


def mnist_feedback() -> Recipe:
    """MLP 784-512-512-10 by KP-DP: SGD with momentum and weight decay, under which feedback weights
    align with forward ones.

    The optimizer of the papers' KP-DP on CIFAR (Høier et al. 2023, appendix C) on the MLP of Høier
    & Zach (2024), §6.1; no published figure. `--variants bp,dp,kp-dp,fa-dp,sign-dp` compares.
    """
    return Recipe(
        name="mnist-feedback",
        dataset="mnist",
        model=MLP(widths=(512, 512)),
        feedback="kolen_pollack",
        rule=DualPropagation(loss=CrossEntropy()),
        optimizer=Optimizer(name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=5e-4, cosine=True),
        batch_size=100,
        epochs=30,
    )


def mnist_nudging() -> Recipe:
    """MLP 784-512-512-10 by DP⊤ with asymmetric nudging, α = 0, β = ½: the setting of Høier & Zach
    (2024), §6.1.

    Squared error, Adam 1e-3, batch 50, 20 epochs, weights of variance 1/n: it is their spectral
    norm, near 2, that makes plain DP lose its footing away from α = ½; the grid over α and β is
    `scripts/nudging_grid.py`. The paper shows angles and norms of gradients, no accuracy.
    """
    return Recipe(
        name="mnist-nudging",
        cites="Høier & Zach 2024, figure 3",
        dataset="mnist",
        model=MLP(widths=(512, 512), init="normal"),
        rule=DualPropagation(coupling="transposed", alpha=0.0, beta=0.5, loss=SquaredError()),
        optimizer=Optimizer(name="adam", learning_rate=1e-3),
        batch_size=50,
        epochs=20,
    )


def mnist_rules() -> Recipe:
    """MLP 784-256-256-10 of sigmoids, the one network that every rule trains as it is:
    `--variants all` compares them all.

    Sigmoids because holomorphic equilibrium propagation needs them; cross-entropy (ep-clamped:
    squared error), Adam 1e-3, batch
    100. Every rule has the settings of its own defaults; no published figure.
    """
    return Recipe(
        name="mnist-rules",
        dataset="mnist",
        model=MLP(widths=(256, 256), activation="sigmoid"),
        rule=DualPropagation(),
        optimizer=Optimizer(name="adam", learning_rate=1e-3),
        batch_size=100,
        epochs=10,
        budget_epochs=3,
        seed_list=(0, 1, 2),
    )
