"""A training step on small networks: ours, pcx's and FabricPC's, on one thread, taking turns.

    python scripts/small_networks.py [--pcx PYTHON] [--fabricpc PYTHON] [--rounds 15] [--core 0]

`--pcx` and `--fabricpc` are the interpreters of environments that hold those packages, which can't
share one with each other. `small_networks_peers` makes their steps. All networks are of ReLU. The
energy of predictive coding is Σ ½‖h_k - f(a_k)‖², its output held at one-hot targets; the forward
pass starts it, its states move T times together, and Adam then moves the weights once.

Each contender is a process of its own with one thread on one core, begun anew with every start. In
each round every one takes some steps, in random order; told are medians over rounds and the middle
half of them, in processor time, which is wall time where nothing else runs on the core. "again" is
the first contender once more: its ratio is the noise. An epoch is 60,000 examples.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

# Network and batch size, by name; and the contenders on it.
NETS = {"784-128-128-128-10": ((784, 128, 128, 128, 10), 128), "64-256-256-10": ((64, 256, 256, 10), 50)}
PC = {"beta": 1.0, "step_size": 0.01, "momentum": 0.0, "loss": "squared_error"}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "BP": ("Backprop", {}),
    "DP": ("DualPropagation", {}),
    "DP⊤": ("DualPropagation", {"coupling": "transposed", "alpha": 0.0}),
    "EP": ("EquilibriumPropagation", {}),
    "PC T=8": ("PredictiveCoding", {**PC, "steps": 8}),
    "PC T=20": ("PredictiveCoding", {**PC, "steps": 20}),
}
HOW = ("replayed", "as it is")
PEERS = ("pcx", "FabricPC")
# One thread each, whatever a library would take.
THREADS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def own_step(net: str, rule: str, how: str) -> Callable[[], object]:
    """A step of the plain PyTorch loop, or of the trainer by a rule."""
    import torch

    import dualprop as dp
    from dualprop.bench import contenders
    from dualprop.models import MLP
    from dualprop.training.recipe import Optimizer, Recipe

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    widths, size = NETS[net]
    name, settings = RULES[rule if rule != "plain" else "BP"]
    recipe = Recipe(
        name="small", dataset="none", model=MLP(widths=widths[1:-1]), rule=getattr(dp.rules, name)(**settings),
        batch_size=size, optimizer=Optimizer(name="adam", learning_rate=1e-4), align=False,
        capture="on" if how == "replayed" else "off",
    )  # fmt: skip
    torch.manual_seed(0)
    model = recipe.build((widths[0],), widths[-1])
    x, y = torch.randn(size, widths[0]), torch.randint(widths[-1], (size,))
    return contenders.plain_step(model, recipe, x, y) if rule == "plain" else contenders.rule_step(model, recipe, x, y)


def work(net: str, rule: str, how: str) -> None:
    """For each number that is read take as many steps, and tell the seconds of one."""
    if how in PEERS:
        import small_networks_peers

        widths, size = NETS[net]
        step = small_networks_peers.STEPS[how](widths, size, PC["step_size"], RULES[rule][1]["steps"])
    else:
        step = own_step(net, rule, how)
    began = time.perf_counter()
    for _ in range(5):
        step()
    print(json.dumps(time.perf_counter() - began), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        for _ in range(int(line)):
            step()
        print(json.dumps((time.process_time() - began) / int(line)), flush=True)


class Worker:
    """A contender's process."""

    def __init__(self, python: str, contender: tuple[str, str, str], core: int) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        command = ["taskset", "-c", str(core), python, __file__, "--work", *contender]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | THREADS | {"PYTHONPATH": root}, **pipes)
        self.warm_up = self.answer()

    def ask(self, steps: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> float:
        assert self.process.stdout is not None
        return float(json.loads(self.process.stdout.readline()))


def contenders_of(net: str, pythons: dict[str, str]) -> dict[str, tuple[str, tuple[str, str, str]]]:
    """By label, the interpreter and what to run there."""
    entries = dict.fromkeys(("plain PyTorch BP", "again"), (sys.executable, (net, "plain", "as it is")))
    for rule in RULES:
        for how in HOW:
            entries[f"{rule}, {how}"] = sys.executable, (net, rule, how)
        for peer in PEERS:
            if rule.startswith("PC") and pythons[peer]:
                entries[f"{rule}, {peer}"] = pythons[peer], (net, rule, peer)
    return entries


def measure(net: str, options: argparse.Namespace) -> None:
    """Print the table of one network."""
    entries = contenders_of(net, {"pcx": options.pcx, "FabricPC": options.fabricpc})
    entries = {
        label: entry for label, entry in entries.items() if options.only in label or label in ("plain PyTorch BP", "again")
    }
    workers = {label: Worker(*entry, options.core) for label, entry in entries.items()}
    times: dict[str, list[float]] = {label: [] for label in workers}
    shuffle = random.Random(0)
    for _ in range(options.rounds):
        for label in shuffle.sample(list(workers), len(workers)):
            times[label].append(workers[label].ask(options.steps))
    size = NETS[net][1]
    print(f"\n{net}, batch {size}\n\n| step | ms | middle half | s an epoch | of plain BP | middle half | first 5 steps, s |")
    print("|---|---|---|---|---|---|---|")
    for label, taken in times.items():
        ratios = [own / plain for own, plain in zip(taken, times["plain PyTorch BP"], strict=True)]
        low, middle, high = quantiles([1e3 * each for each in taken], n=4)
        least, ratio, most = quantiles(ratios, n=4)
        cells = [
            f"{middle:.2f}",
            f"{low:.2f}–{high:.2f}",
            f"{middle * 60 / size:.1f}",
            f"{ratio:.2f}",
            f"{least:.2f}–{most:.2f}",
        ]
        print(f"| {label} | {' | '.join(cells)} | {workers[label].warm_up:.1f} |")
    for worker in workers.values():
        worker.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pcx", default="", metavar="PYTHON", help="of an environment with pcx")
    parser.add_argument("--fabricpc", default="", metavar="PYTHON", help="of an environment with fabricpc")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="that each takes in a round")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="contenders whose label holds this")
    parser.add_argument("--net", default="", metavar="TEXT", help="networks whose name holds this")
    options = parser.parse_args()
    for net in (net for net in NETS if options.net in net):
        measure(net, options)


if __name__ == "__main__":
    work(*sys.argv[2:]) if sys.argv[1:2] == ["--work"] else main()
