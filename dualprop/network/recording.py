"""One pass of a model with its states at the activations cut: every layer's own tape.

At activation k the drive a_k is recorded, and the model goes on with a state that is a leaf. So a_k
is, for autograd, a function of the states below it alone, and of parameters. No tape reaches
through two layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointFunction

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.network.hooks import end_here
from dualprop.neurons import AbstractNeuron, Identity
from dualprop.reading import Reading, Report
from dualprop.reading.activations import READERS
from dualprop.reading.memory import memory_of_its_own, saved_tensors_hooks

# The state of layer k, given its neuron and drive.
Visit = Callable[[int, AbstractNeuron, Tensor], Tensor]


class Restart(BaseException):
    """The model writes over the drive or state of layer `k`, which must then be given as a copy.

    No Exception: a model may catch those.
    """

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.k = k


class Tape:
    """One pass: layers k = 1…L by index k; index 0 is the input.

    Attributes:
        drives: a_k in its local graph; `values` the same without it.
        states: the tensors that were given as states; `leaves` the leaves made of them.
        neurons, places: what each activation is, and the function that it was.
    """

    def __init__(self, x: Any) -> None:
        self.drives: list[Tensor] = [torch.empty(0)]
        self.values: list[Tensor] = [torch.empty(0)]
        self.states: list[Tensor] = [x]
        self.leaves: list[Tensor] = [torch.empty(0)]
        self.neurons: list[AbstractNeuron] = [Identity()]
        self.places: list[tuple[str, tuple[int, ...]]] = [("", ())]
        self._reached: dict[int, tuple[tuple[int, ...], dict[str, Tensor]]] = {}
        self._layers: dict[int, int] = {}
        self._leaves = Leaves()
        # By k, how often the drive and the state had been written over when they were recorded.
        self._versions: list[tuple[int, int]] = [(0, 0)]
        # By address, the layer whose state lies there.
        self._addresses: dict[int, int] = {}

    @property
    def depth(self) -> int:
        return len(self.drives) - 1

    def add(self, drive: Tensor, value: Tensor, state: Tensor, leaf: Tensor, neuron: AbstractNeuron, name: str) -> None:
        self._layers[id(leaf)] = len(self.drives)
        if (address := _address(leaf)) is not None:
            self._addresses[address] = len(self.drives)
        self._versions.append((drive._version, leaf._version))
        self.drives.append(drive)
        self.values.append(value)
        self.states.append(state)
        self.leaves.append(leaf)
        self.neurons.append(neuron)
        self.places.append((name, tuple(drive.shape)))

    def layer_of(self, tensor: Tensor) -> int | None:
        """The layer whose state this is, or a view of it, or a tensor that shares its memory."""
        address = _address(tensor)
        return None if address is None else self._addresses.get(address)

    def reads_states(self, tensor: Tensor) -> bool:
        """Whether a tensor is a function of states."""
        return any(id(leaf) in self._layers for leaf in Leaves().under(tensor))

    def leaves_of(self, k: int) -> list[Tensor]:
        """What a_k reads that requires a gradient: states' leaves, parameters and other tensors."""
        return self._leaves.under(self.drives[k])

    def written(self) -> int | None:
        """The first layer whose drive or state was written over since it was recorded."""
        for k in range(1, self.depth + 1):
            if (self.drives[k]._version, self.leaves[k]._version) != self._versions[k]:
                return k
        return None

    def reached(self, k: int, names: dict[int, str]) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        """The layers whose states a_k reads, and the trainable parameters, by name, as leaves."""
        if k not in self._reached:
            sources: list[int] = []
            parameters: dict[str, Tensor] = {}
            for leaf in self.leaves_of(k):
                if id(leaf) in self._layers:
                    sources.append(self._layers[id(leaf)])
                elif id(leaf) in names:
                    parameters[names[id(leaf)]] = leaf
            self._reached[k] = tuple(sorted(sources)), parameters
        return self._reached[k]


