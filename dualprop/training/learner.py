"""What of a seed learns: its model, the optimizer, the rule's state, two generators, and the sums
of the epoch. All of it is in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.data import Examples, Splits
from dualprop.errors import DualpropError
from dualprop.network import Network
from dualprop.network.running import unnoticed
from dualprop.rules import nudging
from dualprop.training import averaging, checkpoint, monitoring, optimization, weights
from dualprop.training.checkpoint import Checkpoint
from dualprop.training.evaluation import Score, evaluate
from dualprop.training.execution import Execution
from dualprop.training.recipe import Recipe
from dualprop.training.step import drawing


class Learner:
    """Of one seed.

    Attributes:
        model, network, optimizer: in a stack their tensors are views of the stack's.
        average: the running mean of the weights, None where there is none.
        rule_state: what the rule keeps for the next batch.
        order, inference: draw the examples' order, and what the rule draws. Two streams: the order
            of the examples is the same whatever the rule draws.
        order_at_epoch: the state of `order` before this epoch drew from it.
        loss_sum, num_correct: over the epoch so far, shape ().
    """

    def __init__(self, recipe: Recipe, seed: int, splits: Splits, how: Execution) -> None:
        self.recipe, self.seed, self.how, self.task = recipe, seed, how, splits.task
        self.model = weights.initial_model(recipe, seed, splits)
        self.network = Network.from_module(self.model)
        self.average = averaging.running_mean(self.model, recipe.averaging)
        self.tested = self.network if self.average is None else Network.from_module(self.average.module)
        self.optimizer = optimization.build(recipe.optimizer, self.model, capturable=how.captured)
        self.rule_state: Any = None
        self.order = torch.Generator().manual_seed(seed)
        self.order_at_epoch = self.order.get_state()
        self.inference = torch.Generator().manual_seed(seed + 2**32)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=recipe.device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=recipe.device)

    def share_sums(self, loss_sum: Tensor, num_correct: Tensor) -> None:
        """Have the sums in this memory, where they stand."""
        self.loss_sum, self.num_correct = loss_sum.copy_(self.loss_sum), num_correct.copy_(self.num_correct)

    def reset_sums(self) -> None:
        """Begin the sums anew."""
        self.loss_sum.zero_()
        self.num_correct.zero_()

    @property
    def tested_model(self) -> nn.Module:
        """The model that is validated and tested."""
        return self.model if self.average is None else self.average.module

    @property
    def models(self) -> list[nn.Module]:
        """The model, and that of its average, where there is one."""
        return [self.model, *([] if self.average is None else [self.average.module])]

    def evaluate(self, examples: Examples, views: str = "none") -> Score:
        """The tested model's score on these examples."""
        rule = self.recipe.rule
        return evaluate(
            self.tested_model,
            examples,
            rule.loss,
            self.how,
            self.task,
            predict=lambda x: rule.predict(self.tested, x),
            views=views,
        )

    def crossing(self, splits: Splits) -> list[float]:
        """By hidden layer, the share of units that the rule's nudge takes across a kink, on a few
        examples; none where it can't be told."""
        if not self.recipe.rule.crosses_kinks:
            return []
        x, y = self._batch(splits.train)
        with self.how.computing(), drawing(self.recipe, self.seed, 0):
            try:
                return nudging.shares(self.recipe.rule, self.network, x, y)
            except DualpropError:
                return []

    def statistics(self, splits: Splits) -> dict[str, Any]:
        """What the rule does on one batch, see `monitoring`: a full one, which the states of
        another fit."""
        size, validation = self.recipe.batch_size, splits.validation
        examples = validation if len(validation) >= size else splits.train
        x, y = self._batch(examples)
        with self.how.computing(), unnoticed(self.model, x), drawing(self.recipe, self.seed, 0):
            return monitoring.of_rule(
                self.network, self.recipe.rule, x, y, self.rule_state, self.seed, self.recipe.updates_per_batch
            )

    def _batch(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """The first examples, as many as a step takes."""
        first = torch.arange(self.recipe.batch_size)
        return examples.batch(first, self.how.inputs, channels_last=self.how.channels_last)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        rule_state = self.recipe.rule.pack_state(self.rule_state)
        return {
            **checkpoint.model_tensors(self.model),
            **({} if self.average is None else checkpoint.model_tensors(self.average, "average")),
            **checkpoint.optimizer_tensors(self.optimizer),
            **{f"rule.{name}": tensor for name, tensor in rule_state.items()},
            "order": self.order_at_epoch,
            "inference": self.inference.get_state(),
            "loss_sum": self.loss_sum,
            "num_correct": self.num_correct,
        }

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Become what a checkpoint holds, that was read from there."""
        checkpoint.restore_model(self.model, saved, path)
        if self.average is not None:
            checkpoint.restore_model(self.average, saved, path, "average")
        checkpoint.restore_optimizer(self.optimizer, saved)
        # Copied: products round by where their operands lie in memory, and those of a file lie
        # anywhere.
        rule_state = {name: tensor.to(self.recipe.device, copy=True) for name, tensor in saved.under("rule").items()}
        self.rule_state = self.recipe.rule.unpack_state(rule_state)
        self.order.set_state(saved.tensors["order"])
        self.order_at_epoch = self.order.get_state()
        self.inference.set_state(saved.tensors["inference"])
        self.loss_sum.copy_(saved.tensors["loss_sum"])
        self.num_correct.copy_(saved.tensors["num_correct"])
