"""The dyads of one batch in dual propagation: their start, their damping, what each was made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network.spectra import contraction_constants
from dualprop.network.states import Dyads, States, check_shapes
from dualprop.neurons import Scale
from dualprop.rules.problem import Problem
from dualprop.settings import per_layer
from dualprop.settling import residual

Start = Literal["forward", "zeros", "previous"]
Damping = float | tuple[float, ...] | Literal["spectral", "spectral_full"] | None


class DyadStates(States):
    """The states of `DualPropagation`, from the forward pass on; layers k = 0…L.

    Attributes:
        betas: β_1…β_L.
        y: the targets.
        damping: L_k by layer, None where undamped.
        directions: of the power iteration behind spectral damping.
        forward_drive, forward_gradient: of the output at the forward pass, its drive and ∇ℓ.
        forward_means: the states of the forward pass, where motion is to be measured; else empty.
    """

    def __init__(
        self, problem: Problem, betas: tuple[float, ...], loss: AbstractLoss, start: Start, damping: Damping, alpha: float,
        is_measured: bool,
    ) -> None:  # fmt: skip
        super().__init__(problem.network, problem.x, betas)
        self.betas: tuple[float, ...] = betas
        depth, state = problem.depth, problem.state
        self.forward()
        problem.predicted(self.means[-1])
        self.y, self.starts_from_zeros = problem.y, start == "zeros"
        self.forward_means = tuple(self.means) if is_measured else ()
        self.forward_drive = self.drive(depth)
        self.forward_gradient = loss.gradient(self.means[-1], problem.y)
        self.directions: tuple[Tensor | None, ...] = ()
        self.damping = self._damping(damping, alpha, state)
        # By layer, the drive and the feedback that its dyad was made of, and whether it was nudged.
        self._read: list[tuple[Tensor | None, Tensor | None, bool] | None] = [None] * (depth + 1)
        self._has_same_drive = False
        self._is_trying = False
        if self.starts_from_zeros:
            for k in range(1, depth + 1):
                self.set(k, torch.zeros_like(self.means[k]), None)
        elif start == "previous" and state is not None and state.means:
            self._resume(state, alpha)
        else:
            for k in range(1, depth + 1):
                self._read[k] = (self.drive(k), None, False)

    @property
    def is_nudged(self) -> bool:
        """Whether the output is nudged in this step: not before the forward signal arrives."""
        return self._is_trying or not (self.step.before_arrival and self.starts_from_zeros)

    def has_read(self, k: int, a: Tensor, feedback: Tensor | None) -> bool:
        """Whether the dyad of layer k was made of just these. They are noted for the next call."""
        before, now = self._read[k], (a, feedback, self.is_output(k) and self.is_nudged)
        # After its last update nobody asks again, and the feedback's memory is free.
        self._read[k] = None if k in self.final else now
        self._has_same_drive = before is not None and before[0] is a
        is_unchanged = self._has_same_drive and before is not None and before[1] is feedback and before[2] == now[2]
        # Under damping a state still moves, unless it is f(a) with nothing to pull it away.
        is_at_rest = self.damping[k] is None or (self.differences[k] is None and feedback is None)
        return is_unchanged and is_at_rest

    def free(self, k: int, a: Tensor) -> Tensor:
        """f(a) of the layer last asked about: its mean, where that was made of the same drive."""
        return self.means[k] if self._has_same_drive else self.neuron(k).f(a)

    def may_overwrite(self, k: int) -> bool:
        """Whether layer k's drive and feedback may be overwritten: its own, in its last update."""
        return k in self.final and not self.is_output(k) and self.release(k)

    @contextlib.contextmanager
    def trying(self, k: int) -> Iterator[None]:
        """Inside, an update of layer k is undamped and leaves no trace."""
        read, damping, final = self._read[k], self.damping, self.final
        if damping[k] is not None:
            self.damping, self._read[k] = (None,) * len(damping), None
        self._is_trying, self.final = True, frozenset()
        try:
            yield
        finally:
            self._is_trying, self.final = False, final
            self.damping, self._read[k] = damping, read

    def one_more(self, update: Callable[[Any, int], tuple[Tensor, Tensor | None]]) -> list[float]:
        """Each model's move by one more undamped update of every layer, from the present states.

        It is relative to the states' displacement from the forward pass. A damped move is a
        fraction of it, and small where damping is strong.
        """
        moves, displacements = [], []
        for k in range(1, self.network.depth + 1):
            mean, delta = self.means[k], self.differences[k]
            with self.trying(k):
                new_mean, new_delta = update(self, k)
            moves += [] if new_mean is mean else [new_mean - mean]
            displacements.append(mean - self.forward_means[k])
            if new_delta is not delta:
                zero = torch.zeros_like(mean)
                moves.append((zero if new_delta is None else new_delta) - (zero if delta is None else delta))
            displacements += [] if delta is None else [delta]
        return residual(moves, displacements, self.network.num_models)

    def _resume(self, state: Dyads, alpha: float) -> None:
        if state.alpha != alpha:
            raise SettingError(f"state must be the dyads of an earlier call with alpha={alpha:g}. Pass state=None.")
        check_shapes(self.means[1:], state.means[1:])
        for k in range(1, self.network.depth + 1):
            self.set(k, state.means[k], state.differences[k])

    def _damping(self, damping: Damping, alpha: float, state: Dyads | None) -> tuple[Scale | None, ...]:
        depth = self.network.depth
        if not isinstance(damping, str):
            constants = () if damping is None else per_layer(damping, "damping", range(1, depth))
            return (None, *(constant or None for constant in constants), *(None,) * (depth - len(constants)))
        factor = abs(1 - 2 * alpha) if damping == "spectral" else 1.0
        if factor == 0:
            return (None,) * (depth + 1)
        spectral, self.directions = contraction_constants(self, factor, () if state is None else state.directions)
        return (None, *spectral, None)
