"""What a model runs: its activations, and what is left in between. The model stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.neurons import AbstractNeuron
from dualprop.reading.mode import Reading, mark
from dualprop.reading.report import Event, Report


class _Describing(Reading):
    """Notes down the activations of a run, which stay plain."""

    def emit(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor:
        assert self.report is not None
        name = getattr(neuron, "name", type(neuron).__name__)
        self.report.events.append(Event(len(self.report.events) + 1, name, self.where(), tuple(a.shape)))
        return a.copy_(neuron.f(a)) if inplace else neuron.f(a)

    def hides(self, name: str, place: str, what: str) -> None:
        assert self.report is not None
        self.report.hidden[name, place] += 1


def describe(model: nn.Module, *inputs: Any, **settings: Any) -> Report:
    """A report of one forward pass, `model(*inputs)`: print it.

    It tells the activations in order of execution, with their modules and the shapes of their
    drives, what is left to exact derivatives and where, and which activations are of parameters
    alone. The model may be dualized or not. Its buffers and the random state stay as they were.

    Args:
        settings: keyword arguments of the model's forward.

    Raises:
        UnsupportedModuleError: a part of the model hides its activations.
        SettingError: no input was given.
    """
    if not inputs and not settings:
        raise SettingError("describe runs the model: give its inputs, dp.describe(model, x).")
    check_is_readable(model)
    report = Report()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    settings_of_model = vars(model).pop("_dualization", None)
    mark((inputs, settings))
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), _Describing(model, report=report) as reading:
            output = model(*inputs, **settings)
        reading.look_at_output(output)
    finally:
        if settings_of_model is not None:
            vars(model)["_dualization"] = settings_of_model
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return report


def check_is_readable(model: nn.Module, leave: tuple[str, ...] = ()) -> None:
    """Raise UnsupportedModuleError where a part of a model hides its activations."""
    for name, module in model.named_modules():
        kind, label = type(module).__name__, f"'{name}'" if name else "the model"
        if kind in leave or any(name == other or name.startswith(f"{other}.") for other in leave):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModuleError(
                f"{label} is a ScriptModule, which hides its activations. Use the module it was made of, or leave it to "
                f"back-propagation with leave=({(name or kind)!r},)."
            )
        if kind == "OptimizedModule" or (name and module._compiled_call_impl is not None):
            raise UnsupportedModuleError(
                f"{label} is compiled, which hides its activations. Compile the whole model, after dp.dualize."
            )
