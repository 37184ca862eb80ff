"""Time and memory of a step on two models that people have, by each rule, as ratios to BP's.

    python scripts/bench_any_model.py [--models resnet18 gpt] [--rounds 15] [--threads 2]

ResNet-18 in its CIFAR form at half width (32 × 32 × 3, batch 32, BatchNorm in training) and a
character GPT (4 layers of 128, 64 characters, batch 16). Neither is written for this library. All
rules and BP take turns in one process, in random order; a second BP tells the noise. Shown are
medians of the ratios over the rounds. Memory is the most bytes of tensors alive in a step.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable
from statistics import median

import torch
from any_models import GPT, ResNet18
from torch import Tensor, nn
from torch.nn import functional as F

import dualprop as dp


def problem(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    if name == "resnet18":
        return ResNet18(), torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    text = torch.randint(96, (16, 65))
    return GPT(), text[:, :-1], text[:, 1:]


def steps(name: str) -> dict[str, Callable[[], object]]:
    """A step by BP twice, by `dualize` and by each rule, each on a model of its own."""

    def by_loss(prepare: Callable[[nn.Module, Tensor], object]) -> Callable[[], object]:
        model, x, y = problem(name)
        prepare(model, y)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    def by(rule: dp.AbstractRule) -> Callable[[], object]:
        model, x, y = problem(name)
        network, optimizer = dp.Network.from_module(model), torch.optim.SGD(model.parameters(), lr=1e-6, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            rule(network, x, y).backward()
            optimizer.step()

        return step

    loss, beta = dp.losses.from_torch(nn.CrossEntropyLoss()), 0.1
    return {
        "BP": by_loss(lambda model, y: None),
        "BP again": by_loss(lambda model, y: None),
        "fused DP": by_loss(lambda model, y: dp.dualize(model, beta=beta, loss_reduction=y.numel())),
        "explicit DP⊤, α = 0": by(
            dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=beta, loss=loss)
        ),
        "explicit DP, α = ½": by(dp.DualPropagation(engine="explicit", beta=beta, loss=loss)),
        "centered EP of a PCN": by(dp.EquilibriumPropagation(beta=beta, loss=loss)),
    }


def peak(step: Callable[[], object]) -> float:
    """The most bytes of tensors that a step makes and holds at once."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    alive = most = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        alive += change
        most = max(most, alive)
    return float(most)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "gpt"], choices=["resnet18", "gpt"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    print("| model, step | time ÷ BP | range of the middle half | memory ÷ BP |\n|---|---|---|---|")
    for name in options.models:
        each = steps(name)
        for step in each.values():
            step()
        memory = {label: peak(step) for label, step in each.items()}
        times: dict[str, list[float]] = {label: [] for label in each}
        for _ in range(options.rounds):
            for label in random.sample(list(each), len(each)):
                began = time.perf_counter()
                each[label]()
                times[label].append(time.perf_counter() - began)
        print(f"| {name}, BP: {median(times['BP']):.3g} s | | | {memory['BP'] / 2**20:.0f} MiB |")
        for label, taken in times.items():
            ratios = sorted(t / bp for t, bp in zip(taken, times["BP"], strict=True))
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            print(
                f"| {name}, {label} | {median(ratios):.3f} | {low:.2f}–{high:.2f} | {memory[label] / memory['BP']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
