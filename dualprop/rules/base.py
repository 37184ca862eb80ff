"""The frame of a rule: what every rule needs and no paper prints.

A rule is a frozen set of hyperparameters and a pure function of (network, x, y, state, generator).
Its file holds its equations. This frame checks the batch, ranges and precision, gathers status and
counts, and packs states. A rule writes

    inference(problem)               free pass, nudge, updates: what its inference holds at the end
    gradients_at(problem, settled)   the gradients there

It also tells `problem.report` the counts of every phase, the free one too. Where it has them it
writes `states_at` (with `state_type`), `statistics_at`, `conflicts` of its settings, `check` of the
network, and its `precision`.

N batch, K classes. A rule's gradients estimate that of the loss's *mean*, like BP's: inference
descends the sum of the loss's terms, and is divided by `problem.terms`, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from torch import Tensor

from dualprop import settings
from dualprop.compilation import run_as_written
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.rules import capturing, delivery, exact, packing
from dualprop.rules.checks import Precision
from dualprop.rules.outcome import Outcome
from dualprop.rules.posing import asking, posed
from dualprop.rules.problem import Problem
from dualprop.schedules import AbstractSchedule

# What a rule's inference holds at its end.
Settled = TypeVar("Settled")


@dataclass(frozen=True, kw_only=True)
class AbstractRule(ABC, Generic[Settled]):
    """A learning rule.

    Attributes:
        loss: "cross_entropy" of logits, "squared_error", or "log_loss" of a softmax; one of
            PyTorch's, F.mse_loss or nn.CrossEntropyLoss(ignore_index=0) say; or the user's own,
            `dp.losses.from_function(f)`.

    Raises:
        SettingError: a value out of its range, or settings that don't go together.
    """

    loss: AbstractLoss = CrossEntropy()

    # The dataclass of the states that a call may be given and gives back.
    state_type: ClassVar[type | None] = None
    # The numbers its inference is safe in, and what a rule of full precision would lose in half.
    precision: ClassVar[Precision] = "full"
    loses: ClassVar[str] = "inference loses its small differences"
    # Whether its gradients tend to the true ones in some limit; in feedback alignment they don't.
    approaches_gradient: ClassVar[bool] = True
    # Whether `statistics` tells the units that cross a kink, where its differences are off.
    crosses_kinks: ClassVar[bool] = False
    # Whether its elementwise work is given to `kernels`, and not left to PyTorch.
    uses_kernels: ClassVar[bool] = False
    # What to do where the loss or a gradient is not finite.
    remedy: ClassVar[str] = Outcome.remedy

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = settings.with_ranges(cls.__doc__ or "", settings.kinds(cls))

    @final
    def __post_init__(self) -> None:
        settings.conform(self)
        for conflict in self.conflicts():
            raise SettingError(conflict)

    def conflicts(self) -> Iterator[str]:
        """Why settings don't go together, each with the remedy. The first is raised."""
        return iter(())

    def check(self, network: Network) -> None:
        """Raise SettingError, naming the obstacle, where the rule can't work on this network."""
        return

    @abstractmethod
    def inference(self, problem: Problem) -> Settled:
        """Free pass, nudge and updates."""

    @abstractmethod
    def gradients_at(self, problem: Problem, settled: Settled) -> dict[str, Tensor]:
        """The gradients where inference ended: the batch's mean, for every trainable parameter."""

    def states_at(self, problem: Problem, settled: Settled) -> Any:
        """The states that `infer` returns. None for a rule that infers none."""
        return None

    def statistics_at(self, problem: Problem, settled: Settled) -> dict[str, Any]:
        """The numbers of `statistics`."""
        return {}

    def kept(self, state: Any) -> Any:
        """The part of a state that the next call needs."""
        return state

    def at_new_batch(self, state: Any) -> Any:
        """The part of a state that is kept where each batch resets it. None by default."""
        return None

    def needed_precision(self, problem: Problem) -> Precision:
        """The numbers its inference is safe in on this problem."""
        return self.precision

    @property
    def predicts_by_equilibrium(self) -> bool:
        """Whether `predict` settles states. `exact_gradients` is then the implicit one."""
        return False

    @property
    def keeps_state(self) -> bool:
        """Whether the next call should be given this call's `state`."""
        return False

    @property
    def needs_generator(self) -> bool:
        """Whether inference draws random numbers. By default, where its order of updates does."""
        return any(isinstance(part, AbstractSchedule) and part.is_random for part in vars(self).values())

    @property
    def needs_synapses(self) -> str:
        """What of it works only on synapses that are modules; empty where any model will do."""
        return ""

    @property
    def reads_layers(self) -> bool:
        """Whether it works on a network's layers, and not on its output alone."""
        return True

    @property
    def capture_obstacle(self) -> str:
        """Why a step by this rule can't be captured and replayed as it is; empty where it can."""
        return capturing.obstacle(self)

    @property
    def stacking_obstacle(self) -> str:
        """Why seeds can't step together by this rule as each would alone; empty where they can."""
        # What is decided by the whole batch, others' examples in the stack would decide too.
        return self.capture_obstacle

    def chosen_engine(self, depth: int | None) -> str:
        """The engine for a network of `depth` layers, or of any; empty where there is but one."""
        return ""

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The output that accuracies are taken of, (N, K). For most rules, the forward pass's."""
        return network.forward(x)

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The true gradient of the mean loss of `predict`, by trainable parameter. For most rules
        it is BP's, through the forward weights even where there are feedback ones."""
        return exact.gradients(network, x, y, self.loss)

    @final
    def __call__(
        self, network: Network, x: Tensor, y: Tensor, state: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean loss, shape (), whose `backward()` adds this rule's gradients into `.grad`.

        Arguments and errors are those of `gradients`; `loss.outcome` is its outcome (`delivery`).
        """
        return delivery.loss(network, x, y, partial(self._inferred, network, state, generator))

    @final
    def gradients(
        self, network: Network, x: Tensor, y: Tensor, state: Any = None, generator: torch.Generator | None = None
    ) -> Outcome:
        """Infer, and return gradients, loss, logits and state. No argument is changed.

        Args:
            x: (N, …) in the dtype of the parameters, or integers where the network embeds them.
            y: (N,) class indices or (N, K) target vectors; or what the loss reads.
            state: an earlier call's, where the rule keeps one.
            generator: for random draws; needed by rules that draw.

        Raises:
            SettingError: x, y or state of the wrong shape, or settings that don't fit the network.
            OutOfMemoryError: where memory is lacking; a RuntimeError too, as PyTorch's.
        """
        with asking(self, x):
            return self._outcome(self.problem(network, x, y, state, generator))

    def _inferred(self, network: Network, state: Any, generator: torch.Generator | None, x: Any, y: Any) -> delivery.Inferred:
        with asking(self, x):
            problem = self.problem(network, x, y, state, generator)
            return self._outcome(problem), problem.learning

    def _outcome(self, problem: Problem) -> Outcome:
        with torch.no_grad():
            settled = self.inference(problem)
            gradients = self.gradients_at(problem, settled)
            state = self.states_at(problem, settled) if self.state_type is not None else None
            return problem.outcome(gradients, state, self.remedy)

    @final
    def backward(
        self, network: Network, x: Tensor, y: Tensor, state: Any = None, generator: torch.Generator | None = None
    ) -> Outcome:
        """The same, and add the gradients into `.grad`, as `rule(…).backward()` does."""
        return delivery.deliver(network, x, y, partial(self._inferred, network, state, generator))

    @final
    def infer(self, network: Network, x: Tensor, y: Tensor, state: Any = None, generator: torch.Generator | None = None) -> Any:
        """The states where inference ended, as for `gradients`. SettingError if there are none."""
        if type(self).states_at is AbstractRule.states_at:
            raise SettingError(f"{type(self).__name__} infers no states. Use rule.gradients.")
        with torch.no_grad(), asking(self, x):
            problem = self.problem(network, x, y, state, generator, for_states=True)
            return self.states_at(problem, self.inference(problem))

    @final
    def statistics(
        self, network: Network, x: Tensor, y: Tensor, state: Any = None, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Numbers about one inference, for a training record. Empty where no states are inferred.

        "residual": how far one more pass would move the states, relative to how far inference has
        moved them (see `settling`). "kink_crossing": per layer, the share of units whose nudges
        cross a kink of the activation. There the states' difference is not the derivative.
        """
        with torch.no_grad(), asking(self, x):
            problem = self.problem(network, x, y, state, generator, for_states=True)
            return self.statistics_at(problem, self.inference(problem))

    @final
    def pack_state(self, state: Any) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint. Empty where the rule keeps none."""
        return packing.pack(self.kept(state)) if state is not None and self.keeps_state else {}

    @final
    def unpack_state(self, tensors: dict[str, Tensor]) -> Any:
        """The inverse of `pack_state`; None for no tensors."""
        return packing.unpack(self.state_type, tensors) if tensors and self.state_type is not None else None

    @final
    def problem(
        self, network: Network, x: Tensor, y: Tensor, state: Any, generator: torch.Generator | None, for_states: bool = False
    ) -> Problem:
        """The batch, checked for this rule and network."""
        return posed(self, network, x, y, state, generator, for_states)


run_as_written(*(getattr(AbstractRule, name) for name in ("__call__", "backward", "gradients", "infer", "statistics")))
