"""Settling: the one loop that every iterating rule runs, and how far its states still move.

A schedule is walked pass by pass, step by step. The layers of a step are updated together, each
from the states before the step. Motion is measured against how far inference has moved the states,

    residual = ‖moves‖ / ‖displacements‖        over all layers, examples and units

after every pass where there is a tolerance, else once after the last. Where several models are
stacked in a network, each has a residual of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

import dualprop.captures as captures
from dualprop.network.states import States
from dualprop.neurons import AbstractNeuron
from dualprop.schedules import AbstractSchedule, Step

# A last pass that moves states by more than this share of their displacement has settled nothing.
MOST_MOVED = 0.5
# Two phases that differ by fewer units in the last place of a layer's states differ by rounding.
LEAST_DIGITS = 4


@dataclass
class Settling:
    """How a phase has gone.

    Attributes:
        passes: that were made.
        moved: the measured residuals: of every pass with a tolerance, else of the last.
        limit: the residual that is small enough.
        trouble: why the states can't be trusted, without the remedy; empty where they can.
        models: how it went in each of several stacked models; `moved` are then the largest.
    """

    passes: int = 0
    moved: list[float] = field(default_factory=list)
    limit: float = MOST_MOVED
    trouble: str = ""
    models: tuple[Settling, ...] = ()

    def note(self, residuals: Sequence[float]) -> None:
        """Keep the residuals of a pass, one for each model."""
        self.moved.append(largest(residuals))
        if len(residuals) > 1:
            self.models = self.models or tuple(Settling(limit=self.limit) for _ in residuals)
            for own, each in zip(self.models, residuals, strict=True):
                own.passes = self.passes
                own.note([each])

    def of_model(self, model: int | None) -> Settling:
        """How it went in that model, or in all where it was not measured apart, or for None."""
        return self if model is None or not self.models else self.models[model]

    @property
    def residual(self) -> float | None:
        """The last that was measured."""
        return self.moved[-1] if self.moved else None

    def judge(self, kind: str) -> None:
        """Say in `trouble` that the states, "nudged" say, did not settle, if so."""
        for model in self.models:
            model.judge(kind)
        last = self.residual
        if last is None or last <= self.limit:
            return
        half = self.moved[len(self.moved) // 2]
        told = f"still move by {last:.2g} of their displacement a pass (tolerance {self.limit:g})"
        if not math.isfinite(last):
            told = f"diverged by pass {self.passes}"
        elif len(self.moved) > 5 and last > half / 2:
            told = f"cycle: after pass {self.passes} they {told}, and did by {half:.2g} after pass {len(self.moved) // 2 + 1}"
        else:
            told = f"{told}, after pass {self.passes}"
        self.trouble = f"inference did not settle: the {f'{kind} ' if kind else ''}states {told}"

    def expect_signals(self, states: States, what: str, is_expected: bool = True) -> None:
        """Say so where `what` comes down from the output and has not reached a layer."""
        if not is_expected:
            return
        below: set[int] = {states.network.depth}
        for k in range(states.network.depth, 0, -1):
            if k in below:
                below.update(states.network.into(k).sources)
        unreached = [k for k in below - {0} if not _is_signal(states, k)]
        if unreached:
            told = f"the {what} has not reached layer {max(unreached)} in {self.passes} passes"
            for settling in (self, *self.models):
                settling.trouble = f"inference did not settle: {told}"


def _is_signal(states: States, k: int) -> bool:
    signal = states.differences[k]
    if signal is None or not states.network.is_recorded or states.differences[-1] is None:
        return signal is not None
    # A pass renews the drives of all layers, so that signals are made of differences of zero.
    return _has_any(signal) or not _has_any(states.differences[-1]) or not signal.numel()


def _has_any(signal: Tensor) -> bool:
    """Whether it is anywhere but zero. Mostly the first example tells."""
    return bool(signal[:1].count_nonzero()) or bool(signal.count_nonzero())


class Settles(Protocol):
    """States that settle: `network.states.States`, or what holds some.

    `set` keeps what an update gives, `positions` are what moves, `kind` is "nudged", say.
    """

    step: Step
    final: frozenset[int]

    @property
    def kind(self) -> str: ...
    @property
    def set(self) -> Callable[..., None]: ...
    @property
    def ascend(self) -> Callable[[Sequence[int], Callable[[int], None]], None]: ...
    @property
    def descend(self) -> Callable[[Sequence[int], Callable[[int], None], bool], None]: ...
    @property
    def prepare(self) -> Callable[[Sequence[int]], None]: ...
    def positions(self) -> Sequence[Any]: ...


def settle(
    states: Settles,
    passes: Iterable[Sequence[Step]],
    update: Callable[[Any, int], tuple[Any, ...]],
    measure: Callable[[Sequence[Any]], Sequence[float]] | None = None,
    tolerance: float | None = None,
    *,
    limit: float = MOST_MOVED,
    most: int | None = None,
    least: int = 0,
    releases: bool = False,
    after_pass: Callable[[int], None] | None = None,
) -> Settling:
    """Update the states pass by pass: `update(states, k)` gives what `states.set(k, …)` takes.

    Args:
        passes: of a schedule.
        measure: the residual of each model, given `states.positions()` before the last pass. None:
            no measuring.
        tolerance: stop after the first pass whose residual is no more than this.
        limit: without a tolerance, the residual after the last pass that is small enough.
        most: the most passes, however many `passes` has.
        least: the passes before a tolerance may stop.
        releases: tell the states, in `final`, which layers of a step are in their last update: what
            they read may then be written over.
        after_pass: is called after pass 1, 2, … with its number.
    """
    settling = Settling(limit=limit if tolerance is None else tolerance)
    passes = list(passes) if releases else passes
    last = (
        {k: (i, j) for i, steps in enumerate(passes) for j, step in enumerate(steps) for k in step.layers} if releases else {}
    )
    before: Sequence[Any] = ()
    for i, steps in enumerate(islice(passes, most)):
        before = states.positions()
        for j, run in sweeps(steps):
            final = [frozenset(k for k in step.layers if last.get(k) == (i, j + n)) for n, step in enumerate(run)]
            _walk(states, run, final, update)
        settling.passes += 1
        if after_pass is not None:
            after_pass(settling.passes)
        if tolerance is not None and measure is not None:
            settling.note(measure(before))
            # Also where it is not a number: no further pass would mend that.
            if not settling.moved[-1] > tolerance and settling.passes >= least:
                break
    # What the first pass moves is the displacement itself.
    if tolerance is None and measure is not None and settling.passes > 1:
        settling.note(measure(before))
    settling.judge(states.kind)
    return settling


def sweeps(steps: Sequence[Step]) -> Iterator[tuple[int, Sequence[Step]]]:
    """The steps in runs of single layers, all upwards or all downwards, and where each begins."""
    first = 0
    for j in range(1, len(steps) + 1):
        if j == len(steps) or not _goes_on(steps[first : j + 1]):
            yield first, steps[first:j]
            first = j


def _goes_on(run: Sequence[Step]) -> bool:
    """Whether the last step of a run goes the way of those before."""
    layers = [step.layers for step in (run[0], *run[-2:])]
    if any(len(each) != 1 for each in layers):
        return False
    (begun,), (before,), (now,) = layers
    return now > before >= begun or now < before <= begun


def _walk(
    states: Settles, steps: Sequence[Step], final: Sequence[frozenset[int]], update: Callable[[Any, int], tuple[Any, ...]]
) -> None:
    """Update the layers of the steps, one after another, or those of one step together."""
    if len(steps) == 1:
        states.final = final[0]
        update_together(states, steps[0], update)
        return
    number = {step.layers[0]: n for n, step in enumerate(steps)}
    layers = list(number)

    def one(k: int) -> None:
        states.final = final[number[k]]
        update_together(states, steps[number[k]], update)

    if layers[1] > layers[0]:
        states.ascend(layers, one)
    else:
        states.descend(layers, one, all(k in each for k, each in zip(layers, final, strict=True)))


def update_together(states: Settles, step: Step, update: Callable[[Any, int], tuple[Any, ...]]) -> None:
    """Update the layers of one step, each from the states before it."""
    states.step = step
    if len(step.layers) > 1:
        states.prepare(step.layers)
    new = [(k, update(states, k)) for k in step.layers]
    for k, parts in new:
        states.set(k, *parts)


def motion(now: Sequence[Tensor], before: Sequence[Tensor], start: Sequence[Tensor], num_models: int = 1) -> list[float]:
    """Each model's residual of states that a pass has moved from `before`, and inference from
    `start`."""
    moves = [new - old for new, old in zip(now, before, strict=True) if new is not old]
    displacements = [new - old for new, old in zip(now, start, strict=True) if new is not old]
    return residual(moves, displacements, num_models)


def residual(moves: Sequence[Tensor], displacements: Sequence[Tensor], num_models: int = 1) -> list[float]:
    """‖moves‖ / ‖displacements‖ of each model; 0 where nothing moves. Waits for the device."""

    def norms(tensors: Sequence[Tensor]) -> list[float]:
        squares = [_squared_norms(t, num_models) for t in tensors] or [[0.0] * num_models]
        return [math.sqrt(sum(each)) for each in zip(*squares, strict=True)]

    pairs = zip(norms(moves), norms(displacements), strict=True)
    return [0.0 if moved == 0 else moved / displaced if displaced else math.inf for moved, displaced in pairs]


def kink_crossing(neuron: AbstractNeuron, a: Tensor, b: Tensor) -> float:
    """The share of units between whose drives a and b a kink of the activation lies."""
    return float(neuron.crosses_kink(a, b).double().mean())


def fixed_passes(schedule: AbstractSchedule, remedy: str) -> Iterator[str]:
    """Why a tolerance can't be had with this schedule, and the remedy; nothing where it can."""
    if schedule.is_random or schedule.is_one_pass:
        yield f"tolerance needs a schedule of passes over all layers, got {schedule}. Use {remedy}, say."


