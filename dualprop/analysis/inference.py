"""One inference of a small dyadic network, step by step: what `dualprop show` draws.

Nothing is computed here that the rule does not compute. The frame after n steps holds the states of
the rule's own inference, stopped after the first n steps of its schedule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from dualprop import schedules
from dualprop.alignment import LayerAlignment, alignment
from dualprop.errors import SettingError
from dualprop.models import MLP
from dualprop.network import Network
from dualprop.network.states import Dyads
from dualprop.rules import DualPropagation
from dualprop.rules.dyad_states import DyadStates
from dualprop.settings import conform

# What can be read in a terminal and in a picture.
MOST_LAYERS, MOST_UNITS, MOST_STEPS = 6, 8, 60


@dataclass(frozen=True)
class ShowOptions:
    """Draw one inference of dual propagation on a small network: how s⁺ and s⁻ part, layer by
    layer.

    Attributes:
        rule: DP or DP⊤; every option of it, --rule.coupling transposed say.
        widths: units of the input, of each hidden layer and of the output.
        activation: of the hidden layers, see `dualprop list neurons`.
        target: the class that the example is of.
        seed: of the weights and the example.
        figure: also draw it to this file: the steps side by side (.png), or as an animation (.gif).
    """

    rule: DualPropagation = DualPropagation()
    widths: tuple[Annotated[int, Interval(ge=1, le=MOST_UNITS)], ...] = (2, 4, 4, 2)
    activation: str = "relu"
    target: Annotated[int, Interval(ge=0, lt=MOST_UNITS)] = 0
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 4
    figure: Path | None = None


@dataclass(frozen=True)
class Frame:
    """The states after one step of a schedule; vectors over the units of a layer.

    Attributes:
        layers: those that the step updated; empty for the free pass.
        dyads: of every layer k = 0…L, 0 the input.
        drives: a_k that each of `layers` was updated from.
        pulls: Δ_k that it was updated from, ∇ℓ at the output; None where there was none.
    """

    layers: tuple[int, ...]
    dyads: Dyads
    drives: dict[int, Tensor]
    pulls: dict[int, Tensor | None]


@dataclass(frozen=True)
class Inference:
    """An inference: its network, the free pass and every step after it, and what is learned.

    Attributes:
        gradients: of the rule at the end, by parameter.
        alignments: of each layer's gradient with back-propagation's.
        kink_crossing: by layer 1…L, the share of units whose nudges cross a kink.
    """

    options: ShowOptions
    network: Network
    frames: list[Frame]
    gradients: dict[str, Tensor]
    alignments: list[LayerAlignment]
    kink_crossing: list[float]

    @property
    def depth(self) -> int:
        """L, the number of layers above the input."""
        return len(self.options.widths) - 1

    def weight(self, k: int) -> Tensor:
        """W_k, (units of layer k, units below)."""
        return self.network.into(k).parameters[self._name(k)].detach()

    def gradient(self, k: int) -> Tensor:
        """What the rule makes of the gradient by W_k."""
        return self.gradients[self._name(k)]

    def _name(self, k: int) -> str:
        return next(name for name, each in self.network.into(k).parameters.items() if each.ndim == 2)


def inferred(options: ShowOptions) -> Inference:
    """The inference of these options. Raises SettingError for what can't be shown."""
    _check(options)
    network, x, y = example(options)
    rule = options.rule
    return Inference(
        options,
        network,
        list(frames(rule, network, x, y, options.seed)),
        rule.gradients(network, x, y, generator=_generator(options)).gradients,
        alignment(network, rule, x, y, generator=_generator(options)),
        rule.statistics(network, x, y, generator=_generator(options))["kink_crossing"],
    )


def example(options: ShowOptions) -> tuple[Network, Tensor, Tensor]:
    """The network, its weights of variance 1/n, and one example of the target's class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        builder = MLP(widths=options.widths[1:-1], activation=options.activation, init="normal")
        model = builder.build((options.widths[0],), options.widths[-1]).double()
        x = torch.randn(1, options.widths[0], dtype=torch.float64)
    return Network.from_module(model), x, torch.tensor([options.target])


def frames(rule: DualPropagation, network: Network, x: Tensor, y: Tensor, seed: int = 0) -> Iterator[Frame]:
    """The free pass, then a frame for each step of the rule's schedule."""
    schedule = schedules.parse(rule.schedule)
    steps = list(schedule.steps(network.depth, torch.Generator().manual_seed(seed)))
    if len(steps) > MOST_STEPS:
        raise SettingError(
            f"schedule {schedule} has {len(steps)} steps here; at most {MOST_STEPS} can be shown. Use fewer passes."
        )
    before = None
    for count in range(len(steps) + 1):
        stopped = dataclasses.replace(rule, schedule=schedules.Beginning(schedule, count), engine="explicit")
        with torch.no_grad():
            problem = stopped.problem(network, x, y, None, torch.Generator().manual_seed(seed), for_states=True)
            states = stopped.inference(problem)
            dyads = stopped.states_at(problem, states)
        assert isinstance(states, DyadStates)
        assert dyads is not None
        layers = steps[count - 1].layers if count else ()
        drives: dict[int, Tensor] = {k: before.drive(k)[0] for k in layers} if before else {}
        pulls: dict[int, Tensor | None] = {k: _pull(rule, before, k) for k in layers} if before else {}
        yield Frame(layers, _of_the_example(dyads), drives, pulls)
        before = states


def _check(options: ShowOptions) -> None:
    """Raise SettingError, naming the remedy, for what can't be shown."""
    conform(options)
    widths, rule, figure = options.widths, options.rule, options.figure
    if not 2 <= len(widths) <= MOST_LAYERS:
        raise SettingError(f"widths must name 2 to {MOST_LAYERS} layers, from input to output, got {len(widths)}.")
    if options.target >= widths[-1]:
        raise SettingError(f"target must be a class of the output, 0 to {widths[-1] - 1}, got {options.target}.")
    if rule.tolerance is not None:
        raise SettingError("show stops inference after every step of its schedule. Leave out --rule.tolerance.")
    if rule.engine == "fused":
        raise SettingError("engine='fused' holds no dyads to draw. Leave out --rule.engine.")
    if figure is None:
        return
    if figure.suffix.lower() not in (".png", ".gif"):
        raise SettingError(f"figure must end in .png (the steps side by side) or .gif (an animation), got {figure}.")
    if not figure.parent.is_dir():
        raise SettingError(f"the folder of the figure, {figure.parent}, is not there. Make it first.")


def _pull(rule: DualPropagation, states: DyadStates, k: int) -> Tensor | None:
    pull = rule.loss_gradient(states, states.drive(k)) if states.is_output(k) else states.feedback(k)
    return None if pull is None else pull[0]


def _of_the_example(dyads: Dyads) -> Dyads:
    means = tuple(mean[0] for mean in dyads.means)
    return Dyads(means, tuple(None if delta is None else delta[0] for delta in dyads.differences), dyads.alpha)


def _generator(options: ShowOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)
