"""Seeds that step together: one alone, or all of a run as one stack.

A stack has a place for each seed of the run, for as long as the run lasts. So its products have the
same shapes whoever is in it, and a seed's numbers are the same, bit for bit, however often the run
is killed and resumed. Seeds that a kill left behind catch up first; the places of the others hold
zeros meanwhile, and so do those of seeds whose training is over.

A seed that enters gives its weights and the optimizer's state to its place, and its own tensors
become views of that: a step of the stack is then its step too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dualprop.network import Network
from dualprop.network.stacked import stack
from dualprop.rules import Outcome
from dualprop.training import optimization, step
from dualprop.training.capture import CapturedStep, TrainingStep, graph_on
from dualprop.training.execution import Execution
from dualprop.training.learner import Learner
from dualprop.training.recipe import Recipe


class Learning(Protocol):
    """Who steps: a run's seed, or another that learns by the same steps.

    Attributes:
        seed: its number.
        learner: what of it learns.
        recipe: as it is computed.
        num_steps: that are done in all.
    """

    seed: int
    learner: Learner
    recipe: Recipe
    steps_per_epoch: int

    @property
    def num_steps(self) -> int: ...

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The batch of the next step."""

    def learned(self, outcomes: list[Outcome], rate: float, model: int, sharing: int) -> None:
        """Note that a step was taken with these outcomes, of which its own are those of `model`,
        by `sharing` together."""

    def save(self) -> None:
        """Do what is due after a step."""


