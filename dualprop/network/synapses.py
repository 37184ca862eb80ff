"""Synapses: everything between two activations, as three local maps from one local tape.

A synapse maps the state below, s (N, …), to the drive of its layer, a. It has three parts, each
possibly empty, in this order: a parameter-free entry (a flatten, or a pool that follows an
activation), a core with the parameters, and a parameter-free exit (a pool that precedes an
activation). An algorithm needs of it, at the state `at`:

    drive(s)               a
    feedback(signal, at)   Jᵀ signal, with J = ∂a/∂s
    gradient(signal, at)   {parameter name: Σ over the batch of signalᵀ ∂a/∂parameter}

A tape never reaches beyond its synapse, so nothing here can carry an error through two layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from dualprop import memory
from dualprop.errors import SettingError
from dualprop.network.local_maps import (
    Modules,
    Record,
    ReshapeMap,
    TapedMap,
    local_map,
    output_of,
    through,
)
from dualprop.network.modules import AFFINE, kind
from dualprop.network.stacked_maps import core_map


class Tape:
    """One evaluation of a synapse at the state `below`.

    `records` are those of entry, core and exit.

    The last signal that was pulled back through the exit is kept: feedback and gradient both need
    it at the core.
    """

    def __init__(self, below: Tensor, records: tuple[Record, Record, Record]) -> None:
        self.below, self.records = below, records
        self.signal: Tensor | None = None
        self.signal_at_core: Tensor | None = None

    @property
    def core_shape(self) -> tuple[int, ...]:
        """The shape of one example where it enters the core, without N."""
        return tuple(self.records[1].input.shape[1:])


class Synapse:
    """The modules between two activations, under their names in the user's model.

    Parameters stay the modules'.
    """

    def __init__(self, modules: Modules) -> None:
        names = list(modules)
        with_parameters = [i for i, name in enumerate(names) if next(modules[name].parameters(), None) is not None]
        first, last = (with_parameters[0], with_parameters[-1] + 1) if with_parameters else (0, 0)
        entry, core, exit_ = names[:first], names[first:last], names[last:]
        self.modules = modules
        self.name = core[-1] if core else names[-1] if names else "(empty)"
        self.entry = local_map({name: modules[name] for name in entry})
        self.core = core_map({name: modules[name] for name in core})
        self.exit = local_map({name: modules[name] for name in exit_})

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trainable now, by their name in the model."""
        return self.core.parameters

    @property
    def feedback_depends_on_state(self) -> bool:
        """Whether Jᵀ varies with the state: past a pool or several maps, not one linear map."""
        return self.entry.depends_on_state or self.core.depends_on_state or self.exit.depends_on_state

    @property
    def owns_drive(self) -> bool:
        """Whether the drive has memory to itself: a linear core's output, or a reshape of it."""
        return not (self.core.depends_on_state or self.exit.depends_on_state) and not isinstance(self.core, ReshapeMap)

    @property
    def owns_feedback(self) -> bool:
        """Whether the feedback has memory to itself. A signal through reshapes alone does not."""
        return not isinstance(self.core, ReshapeMap)

    @property
    def needs_drive_to_linearize(self) -> bool:
        """Whether moving the linearisation costs a drive: not if the entry alone varies."""
        return self.core.depends_on_state or self.exit.depends_on_state

    def forward(self, s: Tensor) -> Tensor:
        """The drive a at the state s, in the autograd graph of s. Errors as for `drive`."""
        with reading(f"synapse '{self.name}'", s):
            return through(self.modules, s)

    def drive(self, s: Tensor) -> tuple[Tensor, Tape]:
        """The drive a at the state s, and its tape. Raises SettingError where s does not fit."""
        with reading(f"synapse '{self.name}'", s):
            entered = self.entry.run(s)
            left = self.core.run(output_of(entered).detach())
            drive = self.exit.run(output_of(left).detach())
        return output_of(drive).detach(), Tape(s, (entered, left, drive))

    def linearize(self, tape: Tape, at: Tensor) -> Tape:
        """The tape at another state, without a drive. Only where not `needs_drive_to_linearize`."""
        entered = self.entry.run(at)
        # A linear core needs its input alone. Reshapes behind it need the old tape's shapes.
        return Tape(at, (entered, Record(output_of(entered).detach(), None), tape.records[2]))

    def differential(self, tape: Tape, change: Tensor) -> tuple[Tensor, Tape]:
        """J change, with J = ∂a/∂s at the tape's state, and a tape.

        The first is the drive's own change where pool switches stay as they are there. The tape is
        for the core's gradient at the changed state; its switches are those of the old one.

        Raises:
            SettingError: the core is not one Linear or convolution (their gradient varies with the
            input alone).
        """
        if self.core.depends_on_state:
            raise SettingError(
                f"synapse '{self.name}' holds more than one Linear or convolution, of which no Jacobian can be held. Use "
                "jacobians='current'."
            )
        entered, left, exited = tape.records
        entry_change = self.entry.push(entered, change)
        drive_change = self.exit.push(exited, output_of(self.core.linear(entry_change)))
        moved = Record((left.input + entry_change).detach(), None)
        return drive_change.detach(), Tape(tape.below, (entered, moved, exited))

    def linear_part(self, s: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(W s, u ↦ Wᵀu): the core alone as a linear map, without its biases.

        s (N, …) has the shape that enters the core.

        Wᵀ is the core's own pull-back, as feedback takes it. The parameter-free entry and exit are
        left out, as in the authors' code. Their norm is at most 1 where they reshape, pad with
        zeros, or pool over windows that do not overlap (a max-pool selects, an average pool
        averages), but not where they repeat values.

        Raises:
            SettingError: the core is not affine.
        """
        for name, module in (self.core.modules if isinstance(self.core, TapedMap) else {}).items():
            if kind(module) not in AFFINE:
                raise SettingError(
                    f"synapse '{self.name}' holds {type(module).__name__} ('{name}'), which is not affine, so that the synapse "
                    "has no one spectral norm. Give the constants yourself, damping=(…)."
                )
        with reading(f"synapse '{self.name}'", s):
            record = self.core.linear(s)
        return output_of(record).detach(), lambda signal: self.core.pull(record, signal)

    def feedback(self, tape: Tape, signal: Tensor) -> Tensor:
        """Jᵀ signal at the tape's state."""
        entered, left, _ = tape.records
        return self.entry.pull(entered, self.core.pull(left, self._at_core(tape, signal)))

    def gradient(self, tape: Tape, signal: Tensor, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of signalᵀ ∂a/∂parameter, for every trainable parameter.

        It is taken at the tape's state.
        """
        return self.core.gradient(tape.records[1], self._at_core(tape, signal), scale)

    def contrast(self, tape: Tape, signal: Tensor, other: Tape, other_signal: Tensor, scale: complex) -> dict[str, Tensor]:
        """The gradient at one state less that at another; signals and states differ little.

        Let s̄, σ̄ be the means, and δs, δσ the differences, of what enters the core and of the
        signals there. The result is the gradient of δσ at s̄ plus that of σ̄ at δs. Nothing large
        is subtracted, where the core is one Linear or convolution.
        """
        if not self.parameters:
            return {}
        u, v = self._at_core(tape, signal), self._at_core(other, other_signal)
        return self.core.contrast(tape.records[1], u, other.records[1], v, scale)

    def _at_core(self, tape: Tape, signal: Tensor) -> Tensor:
        if tape.signal is not signal or tape.signal_at_core is None:
            tape.signal, tape.signal_at_core = signal, self.exit.pull(tape.records[2], signal)
        return tape.signal_at_core


@contextlib.contextmanager
def reading(reader: str, state: Tensor) -> Iterator[None]:
    """Turn PyTorch's error on a state of wrong shape or dtype into one that names the reader.

    It is a SettingError.
    """

    def tell(reason: str) -> SettingError:
        return SettingError(
            f"{reader} can't read a state of shape {tuple(state.shape)} and {state.dtype}: {reason}. "
            "Check the shape and dtype of x against the model."
        )

    with memory.told_as(tell, RuntimeError, IndexError):
        yield
