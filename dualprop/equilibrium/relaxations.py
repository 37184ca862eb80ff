"""Relaxations: the ways from the error at the output to a settled phase.

    Blocks         In the order of a schedule, each layer takes the state that minimises the energy
                   between its neighbours' present states (`energies`, `settle`). For any energy.
    ErrorSweeps    Down, at the Jacobians of the present states: ε_k from T_k, T_{k-1} from ε_k.
                   Then up: s_k from T_k and the drive from the new s_{k-1}. One pair moves every
                   layer to where it belongs, up to O(β²), for 2(L-1) synapse evaluations.
                   For predictive coding networks.

As text: "blocks(even_odd(10))", "blocks(even_odd(10), update=pgd, step_size=0.5)",
"error_sweeps(2)".
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from annotated_types import Interval

from dualprop import schedules, settings
from dualprop.equilibrium.energies import AbstractEnergy, Update
from dualprop.equilibrium.phases import Phase, Stop
from dualprop.errors import SettingError, closest
from dualprop.schedules import AbstractSchedule, AnySchedule
from dualprop.settings import Count, NamedPart
from dualprop.settling import fixed_passes, update_together


class AbstractRelaxation(NamedPart):
    """How the states of a phase settle. `update` is the update of a layer, see `energies`."""

    name: str
    update: Update

    @abstractmethod
    def settle(self, phase: Phase, generator: torch.Generator | None, stop: Stop) -> None:
        """Settle the phase; it then says how that went."""

    @abstractmethod
    def one_more(self, phase: Phase, generator: torch.Generator | None) -> list[float]:
        """How far one more pass moves the states, relative to their displacement from the start; of
        each model."""

    @abstractmethod
    def conflicts(self, energy: AbstractEnergy, is_clamped: bool, is_frozen: bool, tolerance: float | None) -> Iterator[str]:
        """Why it can't settle a phase of such an energy and nudge, with the remedy, if it can't."""

    def update_conflicts(self, energy: AbstractEnergy, is_frozen: bool) -> Iterator[str]:
        """The conflicts of its update alone."""
        if self.update not in energy.updates:
            yield f"update={self.update!r} is of predictive coding. With energy='{energy}' leave it at 'auto'."
        if is_frozen and self.update == "pgd":
            yield "update='pgd' clamps, so that jacobians='free' would hold less than it says. Use update='auto'."

    @abstractmethod
    def remedy(self, energy: AbstractEnergy, is_clamped: bool, is_complex: bool) -> str:
        """What to do where states have not settled."""

    @property
    def step_size(self) -> float:
        """How far a layer moves towards where it would settle."""
        return 1.0

    @property
    def order(self) -> AbstractSchedule | None:
        """The schedule of updates; None where there is none."""
        return None

    def __str__(self) -> str:
        first, *others = fields(self)  # type: ignore[arg-type]
        told = [str(getattr(self, first.name))]
        told += [f"{f.name}={getattr(self, f.name)}" for f in others if getattr(self, f.name) != f.default]
        return f"{self.name}({', '.join(told)})"

    @classmethod
    def from_text(cls, text: str) -> AbstractRelaxation:
        """The relaxation of that text. Raises SettingError where there is none."""
        parts = re.fullmatch(r"\s*([a-z_]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL) if isinstance(text, str) else None
        if parts is None or parts[1] not in RELAXATIONS:
            near = closest(parts[1] if parts else text, list(RELAXATIONS))
            raise SettingError(f"unknown relaxation '{text}'.{near} Known: auto, blocks(SCHEDULE), error_sweeps(PAIRS).")
        kind = RELAXATIONS[parts[1]]
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for word in re.split(r",\s*(?=[a-z_]+\s*=)", parts[2] or ""):
            name, is_named, value = word.partition("=")
            name, value = (name.strip(), value.strip()) if is_named else (names[0], word.strip())
            if name not in names:
                raise SettingError(f"'{kind.name}' has no '{name}'.{closest(name, names)} It has {', '.join(names)}.")
            if name in values:
                raise SettingError(f"relaxation '{text}' gives '{name}' twice. Give it once.")
            if is_named and not value:
                raise SettingError(f"relaxation '{text}' gives '{name}' no value. Give it one, or leave it out.")
            if value:
                values[name] = _number(value) if name in ("pairs", "step_size") else value
        return kind(**values)

    @classmethod
    def choices(cls) -> str:
        return "auto|error_sweeps(PAIRS)|blocks(SCHEDULE)"


@dataclass(frozen=True)
class ErrorSweeps(AbstractRelaxation):
    """Pairs of a pass down for the errors and a pass up for the states; predictive coding.

    Attributes:
        pairs: of sweeps.
        update: as of `Blocks`.
    """

    pairs: Count = 1
    update: Update = "auto"
    name = "error_sweeps"

    def __post_init__(self) -> None:
        settings.conform(self)

    def settle(self, phase: Phase, generator: torch.Generator | None, stop: Stop) -> None:
        sweeps: list[tuple[()]] = [()] * self.pairs
        phase.settle(sweeps, stop, after_pass=lambda _: phase.sweep())

    def one_more(self, phase: Phase, generator: torch.Generator | None) -> list[float]:
        before = phase.positions()
        phase.sweep()
        return phase.moved_since(before)

    def conflicts(self, energy: AbstractEnergy, is_clamped: bool, is_frozen: bool, tolerance: float | None) -> Iterator[str]:
        if not energy.free_is_forward:
            yield f"error sweeps are of predictive coding. With energy='{energy}' use relaxation='blocks'."
        yield from self.update_conflicts(energy, is_frozen)
        if is_clamped:
            yield (
                "error sweeps don't settle behind a clamped output, which does not follow what moves below it. Use "
                "relaxation='blocks', or output_nudge='linearized'."
            )
        if tolerance is not None and self.pairs == 1:
            yield "a tolerance stops between pairs of error sweeps, and there is one. Raise pairs, or use tolerance=None."

    def remedy(self, energy: AbstractEnergy, is_clamped: bool, is_complex: bool) -> str:
        return "Lower beta, use pairs=1, average pooling, or jacobians='free'."


@dataclass(frozen=True)
class Blocks(AbstractRelaxation):
    """Block updates in the order of a schedule.

    Attributes:
        schedule: the order and number of updates in a nudged phase: "even_odd(10)" (the papers' K).
        update: of a block in predictive coding: "mod_pgd", f(a + T), or "pgd", f(a) + T projected.
            "auto" is the first for projections (ReLU, hard sigmoid, none), else the second.
        step_size: how far a block moves towards where it would settle.
    """

    schedule: AnySchedule | str = schedules.even_odd(10)
    update: Update = "auto"
    step_size: Annotated[float, Interval(gt=0, le=1)] = 1.0
    name = "blocks"

    def __post_init__(self) -> None:
        settings.conform(self)

    def settle(self, phase: Phase, generator: torch.Generator | None, stop: Stop) -> None:
        phase.settle(self.order.passes(phase.network.depth, generator), stop)

    def one_more(self, phase: Phase, generator: torch.Generator | None) -> list[float]:
        before = phase.positions()
        for step in next(iter(self.order.passes(phase.network.depth, generator))):
            update_together(phase, step, Phase.block)
        return phase.moved_since(before)

    def conflicts(self, energy: AbstractEnergy, is_clamped: bool, is_frozen: bool, tolerance: float | None) -> Iterator[str]:
        yield from self.update_conflicts(energy, is_frozen)
        if tolerance is not None:
            yield from fixed_passes(self.order, "even_odd(100)")

    def remedy(self, energy: AbstractEnergy, is_clamped: bool, is_complex: bool) -> str:
        if is_clamped:
            return "Raise the number of schedule to L or more, lower beta, or use average pooling."
        if energy.free_is_forward:
            return "Use relaxation='error_sweeps', or schedule 'even_odd(n)' with n ≥ L, or average pooling."
        if is_complex:
            return "Lower beta, raise the number of schedule, or use estimator='centered'."
        return "Raise the number of schedule, lower beta, or use average pooling."

    @property
    def order(self) -> AbstractSchedule:
        return AbstractSchedule.as_part(self.schedule)


RELAXATIONS: dict[str, type[AbstractRelaxation]] = {"error_sweeps": ErrorSweeps, "blocks": Blocks}


_SWEEPS, _BLOCKS = ErrorSweeps(), Blocks()


def automatic(energy: AbstractEnergy, is_clamped: bool) -> AbstractRelaxation:
    """What "auto" is: error sweeps where the energy has them and the output is not clamped."""
    return _SWEEPS if energy.free_is_forward and not is_clamped else _BLOCKS


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
