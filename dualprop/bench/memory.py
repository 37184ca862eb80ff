"""Peak memory of training steps, each contender in a fresh process, measured in two ways.

tensors     the most bytes of tensors alive at once, from before the first step on: gradients,
            optimizer state, activations and scratch, but not the parameters. Exact and repeatable:
            PyTorch's own count of what it allocates and frees.
by steps    how far the steps raise the process's peak above what was resident before the first:
            what the system sees, with the allocator's gaps and oneDNN's scratch memory. It differs
            by 5 to 10 % between runs (VGG-like nets), also because the trainer has glibc keep freed
            blocks (`runs.prepare`), so the plain loop is measured twice to show by how much.

Two small steps of another model come first: pages of library code and compiled kernels are the
process's, not the steps'. On a GPU both are what PyTorch allocated there.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dualprop.bench.contenders import Contender
from dualprop.errors import DualpropError
from dualprop.system import processes
from dualprop.system.processes import ProgramError
from dualprop.training import documents, runs
from dualprop.training.records import Memory


def measure(contender: Contender, input_shape: tuple[int, ...], num_classes: int, steps: int = 5) -> Memory:
    """Peak memory of a few steps in a process of their own. Raises DualpropError."""
    task = {"contender": contender.to_plain(), "input_shape": input_shape, "num_classes": num_classes, "steps": steps,
            "threads": torch.get_num_threads()}  # fmt: skip
    program = "from dualprop.bench import memory; memory.main()"
    try:
        finished = processes.run(processes.python(program), seconds=None, folder=os.sep, text=json.dumps(task))
        if finished.code == 0:
            return Memory.from_plain(documents.parse((finished.out.splitlines() or [""])[-1]))
        reason = (finished.err.strip().splitlines() or [f"exit code {finished.code}"])[-1]
    except (ProgramError, documents.Misfit) as error:
        reason = f"{sys.executable} {error}"
    raise DualpropError(f"memory of '{contender.label}' could not be measured: {reason.rstrip('.')}.")


def main() -> None:
    """What the fresh process does: a task comes in as JSON, what was measured goes out as JSON."""
    print(json.dumps(_in_this_process(json.load(sys.stdin)).to_plain()))


def _in_this_process(task: dict[str, Any]) -> Memory:
    contender = Contender.from_plain(task["contender"])
    shape, num_classes = tuple(task["input_shape"]), task["num_classes"]
    torch.set_num_threads(task["threads"])
    runs.prepare(contender.recipe)
    _warm_up(contender, shape, num_classes)
    step = contender.step(shape, num_classes)
    if contender.recipe.device.startswith("cuda"):
        return _on_gpu(step, task["steps"])
    resident, _ = _resident_and_peak()
    for _ in range(task["steps"]):
        step()
    _, peak = _resident_and_peak()
    del step
    most = peak_of_tensors(contender.step(shape, num_classes))
    return Memory(peak=peak / 1e6, by_steps=max(0.0, peak - resident) / 1e6, tensors=most / 1e6)


def _warm_up(contender: Contender, input_shape: tuple[int, ...], num_classes: int) -> None:
    recipe = contender.recipe
    small = dataclasses.replace(contender, recipe=dataclasses.replace(recipe, model=_narrowed(recipe.model), batch_size=2))
    step = small.step(input_shape, num_classes)
    for _ in range(2):
        step()
    del step
    gc.collect()


def _narrowed(model: Any) -> Any:
    """The architecture with few units per layer; settings per layer still fit."""
    sizes = {name: getattr(model, name, None) for name in ("widths", "channels", "dense")}
    return dataclasses.replace(model, **{name: (4,) * len(size) for name, size in sizes.items() if isinstance(size, tuple)})


def _on_gpu(step: Callable[[], object], steps: int) -> Memory:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    for _ in range(steps):
        step()
    most = torch.cuda.max_memory_allocated()
    by_steps = (most - allocated) / 1e6
    return Memory(peak=most / 1e6, by_steps=by_steps, tensors=by_steps)


def peak_of_tensors(step: Callable[[], object], steps: int = 2) -> float:
    """The most bytes on the CPU of tensors made since the first step and alive at once."""
    # Frees of what was left before would be counted too.
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        for _ in range(steps):
            step()
    assert profile.profiler is not None
    results = profile.profiler.kineto_results
    assert results is not None
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    alive = most = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        alive += change
        most = max(most, alive)
    return float(most)


def _resident_and_peak() -> tuple[float, float]:
    """Bytes resident now, and at most since the process began.

    Where the system tells only the peak, that for both.
    """
    try:
        status = Path("/proc/self/status").read_text()
        now, peak = (
            float(line.split()[1]) * 1024 for key in ("VmRSS:", "VmHWM:") for line in status.splitlines() if key in line
        )
    except (OSError, ValueError):
        # Not used on Linux, where it would begin at the peak of the process that started this one.
        # macOS counts bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        now = peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return now, peak
