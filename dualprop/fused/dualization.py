"""`dualize`: dyadic activations while a model runs make `loss.backward()` dual propagation.

Hooks around the model's forward pass set a mode in force that meets every activation. Nothing of
the model is rewritten. The hooks hold no state: what a pass knows is kept per thread while it runs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._pytree import tree_leaves

from dualprop.compilation import not_compiled_alone
from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.fused import recompute
from dualprop.fused.passes import Beta, Dualization, DyadicReading, Pass, Terms, size_of_batch
from dualprop.fused.watching import DEFAULT, WHILE_OPEN, Watch
from dualprop.reading import Report
from dualprop.reading.activations import can_be_left
from dualprop.reading.description import check_is_readable
from dualprop.reading.memory import saved_tensors_hooks
from dualprop.reading.mode import mark
from dualprop.settings import Auto

_ATTRIBUTE = "_dualization"


def dualize(
    model: nn.Module,
    *,
    coupling: Literal["original", "transposed"] = "original",
    alpha: float = 0.5,
    beta: Beta | Auto = DEFAULT,
    loss_reduction: Terms = "mean",
    loss_scale: float | Callable[[], float] = 1.0,
    leave: str | tuple[str, ...] | list[str] = (),
    recompute_states: bool = True,
    strict: bool = False,
    when: Literal["training", "always"] = "training",
) -> nn.Module:
    """Make every activation of `model` dyadic, so that `loss.backward()` is dual propagation.

    It is so in any training loop. `undualize` takes it back. The model is read by running it: every
    call of an activation in its forward pass counts, wherever it is written. Parameters, modules,
    `state_dict`, copies and pickles stay what they are. `describe` shows what counts.

    A model in `eval()` is plain: what is differentiated there (saliency, forces) is exact. In
    training every gradient through the model is dyadic, also with respect to its inputs.

    Args:
        coupling: "original" (DP) or "transposed" (DP⊤).
        alpha: in [0, 1], the weight of s⁺ in the mean.
        beta: nudging strength per example, > 0. One; or one per activation in order of execution;
            or by number from 1 or by module name, where "*" stands for all others. "auto" chooses
            in the first step, which is taken at 0.001: the largest of 1, 0.3, 0.1, … whose nudge
            takes less than 2 % of each activation's units across a kink. A NudgeWarning then says
            which; copies and pickles of the model keep it, a state_dict does not.
        loss_reduction: how the loss is reduced over the batch, since DP is not homogeneous in the
            loss: "mean" over the examples, "sum", or the number of terms of the mean (tokens, say),
            or a function that gives it, asked at each forward pass. The number of examples is the
            first dimension of the first tensor among the model's inputs. Where several forward
            passes meet in one backward pass, "mean" is refused there: give the number. (Not where
            torch.compile has compiled them in one graph with what calls the model.)
        loss_scale: any other factor of the loss: 1/4 when four batches accumulate,
            `scaler.get_scale` for a GradScaler. A function is asked at every forward pass.
        leave: names of modules, module types or functions to leave to plain back-propagation.
        recompute_states: keep each activation's drive alone and compute its state again in the
            backward pass. Memory is then no more than back-propagation's. If False, both are kept,
            which saves one elementwise pass a layer. Both are kept, too, inside other saved-tensor
            hooks: a checkpoint around the model, `save_on_cpu`.
        strict: refuse, in the first forward pass, a model of which nonlinear functions are left to
            exact derivatives (attention's products, gates, recurrent cells).
        when: "training" alone, or "always", for a model that is trained in `eval()`.

    Returns:
        The model.

    Raises:
        UnsupportedModuleError: a module that hides its activations, here; what `strict` refuses or
            a model without activations, in its first forward pass.
        SettingError: a setting out of its range, or, in the first forward pass, one that does not
            fit its activations.
    """
    leave = (leave,) if isinstance(leave, str) else tuple(leave)
    if when not in ("training", "always"):
        raise SettingError(f"when must be 'training' or 'always', got {when!r}.")
    watch = Watch(is_open=isinstance(beta, str) and beta == "auto")
    strength: Any = WHILE_OPEN if watch.is_open else beta
    settings = Dualization(coupling, alpha, strength, loss_reduction, loss_scale, leave, recompute_states, strict, watch)
    settings.when = when
    _check(model, settings)
    vars(model)[_ATTRIBUTE] = settings
    if not any(isinstance(hook, _Before) for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(_Before(), with_kwargs=True)
        model.register_forward_hook(_After(), always_call=True)
    return model


def undualize(model: nn.Module) -> nn.Module:
    """Take back `dualize`: the model, plain again. SettingError where it is not dualized."""
    if _ATTRIBUTE not in vars(model):
        raise SettingError("the model is not dualized. Nothing can be taken back.")
    del vars(model)[_ATTRIBUTE]
    # A shallow copy of the model shares its hooks. They do nothing without the attribute.
    if sys.getrefcount(model._forward_hooks) <= 2:
        for hooks, options in (
            (model._forward_pre_hooks, (model._forward_pre_hooks_with_kwargs,)),
            (model._forward_hooks, (model._forward_hooks_with_kwargs, model._forward_hooks_always_called)),
        ):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (_Before, _After))]:
                for each in (hooks, *options):
                    each.pop(key, None)
    return model


@contextlib.contextmanager
def dyadic(
    *,
    batch: int | None = None,
    coupling: Literal["original", "transposed"] = "original",
    alpha: float = 0.5,
    beta: Beta = 1.0,
    loss_reduction: Terms = "mean",
    loss_scale: float | Callable[[], float] = 1.0,
    leave: str | tuple[str, ...] | list[str] = (),
    recompute_states: bool = True,
) -> Iterator[None]:
    """Inside, every activation of any code is dyadic: `dualize` for one forward pass.

    What is made of parameters and constants alone is no neuron. Other tensors count as data.

    Args:
        batch: the number of examples, N. Needed where `loss_reduction` is "mean".

    The other arguments are those of `dualize`; beta goes by the order of execution.

    Raises:
        SettingError: a setting out of its range, or one that does not fit the activations.
    """
    leave = (leave,) if isinstance(leave, str) else tuple(leave)
    if loss_reduction == "mean" and batch is None:
        raise SettingError("the number of examples is not known. Give batch=, or loss_reduction=, the number of terms.")
    settings = Dualization(coupling, alpha, beta, loss_reduction, loss_scale, leave, recompute_states, strict=False)
    with dyadic_pass(settings, batch, None):
        yield


@contextlib.contextmanager
def dyadic_pass(settings: Dualization, batch: int | None, model: nn.Module | None) -> Iterator[None]:
    """Inside, one forward pass is dyadic: of `model`, whose modules can then be named."""
    run = Pass(settings, batch)
    reading = DyadicReading(settings, run, run.strength, model)
    reading.is_first, is_compiled = True, _is_compiled()
    if is_compiled:
        reading.sight = None
    saved = recompute.enter() if settings.recompute_states and not is_compiled and recompute.is_free() else None
    hooks = saved_tensors_hooks()
    reading.hooks = None if hooks is None else hooks[0]
    try:
        with reading:
            yield
    finally:
        if saved is not None:
            recompute.leave(saved)
    reading.look_at_output(None)
    reading.check(requires_grad=False)


class _Before:
    """The hook before a dualized model's forward pass."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        settings = getattr(module, _ATTRIBUTE, None)
        if settings is None or torch.compiler.is_exporting() or not (module.training or settings.when == "always"):
            return
        if torch.compiler.is_compiling():
            _check_compiled(settings)
            reading = DyadicReading(settings, None, settings.strength(size_of_batch((args, kwargs))), module)
            for constant in module.buffers():
                reading.constants.append(constant)
            _push_mode(reading)
        elif not torch.jit.is_tracing():
            _begin(module, settings, args, kwargs)


class _After:
    """The hook after it, called also where it raised."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            _end(output)
            return
        settings = getattr(module, _ATTRIBUTE, None)
        if settings is None or torch.compiler.is_exporting() or not (module.training or settings.when == "always"):
            return
        _pop_mode()


class _Running:
    """A forward pass that runs in this thread, told by the frames that called its hooks."""

    def __init__(self, frame: types.FrameType, reading: DyadicReading, saved: recompute.Saved | None) -> None:
        self.frame, self.reading, self.saved = frame, reading, saved
        self.below = torch.overrides._get_current_function_mode_stack()

    def is_current(self) -> bool:
        """Whether it is on the stack: not after an interrupt, for which no hook is called."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self.frame:
                return True
            frame = frame.f_back
        return False

    def end(self) -> None:
        if not _remove(self.reading):
            _remove_left_over(self.below)
        if self.saved is not None:
            recompute.leave(self.saved)
        self.reading.is_current = None


_THREAD = threading.local()


def _running() -> list[_Running]:
    if not hasattr(_THREAD, "running"):
        _THREAD.running = []
    running: list[_Running] = _THREAD.running
    return running


def _begin(module: nn.Module, settings: Dualization, args: Any, kwargs: Any) -> None:
    running = _running()
    while running and not running[-1].is_current():
        running.pop().end()
    is_compiled = _is_compiled()
    if settings.watch is not None and not is_compiled:
        settings.watch.conclude(settings)
    run = Pass(settings, size_of_batch((args, kwargs)), is_running=True)
    reading = DyadicReading(settings, run, run.strength, module)
    if is_compiled:
        _check_compiled(settings)
        reading.constants.extend(module.buffers())
        reading.sight = None
    inputs = tree_leaves((args, kwargs))
    mark(inputs)
    reading.given = frozenset(id(value) for value in inputs if isinstance(value, nn.Parameter))
    if getattr(module, "_is_replica", False):
        reading.buffers |= {id(parameter): parameter for parameter in _parameters_of_replica(module)}
    reading.is_first = not settings.is_read
    if settings.strict and reading.is_first:
        reading.report = Report()
    saved = recompute.enter() if _recomputes(settings) and not is_compiled else None
    hooks = saved_tensors_hooks()
    reading.hooks = None if hooks is None else hooks[0]
    each = _Running(sys._getframe(2), reading, saved)
    reading.is_current = each.is_current
    running.append(each)
    _push_mode(reading)


def _parameters_of_replica(module: nn.Module) -> Iterator[Tensor]:
    """What DataParallel sets on a replica in place of its parameters."""
    for each in module.modules():
        for name in getattr(each, "_former_parameters", {}):
            value = getattr(each, name)
            if isinstance(value, Tensor):
                yield value


def _recomputes(settings: Dualization) -> bool:
    return settings.recompute_states and torch.is_grad_enabled() and recompute.is_free()


def _end(output: Any) -> None:
    running, caller = _running(), sys._getframe(2)
    if not running or (running[-1].frame is not caller and running[-1].frame.f_back is not caller):
        return
    each = running.pop()
    each.end()
    reading = each.reading
    if reading.run is not None:
        reading.run.is_running = False
    if each.frame is not caller:
        return  # the forward pass raised
    reading.look_at_output(output)
    if isinstance(output, types.GeneratorType):
        raise UnsupportedModuleError("the model returns a generator, which would run after its forward pass. Return tensors.")
    reading.check(not reading.k and any(isinstance(v, Tensor) and v.requires_grad for v in tree_leaves(output)))
    if reading.report is not None and reading.report.unasked:
        left = ", ".join(f"{name} in '{where}'" if where else name for name, where in reading.report.unasked)
        raise UnsupportedModuleError(
            f"strict: exact derivatives would be taken of {left}. dp.describe(model, x) shows all; name them in leave=, or "
            "take strict=False."
        )
    if reading.k:
        reading.settings.is_read = True
        if reading.run is not None:
            _meet_at(output, reading.run)


def _meet_at(output: Any, run: Pass) -> None:
    """Tell the pass when a backward pass comes to its output.

    Activations tell it too, but not those that torch.compile has compiled.
    """
    for value in tree_leaves(output) if run.needs_one else ():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            value.grad_fn.register_prehook(lambda gradients: run.meet())


def _remove(mode: TorchFunctionMode) -> bool:
    """Take a mode out of those in force, whatever was left over above it; whether it was there."""
    above: list[TorchFunctionMode] = []
    stack = torch.overrides._get_current_function_mode_stack()
    if not any(each is mode for each in stack):
        return False
    while (each := _pop_mode()) is not mode:
        above.append(each)
    for each in reversed(above):
        _push_mode(each)
    return True


def _remove_left_over(below: list[TorchFunctionMode]) -> None:
    """Take out the mode that was left over when another's end took off ours, which lay on top.

    An end takes off what is on top. Ours was there after an interrupt, for which no hook is called.
    `below` are the modes that lay below it: of those in force, the last should have gone.
    """
    stack = torch.overrides._get_current_function_mode_stack()
    remaining = [mode for mode, other in zip(stack, below, strict=False) if mode is other]
    if remaining:
        _remove(remaining[-1])


def _is_compiled() -> bool:
    """Whether what is called from here is compiled by torch.compile."""
    callback = torch._C._dynamo.eval_frame.get_eval_frame_callback()
    return callback is not None and callback is not False


def _check(model: nn.Module, settings: Dualization) -> None:
    """Refuse what can be told without a pass."""
    if _ATTRIBUTE in vars(model):
        raise UnsupportedModuleError("the model is dyadic already. Take it back first, by dp.undualize(model).")
    names = dict(model.named_modules())
    kinds = {type(module).__name__ for module in names.values()}
    if unused := [name for name in settings.leave if name not in names and name not in kinds and not can_be_left(name)]:
        raise SettingError(f"leave names {', '.join(sorted(map(repr, unused)))}, which the model does not hold. Remove it.")
    settings.leaves_modules = any(name in names or name in kinds for name in settings.leave)
    if isinstance(settings.beta, dict):
        for key in settings.beta:
            if isinstance(key, str) and key != "*" and key not in names:
                raise SettingError(f"beta names {key!r}, which is no module of the model. dp.describe(model, x) shows them.")
    check_is_readable(model, settings.leave)


def _check_compiled(settings: Dualization) -> None:
    """Refuse what torch.compile can't follow."""
    if settings.watch is not None and settings.watch.is_open:
        raise SettingError("beta='auto' is chosen in a first step. Take one before torch.compile, or give a number.")
    if settings.strict and not settings.is_read:
        raise UnsupportedModuleError("strict=True reads the first forward pass. Run one before torch.compile.")
    if settings.leaves_modules:
        raise SettingError("leave= by module can't be read under torch.compile. Name functions, or do not compile.")


# Else torch.compile compiles the hooks of a model that it calls from outside, where a mode that is
# pushed and not popped can't be.
not_compiled_alone(_Before.__call__, _After.__call__)
