"""The options of `dualprop bench` and of `bench.measure`, and the lists of words that they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from dualprop.errors import SettingError, closest
from dualprop.settings import Count, Threads

# A part of a table as plain values; what is told of all groups so far, after each slow part; and
# what measures a table and yields each group that is done.
Group = dict[str, Any]
Keep = Callable[[list[Group]], None]
Measure = Callable[[Keep], Iterator[Group]]
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class BenchOptions:
    """Measure training steps of dual propagation by its engines, or of --rules, as ratios to a
    plain PyTorch loop.

    In each round every contender takes one step, in random order; a ratio is the median over the
    rounds of its time by the plain loop's in the same round. The plain loop runs a second time
    among them: its ratio is the noise. How to read the tables: docs/benchmarks.md.

    Attributes:
        table: "steps": time, memory and speed of every contender; "settling": transposed DP by L
            bottom-up passes and by one downward sweep, gradients and cost; "relaxations":
            equilibrium propagation by error sweeps, by even/odd iterations and to a residual,
            gradients and cost; "loader": how fast batches of images are made; "runtime": seconds
            per epoch of CIFAR-10 by each method on the network of its own recipe, beside
            back-propagation there.
        models: names with commas between, of: mlp (784-1000-1000-1000-10); conv (3×3
            convolutions 32-64-128, max-pool before ReLU), conv-after (max-pool after ReLU),
            conv-stride (no pool, stride 2); vgg16 (max-pool after ReLU), vgg16-before, vgg5
            (before), vgg5-after, vgg10 (before), vgg10-after, vgg10-skip; hopfield (convolutions
            128-256-512-512, hard sigmoid); images are 3×32×32.
        rules: names with commas between (`dualprop list variants`), or "all"; by default dp and
            dp-transposed, by every engine (runtime: those that have a recipe there, by default
            all).
        alphas: numbers with commas between, for every rule that has an alpha; by default each has
            its own (settling: 0 and 1).
        betas: numbers with commas between, of the table of relaxations.
        run: a run folder, whose network, best weights so far and training examples the table of
            relaxations takes instead of --models, initial weights and noise; of its first seed.
        data: folder of that run's data set; by default $DUALPROP_DATA, then the download cache.
        engines: names with commas between, of: explicit and fused (by the trainer's step),
            dualized (`dp.dualize` in the plain loop), dualized-keeping (which keeps the states that
            it else computes again), explicit-captured and fused-captured (as a graph), and
            each of the first three with -native (C), -compiled (inductor, which takes half a minute
            at first) or -eager, the kernel of elementwise work; "captured", "native", … for all
            that end so. By default explicit, fused, dualized and, on GPUs, captured, the kernel
            being what suits the device.
        precisions: names with commas between, of: float32, tf32, bfloat16.
        channels_last: the memory format of images: "on", "off", or "auto", which suits the device.
        rounds: how many at most.
        seconds: of timing for each model and precision; at least five rounds are taken, however
            long.
        batch_size: examples per step.
        threads: of the CPU; 0 leaves PyTorch's choice.
        device: "cpu", "cuda", or another PyTorch device.
        memory: also measure peak memory, each contender in a fresh process.
        ceilings: also measure what the machine reaches in a large matrix product and in the model's
            own operations alone.
        out: also write the numbers, with the environment, to this JSON file, and a figure beside
            it.
        figure: where the figure goes instead, a PNG file.
    """

    table: str = "steps"
    models: str = "mlp,conv,conv-stride"
    rules: str = ""
    alphas: str = ""
    betas: str = ""
    run: Path | None = None
    data: Path | None = None
    engines: str = ""
    precisions: str = "float32"
    channels_last: str = "auto"
    rounds: Count = 100
    seconds: Annotated[float, Interval(ge=0, le=10**6)] = 20
    batch_size: Count = 100
    threads: Threads = 0
    device: str = "cpu"
    memory: bool = True
    ceilings: bool = True
    out: Path | None = None
    figure: Path | None = None


def parse_names(text: str, kind: str, choices: Sequence[str]) -> list[str]:
    """The choices that `text` names with commas between. Raises SettingError for an unknown one."""
    names = text.split(",")
    for name in names:
        if name not in choices:
            raise SettingError(f"unknown {kind} '{name}'.{closest(name, list(choices))} Known: {', '.join(choices)}.")
    if len(set(names)) != len(names):
        raise SettingError(f"--{kind}s names one twice: {text}. Name each once.")
    return names


def parse_precisions(text: str) -> list[str]:
    """The precisions that `text` names with commas between. Raises SettingError."""
    return parse_names(text, "precision", PRECISIONS)


def parse_alphas(text: str) -> list[float]:
    """Numbers in [0, 1] with commas between. Raises SettingError for anything else."""
    alphas = _numbers(text, "alphas", "0,0.5,1")
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise SettingError(f"alphas must be in [0, 1], got '{text}'.")
    return alphas


def parse_betas(text: str) -> list[float]:
    """Positive numbers with commas between. Raises SettingError for anything else."""
    betas = _numbers(text, "betas", "0.02,0.05")
    if not all(0 < beta < math.inf for beta in betas):
        raise SettingError(f"betas must be positive and finite, got '{text}'.")
    return betas


def _numbers(text: str, kind: str, example: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise SettingError(f"{kind} must be numbers with commas between, got '{text}'. Try --{kind} {example}.") from None
