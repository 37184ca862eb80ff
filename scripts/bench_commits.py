"""Whether a step has become slower or larger from one checkout to another: both take turns in one
run.

    python scripts/bench_commits.py BEFORE AFTER [--rounds 40] [--only TEXT]     # two checkouts

A worker process for each checkout holds its models. They step in turns, in random order, on the
same threads; a third worker, on BEFORE again, tells the noise. Shown are the medians over the
rounds of the ratios of times, and the ratio of the most bytes of tensors alive in a step, which is
exact.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

SETTINGS = ("DP fused", "DP explicit", "DP⊤ explicit", "EP", "PC")
MODELS = {"mlp": 100, "conv": 100, "vgg16": 20}  # with their batch sizes


def rule(name: str) -> Any:
    """The rule of that name, in words that every version reads."""
    import dualprop as dp

    if name.startswith("DP"):
        settings = {"coupling": "transposed", "alpha": 0.0} if "⊤" in name else {}
        return dp.DualPropagation(engine=name.rpartition(" ")[2], **settings)
    return dp.EquilibriumPropagation() if name == "EP" else dp.PredictiveCoding(steps=5)


def step_of(model_name: str, rule_name: str) -> Any:
    """A training step as a function without arguments."""
    import torch

    import dualprop as dp
    from dualprop.models import MLP, ConvNet, vgg16

    torch.manual_seed(0)
    subject, shape = {
        "mlp": (MLP((1000, 1000, 1000)), (784,)),
        "conv": (ConvNet((32, 64, 128)), (3, 32, 32)),
        "vgg16": (vgg16("after"), (3, 32, 32)),
    }[model_name]
    model = subject.build(shape, 10)
    x, y = torch.randn(MODELS[model_name], *shape), torch.randint(10, (MODELS[model_name],))
    if x.dim() == 4:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    network, made = dp.Network.from_module(model), rule(rule_name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        made.backward(network, x, y)
        optimizer.step()

    return step


def peak(step: Any) -> float:
    """The most bytes of tensors made in a step and alive at once."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")  # type: ignore[union-attr]
    alive = most = 0
    for _, change in events:
        alive += change
        most = max(most, alive)
    return float(most)


def work() -> None:
    """A worker: for each line "model|rule" make that step; for each "go" take it and say how long
    it took."""
    import torch

    torch.set_flush_denormal(True)
    step = None
    for line in sys.stdin:
        if line.strip() != "go":
            step = step_of(*line.strip().split("|"))
            step()
            print(json.dumps(peak(step)), flush=True)
            continue
        assert step is not None
        began = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - began), flush=True)


class Worker:
    """A process that imports the package from one checkout."""

    def __init__(self, checkout: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, __file__, "--work"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=checkout, **pipes)

    def ask(self, line: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="settings whose name holds this text")
    options = parser.parse_args()
    workers = {"before": Worker(options.before), "after": Worker(options.after), "again": Worker(options.before)}
    shuffle = random.Random(0)
    print("| model, rule | time after ÷ before | quartiles | before again | memory after ÷ before |")
    print("|---|---|---|---|---|")
    for name in (f"{model}|{rule_name}" for model in MODELS for rule_name in SETTINGS):
        if options.only not in name:
            continue
        memory = {label: worker.ask(name) for label, worker in workers.items()}
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds + 2):
            order = shuffle.sample(list(workers), len(workers))
            rounds.append({label: workers[label].ask("go") for label in order})
        ratios, noise = ([each[label] / each["before"] for each in rounds[2:]] for label in ("after", "again"))
        low, _, high = quantiles(ratios, n=4)
        told = f"{median(ratios):.3f} | {low:.2f}–{high:.2f} | {median(noise):.3f} | {memory['after'] / memory['before']:.3f}"
        print(f"| {name.replace('|', ', ')} | {told} |", flush=True)
    for worker in workers.values():
        worker.process.kill()


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
