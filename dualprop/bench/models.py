"""The models that the bench measures, by name, and the recipe of the step that each takes."""

from __future__ import annotations

from dataclasses import dataclass

from dualprop.bench.options import BenchOptions, parse_names
from dualprop.models import MLP, VGG, Architecture, ConvNet, vgg5, vgg10, vgg10_skip, vgg16
from dualprop.rules import Backprop
from dualprop.training.recipe import Optimizer, Recipe

NUM_CLASSES = 10


@dataclass(frozen=True)
class Subject:
    """An architecture, the shape of one example, and the optimizer it is commonly trained with."""

    model: Architecture
    input_shape: tuple[int, ...]
    optimizer: Optimizer = Optimizer(name="adam", learning_rate=1e-4)


_IMAGES = (3, 32, 32)
# Of the papers (Høier et al. 2023, appendix C), but for the rate: on one batch of noise the weights
# had better stay.
RESTING = Optimizer(name="sgd", learning_rate=1e-5, momentum=0.9, weight_decay=5e-4)
MODELS: dict[str, Subject] = {
    "mlp": Subject(MLP(widths=(1000, 1000, 1000)), (784,)),
    "conv": Subject(ConvNet(channels=(32, 64, 128), pool="before"), _IMAGES),
    "conv-after": Subject(ConvNet(channels=(32, 64, 128), pool="after"), _IMAGES),
    "conv-stride": Subject(ConvNet(channels=(32, 64, 128), pool="stride"), _IMAGES),
    "vgg16": Subject(vgg16("after"), _IMAGES, RESTING),
    "vgg16-before": Subject(vgg16("before"), _IMAGES, RESTING),
    "vgg5": Subject(vgg5("before"), _IMAGES, RESTING),
    "vgg5-after": Subject(vgg5("after"), _IMAGES, RESTING),
    "vgg10": Subject(vgg10("before"), _IMAGES, RESTING),
    "vgg10-after": Subject(vgg10("after"), _IMAGES, RESTING),
    "vgg10-skip": Subject(vgg10_skip("before"), _IMAGES, RESTING),
    # Of Scellier et al. 2023 and, but for the last padding, Laborieux et al. 2021.
    "hopfield": Subject(
        VGG((128, 256, 512, 512), (1, 2, 3, 4), (), "hard_sigmoid", "before", init="uniform", gain=0.5), _IMAGES, RESTING
    ),
}


def parse_models(text: str) -> list[str]:
    """The models that `text` names with commas between. Raises SettingError for an unknown one."""
    return parse_names(text, "model", list(MODELS))


def recipe(
    model: str, batch_size: int, device: str, num_threads: int, dtype: str = "float32", channels_last: str = "auto"
) -> Recipe:
    """The step that is measured: cross-entropy, the model's optimizer, fused, and no capture.

    Raises SettingError for a dtype, memory format or device that there is none of.
    """
    subject = MODELS[model]
    return Recipe(
        name=f"bench-{model}",
        dataset="random numbers",
        model=subject.model,
        rule=Backprop(),
        optimizer=subject.optimizer,
        batch_size=batch_size,
        epochs=1,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        channels_last=channels_last,  # type: ignore[arg-type]
        capture="off",
        num_threads=num_threads,
    )


def recipe_by(options: BenchOptions, model: str, dtype: str = "float32") -> Recipe:
    """The same at the options' batch size, device, threads and memory format."""
    return recipe(model, options.batch_size, options.device, options.threads, dtype, options.channels_last)
