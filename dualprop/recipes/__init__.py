"""Recipes by name: each a function that returns a frozen Recipe and cites what it reproduces."""

from collections.abc import Callable

from dualprop.errors import SettingError, closest
from dualprop.recipes import cifar, contrastive_hebbian, equilibrium, fast, predictive_coding, target_propagation
from dualprop.recipes.digits import digits_mlp
from dualprop.recipes.mnist import mnist_feedback, mnist_mlp, mnist_nudging, mnist_rules
from dualprop.training.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits-mlp": digits_mlp,
    "mnist-mlp": mnist_mlp,
    "mnist-feedback": mnist_feedback,
    "mnist-nudging": mnist_nudging,
    "mnist-rules": mnist_rules,
    "cifar10-cnn": cifar.cifar10_cnn,
    "cifar10-vgg16": cifar.cifar10_vgg16,
    "cifar10-vgg16-kp": cifar.cifar10_vgg16_kp,
    "cifar10-vgg16-transposed": cifar.cifar10_vgg16_transposed,
    "cifar100-vgg16": cifar.cifar100_vgg16,
    "cifar100-vgg16-kp": cifar.cifar100_vgg16_kp,
    "cifar100-vgg16-transposed": cifar.cifar100_vgg16_transposed,
    "cifar10-fast": fast.cifar10_fast,
    "cifar10-fast-group": fast.cifar10_fast_group,
    "cifar10-fast-95": fast.cifar10_fast_95,
    "cifar100-fast": fast.cifar100_fast,
    "imagenet32-vgg16": cifar.imagenet32_vgg16,
    "imagenet32-vgg16-kp": cifar.imagenet32_vgg16_kp,
    "imagenet32-vgg16-transposed": cifar.imagenet32_vgg16_transposed,
    **equilibrium.RECIPES,
    **target_propagation.RECIPES,
    **contrastive_hebbian.RECIPES,
    **predictive_coding.RECIPES,
}


def from_name(name: str) -> Recipe:
    """The recipe of that name. Raises SettingError for an unknown one."""
    if name not in RECIPES:
        raise SettingError(
            f"unknown recipe '{name}'.{closest(name, list(RECIPES))} `dualprop list recipes` shows them all: "
            f"{', '.join(RECIPES)}."
        )
    return RECIPES[name]()


__all__ = ["RECIPES", "digits_mlp", "from_name", "mnist_feedback", "mnist_mlp", "mnist_nudging", "mnist_rules"]
