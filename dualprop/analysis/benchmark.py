"""The standing benchmark: which models, rules and engines `dualprop bench` measures, by their names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dualprop.analysis import cost
from dualprop.analysis.cost import Contender
from dualprop.errors import SettingError, closest
from dualprop.kernels import Kernel
from dualprop.models import MLP, VGG, Architecture, ConvNet, vgg5, vgg10, vgg10_skip, vgg16
from dualprop.rules import Backprop, DualPropagation
from dualprop.training.recipe import Optimizer, Recipe


@dataclass(frozen=True)
class Subject:
    """An architecture, the shape of one example, and the optimizer of its step: the one it is commonly trained with."""

    model: Architecture
    input_shape: tuple[int, ...]
    optimizer: Optimizer = Optimizer(name="adam", learning_rate=1e-4)


@dataclass(frozen=True)
class Engine:
    """How dual propagation is computed: by the trainer's step, "explicit" or "fused", or by a "dualized" model in the plain
    loop; the kernel of its elementwise work (`dualprop.kernels`); whether the step is captured as a CUDA graph; and whether a
    dualized model computes its states again or keeps them."""

    by: Literal["explicit", "fused", "dualized"]
    kernel: Kernel = "auto"
    is_captured: bool = False
    recomputes_states: bool = True


_IMAGES = (3, 32, 32)
# Of the papers (Høier et al. 2023, appendix C), but for the rate: on one batch of noise the weights had better stay.
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
_BY: tuple[Literal["explicit", "fused", "dualized"], ...] = ("explicit", "fused", "dualized")
_KERNELS: tuple[Kernel, ...] = ("native", "compiled", "eager")
ENGINES: dict[str, Engine] = {
    **{by: Engine(by) for by in _BY},
    "dualized-keeping": Engine("dualized", recomputes_states=False),
    **{f"{by}-captured": Engine(by, is_captured=True) for by in ("explicit", "fused")},
    **{f"{by}-{kernel}": Engine(by, kernel) for kernel in _KERNELS for by in _BY},
}
# A word for several engines: "native" for explicit-native, fused-native and dualized-native.
FAMILIES = {last: [name for name in ENGINES if name.endswith(f"-{last}")] for last in ("captured", *_KERNELS)}
DEFAULT_ENGINES = "explicit,fused,dualized,captured"
PRECISIONS = ("float32", "tf32", "bfloat16")
# Short names of the rules that every engine computes.
SYMBOLS = {"dp": "DP", "dp-transposed": "DP⊤"}
NUM_CLASSES = 10
# Name → what makes a recipe into one by that rule, such as `recipes.variants` have.
Rules = Mapping[str, Callable[[Recipe], Recipe]]


def recipe(
    model: str, batch_size: int, device: str, num_threads: int, dtype: str = "float32", channels_last: str = "auto"
) -> Recipe:
    """The step that is measured: cross-entropy and the model's optimizer, fused; not captured. Raises SettingError."""
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


def parse_models(text: str) -> list[str]:
    """The models that `text` names with commas between. Raises SettingError for an unknown one."""
    return _parse(text, "model", list(MODELS))


def parse_precisions(text: str) -> list[str]:
    """The precisions that `text` names with commas between. Raises SettingError for an unknown one."""
    return _parse(text, "precision", list(PRECISIONS))


def parse_engines(text: str) -> list[str]:
    """The engines that `text` names with commas between, or families of them. Raises SettingError for an unknown one."""
    names = _parse(text, "engine", [*ENGINES, *FAMILIES])
    return list(dict.fromkeys(engine for name in names for engine in FAMILIES.get(name, (name,))))


def parse_alphas(text: str) -> list[float]:
    """Numbers in [0, 1] with commas between. Raises SettingError for anything else."""
    try:
        alphas = [float(word) for word in text.split(",")]
    except ValueError:
        raise SettingError(f"alphas must be numbers with commas between, got '{text}'. Try --alphas 0,0.5,1.") from None
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise SettingError(f"alphas must be in [0, 1], got '{text}'.")
    return alphas


def parse_betas(text: str) -> list[float]:
    """Positive numbers with commas between. Raises SettingError for anything else."""
    try:
        betas = [float(word) for word in text.split(",")]
    except ValueError:
        raise SettingError(f"betas must be numbers with commas between, got '{text}'. Try --betas 0.02,0.05.") from None
    if not all(0 < beta < math.inf for beta in betas):
        raise SettingError(f"betas must be positive and finite, got '{text}'.")
    return betas


def _parse(text: str, kind: str, known: list[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise SettingError(f"unknown {kind} '{name}'.{closest(name, known)} Known: {', '.join(known)}.")
    if len(set(names)) != len(names):
        raise SettingError(f"--{kind}s names one twice: {text}. Name each once.")
    return names


def yardsticks(base: Recipe) -> list[Contender]:
    """The plain loop, and the same again, whose ratio to the first is the noise."""
    return [Contender(label, base, "plain") for label in (cost.PLAIN, cost.PLAIN_AGAIN)]


def contenders(
    base: Recipe, rules: Rules, alphas: Sequence[float], engines: Sequence[str]
) -> tuple[list[Contender], dict[str, str]]:
    """Every rule at every alpha by every engine, and the labels of those that there are none of, with the reason.

    Without alphas each rule has its own. Without engines each is computed as the trainer would. Rules other than dual
    propagation know neither, but that their step is captured too where engines capture.
    """
    found: list[Contender] = []
    refused: dict[str, str] = {}
    for name, apply in rules.items():
        applied = apply(base)
        if not isinstance(applied.rule, DualPropagation):
            found.append(Contender(name, applied, rule=name))
            if any(ENGINES[engine].is_captured for engine in engines):
                captured = dataclasses.replace(applied, capture="on")
                found.append(Contender(f"{name} captured", captured, rule=name, engine="captured"))
            continue
        for alpha in alphas or (None,):
            chosen = applied.rule if alpha is None else dataclasses.replace(applied.rule, alpha=alpha)
            rule = f"{SYMBOLS.get(name, name)} α={_written(chosen.alpha)}" if alphas or engines else name
            if not engines:
                found.append(Contender(rule, dataclasses.replace(applied, rule=chosen), rule=rule))
            for engine in engines:
                try:
                    found.append(_by_engine(engine, dataclasses.replace(applied, rule=chosen), rule))
                except SettingError as error:
                    refused[f"{rule} {engine}"] = str(error)
    return found, refused


def _by_engine(engine: str, applied: Recipe, rule: str) -> Contender:
    """Raises SettingError where the engine can't compute the recipe's rule."""
    by = ENGINES[engine]
    assert isinstance(applied.rule, DualPropagation)
    if by.by == "dualized" and applied.updates_per_batch > 1:
        raise SettingError("a dualized model in a plain loop makes one update a batch. Use engine 'explicit'.")
    settings = dataclasses.replace(applied.rule, engine="explicit" if by.by == "explicit" else "fused")
    recipe = dataclasses.replace(applied, rule=settings, kernel=by.kernel, capture="on" if by.is_captured else "off")
    how: Literal["rule", "dualized"] = "dualized" if by.by == "dualized" else "rule"
    return Contender(f"{rule} {engine}", recipe, how, rule, engine, by.recomputes_states)


def _written(alpha: float) -> str:
    return "½" if alpha == 0.5 else f"{alpha:g}"
