"""What this machine can reach: GFLOP/s of a large matrix product, and of a model's own operations.

The second is the fairer ceiling. Were a back-propagation step nothing but its convolutions and
matrix products, each as fast as it is alone, it would run at

    Σ_i FLOPs_i / Σ_i t_i

with t_i the least time of operation i over repetitions and over the two memory formats, contiguous
and channels-last. A step that hides layout conversions, elementwise work and the optimizer reaches
it; it passes it only by fusing, or where it finds in the cache what the isolated operation fetches.
Ceilings are the best of several repetitions and steps are medians: on a shared machine the share
errs to the low side.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualprop.bench.flops import Operation, Shape

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Sides of the square matrices: smaller ones don't fill the machine, larger ones take seconds.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
MOST_REPEATS, MOST_SECONDS = 10, 0.1


@dataclass(frozen=True)
class Ceilings:
    """GFLOP/s.

    Attributes:
        matmul: of the best square matrix product, whose side is `matmul_side`.
        model: of the model's operations one after another, each alone, in its best format.
        kinds: the same over the operations of one kind: convolutions, their input gradients, …
        operations: per distinct operation: what it is, how often a step has it, its FLOPs, and
            GFLOP/s in each memory format.
    """

    matmul: float
    matmul_side: int
    model: float
    kinds: dict[str, float]
    operations: list[dict[str, Any]]


def measure(operations: Counter[Operation], dtype: torch.dtype, device: str, sides: tuple[int, ...] = ()) -> Ceilings:
    """Time a large matrix product and every distinct operation of a step, on factors of `dtype`.

    The product is the best of these sides. Whether a GPU rounds float32 factors to TF32 is the
    process's setting.
    """
    with torch.no_grad():
        sides = sides or SIDES["cuda" if device.startswith("cuda") else "cpu"]
        speed, side = max((_square_product(side, dtype, device), side) for side in sides)
        flops: defaultdict[str, float] = defaultdict(float)
        seconds: defaultdict[str, float] = defaultdict(float)
        rows = []
        for operation, number in operations.items():
            has_images = any(isinstance(each, Shape) and len(each.size) == 4 for each in operation.arguments)
            formats = FORMATS if has_images else {"contiguous": torch.contiguous_format}
            times = {name: _alone(operation, form, dtype, device) for name, form in formats.items()}
            flops[operation.kind] += number * operation.flops
            seconds[operation.kind] += number * min(times.values())
            rows.append(
                {"what": str(operation), "times_a_step": number, "flops": operation.flops}
                | {name: operation.flops / least / 1e9 for name, least in times.items()}
            )
    total = sum(flops.values()) / sum(seconds.values()) / 1e9
    return Ceilings(speed, side, total, {kind: flops[kind] / seconds[kind] / 1e9 for kind in flops}, rows)


def _square_product(side: int, dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    return 2 * side**3 / _least_time(lambda: a @ b, device) / 1e9


def _alone(operation: Operation, memory_format: torch.memory_format, dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator(device).manual_seed(0)

    def fill(shape: Shape) -> Tensor:
        tensor = torch.empty_strided(shape.size, shape.stride, device=device).normal_(generator=generator).to(dtype)
        return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor

    arguments = operation.filled(fill)
    return _least_time(lambda: operation.function(*arguments), device)


def _least_time(call: Callable[[], object], device: str) -> float:
    """Seconds, the least of a few repetitions after one that warms up."""
    least, spent, done = float("inf"), 0.0, 0
    call()
    while done < 2 or (done < MOST_REPEATS and spent < MOST_SECONDS):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        taken = time.perf_counter() - started
        least, spent, done = min(least, taken), spent + taken, done + 1
    return least


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
