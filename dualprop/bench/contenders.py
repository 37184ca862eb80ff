"""Contenders: what the rows of a benchmark measure, each a recipe's step by a rule and an engine.

The plain loop is a contender too, and every table is relative to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dualprop import schedules, settings
from dualprop.bench import timing
from dualprop.bench.options import parse_names
from dualprop.errors import SettingError
from dualprop.fused.dualization import dualize
from dualprop.kernels import Kernel
from dualprop.network import Network
from dualprop.rules import DualPropagation, Outcome
from dualprop.training import execution, optimization, step
from dualprop.training.capture import CapturedStep, TrainingStep, graph_on
from dualprop.training.recipe import Recipe

COUNTS = ("drives", "feedbacks", "gradients")


@dataclass(frozen=True)
class Engine:
    """How dual propagation is computed.

    Attributes:
        by: the trainer's step, "explicit" or "fused", or the plain loop on a "dualized" model.
        kernel: of its elementwise work, see `dualprop.kernels`.
        is_captured: whether the step is captured and replayed.
        recomputes_states: whether a dualized model computes its states again, or keeps them.
    """

    by: Literal["explicit", "fused", "dualized"]
    kernel: Kernel = "auto"
    is_captured: bool = False
    recomputes_states: bool = True


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
DEFAULT_ENGINES = "explicit,fused,dualized"
# Short names of the rules that every engine computes.
SYMBOLS = {"dp": "DP", "dp-transposed": "DP⊤"}
# Name → what makes a recipe into one by that rule, such as `recipes.variants` have.
Rules = Mapping[str, Callable[[Recipe], Recipe]]


@dataclass(frozen=True)
class Contender:
    """One row of a benchmark.

    Attributes:
        label: names the row; different for each.
        recipe: model, rule, optimizer, batch size, device.
        how: the step is that of the trainer by the recipe's "rule", the "plain" loop, or the plain
            loop on a "dualized" model.
        rule: what is computed, "DP α=½" say, whichever engine does it; empty for the plain loops.
        engine: by which of ENGINES; empty where the rule has but one.
        recomputes_states: of a dualized model, see `dualize`.
    """

    label: str
    recipe: Recipe
    how: Literal["rule", "plain", "dualized"] = "rule"
    rule: str = ""
    engine: str = ""
    recomputes_states: bool = True

    @property
    def is_one_sweep(self) -> bool:
        """Whether it is DP by one downward sweep, with exact feedback and one update a batch."""
        rule, recipe = self.recipe.rule, self.recipe
        return (
            self.how != "plain"
            and isinstance(rule, DualPropagation)
            and (rule.schedule, rule.start, rule.damping) == (schedules.alternating_sweeps(1), "forward", None)
            and (recipe.feedback, recipe.updates_per_batch) == ("exact", 1)
        )

    def step(self, input_shape: tuple[int, ...], num_classes: int, seed: int = 0) -> Callable[[], object]:
        """A step on one random batch, from weights drawn by the seed."""
        return self.step_on(*self.problem(input_shape, num_classes, seed))

    def step_on(self, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
        """A step of this model on this batch."""
        recipe = self.recipe
        if self.how == "rule":
            return rule_step(model, recipe, x, y)
        if self.how == "dualized":
            rule = recipe.rule
            assert isinstance(rule, DualPropagation)
            beta = settings.number(rule.beta)
            hidden_beta = beta if not isinstance(beta, tuple) else beta[:-1]
            model = dualize(
                model,
                coupling=rule.coupling,
                alpha=rule.alpha,
                beta=hidden_beta,
                recompute_states=self.recomputes_states,
            )
        return plain_step(model, recipe, x, y)

    def problem(self, input_shape: tuple[int, ...], num_classes: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
        """Model, inputs (N, *input_shape) and targets (N,), drawn by the seed, on the device."""
        recipe, how = self.recipe, execution.resolve(self.recipe)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(recipe.batch_size, *input_shape, generator=generator, dtype=how.parameters)
        x = x.to(recipe.device, how.inputs)
        if how.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        y = torch.randint(num_classes, (recipe.batch_size,), generator=generator).to(recipe.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = how.place(recipe.build(input_shape, num_classes))
        return model, x, y

    def to_plain(self) -> dict[str, Any]:
        """Plain values and the recipe's own dictionary, for another process."""
        return {**{name: getattr(self, name) for name in _FIELDS}, "recipe": self.recipe.to_plain()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Contender:
        return cls(**{name: plain[name] for name in _FIELDS}, recipe=Recipe.from_plain(plain["recipe"]))


_FIELDS = ("label", "how", "rule", "engine", "recomputes_states")


def plain_step(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step as a PyTorch user writes it: zero_grad, loss.backward(), step.

    It runs under autocast where the recipe has bfloat16. A dualized model runs it too.
    """
    optimizer, how = optimization.build(recipe.optimizer, model), execution.resolve(recipe)

    def one_step() -> None:
        optimizer.zero_grad()
        with how.computing():
            loss = recipe.rule.loss.value(model(x), y).mean()
        loss.backward()
        optimizer.step()

    return one_step


def rule_step(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Callable[[], list[Outcome]]:
    """One step of the trainer by the recipe's rule, on this batch each time."""
    next_step = trainer_step(model, recipe)
    return lambda: next_step(x, y)


def trainer_step(model: nn.Module, recipe: Recipe) -> Callable[[Tensor, Tensor], list[Outcome]]:
    """One step of the trainer by the recipe's rule, whose state is carried along, on a batch.

    It is captured where the trainer would, from the fourth on.
    """
    how, network = execution.resolve(recipe), Network.from_module(model)
    optimizer = optimization.build(recipe.optimizer, model, capturable=how.captured)
    draws = generator()
    state: Any = None

    def one_step(x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        with how.computing():
            return step.training_step(recipe, network, optimizer, x, y, state, draws)

    run: TrainingStep = one_step
    if how.captured:
        run = CapturedStep(one_step, recipe, graph_on(torch.device(recipe.device)))

    def next_step(x: Tensor, y: Tensor) -> list[Outcome]:
        nonlocal state
        outcomes, state = run(x, y, state)
        return outcomes

    return next_step


def generator() -> torch.Generator:
    """What a rule draws from in a benchmark, the same each time."""
    return torch.Generator().manual_seed(0)


def work_of_backprop(recipe: Recipe, input_shape: tuple[int, ...], num_classes: int) -> int:
    """Drives, feedbacks and gradients of one back-propagation step on the recipe's network."""
    with torch.device("meta"):
        network = Network.from_module(recipe.model.build(input_shape, num_classes))
    return sum(network.counts_of_backprop().values())


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """Drives, feedbacks and gradients of one training step."""
    return {kind: sum(int(outcome.diagnostics[kind]) for outcome in outcomes) for kind in COUNTS}


def parse_engines(text: str) -> list[str]:
    """The engines, or families of them, that `text` names with commas between."""
    names = parse_names(text, "engine", [*ENGINES, *FAMILIES])
    return list(dict.fromkeys(engine for name in names for engine in FAMILIES.get(name, (name,))))


def yardsticks(base: Recipe) -> list[Contender]:
    """The plain loop, and the same again, whose ratio to the first is the noise."""
    return [Contender(label, base, "plain") for label in (timing.PLAIN, timing.PLAIN_AGAIN)]


def contenders(
    base: Recipe, rules: Rules, alphas: Sequence[float], engines: Sequence[str]
) -> tuple[list[Contender], dict[str, str]]:
    """Every rule at every alpha by every engine; and by label why there is none of a combination.

    Without alphas each rule has its own. Without engines each is computed as the trainer would.
    Rules other than dual propagation know neither, but their step too is captured where engines
    capture.
    """
    entries: list[Contender] = []
    refused: dict[str, str] = {}
    for name, apply in rules.items():
        applied = apply(base)
        if not isinstance(applied.rule, DualPropagation):
            entries.append(Contender(name, applied, rule=name))
            if any(ENGINES[engine].is_captured for engine in engines):
                captured = dataclasses.replace(applied, capture="on")
                entries.append(Contender(f"{name} captured", captured, rule=name, engine="captured"))
            continue
        for alpha in alphas or (None,):
            chosen = applied.rule if alpha is None else dataclasses.replace(applied.rule, alpha=alpha)
            rule = f"{SYMBOLS.get(name, name)} α={_written(chosen.alpha)}" if alphas or engines else name
            if not engines:
                entries.append(Contender(rule, dataclasses.replace(applied, rule=chosen), rule=rule))
            for engine in engines:
                try:
                    entries.append(_by_engine(engine, dataclasses.replace(applied, rule=chosen), rule))
                except SettingError as error:
                    refused[f"{rule} {engine}"] = str(error)
    return entries, refused


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
