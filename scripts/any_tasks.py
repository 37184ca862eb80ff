"""What the models of `any_models` learn: CIFAR-10, and the characters of a text that ships with
Python.

A task's batch depends on its step and the seed alone, so that every rule meets the same batches.
N batch, T = 64 characters, V letters.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pydoc_data.topics import topics

import numpy as np
import torch
from any_models import GPT, ResNet18
from torch import Tensor, nn
from torch.nn import functional as F

from dualprop import data
from dualprop.training.recipe import Optimizer

LENGTH = 64  # of the texts that the GPT reads
ORDER, DRAWS = 0, 1  # kinds of random numbers


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        model: a new one, drawn from the global generator.
        batch: x and y of a step.
        terms: how many the mean loss of a batch has.
        optimizer: its one epoch is the whole run.
        measure: the name of what `held_out` returns, of a model in `eval()`.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    terms: int
    steps_per_epoch: int
    optimizer: Optimizer
    measure: str
    held_out: Callable[[nn.Module], float]


def generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def images(options: argparse.Namespace) -> Task:
    """CIFAR-10: 45,000 images to learn, and the test set."""
    splits, size, seed = data.load("cifar10", root=options.data, seed=options.seed), options.batch_size, options.seed
    augmentation, steps_per_epoch = data.Augmentation(pad=4, flip=True), len(splits.train) // size

    @functools.lru_cache(1)
    def order(epoch: int) -> Tensor:
        return torch.randperm(len(splits.train), generator=generator(seed, ORDER, epoch))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, steps_per_epoch)
        draws = augmentation.draw(size, generator(seed, DRAWS, step))
        return splits.train.batch(order(epoch)[number * size : (number + 1) * size], draws=draws)

    def accuracy(model: nn.Module) -> float:
        parts = [(model(x).argmax(1) == y).float().sum() for x, y in data.batches(splits.test, 250)]
        return float(sum(parts)) / len(splits.test)

    optimizer = Optimizer(
        name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, warmup_epochs=0.15, cosine=True
    )
    return Task(ResNet18, batch, size, steps_per_epoch, optimizer, "test accuracy", accuracy)


def characters(options: argparse.Namespace) -> Task:
    """Python's help texts, of which the last tenth is held out."""
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = {letter: code for code, letter in enumerate(sorted(set(text)))}
    codes = torch.tensor([letters[letter] for letter in text])
    train, rest = codes.tensor_split([len(codes) * 9 // 10])
    held_out = rest[: len(rest) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)

    def model() -> nn.Module:
        gpt = GPT(len(letters), length=LENGTH)
        for embedding in (gpt.tokens, gpt.places):
            nn.init.normal_(embedding.weight, std=0.02)  # as GPT-2's, whose output is tied too
        return gpt

    def batch(step: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(train) - LENGTH, (options.batch_size, 1), generator=generator(options.seed, DRAWS, step))
        windows = train[starts + torch.arange(LENGTH + 1)]
        return windows[:, :-1], windows[:, 1:]

    def loss(model: nn.Module) -> float:
        parts = [F.cross_entropy(model(part[:, :-1]), part[:, 1:], reduction="sum") for part in held_out.split(64)]
        return float(sum(parts)) / (len(held_out) * LENGTH)

    optimizer = Optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.1, warmup_epochs=0.05, cosine=True)
    terms = options.batch_size * LENGTH
    return Task(model, batch, terms, max(1, len(train) // terms), optimizer, "validation loss", loss)


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"resnet18": images, "gpt": characters}
DEFAULTS = {"resnet18": (700, 64), "gpt": (2500, 32)}  # steps, batch size