class AbstractSteps(ABC):
    """Takes the steps of some seeds, all at the same moment of their training.

    Attributes:
        state, generator: what the rule has kept, and what it draws from.
        loss_sum, num_correct: of each place over the epoch so far, (number of places,).
    """

    def __init__(self, recipe: Recipe, how: Execution, network: Network, optimizer: torch.optim.Optimizer) -> None:
        self.recipe, self.how, self.network, self.optimizer = recipe, how, network, optimizer
        self.state: Any = None
        self.generator: torch.Generator | None = None
        self.step: TrainingStep = self._uncaptured
        if how.captured:
            self.step = CapturedStep(self._uncaptured, recipe, graph_on(torch.device(recipe.device)))
        self.loss_sum = torch.zeros(network.num_models, dtype=torch.float64, device=recipe.device)
        self.num_correct = torch.zeros(network.num_models, dtype=torch.int64, device=recipe.device)

    @abstractmethod
    def place(self, seed: Learning) -> int:
        """Which of the models is the seed's."""

    @abstractmethod
    def gather(self, seeds: Sequence[Learning]) -> tuple[Tensor, Tensor]:
        """Their next batches as one; the rule's state is then of them."""

    @abstractmethod
    def spread(self, seeds: Sequence[Learning]) -> None:
        """Give the seeds what a step has made, the rule's state."""

    @abstractmethod
    def leave(self, seed: Learning) -> None:
        """Let go of a seed whose training is over."""

    def take(self, seeds: Sequence[Learning]) -> None:
        """One step of each of the seeds."""
        recipe, first = self.recipe, seeds[0]
        x, y = self.gather(seeds)
        rate = optimization.learning_rate(recipe.optimizer, first.num_steps, first.steps_per_epoch, recipe.epochs)
        optimization.set_learning_rate(self.optimizer, rate)
        with step.drawing(recipe, first.seed, first.num_steps):
            outcomes, self.state = self.step(x, y, self.state)
        self._add_up(outcomes[0], y)
        self.spread(seeds)
        for seed in seeds:
            seed.learned(outcomes, rate, self.place(seed), sharing=len(seeds))
        # Apart: an epoch's seconds are of its steps, and not of what ends another seed's.
        for seed in seeds:
            seed.save()

    def _add_up(self, outcome: Outcome, y: Tensor) -> None:
        losses = outcome.loss if outcome.losses is None else outcome.losses
        self.loss_sum += losses * self.recipe.batch_size
        # Numbers and labels are right by degrees.
        if y.dim() == 1:
            self.num_correct += (outcome.logits.argmax(1) == y).view(len(self.num_correct), -1).sum(1)

    def _uncaptured(self, x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        # The context is entered here: what autocast keeps in it belongs to one step, captured or
        # not.
        with self.how.computing():
            return step.training_step(self.recipe, self.network, self.optimizer, x, y, state, self.generator)


class Alone(AbstractSteps):
    """One seed steps by itself."""

    def __init__(self, recipe: Recipe, how: Execution, seed: Learning) -> None:
        # With the weights of its classes, where it has some.
        super().__init__(seed.recipe, how, seed.learner.network, seed.learner.optimizer)
        seed.learner.share_sums(self.loss_sum[0], self.num_correct[0])
        self.generator = seed.learner.inference

    def place(self, seed: Learning) -> int:
        return 0

    def gather(self, seeds: Sequence[Learning]) -> tuple[Tensor, Tensor]:
        self.state = seeds[0].learner.rule_state
        return seeds[0].next_batch()

    def spread(self, seeds: Sequence[Learning]) -> None:
        seeds[0].learner.rule_state = self.state

    def leave(self, seed: Learning) -> None:
        """It is the only one."""


class Stack(AbstractSteps):
    """Seeds step as one model, each in its place: that of its number among `numbers`."""

    def __init__(self, recipe: Recipe, how: Execution, numbers: Sequence[int], like: Learning) -> None:
        self.numbers, self.inside = list(numbers), set[int]()
        self.model = stack([like.learner.model] * len(numbers))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
        optimizer = optimization.build(recipe.optimizer, self.model, capturable=how.captured)
        super().__init__(recipe, how, Network.from_module(self.model), optimizer)

    def place(self, seed: Learning) -> int:
        return self.numbers.index(seed.seed)

    def gather(self, seeds: Sequence[Learning]) -> tuple[Tensor, Tensor]:
        entering = [seed for seed in seeds if seed.seed not in self.inside]
        for seed in entering:
            self._enter(seed)
        self.state = self._states(seeds) if entering else self.state
        drawn = {self.place(seed): seed.next_batch() for seed in seeds}
        spare = next(iter(drawn.values()))
        batches = [drawn.get(place, spare) for place in range(len(self.numbers))]
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def spread(self, seeds: Sequence[Learning]) -> None:
        packed, num_places = self.recipe.rule.pack_state(self.state), len(self.numbers)
        kept = {name: t.chunk(num_places) if t.dim() else [t] * num_places for name, t in packed.items()}
        for seed in seeds:
            place = self.place(seed)
            seed.learner.rule_state = self.recipe.rule.unpack_state({name: parts[place] for name, parts in kept.items()})
            # A first step has made the optimizer's state.
            if self.optimizer.state and not seed.learner.optimizer.state:
                self._share_state(seed)

    def leave(self, seed: Learning) -> None:
        self.inside.discard(seed.seed)
        for own, stacked, place in self._pairs(seed):
            own.data = own.detach().clone()
            stacked.data[place].zero_()

    def _enter(self, seed: Learning) -> None:
        self.inside.add(seed.seed)
        for own, stacked, place in self._pairs(seed):
            stacked.data[place].copy_(own.detach())
            own.data = stacked.data[place]
            for name, value in seed.learner.optimizer.state.get(own, {}).items():
                state = self.optimizer.state[stacked]
                if value.dim() == 0:  # the number of steps, which is the same for all who step
                    state.setdefault(name, value.clone()).copy_(value)
                else:
                    state.setdefault(name, torch.zeros_like(stacked))[place].copy_(value)
        place = self.place(seed)
        seed.learner.share_sums(self.loss_sum[place], self.num_correct[place])
        self._share_state(seed)

    def _share_state(self, seed: Learning) -> None:
        """Have the seed's optimizer hold its part of the state, once there is one."""
        for own, stacked, place in self._pairs(seed):
            if state := self.optimizer.state.get(stacked):
                parts = {name: value if value.dim() == 0 else value[place] for name, value in state.items()}
                seed.learner.optimizer.state[own] = parts

    def _pairs(self, seed: Learning) -> Iterator[tuple[nn.Parameter, nn.Parameter, int]]:
        """Each parameter of the seed, that of the stack, and the seed's place in it."""
        place = self.place(seed)
        return (
            (own, theirs, place) for own, theirs in zip(seed.learner.model.parameters(), self.model.parameters(), strict=True)
        )

    def _states(self, seeds: Sequence[Learning]) -> Any:
        """The rule's states of all places as one: each a batch's."""
        rule, places = self.recipe.rule, range(len(self.numbers))
        kept = {self.place(seed): rule.pack_state(seed.learner.rule_state) for seed in seeds}
        first = next(iter(kept.values()))
        zeros = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
        stacked = {name: torch.cat([kept.get(place, zeros)[name] for place in places]) for name, t in first.items() if t.dim()}
        return rule.unpack_state(first | stacked)
