"""What was read of a model: its activations, and what was left to exact derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Linear in each of their arguments, or mere structure: they hide no activation.
PLAIN = frozenset(
    """
    add sub rsub neg pos radd iadd isub add_ sub_ neg_ embedding embedding_bag one_hot avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_alpha_dropout interpolate upsample pad unfold fold pixel_shuffle pixel_unshuffle channel_shuffle cat concat
    concatenate stack hstack vstack flatten unflatten reshape view view_as reshape_as permute transpose t swapaxes swapdims
    movedim moveaxis squeeze unsqueeze squeeze_ unsqueeze_ expand expand_as repeat repeat_interleave tile broadcast_to chunk
    split tensor_split unbind narrow select index_select gather take_along_dim roll flip rot90 tril triu masked_fill
    masked_fill_ where mean sum cumsum contiguous to type to_ float half bfloat16 double clone detach cpu cuda
    requires_grad_ size dim numel stride item tolist zeros_like ones_like empty_like full_like rand_like randn_like new_zeros
    new_ones new_empty new_full new_tensor zeros ones empty full arange tensor eye linspace
    __get__ __set__ __getitem__ __setitem__ __len__ __iter__ __bool__ __int__ __float__ __index__ __format__ __repr__
    __contains__ __hash__ backward is_floating_point is_complex is_contiguous data_ptr copy_ fill_ zero_ scatter scatter_
    scatter_add scatter_add_ index_add index_add_ index_copy index_put index_put_ diagonal diag_embed trace meshgrid
    as_strided atleast_1d atleast_2d atleast_3d real imag element_size ndimension T mT ravel argmax argsort bernoulli
    __add__ __radd__ __sub__ __rsub__ __neg__ __iadd__ __isub__ __eq__ __ne__ __lt__ __gt__ __le__ __ge__ eq ne lt gt le ge
    """.split()  # noqa: SIM905 — a page of quotes says no more
)
# Normalisations and pools: exact derivatives are taken of them everywhere.
KNOWN = frozenset(
    """
    batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize max_pool1d max_pool2d max_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d boolean_dispatch
    """.split()  # noqa: SIM905
)
# Products and quotients: linear where one side alone is made of data.
PRODUCTS = frozenset(
    """
    mul mul_ multiply imul div div_ divide true_divide matmul bmm mm mv einsum dot inner __mul__ __rmul__ __imul__
    __truediv__ __itruediv__ __rtruediv__ __matmul__ __rmatmul__ baddbmm addcmul lerp tensordot linear bilinear outer ger
    addmm addmv addbmm addr conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d kron cross vdot
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Event:
    """One activation, in order of execution: layer k.

    `shape` is its drive's. `parameters` are those that its drive reads, `sources` the layers.
    """

    k: int
    neuron: str
    module: str
    shape: tuple[int, ...]
    sources: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()


@dataclass
class Report:
    """What one run of a model showed.

    Attributes:
        events: the activations.
        left: by (function, module), the calls left to exact derivatives inside a synapse.
        unasked: those of them that `leave=` did not name.
        constant: by (function, module), the activations of parameters alone, which are no neurons.
        hidden: by (function, module that it ran in or before), the activations that ran out of
            sight: in a function of torch.jit, say. The engines refuse them.
        modules: by k, the module that an activation was called in.
        hooked: the modules with forward hooks, which run in every pass.
        otherwise: the layers of a later batch, if one ran others.
    """

    events: list[Event] = field(default_factory=list)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    constant: Counter[tuple[str, str]] = field(default_factory=Counter)
    hidden: Counter[tuple[str, str]] = field(default_factory=Counter)
    unasked: Counter[tuple[str, str]] = field(default_factory=Counter)
    modules: dict[int, str] = field(default_factory=dict)
    hooked: list[str] = field(default_factory=list)
    otherwise: list[str] = field(default_factory=list)

    def meet(
        self, func: Any, args: Iterable[Any], result: Any, where: Callable[[], str], is_activation: bool, with_data: bool,
        is_asked: Callable[[Any], bool],
    ) -> None:  # fmt: skip
        """Note down a call that was left as it is, if it may hide an activation.

        `is_asked` tells whether `leave=` named the function, or a module that is running.
        """
        name = getattr(func, "__name__", str(func))
        if not _has_gradient(result):
            return
        if is_activation and not with_data:
            self.constant[name, where()] += 1
            return
        if not is_activation and (name in PLAIN or name in KNOWN or not with_data or name.startswith("__get")):
            return
        if name in PRODUCTS and not is_activation and sum(map(_is_data, _factors(name, list(args)))) < 2:
            return
        self.leaves(name, where(), is_asked(func))

    def leaves(self, name: str, place: str, is_asked: bool) -> None:
        """Note down what is left to exact derivatives."""
        self.left[name, place] += 1
        if not is_asked:
            self.unasked[name, place] += 1

    def note_hooks(self, model: nn.Module) -> None:
        """Keep which modules have forward hooks."""
        self.hooked = [
            name or type(module).__name__
            for name, module in model.named_modules()
            if module._forward_hooks or module._forward_pre_hooks
        ]

    def compare(self, layers: list[str]) -> None:
        """Keep the layers of a later run, in order, where they are others than those reported."""
        if layers != [event.neuron for event in self.events]:
            self.otherwise = layers

    def __str__(self) -> str:
        """The report, to be printed."""
        return "\n".join(["activations:", *self.lines()] if self.events else ["no activation of the inputs", *self.lines()])

    def lines(self) -> list[str]:
        """The report in lines of text."""
        rows = [f"  {event.k}: {event.neuron}{_of(event.module)}, drive {event.shape}" for event in self.events]
        rows += [
            f"  left to exact derivatives inside a synapse: {_told(name)}{_of(where)}{_times(count)}"
            for (name, where), count in self.left.items()
        ]
        rows += [
            f"  of parameters alone, no neuron: {name}{_of(where)}{_times(count)}"
            for (name, where), count in self.constant.items()
        ]
        rows += [
            f"  out of sight, refused: {name}{_before(where)}{_times(count)}" for (name, where), count in self.hidden.items()
        ]
        if self.hooked:
            rows.append(f"  in every pass of a step run the forward hooks of {', '.join(map(repr, self.hooked))}")
        if self.otherwise:
            rows.append(f"  all this is of the first batch; a later one ran {', '.join(self.otherwise)}")
        return rows


def _told(name: str) -> str:
    return f"{name}, a product of states" if name in PRODUCTS else name


def _factors(name: str, args: list[Any]) -> list[Any]:
    """What a product multiplies, of the call's arguments: not what is added to it."""
    if name.startswith(("add", "badd")):
        return args[1:]
    if name == "linear" or name.startswith("conv"):
        return args[:2]
    return tree_leaves(args)


def _is_data(value: Any) -> bool:
    return type(value) is Tensor and value.requires_grad and not hasattr(value, "_dualprop_is_constant")


def _of(module: str) -> str:
    return f" of '{module}'" if module else ""


def _before(module: str) -> str:
    return f" in or before '{module}'" if module else ""


def _times(count: int) -> str:
    return f", {count} times" if count > 1 else ""


def _has_gradient(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, (list, tuple)) and any(_has_gradient(part) for part in value)
