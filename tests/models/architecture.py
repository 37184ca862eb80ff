"""What an entry of the table of architectures holds, and how its inputs and targets are drawn.

N batch, C channels, H×W space, T positions, D features, K classes. The first dimension of every
input and target is N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = tuple[Any, ...] | dict[str, Any]
Draw = Callable[[int, torch.dtype], Tensor]


def itself(outputs: Any) -> Any:
    return outputs


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A small model as people write it, a batch for it, and its loss.

    Attributes:
        build: the model, in training mode.
        inputs: (N, dtype) → positional arguments (a tuple) or keyword arguments (a dict).
        targets: (N, dtype) → y.
        loss: (output, y) → the mean loss, a scalar.
        output: from what the model returns to the one tensor that the loss reads.
        seed: of the parameters, the batch and the draws in forward. No unit is at a kink there.
        ties_examples: an example's output depends on other examples (BatchNorm, a graph).
        is_random: forward draws random numbers in training.
        without_gradient: parameters that autograd gives no gradient on this batch.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.dtype], Inputs]
    targets: Draw
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    output: Callable[[Any], Tensor] = itself
    seed: int = 0
    ties_examples: bool = False
    is_random: bool = False
    without_gradient: tuple[str, ...] = ()
    notes: str = ""

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A new model; the same for each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build().to(dtype).train()

    def batch(self, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Inputs, Tensor]:
        """Inputs and targets; the same for each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + self.seed)
            return self.inputs(n, dtype), self.targets(n, dtype)

    def outputs(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        """What the model returns, its random draws from the seed."""
        torch.manual_seed(self.seed)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)

    def mean_loss(self, model: Callable[..., Any], inputs: Inputs, y: Tensor) -> Tensor:
        return self.loss(self.output(self.outputs(model, inputs)), y)


def example(batch: Any, i: int) -> Any:
    """Example i of inputs or targets, as a batch of one."""
    if isinstance(batch, dict):
        return {name: example(part, i) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(example(part, i) for part in batch)
    return batch[i : i + 1]


def normal(*shape: int) -> Callable[[int, torch.dtype], tuple[Tensor]]:
    """One positional input (N, *shape)."""
    return lambda n, dtype: (torch.randn(n, *shape, dtype=dtype),)


def tokens(length: int, vocabulary: int) -> Callable[[int, torch.dtype], tuple[Tensor]]:
    """One positional input (N, T) of integers."""
    return lambda n, dtype: (torch.randint(vocabulary, (n, length)),)


def classes(k: int, *shape: int) -> Draw:
    """Class indices (N, *shape)."""
    return lambda n, dtype: torch.randint(k, (n, *shape))


def values(*shape: int) -> Draw:
    """Real targets (N, *shape)."""
    return lambda n, dtype: torch.randn(n, *shape, dtype=dtype)


def per_position(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of logits (N, T, K) and classes (N, T), a mean over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())
