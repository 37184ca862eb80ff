"""Reads a model's modules into layers: `nn.Sequential` and `Layered`, and refuses others."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from dualprop import neurons
from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.network.layered import Layered
from dualprop.network.layers import Layer
from dualprop.network.modules import MAPS, kind
from dualprop.network.synapses import Synapse
from dualprop.neurons import AbstractNeuron, Identity

# Why a module is refused in a synapse, and what to do instead.
_REFUSALS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (
        (nn.modules.dropout._DropoutNd,),
        "which explicit inference would draw anew at each evaluation. Remove it, or use dp.dualize(model).",
    ),
    (
        (nn.modules.batchnorm._BatchNorm,),
        "whose statistics tie the examples of a batch together. Use GroupNorm, or dp.dualize(model).",
    ),
    (
        (nn.LogSoftmax, nn.Softmax2d, nn.Softmin),
        "which couples units. Use nn.Softmax(dim=1), or if it is the output drop it: losses.CrossEntropy() works on logits.",
    ),
    (
        (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
        "which is not monotone and so no proximal map. Use ReLU or LeakyReLU, or dp.dualize(model).",
    ),
    (
        (nn.Hardsigmoid,),
        "PyTorch's clip(a/6 + 1/2, 0, 1). The papers' hard sigmoid is Hardtanh(0, 1): use that, or dp.dualize(model).",
    ),
)


class Reader:
    """Reads a model's modules into layers, and refuses by name those that can't be read."""

    def __init__(self, also_allow: tuple[type[nn.Module], ...]) -> None:
        self.also_allow = also_allow
        self.seen: dict[int, str] = {}

    def chain(self, model: nn.Module) -> list[Layer]:
        """The layers of nested `nn.Sequential`s, each reading the one below."""
        layers: list[Layer] = []
        synapse: dict[str, nn.Module] = {}

        def close(neuron: AbstractNeuron) -> None:
            layers.append(Layer((Synapse(dict(synapse)),), neuron, sources=(len(layers),)))
            synapse.clear()

        for name, module in _leaves(model, ""):
            where = f"layer {len(layers) + 1} holds {_brief(module)} ('{name}')"
            if type(module) in neurons.NEURONS:
                close(self.neuron(name, module, where))
            else:
                self.check(name, module, where)
                synapse[name] = module
        if synapse:
            close(Identity())
        return layers

    def layered(self, model: Layered) -> list[Layer]:
        """The layers as the model lists them."""
        if model._forward_hooks or model._forward_pre_hooks:
            raise UnsupportedModuleError("the Layered model has forward hooks, which inference would skip. Remove them.")
        layers = []
        for k, sources in enumerate(model.sources, start=1):
            synapses = []
            for source, module in model.maps(k).items():
                # An identity is empty, as is an empty nn.Sequential: a plain residual.
                named = _leaves(module, f"{k}.from_{source}")
                leaves = {name: leaf for name, leaf in named if type(leaf) is not nn.Identity}
                for name, leaf in leaves.items():
                    self.check(name, leaf, f"layer {k} holds {_brief(leaf)} ('{name}')")
                synapses.append(Synapse(leaves))
            name, activation = f"{k}.activation", model.activation(k)
            where = f"layer {k} holds {_brief(activation)} ('{name}')"
            if type(activation) not in neurons.NEURONS:
                types = ", ".join(sorted(t.__name__ for t in neurons.NEURONS))
                raise UnsupportedModuleError(f"{where} as its activation, which is none of {types}. Use one of them.")
            layers.append(Layer(tuple(synapses), self.neuron(name, activation, where), sources))
        return layers

    def neuron(self, name: str, module: nn.Module, where: str) -> AbstractNeuron:
        _check_own(module, where)
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedModuleError(f"{where} with forward hooks, which inference would skip. Remove them.")
        try:
            return neurons.from_module(module, name)
        except SettingError as error:
            raise UnsupportedModuleError(f"{where}: {error}") from None

    def check(self, name: str, module: nn.Module, where: str) -> None:
        """Raise UnsupportedModuleError unless the module may stand in a synapse, and in one."""
        _check_own(module, where)
        for shared in (module, *module.parameters()):
            if id(shared) in self.seen:
                raise UnsupportedModuleError(
                    f"{where}, which shares parameters with '{self.seen[id(shared)]}': a synapse learns from its own two "
                    "layers alone. Give each place its own module."
                )
        if next(module.parameters(), None) is not None:
            self.seen.update({id(shared): name for shared in (module, *module.parameters())})
        _check_synaptic(module, where, self.also_allow)


def _check_own(module: nn.Module, where: str) -> None:
    """Raise UnsupportedModuleError where a module runs something else than its type says."""
    if "forward" in vars(module):
        raise UnsupportedModuleError(f"{where} with a forward of its own, which inference would skip.")
    if module._backward_hooks or module._backward_pre_hooks:
        raise UnsupportedModuleError(f"{where} with full backward hooks, which inference would skip. Remove them.")
    moves = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    if moves or (parametrize.is_parametrized(module) and next(module.parametrizations.buffers(), None) is not None):  # type: ignore[union-attr]
        raise UnsupportedModuleError(f"{where} with a weight that moves at each evaluation in training.")


def _brief(module: nn.Module) -> str:
    """One line that shows the module: its repr, or its type where that takes several lines."""
    return type(module).__name__ if next(module.children(), None) is not None else repr(module)


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside nested `nn.Sequential`s with their dotted names, in order."""
    if not isinstance(module, nn.Sequential):
        yield name, module
        return
    if type(module).forward is not nn.Sequential.forward or "forward" in vars(module):
        raise UnsupportedModuleError(
            f"'{name or type(module).__name__}' is an nn.Sequential with a forward of its own, which can't be split. "
            "Use a plain nn.Sequential, or dp.dualize(model)."
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedModuleError(
            f"'{name or type(module).__name__}' is an nn.Sequential with forward hooks, which the split would skip. "
            "Remove them, or put them on a layer inside it."
        )
    for child_name, child in module._modules.items():
        assert child is not None
        yield from _leaves(child, f"{name}.{child_name}" if name else child_name)


def _check_synaptic(module: nn.Module, where: str, also_allow: tuple[type[nn.Module], ...]) -> None:
    """Raise UnsupportedModuleError unless the module may stand in a synapse."""
    if kind(module) in MAPS or (also_allow and isinstance(module, also_allow)):
        return
    for types, reason in _REFUSALS:
        if isinstance(module, types):
            raise UnsupportedModuleError(f"{where}, {reason}")
    if next(module.children(), None) is not None or not type(module).__module__.startswith("torch.nn"):
        raise UnsupportedModuleError(
            f"{where}, whose forward can't be split at its activations. Write the model as nested "
            "nn.Sequential (a module without activations may be named in also_allow=), or use dp.dualize(model)."
        )
    activations = ", ".join(sorted(t.__name__ for t in neurons.NEURONS))
    raise UnsupportedModuleError(
        f"{where}, which is neither a known activation ({activations}) nor a known map. Replace it, or use dp.dualize(model)."
    )
