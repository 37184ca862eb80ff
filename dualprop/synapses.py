"""Synapses: everything between two activations, as three local maps from one local tape.

A synapse maps the state below, s (N, …), to the drive of its layer, a. In it stand, in this order and each possibly empty,
a parameter-free entry (a flatten, or a pool that follows an activation), a core with the parameters, and a parameter-free
exit (a pool that precedes an activation). An algorithm needs of it

    drive(s)               a
    feedback(signal, at)   Jᵀ signal, with J = ∂a/∂s at the state `at`
    gradient(signal, at)   {parameter name: Σ over the batch of signalᵀ ∂a/∂parameter}, at the state `at`

A tape never reaches beyond its synapse, so nothing here can carry an error through two layers.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dualprop.errors import SettingError
from dualprop.feedback import backward_weight
from dualprop.maps import AFFINE, MAPS, RESHAPES

Modules = dict[str, nn.Module]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Record(NamedTuple):
    """One stretch of modules at one point: what it read and, where it was run, what it gave."""

    input: Tensor
    output: Tensor | None


class AbstractStretch(ABC):
    """Modules in a row as local maps. `depends_on_state`: whether the pull-back varies with the point."""

    depends_on_state: bool

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by their name in the model."""
        return {}

    @abstractmethod
    def run(self, s: Tensor) -> Record:
        """The output at s."""

    @abstractmethod
    def pull(self, record: Record, signal: Tensor) -> Tensor:
        """Jᵀ signal, J = ∂output/∂s at the record."""

    def linear(self, s: Tensor) -> Record:
        """The linear part of an affine stretch at s."""
        raise NotImplementedError

    def push(self, record: Record, change: Tensor) -> Tensor:
        """J change at the record."""
        raise NotImplementedError

    def gradient(self, record: Record, signal: Tensor, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of signalᵀ ∂output/∂parameter at the record, for every trainable parameter."""
        raise NotImplementedError

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        """`gradient` less that of another signal at another record, see `Synapse.contrast`."""
        raise NotImplementedError


class ReshapeStretch(AbstractStretch):
    """Reshapes alone: the pull-back is a reshape, at any point."""

    depends_on_state = False

    def __init__(self, modules: Modules) -> None:
        self.modules = modules

    def run(self, s: Tensor) -> Record:
        return Record(s, _through(self.modules, s))

    def linear(self, s: Tensor) -> Record:
        return self.run(s)

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        return signal.reshape(record.input.shape)

    def push(self, record: Record, change: Tensor) -> Tensor:
        return _through(self.modules, change)


class TapedStretch(AbstractStretch):
    """Any differentiable modules: pull-back and gradient by autograd on a tape of these modules alone."""

    depends_on_state = True

    def __init__(self, modules: Modules) -> None:
        self.modules = modules

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return _trainable(self.modules)

    def run(self, s: Tensor) -> Record:
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            return Record(leaf, _through(self.modules, leaf))

    def linear(self, s: Tensor) -> Record:
        record = self.run(s)
        with torch.enable_grad():
            return Record(record.input, _output(record) - _output(self.run(torch.zeros_like(s))).detach())

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        output = _output(record)
        return torch.autograd.grad(output, record.input, signal.to(output.dtype), retain_graph=True)[0]

    def push(self, record: Record, change: Tensor) -> Tensor:
        # J change is the derivative along it of u ↦ Jᵀ u, which is linear in u.
        with torch.enable_grad():
            output = _output(record)
            u = torch.zeros_like(output).requires_grad_()
            (pulled,) = torch.autograd.grad(output, record.input, u, create_graph=True)
        return torch.autograd.grad(pulled, u, change)[0]

    def gradient(self, record: Record, signal: Tensor, scale: float) -> dict[str, Tensor]:
        parameters, output = self.parameters, _output(record)
        found = torch.autograd.grad(output, list(parameters.values()), (signal * scale).to(output.dtype), retain_graph=True)
        return dict(zip(parameters, found, strict=True))

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        found, less = self.gradient(record, signal, _real(scale)), self.gradient(other, other_signal, _real(scale))
        return {name: gradient - less[name] for name, gradient in found.items()}


class LinearStretch(AbstractStretch):
    """One `nn.Linear`: a = s Wᵀ + b, so Jᵀ signal = signal W and the gradient is signalᵀ s, wherever s is.

    Here and in a convolution, the signal comes back through the module's feedback weights where it has them.
    """

    depends_on_state = False

    def __init__(self, name: str, module: nn.Linear) -> None:
        self.name, self.module = name, module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return _trainable({self.name: self.module})

    def run(self, s: Tensor) -> Record:
        return Record(s, self.module(s))

    def linear(self, s: Tensor) -> Record:
        return Record(s, nn.functional.linear(s, self.module.weight))

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        return signal @ backward_weight(self.module)

    def gradient(self, record: Record, signal: Tensor, scale: float, is_biased: bool = True) -> dict[str, Tensor]:
        signal, s = signal.flatten(0, -2), record.input.flatten(0, -2)
        weight, bias = _learning(self.module)
        # The scale rides on the matrix product for free; beta=0 makes the first argument a placeholder.
        of_weight = torch.addmm(signal.new_zeros(1), signal.T, s, beta=0, alpha=scale) if weight else None
        of_bias = signal.sum(0, dtype=self.module.weight.dtype).mul_(scale) if bias and is_biased else None
        # Under autocast the product is of half precision, as in back-propagation; what the optimizer reads is not.
        return _by_name(self.parameters, None if of_weight is None else of_weight.to(self.module.weight.dtype), of_bias)

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        return _contrast(self, record, signal, other, other_signal, scale)


class ConvolutionStretch(AbstractStretch):
    """One zero-padded convolution: Jᵀ signal is its transposed convolution, and the gradient a correlation with s."""

    depends_on_state = False

    def __init__(self, name: str, module: Convolution, padding: list[int]) -> None:
        self.name, self.module, self.padding = name, module, padding

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return _trainable({self.name: self.module})

    def run(self, s: Tensor) -> Record:
        return Record(s, self.module(s))

    def linear(self, s: Tensor) -> Record:
        return Record(s, self.module._conv_forward(s, self.module.weight, None))

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        pulled = self._backward(record, signal, backward_weight(self.module), [True, False, False])[0]
        assert pulled is not None
        return pulled

    def gradient(self, record: Record, signal: Tensor, scale: float, is_biased: bool = True) -> dict[str, Tensor]:
        weight, bias = _learning(self.module)
        mask = [False, weight, bias and is_biased]
        dtype = self.module.weight.dtype
        found = self._backward(record, signal, self.module.weight, mask)[1:]
        return _by_name(self.parameters, *(None if g is None else g.to(dtype).mul_(scale) for g in found))

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        return _contrast(self, record, signal, other, other_signal, scale)

    def _backward(self, record: Record, signal: Tensor, weight: Tensor, mask: list[bool]) -> list[Tensor | None]:
        conv = self.module
        bias_sizes = None if conv.bias is None else [conv.out_channels]
        signal, s, weight = in_autocast(signal, record.input, weight)
        return torch.ops.aten.convolution_backward(
            signal, s, weight, bias_sizes, conv.stride, self.padding, conv.dilation,
            False, [0] * len(self.padding), conv.groups, mask,
        )  # fmt: skip


class Tape:
    """One evaluation of a synapse at the state `below`; `records` are those of entry, core and exit.

    The last signal that was pulled back through the exit is kept, since feedback and gradient both need it at the core.
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
    """The modules between two activations, under their names in the user's model; parameters stay the modules' own."""

    def __init__(self, modules: Modules) -> None:
        names = list(modules)
        with_parameters = [i for i, name in enumerate(names) if next(modules[name].parameters(), None) is not None]
        first, last = (with_parameters[0], with_parameters[-1] + 1) if with_parameters else (0, 0)
        entry, core, exit_ = names[:first], names[first:last], names[last:]
        self.modules = modules
        self.name = core[-1] if core else names[-1] if names else "(empty)"
        self.entry: AbstractStretch = _stretch({name: modules[name] for name in entry})
        self.core: AbstractStretch = _core_stretch({name: modules[name] for name in core})
        self.exit: AbstractStretch = _stretch({name: modules[name] for name in exit_})

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trainable now, by their name in the model."""
        return self.core.parameters

    @property
    def feedback_depends_on_state(self) -> bool:
        """Whether Jᵀ varies with the state: it does past a pool or two maps in a row, not past one linear map."""
        return self.entry.depends_on_state or self.core.depends_on_state or self.exit.depends_on_state

    @property
    def owns_drive(self) -> bool:
        """Whether the drive is memory of its own: a linear core's output, or a reshape of it."""
        return not (self.core.depends_on_state or self.exit.depends_on_state) and not isinstance(self.core, ReshapeStretch)

    @property
    def owns_feedback(self) -> bool:
        """Whether the feedback is memory of its own, and not the signal itself through reshapes alone."""
        return not isinstance(self.core, ReshapeStretch)

    @property
    def needs_drive_to_linearize(self) -> bool:
        """Whether moving the point of linearisation costs a drive: not if only the entry varies with the state."""
        return self.core.depends_on_state or self.exit.depends_on_state

    def forward(self, s: Tensor) -> Tensor:
        """The drive a at the state s, inside whatever autograd graph s belongs to. Raises SettingError, as `drive`."""
        with reading(f"synapse '{self.name}'", s):
            return _through(self.modules, s)

    def drive(self, s: Tensor) -> tuple[Tensor, Tape]:
        """The drive a at the state s, and its tape. Raises SettingError where s does not fit the modules."""
        with reading(f"synapse '{self.name}'", s):
            entered = self.entry.run(s)
            left = self.core.run(_output(entered).detach())
            drive = self.exit.run(_output(left).detach())
        return _output(drive).detach(), Tape(s, (entered, left, drive))

    def linearize(self, tape: Tape, at: Tensor) -> Tape:
        """The tape at another state without a drive; only where not `needs_drive_to_linearize`."""
        entered = self.entry.run(at)
        # A linear core needs its input alone, and reshapes behind it their shapes alone, which are the old tape's.
        return Tape(at, (entered, Record(_output(entered).detach(), None), tape.records[2]))

    def differential(self, tape: Tape, change: Tensor) -> tuple[Tensor, Tape]:
        """J change, with J = ∂a/∂s at the tape's state: the drive's own change where pool switches stay as they are there. And
        the tape, at that state's, that the core's gradient at the changed state is taken from.

        Raises:
            SettingError: the core is not one Linear or convolution, whose gradient varies with its input alone.
        """
        if self.core.depends_on_state:
            raise SettingError(
                f"synapse '{self.name}' holds more than one Linear or convolution, of which no Jacobian can be held. Use "
                "jacobians='current'."
            )
        entered, left, exited = tape.records
        entry_change = self.entry.push(entered, change)
        drive_change = self.exit.push(exited, _output(self.core.linear(entry_change)))
        moved = Record((left.input + entry_change).detach(), None)
        return drive_change.detach(), Tape(tape.below, (entered, moved, exited))

    def linear_part(self, s: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(W s, u ↦ Wᵀu): the core alone as a linear map, without its biases, at s (N, …) of the shape that enters the core.

        Wᵀ is the core's own pull-back, as feedback takes it. The parameter-free entry and exit are left out, as in the
        authors' code: their norm is at most 1 where they reshape, pad with zeros, or pool over windows that do not overlap
        (a max-pool selects, an average pool averages), but not where they repeat values.

        Raises:
            SettingError: the core is not affine.
        """
        for name, module in (self.core.modules if isinstance(self.core, TapedStretch) else {}).items():
            if kind(module) not in AFFINE:
                raise SettingError(
                    f"synapse '{self.name}' holds {type(module).__name__} ('{name}'), which is not affine, so that the synapse "
                    "has no one spectral norm. Give the constants yourself, damping=(…)."
                )
        with reading(f"synapse '{self.name}'", s):
            record = self.core.linear(s)
        return _output(record).detach(), lambda signal: self.core.pull(record, signal)

    def feedback(self, tape: Tape, signal: Tensor) -> Tensor:
        """Jᵀ signal at the tape's state."""
        entered, left, _ = tape.records
        return self.entry.pull(entered, self.core.pull(left, self._at_core(tape, signal)))

    def gradient(self, tape: Tape, signal: Tensor, scale: float) -> dict[str, Tensor]:
        """scale · Σ over the batch of signalᵀ ∂a/∂parameter, for every trainable parameter, at the tape's state."""
        return self.core.gradient(tape.records[1], self._at_core(tape, signal), scale) if self.parameters else {}

    def contrast(self, tape: Tape, signal: Tensor, other: Tape, other_signal: Tensor, scale: complex) -> dict[str, Tensor]:
        """The gradient at one state less that at another, for signals and states that differ little.

        With s̄, σ̄ the means and δs, δσ the differences of what enters the core and of the signals there, it is that of δσ at s̄
        and of σ̄ at δs: nothing large is subtracted, where the core is one Linear or convolution.
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
    """Turn PyTorch's error on a state of the wrong shape or dtype into a SettingError that names the reader."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise SettingError(
            f"{reader} can't read a state of shape {tuple(state.shape)} and {state.dtype}: {str(error).splitlines()[0]}. "
            "Check the shape and dtype of x against the model."
        ) from error


def in_autocast(*tensors: Tensor) -> Iterator[Tensor]:
    """The tensors in autocast's dtype where it is on: PyTorch's own maps do that, its bare backward functions don't."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return iter(tensors)
    return (t.to(torch.get_autocast_dtype(device)) for t in tensors)


def kind(module: nn.Module) -> type[nn.Module]:
    """The module's type, under its parametrizations if it has any."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _through(modules: Modules, s: Tensor) -> Tensor:
    for module in modules.values():
        s = module(s)
    return s


def _dotted(name: str, leaf: str) -> str:
    """The parameter's name in the model; a model that is one module has no name of its own."""
    return f"{name}.{leaf}" if name else leaf


def _output(record: Record) -> Tensor:
    assert record.output is not None
    return record.output


def _trainable(modules: Modules) -> dict[str, nn.Parameter]:
    return {
        _dotted(name, leaf): parameter
        for name, module in modules.items()
        for leaf, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _learning(module: nn.Module) -> tuple[bool, bool]:
    """Whether the weight's gradient is needed, for the weight or for its feedback weight, and whether the bias's is."""
    trainable = {leaf for leaf, parameter in module.named_parameters() if parameter.requires_grad}
    return bool(trainable - {"bias"}), "bias" in trainable


def _by_name(parameters: Iterable[str], of_weight: Tensor | None, of_bias: Tensor | None) -> dict[str, Tensor]:
    """The gradients that there are, by parameter. A feedback weight learns as the weight does, from a tensor of its own."""
    found: dict[str, Tensor] = {}
    for name in parameters:
        gradient = of_bias if name.rpartition(".")[2] == "bias" else of_weight
        if gradient is None:
            continue
        found[name] = gradient.clone() if any(gradient is other for other in found.values()) else gradient
    return found


def _contrast(
    core: LinearStretch | ConvolutionStretch, one: Record, u: Tensor, other: Record, v: Tensor, scale: complex
) -> dict[str, Tensor]:
    s, t, scale = one.input.detach(), other.input.detach(), _real(scale)
    found = core.gradient(Record(torch.lerp(s, t, 0.5), None), u - v, scale)
    # The drive is its bias and a linear map of s, so that a change of s says nothing of the bias.
    rest = core.gradient(Record(s - t, None), torch.lerp(u, v, 0.5), scale, is_biased=False)
    return {name: gradient.add_(rest[name]) if name in rest else gradient for name, gradient in found.items()}


def _real(scale: complex) -> float:
    assert not isinstance(scale, complex), "complex scales are of complex states, see `holomorphic`"
    return scale


def _stretch(modules: Modules) -> ReshapeStretch | TapedStretch:
    return (ReshapeStretch if all(type(module) in RESHAPES for module in modules.values()) else TapedStretch)(modules)


def _core_stretch(modules: Modules) -> ReshapeStretch | TapedStretch | LinearStretch | ConvolutionStretch:
    """The direct formula for one plain Linear or convolution; a tape for anything else (hooks and parametrizations too)."""
    if not modules:
        return ReshapeStretch(modules)
    name, module = next(iter(modules.items()))
    plain = len(modules) == 1 and not any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )
    if plain and isinstance(module, nn.Linear) and type(module) in MAPS:
        return LinearStretch(name, module)
    if plain and isinstance(module, Convolution) and type(module) in MAPS:
        padding = _symmetric_padding(module)
        if padding is not None:
            return ConvolutionStretch(name, module, padding)
    return TapedStretch(modules)


def _symmetric_padding(conv: Convolution) -> list[int] | None:
    """The zeros on either side of each axis; None for other paddings, which are left to a tape."""
    if conv.padding_mode != "zeros":
        return None
    if isinstance(conv.padding, str):
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if conv.padding == "valid":
            return [0] * len(spans)
        return [span // 2 for span in spans] if all(span % 2 == 0 for span in spans) else None
    return list(conv.padding)
