"""What seeds that step together take beside the same seeds in turn, by network and rule: a table in
Markdown.

    taskset -c 1 env OMP_NUM_THREADS=1 python scripts/stacked_seeds.py [--seeds 5] [--rounds 8]

Steps of the trainer, with Adam, on random batches. Both are timed in turn, round by round, in
seconds of the processor; the table holds milliseconds and medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dualprop.bench import contenders
from dualprop.models import MLP
from dualprop.network.stacked import stack
from dualprop.rules import AbstractRule, Backprop, DualPropagation, PredictiveCoding
from dualprop.training import Recipe, execution

# Inputs, widths, batch, and the steps of a round.
NETWORKS = (
    (64, (32,), 50, 40),
    (64, (256, 256), 50, 12),
    (784, (128, 128, 128), 128, 8),
    (784, (512, 512), 50, 5),
    (784, (512, 512), 100, 3),
    (784, (1000, 1000, 1000), 100, 1),
)
RULES: dict[str, AbstractRule[Any]] = {"BP": Backprop(), "DP": DualPropagation(), "PC, 8 steps": PredictiveCoding(steps=8)}


def stepping(recipe: Recipe, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """A step of the model on that batch."""
    step = contenders.trainer_step(model, recipe)
    return lambda: step(*batch)


def milliseconds(step: Callable[[], object], number: int) -> float:
    """Of the processor, by each of so many steps."""
    began = time.process_time()
    for _ in range(number):
        step()
    return (time.process_time() - began) / number * 1e3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=8)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print("| network | batch | rule | together (ms) | in turn (ms) | ratio |")
    print("|---" * 6 + "|")
    for inputs, widths, size, number in NETWORKS:
        for label, rule in RULES.items():
            recipe = Recipe(name="stacked", dataset="none", model=MLP(widths), rule=rule, batch_size=size)
            models = [execution.resolve(recipe).place(recipe.build((inputs,), 10)) for _ in range(chosen.seeds)]
            x, y = torch.randn(size * chosen.seeds, inputs), torch.randint(10, (size * chosen.seeds,))
            batches = zip(x.split(size), y.split(size), strict=True)
            alone = [stepping(recipe, *each) for each in zip(models, batches, strict=True)]
            together, in_turn = stepping(recipe, stack(models), (x, y)), lambda alone=alone: [step() for step in alone]
            times = [(milliseconds(together, number), milliseconds(in_turn, number)) for _ in range(1 + chosen.rounds)][1:]
            ours, theirs = (median(each) for each in zip(*times, strict=True))
            ratio = median(a / b for a, b in times)
            name = "-".join(map(str, (inputs, *widths, 10)))
            print(f"| {name} | {size} | {label} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
