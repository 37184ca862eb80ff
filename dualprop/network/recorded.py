"""Networks that are read by running them: any model, with its activations as layers.

Layer k = 1…K is the k-th activation in order of execution, layer L = K + 1 the output, linear.
(Where the output is itself the state of the last activation, that is layer L.) A drive a_k reads
whatever the model hands it: states of any layers below, skips included.

Running the model with given states is a pass up, and gives every drive. Vector-Jacobian products of
the drives' local tapes are the way down. They are taken at the last pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.network import inputs
from dualprop.network.layers import Layer
from dualprop.network.network import Network
from dualprop.network.passes import PassEvaluation
from dualprop.network.recording import Recording, Restart, Tape, Visit
from dualprop.network.running import OneModel
from dualprop.network.synapses import reading
from dualprop.neurons import AbstractNeuron, Function
from dualprop.reading import Event, Report
from dualprop.reading.activations import can_be_left


class RecordedNetwork(Network, reads_by_running=True):
    """A model that is read by running it. `on(x)` gives its layers, as that batch runs them.

    Args:
        module: the user's model. Its inputs x are a tensor, a tuple of arguments, or a dict of
            keyword arguments, whose first tensor has the examples in its first dimension.
        leave: names of functions ("softmax"), of modules ("gate") or of their types ("GELU"), whose
            activations are left to exact derivatives.
        output: the tensor (N, …) that is the network's output, of what the model returns.
        strict: refuse what is left to exact derivatives and may hide an activation.
        obstacle: why the model is not split into synapses that are modules, if it is known.
    """

    is_recorded = True
    reads_integers = True

    def __init__(
        self,
        module: nn.Module,
        leave: str | Sequence[str] = (),
        output: Callable[[Any], Tensor] | None = None,
        strict: bool = False,
        obstacle: str = "",
    ) -> None:
        self.module: nn.Module = module
        self.leave = (leave,) if isinstance(leave, str) else tuple(leave)
        self.output, self.strict, self.obstacle = output, strict, obstacle
        # What was learned of the model by running it: layers whose states it writes over, a report.
        self.copied: list[int] = []
        self.report: Report | None = None
        self.counts: dict[str, int] | None = None
        self.layers = ()
        _check_readable(module)
        _check_sized(module)
        _check_left(module, self.leave)

    def on(self, x: Any) -> RecordedLayers:
        """The layers as this batch runs them, with the free pass.

        Raises:
            UnsupportedModuleError: names what can't be read, and the remedy.
        """
        _check_readable(self.module)
        if torch.is_inference_mode_enabled():
            raise SettingError("inference takes local derivatives, which torch.inference_mode forbids. Use torch.no_grad.")
        return RecordedLayers(self, x)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def counts_of_backprop(self, x: Any = None) -> dict[str, int]:
        if self.counts is None:
            # A pass to count by. The model is put back to where it was.
            layers = self.on(inputs.copied(x))
            layers.model.again()
        assert self.counts is not None
        return self.counts

    @property
    def depth(self) -> int:
        raise SettingError("the layers of a model that is read by running it are those of a batch. Use network.on(x).")

    def forward(self, x: Any) -> Tensor:
        with reading("the model", inputs.first(x)):
            return self.run(self.module, x)

    def run(self, module: nn.Module, x: Any) -> Tensor:
        """The network's output of a module of this model's kind."""
        outputs = inputs.called(module, x)
        tensor: Tensor = outputs if self.output is None else self.output(outputs)
        return tensor

    def __repr__(self) -> str:
        lines = ["  to be read by running it: use it once"] if self.report is None else self.report.lines()
        why = [f"  not split into modules, since {self.obstacle}"] if self.obstacle else []
        return "\n".join(["Network(", *lines, *why, ")"])


class RecordedLayers(Network):
    """The layers of a recorded network as one batch runs them."""

    is_recorded = True
    reads_integers = True

    def __init__(self, network: RecordedNetwork, x: Any) -> None:
        self.network, self.module, self._module = network, network.module, network.module
        self.model = OneModel(network.module, x)
        self.report: Report | None = Report() if network.report is None else None
        free = self._first()
        self.places = tuple(free.places)
        self.layers = tuple(self._layer(free, k) for k in range(1, free.depth + 1))
        self._free: Tape | None = free
        if self.parameters and not free.drives[-1].requires_grad:
            raise UnsupportedModuleError(
                "the model's output has no gradient: forward runs without gradients, or detaches it. Let it keep them."
            )
        network.counts = self.counts_of_backprop(x)
        self._readers = tuple(
            tuple(j for j, layer in enumerate(self.layers, start=1) if k in layer.sources) for k in range(len(self.layers) + 1)
        )
        if self.report is not None:
            self._check_again(free)
            self._tell(self.report)
        elif network.report is not None:
            network.report.compare([name for name, _ in self.places[1:]])

    def on(self, x: Any) -> RecordedLayers:
        return self

    @property
    def names(self) -> dict[int, str]:
        """The trainable parameters' names by the id of what the model reads, see `OneModel`."""
        return self.model.names

    @functools.cached_property
    def unread(self) -> frozenset[str]:  # type: ignore[override]
        """Those that no layer reads that the output depends on: another task's head, say."""
        read, waiting, seen = set[str](), [self.depth], {0}
        while waiting:
            k = waiting.pop()
            if k not in seen:
                seen.add(k)
                read.update(self.into(k).learns)
                waiting += self.into(k).sources
        return frozenset(self.parameters.keys() - read)

    def free(self) -> Tape:
        """The free pass. It is held until it is first asked for, and then run anew."""
        free, self._free = self._free, None
        return self.run_pass(lambda k, neuron, a: neuron.f(a)) if free is None else free

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.model.parameters

    @property
    def depth(self) -> int:
        return len(self.layers)

    def counts_of_backprop(self, x: Any = None) -> dict[str, int]:
        below = sum(any(layer.sources) for layer in self.layers)
        return {"drives": self.depth, "feedbacks": below, "gradients": sum(bool(layer.parameters) for layer in self.layers)}

    def forward(self, x: Any) -> Tensor:
        return self.network.forward(x)

    def run(self, module: nn.Module, x: Any) -> Tensor:
        return self.network.run(module, x)

    def evaluation(self) -> PassEvaluation:
        return PassEvaluation(self)

    def run_pass(self, visit: Visit) -> Tape:
        """The tape of a pass with the states that `visit` gives.

        Raises SettingError where the model runs otherwise than in the free pass.
        """

        def checked(k: int, neuron: AbstractNeuron, a: Tensor) -> Tensor:
            if k > self.depth or tuple(a.shape) != self.places[k][1] or not _alike(neuron, self.layers[k - 1].neuron):
                raise _strayed(k)
            return visit(k, neuron, a)

        recording = Recording(self._module, self.model.x, checked, self.network.copied, self.network.leave, None)
        try:
            tape = self._end(recording, self.model.run(recording))
        except Restart as restart:
            raise _strayed(restart.k) from None
        if tape.depth != self.depth:
            raise _strayed(tape.depth)
        for k, layer in enumerate(self.layers, start=1):
            # Another expert of the same shape, say.
            sources, leaves = tape.reached(k, self.model.names)
            if (sources or (0,)) != layer.sources or leaves.keys() != layer.learns.keys():
                raise _strayed(k)
        return tape

    def _first(self) -> Tape:
        while True:
            free = Recording(
                self._module,
                self.model.x,
                lambda k, neuron, a: neuron.f(a),
                self.network.copied,
                self.network.leave,
                self.report,
            )
            try:
                with reading("the model", inputs.first(self.model.x)), torch.enable_grad():
                    return self._end(free, self.model.run(free))
            except Restart as restart:
                self.network.copied.append(restart.k)
                self.report = None if self.report is None else Report()
                self.model.again()

    def _end(self, recording: Recording, outputs: Any) -> Tape:
        output = self.network.output
        return recording.end(outputs if output is None else output(outputs))

    def _check_again(self, free: Tape) -> None:
        """Raise UnsupportedModuleError unless the model, run again, is what it was."""
        try:
            with torch.enable_grad():
                again = self.run_pass(lambda k, neuron, a: free.states[k])
        except SettingError:
            k = self.depth
        else:
            k = next((k for k in range(1, self.depth + 1) if not _near(again.values[k], free.values[k])), 0)
        if k:
            raise UnsupportedModuleError(
                f"the model, run again on the same batch, gives another drive of layer {self.layers[k - 1].name}: it "
                "remembers what can't be put back (in an object, global or weight). Keep it in a buffer, or use engine='fused'."
            )
        self._check_held(free, again)

    def _check_held(self, free: Tape, again: Tape) -> None:
        """Raise UnsupportedModuleError where the model reads a trainable tensor that it does not
        hold. What it makes for itself is another one in each pass."""
        known = self.model.names.keys() | {id(value) for value in inputs.tensors(self.model.x)}
        for k in range(1, self.depth + 1):
            lasting = {id(leaf) for leaf in again.leaves_of(k)}
            for leaf in free.leaves_of(k):
                if id(leaf) in lasting and id(leaf) not in known:
                    raise UnsupportedModuleError(
                        f"layer {self.layers[k - 1].name} reads a tensor of shape {tuple(leaf.shape)} that requires a gradient "
                        "and is no parameter of the model, so that it would not learn. Register it (nn.Parameter, "
                        "nn.ModuleList), or detach it."
                    )

    def _layer(self, free: Tape, k: int) -> Layer:
        sources, leaves = free.reached(k, self.model.names)
        learns = {name: self.model.parameters[name] for name in leaves}
        return Layer((), free.neurons[k], sources or (0,), f"{k}: {free.places[k][0]}", learns)

    def _tell(self, report: Report) -> None:
        for k, layer in enumerate(self.layers, start=1):
            name, shape = self.places[k]
            report.events.append(Event(k, name, report.modules.get(k, ""), shape, layer.sources, tuple(layer.learns)))
        report.note_hooks(self._module)
        self.network.report = report
        if self.network.strict and report.unasked:
            (name, where), _ = next(iter(report.unasked.items()))
            raise UnsupportedModuleError(
                f"{name} in '{where}' is left to exact derivatives and may hide an activation, which strict=True refuses. "
                f"If it is one, add it by dp.activations.add, else leave=({name if can_be_left(name) else where!r},)."
            )