def _address(tensor: Tensor) -> int | None:
    """Where its memory begins, if it has its own."""
    if tensor.layout != torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    return tensor.untyped_storage().data_ptr() or None


class Leaves:
    """The leaves that graphs of autograd begin at. What graphs share is walked once."""

    def __init__(self) -> None:
        # Each leaf is a bit, and each node those that it is made of.
        self._leaves: list[Tensor] = []
        self._bits: dict[int, int] = {}
        self._nodes: dict[Any, int] = {}

    def under(self, tensor: Tensor) -> list[Tensor]:
        """The leaves of a tensor's graph that ask for a gradient."""
        if tensor.grad_fn is None:
            return [tensor] if tensor.requires_grad else []
        bits = self._walk(tensor.grad_fn)
        return [leaf for i, leaf in enumerate(self._leaves) if bits >> i & 1]

    def _walk(self, root: Any) -> int:
        nodes, stack = self._nodes, [root]
        while stack:
            node = stack[-1]
            if node in nodes:
                stack.pop()
                continue
            below = [other for other, _ in node.next_functions if other is not None]
            ahead = [other for other in below if other not in nodes]
            if ahead:
                stack += ahead
                continue
            bits = self._bit(node)
            for other in below:
                bits |= nodes[other]
            nodes[stack.pop()] = bits
        return nodes[root]

    def _bit(self, node: Any) -> int:
        variable = getattr(node, "variable", None)
        if variable is None:
            return 0
        if id(variable) not in self._bits:
            self._bits[id(variable)] = 1 << len(self._leaves)
            self._leaves.append(variable)
        return self._bits[id(variable)]


