"""Whether a step has become slower or larger from one checkout to another: both take turns.

    python scripts/bench_commits.py BEFORE AFTER [--restarts 5] [--only TEXT]     # two checkouts

For each setting three processes step in turns, in random order: BEFORE, AFTER, and BEFORE again,
which tells the noise. They are started anew several times, since where a process's memory lies
makes more of a difference than the code does. Shown are the medians over the starts, of the medians
over the rounds, of the ratios of times, and their range. Memory is the most bytes of tensors alive
in two steps, of a process's first steps. The tiny network's step is all overhead: Python's work,
which is all that can differ where the numbers and counts are the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

SETTINGS = ("DP fused", "DP explicit", "DP⊤ explicit", "EP", "PC")
# With their batch sizes, and rounds a start.
MODELS = {"tiny": (4, 400), "mlp": (100, 40), "conv": (100, 12), "vgg16": (20, 6)}


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
        "tiny": (MLP((8, 8, 8)), (8,)),
        "mlp": (MLP((1000, 1000, 1000)), (784,)),
        "conv": (ConvNet((32, 64, 128)), (3, 32, 32)),
        "vgg16": (vgg16("after"), (3, 32, 32)),
    }[model_name]
    model = subject.build(shape, 10)
    number, _ = MODELS[model_name]
    x, y = torch.randn(number, *shape), torch.randint(10, (number,))
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
    """The most bytes of tensors made in two steps and alive at once."""
    import torch

    # Two steps, and no collector between: what was left before them is freed in the first.
    gc.collect()
    gc.disable()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
        step()
    gc.enable()
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


def ratios(name: str, before: Path, after: Path, shuffle: random.Random) -> tuple[float, float, float, float]:
    """Of one start: AFTER's time and BEFORE's again by BEFORE's, AFTER's memory by BEFORE's, and
    BEFORE's time in milliseconds."""
    workers = {"before": Worker(before), "after": Worker(after), "again": Worker(before)}
    memory = {label: worker.ask(name) for label, worker in workers.items()}
    times: dict[str, list[float]] = {label: [] for label in workers}
    for _ in range(MODELS[name.partition("|")[0]][1] + 2):
        for label in shuffle.sample(list(workers), len(workers)):
            times[label].append(workers[label].ask("go"))
    for worker in workers.values():
        worker.process.kill()
    each = {label: median(taken[i] / times["before"][i] for i in range(2, len(taken))) for label, taken in times.items()}
    return each["after"], each["again"], memory["after"] / memory["before"], 1e3 * median(times["before"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--only", default="", help="settings whose name holds this text")
    options = parser.parse_args()
    shuffle = random.Random(0)
    print("| model, rule | ms before | time after ÷ before | range | before again | range | memory |")
    print("|---|---|---|---|---|---|---|")
    for name in (f"{model}|{rule_name}" for model in MODELS for rule_name in SETTINGS):
        if options.only not in name:
            continue
        starts = [ratios(name, options.before, options.after, shuffle) for _ in range(options.restarts)]
        after, again, memory, milliseconds = zip(*starts, strict=True)
        cells = [f"{median(milliseconds):.3g}", f"{median(after):.3f}", f"{min(after):.2f}–{max(after):.2f}"]
        cells += [f"{median(again):.3f}", f"{min(again):.2f}–{max(again):.2f}", f"{median(memory):.3f}"]
        print(f"| {name.replace('|', ', ')} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
