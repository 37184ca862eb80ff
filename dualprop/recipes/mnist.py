"""MNIST by an MLP, the seeds' table of six variants: `dualprop compare mnist-mlp --variants published`."""

from dualprop.losses import SquaredError
from dualprop.models import MLP
from dualprop.rules import DualPropagation
from dualprop.training.recipe import Optimizer, Recipe


def mnist_mlp() -> Recipe:
    """MLP 784-1000-1000-1000-10, ReLU, squared error, Adam 3e-5, batch 100, 10 % validation, 100 epochs, five seeds.

    Høier et al. (2023), MNIST table of the slides; settings and seeds from the authors' code. How they scale the pixels is
    not recorded; here they are standardised by MNIST's mean and deviation.
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
