"""Predictive coding and incremental predictive coding with the field's tuned settings: Pinchetti et
al. (2025), library pcx.

`compare RECIPE --variants bp,pc,ipc` trains the twin on the same network and budget. The settings
are those of the configurations in pcx's repository (examples/s4_1_discriminative_mode and
discriminative_experiments), rounded to three digits; their accuracies are not recorded there. Not
theirs: PC's GELU, which is no neuron here (ReLU instead; their pool behind it gives the same states
before it), the order of incremental PC (states, then weights; theirs descend one gradient,
`learn="alongside"`), pixels standardised by the data set's own mean and deviation, and a validation
part that chooses the epoch to be tested (they report the best on the test set). Five seeds.
"""

from __future__ import annotations

from collections.abc import Callable

from dualprop.data import Augmentation
from dualprop.losses import CrossEntropy, SquaredError
from dualprop.models import MLP, VGG, Architecture
from dualprop.rules import PredictiveCoding
from dualprop.training.recipe import Optimizer, Recipe

SEEDS = (0, 1, 2, 3, 4)
CITES = "Pinchetti et al. 2025, configurations of pcx{}; their figures are not at hand"


def _pcx(
    name: str, dataset: str, model: Architecture, rule: PredictiveCoding, rate: float, decay: float, epochs: int,
    updates: int = 1,
) -> Recipe:  # fmt: skip
    """Batch 128 and AdamW, whose rate rises by a tenth over a tenth of the run and falls to a tenth
    along a cosine."""
    is_cifar = dataset == "cifar10"
    return Recipe(
        name=name,
        cites=CITES.format(", with GELU" if updates == 1 else ""),
        dataset=dataset,
        augmentation=Augmentation(pad=4, flip=True) if is_cifar else Augmentation(),
        model=model,
        rule=rule,
        optimizer=Optimizer(
            name="adamw", learning_rate=1.1 * rate, warmup_from=rate, warmup_epochs=0.1 * epochs, cosine=True,
            final_learning_rate=0.1 * rate, weight_decay=decay,
        ),
        batch_size=128,
        epochs=epochs,
        budget_epochs=1 if is_cifar else 3,
        updates_per_batch=updates,
        reset_states=updates > 1,
        seed_list=SEEDS,
    )  # fmt: skip


def _vgg5(activation: str) -> VGG:
    """Their VGG5: four convolutions, each pooled, and a linear output."""
    return VGG((128, 256, 512, 512), (1, 2, 3, 4), (), activation=activation, pool="before", init="uniform")


def mnist_mlp_pc() -> Recipe:
    """MNIST by an MLP 784-128-128-128-10 and PC, squared error: eight steps of 0.0105 with momentum
    0.65, 25 epochs."""
    rule = PredictiveCoding(beta=1.0, steps=8, step_size=0.0105, momentum=0.65, loss=SquaredError())
    return _pcx("mnist-mlp-pc", "mnist", MLP(widths=(128, 128, 128)), rule, 2.97e-4, 3.55e-4, 25)


def mnist_mlp_ipc() -> Recipe:
    """MNIST by an MLP 784-128-128-128-10 of leaky ReLU and incremental PC: eight steps of 0.85, an
    update after each."""
    rule = PredictiveCoding(beta=1.0, steps=1, step_size=0.85, momentum=0.35, start="previous", loss=SquaredError())
    model = MLP(widths=(128, 128, 128), activation="leaky_relu")
    return _pcx("mnist-mlp-ipc", "mnist", model, rule, 2.53e-4, 0.0325, 25, updates=8)


def cifar10_vgg5_pc() -> Recipe:
    """CIFAR-10 by a VGG5 128-256-512-512 and PC, cross-entropy: eight steps of 0.0147 with momentum
    0.05, 50 epochs."""
    rule = PredictiveCoding(beta=1.0, steps=8, step_size=0.0147, momentum=0.05, loss=CrossEntropy())
    return _pcx("cifar10-vgg5-pc", "cifar10", _vgg5("relu"), rule, 2.64e-4, 1.21e-5, 50)


def cifar10_vgg5_ipc() -> Recipe:
    """CIFAR-10 by that VGG5, hard tanh and incremental PC, squared error: eight steps of 0.744, an
    update after each."""
    rule = PredictiveCoding(beta=1.0, steps=1, step_size=0.744, momentum=0.65, start="previous", loss=SquaredError())
    return _pcx("cifar10-vgg5-ipc", "cifar10", _vgg5("hard_tanh"), rule, 1.75e-4, 2.57e-5, 50, updates=8)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "mnist-mlp-pc": mnist_mlp_pc,
    "mnist-mlp-ipc": mnist_mlp_ipc,
    "cifar10-vgg5-pc": cifar10_vgg5_pc,
    "cifar10-vgg5-ipc": cifar10_vgg5_ipc,
}