class _Kept(torch.autograd.Function):
    """a, in `data`, which is its memory until it is given another."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, data: Tensor) -> Tensor:
        return data.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return cotangents[0], None


class Recording(Reading):
    """Runs a model with its activations cut. `visit` gives each layer's state, see `Visit`.

    `copied` are the layers whose states the model writes over.
    """

    def __init__(
        self, model: nn.Module, x: Any, visit: Visit, copied: Sequence[int], leave: Sequence[str], report: Report | None
    ) -> None:
        super().__init__(model, leave, report)
        self.tape, self.visit, self.copied = Tape(x), visit, copied
        # What the model was last given for a state, and how often that had been written over.
        self._given: tuple[Tensor | None, int] = None, 0

    def __enter__(self) -> Recording:
        # A pass that repeats another has copies of the buffers, put there since.
        self.buffers = self.present_buffers()
        # Hooks that are in force around the step are others': they come back when it is over.
        self._holds = saved_tensors_hooks() is not None
        if self._holds:
            torch._C._autograd._push_saved_tensors_default_hooks(_as_it_is, _as_it_is)
        super().__enter__()
        return self

    def __exit__(self, *trouble: Any) -> None:
        super().__exit__(*trouble)
        if self._holds:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def emit(self, neuron: AbstractNeuron, a: Tensor, inplace: bool = False) -> Tensor:
        k = len(self.tape.drives)
        if inplace:
            self._restart_if_state(a)
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(a).tangent is not None:
            raise self._derives()
        data = memory_of_its_own(a) if inplace and k not in self.copied else None
        if data is not None:
            drive = _Kept.apply(a, data)
        elif inplace or k in self.copied:
            drive = a.clone()
        else:
            # A drive that is itself a state must have a place of its own on the tape.
            drive = a.view_as(a) if a.requires_grad and a.grad_fn is None else a
        value = drive.detach()
        with torch.no_grad():
            state = self.visit(k, neuron, value)
        if data is not None and state.dtype == a.dtype and state.data_ptr() != data.data_ptr():
            # Memories are exchanged: nothing is copied.
            a.detach_().data = state.detach()
            leaf = a.requires_grad_()
        else:
            leaf = state.detach().requires_grad_()
        end_here(leaf)
        name = getattr(self.function, "__name__", str(self.function))
        self.tape.add(drive, value, state, leaf, neuron, name)
        if self.report is not None:
            self.report.modules[k] = self.where()
        if inplace and leaf is not a:
            if not a._is_view():
                # Else the layers above would walk its graph, for gradients of zero.
                a.detach_()
            a.copy_(leaf)
        given = a if inplace else leaf.clone() if k in self.copied else leaf
        self._given = given, given._version
        return given

    def before(self, func: Any, args: tuple[Any, ...]) -> None:
        _hold_what_is_saved()
        if func in READERS and not torch.is_grad_enabled() and _is_checkpointed_in_two():
            raise UnsupportedModuleError(
                f"'{self.where()}' runs in a checkpoint that runs again in the backward pass, where explicit inference can't "
                "follow. Use use_reentrant=False."
            )
        if func in _DERIVATIVES and any(self._reaches_states(part) for part in tree_leaves(args)):
            raise self._derives()
        if func is Tensor.register_hook and (hasattr(args[0], "_dualprop_is_data") or self._reaches_states(args[0])):
            raise UnsupportedModuleError(
                f"'{self.where()}' hooks a function on a tensor's gradient, which local derivatives would set off at other "
                "times and scales. Remove it, or use dp.dualize(model)."
            )
        if args and isinstance(args[0], Tensor) and _writes(func):
            self._restart_if_state(args[0])

    def _derives(self) -> UnsupportedModuleError:
        return UnsupportedModuleError(
            f"'{self.where()}' takes derivatives through activations, which explicit inference cuts. Leave them (leave=)."
        )

    def _reaches_states(self, value: Any) -> bool:
        return isinstance(value, Tensor) and self.tape.reads_states(value)

    def _restart_if_state(self, tensor: Any) -> None:
        k = self.tape.layer_of(tensor) if isinstance(tensor, Tensor) else None
        if k is not None and k not in self.copied:
            raise Restart(k)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except RuntimeError as error:
            # Functions with an argument `inplace`, whose name does not say so.
            if "leaf Variable that requires grad" in str(error):
                for value in (*args, *(kwargs or {}).values()):
                    self._restart_if_state(value)
            raise

    def end(self, output: Any) -> Tape:
        """Take the output for the last layer. Raises SettingError unless it is a tensor."""
        if not isinstance(output, Tensor):
            raise SettingError(
                f"the model returns a {type(output).__name__}, of which a rule needs one tensor. Name it: "
                "Network.from_module(model, output=lambda out: out['logits']), say."
            )
        if not output.dim():
            raise SettingError(
                "the model returns one number for the whole batch, as a loss is, where a rule needs the outputs (N, …). Name "
                "them by output= and give the rule the loss, or use dp.dualize(model)."
            )
        self.look_at_output(output)
        written = self.tape.written()
        if written is not None and written not in self.copied:
            raise Restart(written)
        given, version = self._given
        if output is given and output._version == version:
            return self.tape
        k, value = len(self.tape.drives), output.detach()
        with torch.no_grad():
            state = self.visit(k, Identity(), value)
        self.tape.add(output, value, state, state.detach(), Identity(), "output")
        return self.tape


def _hold_what_is_saved() -> None:
    """In a checkpoint, and in others' saved-tensor hooks in the model, keep tensors as they are.

    What a checkpoint computes again, it would compute without the states.
    """
    top = saved_tensors_hooks()
    if top is not None and top[0] is not _as_it_is:
        # The context that pushed its own pops the last: these.
        torch._C._autograd._pop_saved_tensors_default_hooks()
        torch._C._autograd._push_saved_tensors_default_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _is_checkpointed_in_two() -> bool:
    """Whether a checkpoint is running that runs its part again in the backward pass."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


_DERIVATIVES = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})
_WRITES: dict[Any, bool] = {}
_IN_PLACE = frozenset(
    {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul")} | {"__setitem__"}
)


def _writes(func: Any) -> bool:
    """Whether a function writes over its first argument."""
    if func not in _WRITES:
        name = getattr(func, "__name__", "")
        _WRITES[func] = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")
    return _WRITES[func]
