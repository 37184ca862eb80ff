"""Conditions: what a run's numbers follow from besides its recipe and seed.

Two starts under the same conditions take the same steps, bit for bit. `TABLE` says of each
condition whether numbers follow from it. Where such a one has changed since the last checkpoint, a
resume can't end as the uninterrupted run does: it is refused, unless the user allows it, and then
the result says so. A change of any other is told and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dualprop.kernels import native
from dualprop.training import documents, environment, execution
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class Condition:
    """What it is, in words; what depends on it; whether the run's numbers follow from it."""

    words: str
    reason: str
    is_binding: bool = True


TABLE = {
    "data": Condition("the data", "half the run would be on one data set and half on another"),
    "dualprop": Condition("dualprop's version", "a release may compute differently"),
    "code": Condition("dualprop's code", "what computes a run was edited (cli, bench, analysis and recipes don't count)"),
    "torch": Condition("PyTorch's version", "its kernels round differently from release to release"),
    "execution": Condition(
        "the execution", "engines, kernels, formats, stacked seeds and steps captured on GPUs round differently"
    ),
    "kernel": Condition("the build of the native kernel", "compilers and their flags order its sums"),
    "threads": Condition("the number of threads", "sums over a batch are split by it"),
    "instructions": Condition("the instruction set in use", "sums are taken in vectors of its width"),
    "instruction_sets": Condition("the processor's instruction sets", "MKL and oneDNN choose their kernels by them"),
    "mkldnn": Condition("oneDNN", "its convolutions are other than PyTorch's"),
    "accelerator": Condition("the GPU", "cuBLAS and cuDNN choose their kernels by it"),
    "cuda": Condition("CUDA's version", "its libraries' kernels round differently"),
    "products": Condition("the precision of products", "float32 products may be computed in bfloat16 or TF32"),
    "variables": Condition("variables that steer arithmetic", "they choose kernels of MKL, oneDNN, cuBLAS and PyTorch"),
    "commit": Condition("the commit", "alone it changes nothing: the code that computes is compared itself", False),
    "processor": Condition("the processor", "bits are the same on most of the same instruction sets, not surely", False),
    "platform": Condition("the operating system", "its C library computes exp and tanh in few places", False),
    "python": Condition("Python's version", "no number of a run is computed by it alone", False),
    "numpy": Condition("NumPy's version", "it computes the mean and std of a .npz, whose content is compared", False),
}
"""By the name in environment.json."""


@dataclass(frozen=True)
class Change:
    """One condition's value then and now, as JSON holds it; None where it was not there."""

    name: str
    before: Any
    now: Any

    @property
    def is_binding(self) -> bool:
        return TABLE[self.name].is_binding

    def __str__(self) -> str:
        if self.name in ("data", "code"):
            shown = [value[:12] if isinstance(value, str) else value for value in (self.before, self.now)]
        else:
            shown = [self.before, self.now]
        if isinstance(self.before, list) and isinstance(self.now, list):
            shown = [[word for word in one if word not in other] for one, other in zip(shown, reversed(shown), strict=True)]
        return f"{TABLE[self.name].words} changed from {_shown(shown[0])} to {_shown(shown[1])}"


def now(recipe: Recipe, num_seeds: int = 1) -> dict[str, Any]:
    """The environment of this start of a run of so many seeds, with all conditions but the data
    among it. Plain values."""
    how = execution.resolve(recipe, num_seeds)
    built = {"kernel": native.build()} if how.uses_kernels and how.kernel == "native" else {}
    return environment.describe(recipe.device) | {"execution": how.condition} | built


def of(described: dict[str, Any]) -> dict[str, Any]:
    """The conditions in what `now` describes."""
    return {name: described[name] for name in TABLE if name in described}


def changes(before: dict[str, Any], after: dict[str, Any], but: tuple[str, ...] = ()) -> list[Change]:
    """The conditions that differ, but for some; those that numbers follow from first."""
    found = [Change(name, before.get(name), after.get(name)) for name in TABLE if name not in but]
    return [change for change in found if change.before != change.now]


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    shown = (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
    # What an edited file holds may not reach a terminal as it is.
    return shown if shown.isprintable() and len(shown) < 300 else documents.quoted(shown)
