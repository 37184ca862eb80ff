"""One forward pass with dyadic activations: its settings, and the mode that meets them.

β is per example of the model's batch: a pass knows N, whatever shape an activation sees.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointFunction

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.fused import recompute
from dualprop.fused.dyadic import CotangentNudge, dyadic_activation
from dualprop.fused.watching import Watch
from dualprop.neurons import AbstractNeuron
from dualprop.reading import Event, Reading
from dualprop.reading.memory import saved_tensors_hooks
from dualprop.reading.mode import mark
from dualprop.settings import checked_beta

Beta = float | Sequence[float] | Mapping[int | str, float]
Terms = Literal["mean", "sum"] | float | Callable[[], float]


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


class Dualization:
    """The settings of `dualize`. See there. Immutable, but for what its first pass has shown."""

    def __init__(
        self,
        coupling: Literal["original", "transposed"],
        alpha: float,
        beta: Beta,
        loss_reduction: Terms,
        loss_scale: float | Callable[[], float],
        leave: tuple[str, ...],
        recompute_states: bool,
        strict: bool,
        watch: Watch | None = None,
    ) -> None:
        if coupling not in ("original", "transposed"):
            raise SettingError(f"coupling must be 'original' or 'transposed', got {coupling!r}.")
        if not 0 <= alpha <= 1:
            raise SettingError(f"alpha must be in [0, 1], got {alpha:g}.")
        if loss_reduction not in ("mean", "sum") and not callable(loss_reduction) and not _is_count(loss_reduction):
            raise SettingError(
                "loss_reduction must be 'mean', 'sum' or the number of terms that the mean runs over (or a function that "
                f"gives it), got {loss_reduction!r}."
            )
        if not callable(loss_scale) and not loss_scale > 0:
            raise SettingError(f"loss_scale must be positive, got {loss_scale}.")
        self.coupling, self.alpha, self.beta = coupling, alpha, _checked(beta)
        self.loss_reduction, self.loss_scale, self.leave = loss_reduction, loss_scale, leave
        self.recompute_states, self.strict = recompute_states, strict
        self.shares = (alpha, 1 - alpha) if coupling == "original" else (1 - alpha, alpha)
        self.when, self.watch = "training", watch
        self.is_read = self.leaves_modules = False
        # By backward pass, the forward pass whose activations it has come to.
        self._met: dict[int, Pass] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_met": {}}

    def terms(self, number: int | None) -> float:
        """How many terms the mean of the loss runs over: 1 for a sum."""
        if self.loss_reduction == "sum":
            return 1
        if self.loss_reduction == "mean":
            if number is None:
                raise SettingError(
                    "the size of the batch can't be told: no tensor among the model's inputs. Give loss_reduction=, the "
                    "number of terms of the loss's mean."
                )
            return number
        terms = self.loss_reduction() if callable(self.loss_reduction) else self.loss_reduction
        if callable(self.loss_reduction) and not terms > 0:
            raise SettingError(f"loss_reduction gave {terms}, which is no number of terms. Give a positive one.")
        return float(terms)

    def strength(self, number: int | None) -> float:
        """What β is multiplied with to be the b of `CotangentNudge`."""
        scale = self.loss_scale() if callable(self.loss_scale) else self.loss_scale
        return self.terms(number) / scale


def _checked(beta: Beta) -> float | tuple[float, ...] | dict[int | str, float]:
    if not isinstance(beta, Mapping):
        return checked_beta(beta)
    if not beta or not all(isinstance(key, (int, str)) and not isinstance(key, bool) for key in beta):
        raise SettingError("beta names layers by their number from 1 or their module's name; '*' stands for all others.")
    if wrong := [key for key in beta if isinstance(key, int) and key < 1]:
        raise SettingError(f"beta names layer {wrong[0]}, but activations are counted from 1. Take 1 for the first.")
    values = {key: checked_beta(value) for key, value in beta.items()}
    if lists := [key for key, value in values.items() if isinstance(value, tuple)]:
        raise SettingError(f"beta[{lists[0]!r}] is a sequence. Give one number each.")
    return values  # type: ignore[return-value]


class Pass:
    """One forward pass: its settings, and the strength that goes with its batch."""

    __slots__ = ("is_running", "needs_one", "settings", "strength", "used")

    def __init__(self, settings: Dualization, number: int | None, is_running: bool = False) -> None:
        self.settings, self.strength, self.is_running = settings, settings.strength(number), is_running
        self.needs_one = settings.loss_reduction == "mean"
        self.used: set[int | str] = set()

    def look(self, k: int, activation: object, a: Tensor, dy: Tensor, up: float, down: float) -> None:
        """Look at the nudge of activation k, while nudges are watched."""
        if self.settings.watch is not None:
            self.settings.watch.look(k, activation, a, dy, up, down)

    def meet(self) -> None:
        """Refuse a backward pass through two forward passes: over what the mean is, is unknown."""
        if self.is_running:
            raise UnsupportedModuleError(
                "the model differentiates its own activations in its forward pass, which would predict dyadic differences. "
                "Leave those modules with leave=, or differentiate a copy that is not dualized."
            )
        if not self.needs_one:
            return
        task, met = torch._C._current_graph_task_id(), self.settings._met
        other = met.get(task)
        if other is self or task < 0:
            return
        if other is not None:
            raise SettingError(
                "two forward passes of a dualized model meet in one backward pass: over how many terms the loss is a mean is "
                "not known. Give loss_reduction=, the number of terms (or 'sum')."
            )
        while len(met) > 8:
            met.pop(next(iter(met)), None)
        met[task] = self


class DyadicReading(Reading):
    """Runs code with dyadic activations. It is for one pass, and `k` of them have run."""

    def __init__(self, settings: Dualization, run: Pass | None, strength: Any, model: nn.Module | None, k: int = 0) -> None:
        super().__init__(model, settings.leave)
        self.settings, self.run, self.strength, self.k = settings, run, strength, k
        self.began_with_grad = torch.is_grad_enabled()
        # Within a backward pass that begins inside, nothing is an activation.
        self.task = -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
        # The hooks that were in force when the pass began; those of others since are taken in.
        self.hooks: Any = None
        self.is_current: Callable[[], bool] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.compiler.is_compiling():
            hooks = saved_tensors_hooks()
            if hooks is not None and hooks[0] is not self.hooks:
                self._take_in(hooks)
        return super().__torch_function__(func, types, args, kwargs)

    def _take_in(self, hooks: tuple[Any, Any]) -> None:
        """Let hooks of others unpack inside this mode: a checkpoint then computes dyads again."""
        pack, unpack = hooks
        if recompute.is_ours(hooks) or isinstance(unpack, _UnpackInside):
            self.hooks = pack
            return
        recompute._AUTOGRAD._pop_saved_tensors_default_hooks()
        recompute._AUTOGRAD._push_saved_tensors_default_hooks(pack, _UnpackInside(unpack, self.again()))
        self.hooks = saved_tensors_hooks()[0]  # type: ignore[index]

    def again(self) -> Callable[[], DyadicReading]:
        """Makes the mode for a part of this pass that begins here and is run again."""
        return partial(_again, self, self.k)

    def _is_neuron(self, args: Any, kwargs: Any) -> bool:
        if super()._is_neuron(args, kwargs):
            if torch.compiler.is_compiling():
                return True
            return self.task == torch._C._current_graph_task_id() and (self.is_current is None or self.is_current())
        if not torch.compiler.is_compiling() and self.began_with_grad and not torch.is_grad_enabled():
            self._look_for_checkpoint()
        return False

    def _look_for_checkpoint(self) -> None:
        """In a reentrant checkpoint's forward pass: let its function run again in this mode."""
        frame: Any = sys._getframe(1)
        code, is_inside = CheckpointFunction.forward.__code__, False
        while frame is not None:
            if frame.f_code is code:
                ctx, is_inside = frame.f_locals["ctx"], True
                if not isinstance(ctx.run_function, _RunInside):
                    ctx.run_function = _RunInside(ctx.run_function, self.again())
            frame = frame.f_back
        if is_inside:
            self.k += 1
            if not isinstance(self.settings.beta, float):
                self._beta_of(self.k)

    def emit(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor:
        self.k += 1
        beta = self.settings.beta
        if not isinstance(beta, float):
            beta = self._beta_of(self.k)
        if self.report is not None:
            self.report.events.append(Event(self.k, _name(neuron), self.where(), tuple(a.shape)))
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling and a.numel() == 0:
            return neuron.f(a)
        up, down = self.settings.shares
        nudge = CotangentNudge(up, down, beta * self.strength, origin=None if is_compiling else self.run, k=self.k)
        return dyadic_activation(a, neuron, nudge, inplace)

    def _beta_of(self, k: int) -> float:
        beta = self.settings.beta
        if isinstance(beta, tuple):
            if k > len(beta):
                raise SettingError(f"beta lists {len(beta)} values, but the model runs more activations. Give one each.")
            return beta[k - 1]
        assert isinstance(beta, dict)
        keys: list[int | str] = [k]
        if any(isinstance(key, str) and key != "*" for key in beta):
            if torch.compiler.is_compiling():
                raise SettingError("beta by module names can't be read under torch.compile. Give a sequence, or numbers.")
            keys += self.places()
        for key in (*keys, "*"):
            if key in beta:
                if self.run is not None:
                    self.run.used.add(key)
                return beta[key]
        raise SettingError(f"beta names no value for layer {k}, in '{self.where()}'. Name it, or give '*' for all others.")

    def check(self, requires_grad: bool) -> None:
        """After a pass: raise where its activations are not those that the settings speak of."""
        if not self.k:
            if requires_grad and self.began_with_grad and not self.settings.is_read:
                raise UnsupportedModuleError(
                    "the model ran no known activation above a trainable parameter, or all are in leave=: nothing is dyadic. "
                    "dp.describe(model, x) shows what it ran; dp.activations.add(function) makes one known."
                )
            return
        beta = self.settings.beta
        if isinstance(beta, tuple) and len(beta) > 1 and self.k != len(beta):
            raise SettingError(f"beta lists {len(beta)} values, but the model has {self.k} activations. Give one each.")
        if isinstance(beta, dict) and self.run is not None:
            unused = [key for key in beta if key not in self.run.used and key != "*"]
            if unused and not self.settings.is_read:
                raise SettingError(
                    f"beta names {', '.join(map(repr, unused))}, where no activation ran; there were {self.k}. Remove it."
                )


def _again(reading: DyadicReading, k: int) -> DyadicReading:
    made = DyadicReading(reading.settings, reading.run, reading.strength, reading.model, k)
    made.began_with_grad, made.given = True, reading.given
    return made


class _UnpackInside:
    """The unpacking of other hooks, run inside the mode of the pass that packed."""

    def __init__(self, unpack: Any, again: Callable[[], DyadicReading]) -> None:
        self.unpack, self.again = unpack, again

    def __call__(self, packed: Any) -> Any:
        with self.again():
            return self.unpack(packed)


class _RunInside:
    """A reentrant checkpoint's function, run inside the mode of the pass that met it first."""

    def __init__(self, function: Any, again: Callable[[], DyadicReading]) -> None:
        self.function, self.again = function, again

    def __call__(self, *args: Any) -> Any:
        mark(args)
        with self.again():
            return self.function(*args)


def size_of_batch(values: Any) -> Any:
    """The first dimension of the first tensor among (nested) inputs that has one, else None."""
    if isinstance(values, Tensor):
        return values.shape[0] if values.dim() else None
    if isinstance(values, PackedSequence):
        return int(values.batch_sizes[0])
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            number = size_of_batch(value)
            if number is not None:
                return number
        return None
    if torch.compiler.is_compiling() or values is None or isinstance(values, (int, float, str)):
        return None
    leaves = tree_leaves(values)
    return None if leaves == [values] else size_of_batch(leaves)


def _name(neuron: AbstractNeuron) -> str:
    return getattr(neuron, "name", type(neuron).__name__)