def _alike(one: AbstractNeuron, other: AbstractNeuron) -> bool:
    if isinstance(one, Function) and isinstance(other, Function):
        return one.name == other.name
    return one == other


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether these agree up to what a device's order of summing may change."""
    if not one.numel():
        return True
    accuracy = torch.finfo(one.dtype).eps ** 0.5 if one.is_floating_point() else 0.0
    scale = float(other.abs().max()) if not other.is_complex() else 0.0
    return torch.allclose(one, other, rtol=accuracy, atol=accuracy * scale, equal_nan=True)


def _strayed(k: int) -> SettingError:
    return SettingError(
        f"at the states of inference the model ran another way than in its forward pass, from layer {k} on: it branches on its "
        "states. Lower beta, leave the activation that it branches on (leave=), or use engine='fused'."
    )


def _check_left(model: nn.Module, leave: Sequence[str]) -> None:
    """Raise SettingError where `leave` names what there is not, so that nothing would be left."""
    modules = dict(model.named_modules())
    known = {type(module).__name__ for module in modules.values()} | modules.keys()
    for name in leave:
        if name not in known and not can_be_left(name):
            raise SettingError(
                f"leave names {name!r}, which is no function of PyTorch, and no module or module type of the model. Correct it."
            )


def _check_sized(model: nn.Module) -> None:
    """Raise UnsupportedModuleError where a lazy module has buffers without a size so far."""
    for name, buffer in model.named_buffers():
        if is_lazy(buffer):
            raise UnsupportedModuleError(
                f"'{name}' is of a lazy module and has no size before the model has run. Run it once: model(x)."
            )


def _check_readable(model: nn.Module) -> None:
    """Raise UnsupportedModuleError where running the model would hide activations."""
    for name, module in model.named_modules():
        label = f"'{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModuleError(
                f"{label} is a ScriptModule, which hides its activations. Use the module it is made of."
            )
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise UnsupportedModuleError(
                f"{label} is compiled, which hides its activations. Use the module itself, not compiled."
            )
        if getattr(module, "_dualization", None) is not None:
            raise UnsupportedModuleError(f"{label} is dualized, so that its activations are dyadic already. dp.undualize it.")
        if module._backward_hooks or module._backward_pre_hooks:
            raise UnsupportedModuleError(
                f"{label} has full backward hooks, which local derivatives would set off at other times. Remove them, or use "
                "dp.dualize(model)."
            )
