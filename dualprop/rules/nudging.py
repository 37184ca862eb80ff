"""How many units a rule's nudge takes across a kink of their activation; which β is small enough.

Of dual propagation, equilibrium propagation and lifted networks, which take a difference of states
for a derivative (`neurons.crossing`). Measuring changes nothing of a run: the model and all random
generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.network import Network, inputs
from dualprop.network.running import unnoticed
from dualprop.neurons import crossing
from dualprop.rules.outcome import Outcome
from dualprop.settings import as_tuple

# That are measured: more tell no more.
EXAMPLES = 64


class Rule(Protocol):
    """`base.AbstractRule`."""

    crosses_kinks: ClassVar[bool]

    @property
    def needs_generator(self) -> bool: ...
    @property
    def gradients(self) -> Any: ...
    @property
    def statistics(self) -> Any: ...


R = TypeVar("R", bound=Rule)


@dataclass(frozen=True)
class Choice:
    """A rule whose beta was chosen, and what there is to say of it, in a line."""

    rule: Any
    told: str


def shares(rule: Rule, network: Network, x: Any, y: Any) -> list[float]:
    """By hidden layer, the share of units whose nudge crosses a kink, on the first examples.

    Raises what the rule does where it can't infer states on this network.
    """
    with unnoticed(network.module, x):
        return hidden(rule.statistics(network, *_first(x, y), generator=_generator(rule)))


def hidden(statistics: dict[str, Any]) -> list[float]:
    """The shares of the hidden layers among a rule's statistics."""
    return list(statistics.get("kink_crossing", ())[:-1])


def advice(rule: Any, crossed: Sequence[float], angles: Iterable[float | None] = ()) -> str:
    """What to tell a user of the shares of the hidden layers and the layers' angles, with the
    remedy; empty where all is well."""
    if not rule.crosses_kinks:
        return ""
    is_bent = getattr(rule, "coupling", "") == "original" and rule.alpha != 0.5
    return crossing.advice(crossed, angles, max(as_tuple(rule.beta)), candidates(rule)[0], is_bent)


def candidates(rule: Any) -> list[float]:
    """The β that "auto" tries, the largest first: the rule's default and fractions of it."""
    default: float = type(rule).__dataclass_fields__["beta"].default
    return [default * factor for factor in crossing.FACTORS]


def choose(rule: Any, network: Network, x: Any, y: Any) -> Choice:
    """The rule with a number in place of beta="auto", as `choose_beta` says."""
    if getattr(rule, "beta", None) != "auto":
        return Choice(rule, "")
    tried: list[tuple[Any, float]] = []
    limit = ""
    for beta in candidates(rule):
        one: Any = replace(rule, beta=beta)
        if not tried:
            _check_kinks(one, network, x)
        with unnoticed(network.module, x):
            outcome: Outcome = one.gradients(network, *_first(x, y), generator=_generator(one))
        if tried and not outcome.status.ok:
            limit = f"; not smaller, as {outcome.status.message.partition('. ')[0]}"
            break
        tried.append((one, max(shares(one, network, x, y), default=0.0)))
        if tried[-1][1] < crossing.SMALL_SHARE:
            break
    (largest, share_at_largest), (chosen, share) = tried[0], tried[-1]
    return Choice(chosen, crossing.chosen(chosen.beta, share, largest.beta, share_at_largest) + limit)


def choose_beta(rule: R, network: Network, x: Any, y: Any) -> R:
    """The rule with a number in place of beta="auto"; a rule of another beta is given back.

    It is the largest of the rule's default β and fractions of it whose nudge takes less than 2 % of
    each hidden layer's units across a kink of their activation, on the batch's first 64 examples;
    or the last before one whose inference fails, be it by rounding. `rule.beta` is then what was
    chosen. The model and all random generators stay as they were.

        rule = dp.choose_beta(dp.DualPropagation(beta="auto"), network, x, y)

    Raises:
        SettingError: no activation of the network has a kink.
    """
    return cast("R", choose(rule, network, x, y).rule)


def _check_kinks(rule: Any, network: Network, x: Any) -> None:
    with unnoticed(network.module, x):
        layers = network.on(x).layers
    if not any(layer.neuron.kinks for layer in layers):
        raise SettingError(
            f"beta='auto' goes by units that cross a kink, and no activation of this network has one. Use beta={rule.beta:g}."
        )


def _first(x: Any, y: Any) -> tuple[Any, Any]:
    """The first examples, where it is plain which these are."""
    if isinstance(x, Tensor) and isinstance(y, Tensor) and len(x) == len(y):
        x, y = x[:EXAMPLES], y[:EXAMPLES]
    # A model may write over its inputs.
    return inputs.copied(x), y


def _generator(rule: Rule) -> torch.Generator | None:
    return torch.Generator().manual_seed(0) if rule.needs_generator else None
