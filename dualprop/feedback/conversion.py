"""Giving the Linears and convolutions of any model feedback weights, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.feedback.modules import FEEDBACK_MODULES, AbstractFeedback, Kind, check_kind, draw, install, type_of

# They hold parameters, but no weights that mix units on the way back: diagonal maps, and
# embeddings, where the way ends.
_NOTHING_TO_SEPARATE: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Embedding,
    nn.EmbeddingBag,
)


def convert(
    model: nn.Module,
    kind: Kind,
    *,
    generator: torch.Generator | None = None,
    leave: Sequence[str] = (),
) -> nn.Module:
    """Give every Linear and convolution of `model` feedback weights, in place.

    Gradients then come back through them.

    Modules, parameters, their names, hooks, device, dtype and mode stay what they were.
    "kolen_pollack" adds a parameter `feedback_weight` to each, "random" a buffer, "sign_symmetric"
    nothing. Convert before the optimizer is made, so that it sees the new parameters, and before a
    `state_dict` that holds them is loaded.

    B is drawn as PyTorch draws the layer's weight, learns if W does, and is shared where W is. If
    something other than such modules reads W too (an Embedding tied to the last Linear), W receives
    gradients that B does not, and the two won't align.

    Only modules are read. A forward that multiplies by a weight of a child, F.linear(x,
    self.embed.weight) say, keeps exact feedback.

    Args:
        kind: "kolen_pollack", "random" or "sign_symmetric"; `feedback.modules` says what each is.
        generator: draws the feedback weights, on its device. None is PyTorch's global generator.
        leave: names of modules (with their children), parameters or types that keep exact feedback.

    Returns:
        The model.

    Raises:
        UnsupportedModuleError: names what holds weights and can't be converted, and the remedy. The
            model is as it was.
        SettingError: an unknown kind, or a `leave` that names nothing in the model.
    """
    check_kind(kind)
    chosen = _judged(model, (leave,) if isinstance(leave, str) else tuple(leave))
    # All are drawn before any is changed, and once per weight: places that share W share B.
    drawn: dict[int, Tensor | None] = {}
    for module in chosen:
        weight = module.get_parameter("weight")
        if id(weight) not in drawn:
            drawn[id(weight)] = draw(weight, kind, generator)
    for module in chosen:
        module.__class__ = FEEDBACK_MODULES[type(module)]
        assert isinstance(module, AbstractFeedback)
        install(module, kind, drawn[id(module.weight)])
    return model


def _judged(model: nn.Module, leave: tuple[str, ...]) -> list[nn.Module]:
    """The modules to convert, each once.

    Raises if anything else holds weights, or a `leave` names nothing.
    """
    named: set[str] = set()
    left: set[int] = set()
    # By every name of a shared module, since `leave` may be any of them.
    for name, module in model.named_modules(remove_duplicate=False):
        hits = {name, type_of(module).__name__} & (set(leave) - {""})
        named |= hits
        if hits:
            left.update(id(inner) for inner in module.modules())
    chosen = []
    for name, module in model.named_modules():
        if id(module) in left:
            continue
        reason = _obstacle(module, name)
        if reason:
            raise UnsupportedModuleError(f"{repr(name) if name else 'the model'} is {type_of(module).__name__}, {reason}")
        if type_of(module) in FEEDBACK_MODULES:
            chosen.append(module)
        elif type_of(module) not in _NOTHING_TO_SEPARATE:
            named |= _left_parameters(module, name, leave)
    unused = sorted(map(repr, set(leave) - named))
    if unused:
        raise SettingError(f"leave names {', '.join(unused)}, which convert does not meet in the model. Remove it.")
    if not chosen:
        raise UnsupportedModuleError("the model holds no Linear or convolution to convert: it has none, or leave= names all.")
    return chosen


def _obstacle(module: nn.Module, name: str) -> str:
    """Why a module can't be converted or entered, whatever it holds, and the remedy; or ''."""
    exact = f"leave its feedback exact with leave=({name or type_of(module).__name__!r},)."
    if isinstance(module, AbstractFeedback):
        return "which has feedback weights already. Convert a fresh copy of the model."
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "which would not reduce the new parameters' gradients. Convert the model before it is wrapped."
    if isinstance(module, torch.jit.ScriptModule):
        return "which is compiled as it is. Convert the model before it is scripted."
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"whose weights have no shape yet. Run the model once on a batch first, or {exact}"
    if parametrize.is_parametrized(module):
        return f"which is parametrized, so that its weight is no parameter. Remove the parametrization, or {exact}"
    if type(module) not in FEEDBACK_MODULES:
        return ""
    if "forward" in vars(module):
        return f"whose forward was replaced by another. Delete that attribute, or {exact}"
    if set(module._parameters) != {"weight", "bias"}:
        held = ", ".join(module._parameters)
        return f"which holds {held} in place of weight and bias. Undo that (weight norm, pruning), or {exact}"
    if module.get_parameter("weight").is_complex():
        return f"whose weight is complex. Use real weights, or {exact}"
    return ""


def _left_parameters(module: nn.Module, name: str, leave: tuple[str, ...]) -> set[str]:
    """The module's direct parameters, by name. Raises where one is not in `leave`."""
    leaves = {f"{name}.{leaf}" if name else leaf: leaf for leaf, p in module._parameters.items() if p is not None}
    for dotted in leaves:
        if dotted not in leave:
            kind = type(module)
            what = f"{repr(name) if name else 'the model'} is {kind.__name__}, "
            if kind.__module__.startswith("torch.") or issubclass(kind, tuple(FEEDBACK_MODULES)):
                raise UnsupportedModuleError(
                    f"{what}which holds weights and has no version with feedback weights. Replace it by a plain Linear or "
                    f"convolution, or leave its feedback exact with leave=({name or kind.__name__!r},)."
                )
            raise UnsupportedModuleError(
                f"{what}which owns the parameter {leaves[dotted]!r}, whose use in its forward would keep exact feedback. Make "
                f"it the weight of a Linear or convolution, or leave it exact with leave=({dotted!r},)."
            )
    return set(leaves)
