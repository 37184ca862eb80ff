"""A batch posed to a rule: what is checked, in order, before inference begins."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from dualprop import memory
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network import Network, inputs
from dualprop.network.running import check_leaves
from dualprop.rules.checks import Precision, check_output, check_precision, check_surroundings, check_synapses, checked_state
from dualprop.rules.problem import Problem


class Rule(Protocol):
    """`base.AbstractRule`."""

    @property
    def loss(self) -> AbstractLoss: ...
    @property
    def state_type(self) -> type | None: ...
    @property
    def loses(self) -> str: ...
    @property
    def needs_synapses(self) -> str: ...
    @property
    def reads_layers(self) -> bool: ...
    def check(self, network: Network) -> None: ...
    def needed_precision(self, problem: Problem) -> Precision: ...


def posed(
    rule: Rule, network: Network, x: Tensor, y: Tensor, state: Any, generator: torch.Generator | None, for_states: bool
) -> Problem:
    """The batch, on the network as it runs it. SettingError where the rule can't work on it."""
    check_surroundings()
    state = checked_state(state, rule.state_type)
    check_synapses(network, rule.needs_synapses)
    if not network.is_recorded or rule.reads_layers or for_states:
        network = network.on(x)
    problem = Problem(network, x, y, rule.loss, state, generator, for_states)
    if rule.reads_layers or not network.is_recorded:
        check_output(network, rule.loss)
    rule.check(network)
    if not problem.parameters:
        raise SettingError("no parameter of the network asks for a gradient any more. Set requires_grad=True on some.")
    check_leaves(problem.parameters)
    check_precision(problem.parameters, x, rule.needed_precision(problem), rule.loses)
    return problem


def asking(rule: object, x: Any) -> AbstractContextManager[None]:
    """Where memory is lacking, this rule on this batch is what asked for it."""
    return memory.asking(
        lambda: f"{type(rule).__name__} on a batch of {len(inputs.first(x))}",
        "Lower the batch size, or take a smaller model.",
    )