def lost_in_rounding(first: Sequence[Tensor], second: Sequence[Tensor], what: str, num_models: int = 1) -> list[str]:
    """Why `what` tells each model's states 0…L in two phases apart by mere rounding in a layer;
    empty where it does not."""
    told = [""] * num_models
    if not can_sync(first[-1]):
        return told
    for k, (before, after) in enumerate(zip(first[1:], second[1:], strict=True), start=1):
        least = LEAST_DIGITS * torch.finfo(before.dtype).eps
        sizes, changes = (_norms(t, num_models) for t in (before, after - before))
        for model, (size, change) in enumerate(zip(sizes, changes, strict=True)):
            if not told[model] and not change >= least * size:
                told[model] = f"of the {what}'s effect on layer {k} only rounding is left in {before.dtype}"
    return told


def apart(t: Tensor, num_models: int) -> Tensor:
    """A tensor (N, …) of models' examples, one model's after another's, as (num_models, …)."""
    return t.reshape(num_models, -1)


def can_sync(x: Tensor) -> bool:
    """Whether the host may wait for the device.

    It may not while a step is captured, whose replays are not measured.
    """
    return captures.may_measure(x)


def largest(residuals: Sequence[float]) -> float:
    """The largest residual; nan is larger than any."""
    return max(residuals, key=lambda each: math.inf if math.isnan(each) else each)


def _norms(t: Tensor, num_models: int) -> list[float]:
    norms: list[float] = [float(t.norm())] if num_models == 1 else apart(t, num_models).norm(dim=1).tolist()
    return norms


def _squared_norms(t: Tensor, num_models: int) -> list[float]:
    squares = (torch.view_as_real(t) if t.is_complex() else t).double().square()
    norms: list[float] = [float(squares.sum())] if num_models == 1 else apart(squares, num_models).sum(1).tolist()
    return norms
