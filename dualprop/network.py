"""The network view: a user's module read as layers of synapse and neuron, 1…L; layer 0 is the input.

Nothing is copied or wrapped: parameters, their names and `state_dict` stay the model's own, and prediction is the model
itself. What can't be read this way is refused by name, with the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dualprop import neurons
from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.layered import Layered
from dualprop.maps import MAPS
from dualprop.neurons import AbstractNeuron, Identity
from dualprop.synapses import Synapse, kind, reading

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


@dataclass(frozen=True)
class Layer:
    """One layer: the drive is the sum over `sources`, earlier layers (0 is the input), of what the synapse from each makes of
    its state; `neuron` maps the drive to the state. In a chain there is one synapse, from the layer below."""

    synapses: tuple[Synapse, ...]
    neuron: AbstractNeuron
    sources: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.synapses[0].name

    @property
    def synapse(self) -> Synapse:
        """The one synapse of a layer that reads one other."""
        (synapse,) = self.synapses
        return synapse

    def synapse_from(self, source: int) -> Synapse:
        return self.synapses[self.sources.index(source)]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of all its synapses, by their name in the model."""
        return {name: p for synapse in self.synapses for name, p in synapse.parameters.items()}

    def forward(self, states: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """The drive at the states s_0, s_1, …, inside whatever autograd graph they belong to. Raises SettingError where one
        does not fit."""
        parts = [synapse.forward(states[source]) for source, synapse in zip(self.sources, self.synapses, strict=True)]
        return summed(parts, self.name, self.sources)


def summed(parts: Sequence[Tensor], layer: int | str, sources: Sequence[int]) -> Tensor:
    """The sum of what a layer's synapses give, one for each source. Raises SettingError where their shapes differ."""
    shapes = [tuple(part.shape) for part in parts]
    if len(set(shapes)) > 1:
        raise SettingError(
            f"layer {layer} reads layers {tuple(sources)} through maps that give shapes {shapes}, which can't be added. "
            "Make them equal, by strides or pools."
        )
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class Network:
    """Layers 1…L, each reading earlier ones. `Network.from_module(model)` reads a model; the module stays usable as it was.

    Given layers alone it predicts by them, and `parameters` are what an optimizer steps. (`Layered` makes a module of layers.)

    Raises:
        SettingError: a layer that reads none, itself or a later one, or one twice; or one that no layer reads.
    """

    def __init__(self, layers: Sequence[Layer], module: nn.Module | None = None) -> None:
        if not layers:
            raise UnsupportedModuleError("the model holds no layer. It needs at least one Linear or convolution.")
        for k, layer in enumerate(layers, start=1):
            sources = layer.sources
            if not sources or len(set(sources)) != len(sources) or not all(0 <= source < k for source in sources):
                raise SettingError(f"layer {k} must read earlier layers, each once, got sources {sources}.")
            if len(layer.synapses) != len(sources):
                raise SettingError(f"layer {k} has {len(layer.synapses)} synapses but reads {len(sources)} layers: {sources}.")
        self.layers = tuple(layers)
        self.module = module
        self._readers = tuple(
            tuple(j for j, layer in enumerate(self.layers, start=1) if k in layer.sources) for k in range(len(self.layers) + 1)
        )
        unread = [k for k in range(1, len(self.layers)) if not self._readers[k]]
        if unread:
            raise SettingError(
                f"no layer reads layer {unread[0]}, so that it could never learn. Name it among the sources of one."
            )

    @classmethod
    def from_module(cls, model: nn.Module, also_allow: Sequence[type[nn.Module]] = ()) -> Network:
        """Read `model`, any nesting of `nn.Sequential` split at its activations, or a `Layered` as it lists its layers.

        Args:
            also_allow: further module types that may stand in a synapse. They must be deterministic, act on each example
                apart and hold no activation: inside a synapse plain derivatives are used.

        Raises:
            UnsupportedModuleError: names what can't be read, and the remedy.
        """
        reader = _Reader(tuple(also_allow))
        network = cls(reader.layered(model) if type(model) is Layered else reader.chain(model), model)
        if not network.parameters:
            raise UnsupportedModuleError("the model has no trainable parameter. Set requires_grad=True on some.")
        return network

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    def into(self, k: int) -> Layer:
        """Layer k: the synapse into it, its neuron, and the layers that it reads."""
        return self.layers[k - 1]

    def out_of(self, k: int) -> tuple[int, ...]:
        """The layers that read layer k."""
        return self._readers[k]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their name in the model."""
        return {name: p for layer in self.layers for name, p in layer.parameters.items()}

    @property
    def is_chain(self) -> bool:
        """Whether every layer reads the one below alone."""
        return all(layer.sources == (k,) for k, layer in enumerate(self.layers))

    @property
    def counts_of_backprop(self) -> dict[str, int]:
        """The synapse evaluations of one back-propagation step: every synapse driven, every one but those from the input pulled
        back through, a gradient of each that has parameters."""
        sources = [source for layer in self.layers for source in layer.sources]
        learning = sum(bool(synapse.parameters) for layer in self.layers for synapse in layer.synapses)
        return {"drives": len(sources), "feedbacks": len(sources) - sources.count(0), "gradients": learning}

    def forward(self, x: Tensor) -> Tensor:
        """The prediction (N, K): the module's own forward pass, or that of the layers where there is no module. Raises
        SettingError where x does not fit."""
        if self.module is not None:
            with reading("the model", x):
                return self.module(x)
        states = [x]
        for layer in self.layers:
            states.append(layer.neuron.f(layer.forward(states)))
        return states[-1]

    def __repr__(self) -> str:
        rows = [f"  {k}: {layer.name} → {type(layer.neuron).__name__}" for k, layer in enumerate(self.layers, start=1)]
        return "\n".join(["Network(", *rows, ")"])


class _Reader:
    """Reads a model's modules into layers, and refuses by name what can't be."""

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
                # Nothing stands in an identity, as in an empty nn.Sequential: a plain residual.
                found = _leaves(module, f"{k}.from_{source}")
                leaves = {name: leaf for name, leaf in found if type(leaf) is not nn.Identity}
                for name, leaf in leaves.items():
                    self.check(name, leaf, f"layer {k} holds {_brief(leaf)} ('{name}')")
                synapses.append(Synapse(leaves))
            name, activation = f"{k}.activation", model.activation(k)
            where = f"layer {k} holds {_brief(activation)} ('{name}')"
            if type(activation) not in neurons.NEURONS:
                known = ", ".join(sorted(t.__name__ for t in neurons.NEURONS))
                raise UnsupportedModuleError(f"{where} as its activation, which is none of {known}. Use one of them.")
            layers.append(Layer(tuple(synapses), self.neuron(name, activation, where), sources))
        return layers

    def neuron(self, name: str, module: nn.Module, where: str) -> AbstractNeuron:
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedModuleError(f"{where} with forward hooks, which inference would skip. Remove them.")
        try:
            return neurons.from_module(module, name)
        except SettingError as error:
            raise UnsupportedModuleError(f"{where}: {error}") from None

    def check(self, name: str, module: nn.Module, where: str) -> None:
        """Raise UnsupportedModuleError unless the module may stand in a synapse, and in one alone."""
        for shared in (module, *module.parameters()):
            if id(shared) in self.seen:
                raise UnsupportedModuleError(
                    f"{where}, which shares parameters with '{self.seen[id(shared)]}': a synapse learns from its own two "
                    "layers alone. Give each place its own module."
                )
        if next(module.parameters(), None) is not None:
            self.seen.update({id(shared): name for shared in (module, *module.parameters())})
        _check_synaptic(module, where, self.also_allow)


def _brief(module: nn.Module) -> str:
    """One line that shows the module: its repr, or its type where that has children and so many lines."""
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
    known = ", ".join(sorted(t.__name__ for t in neurons.NEURONS))
    raise UnsupportedModuleError(
        f"{where}, which is neither a known activation ({known}) nor a known map. Replace it, or use dp.dualize(model)."
    )
