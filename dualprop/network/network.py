"""The network view: a user's module read as layers of synapse and neuron.

Layers are 1…L; layer 0 is the input.

Nothing is copied or wrapped. Parameters, their names and `state_dict` stay the model's, and the
model itself predicts. What can't be read this way is refused by name, with the remedy.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from dualprop.errors import SettingError, UnsupportedModuleError
from dualprop.network.evaluation import AbstractEvaluation, SynapseEvaluation
from dualprop.network.layered import Layered
from dualprop.network.layers import Layer
from dualprop.network.modules import EMBEDDINGS, MAPS, kind, without_feedback
from dualprop.network.reader import Reader
from dualprop.network.stacked import num_models
from dualprop.network.synapses import reading
from dualprop.network.wrappers import unwrapped


class Network:
    """Layers 1…L, each reading earlier ones.

    `Network.from_module(model)` reads a model. The module stays usable as it was.

    A network of layers alone predicts by them, and an optimizer steps its `parameters`. (`Layered`
    makes a module of layers.)

    Raises:
        SettingError: a layer that reads none, itself, a later one, or one twice; or an unread one.
    """

    # What the module was wrapped in when it was read (`wrappers`).
    wrapper: nn.Module | None = None
    # Whether it is read by running it, so that its layers are those of a batch.
    is_recorded: bool = False
    # Names of functions and modules whose activations are left to exact derivatives.
    leave: tuple[str, ...] = ()
    # Names of trainable parameters that its output does not depend on.
    unread: frozenset[str] = frozenset()
    # That are stacked in it, see `stacked`.
    num_models: int = 1
    # The kind of network that reads any model by running it. It builds on this one: `recorded`.
    _by_running: ClassVar[type[Network] | None] = None

    def __init_subclass__(cls, reads_by_running: bool = False) -> None:
        if reads_by_running:
            Network._by_running = cls

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
        self.num_models = num_models(module)
        self._view = [] if module is None else [(name, part, _nature(part)) for name, part in module.named_modules()]
        self._readers = tuple(
            tuple(j for j, layer in enumerate(self.layers, start=1) if k in layer.sources) for k in range(len(self.layers) + 1)
        )
        unread = [k for k in range(1, len(self.layers)) if not self._readers[k]]
        if unread:
            raise SettingError(
                f"no layer reads layer {unread[0]}, so that it could never learn. Name it among the sources of one."
            )

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        also_allow: Sequence[type[nn.Module]] = (),
        *,
        leave: str | Sequence[str] = (),
        output: Callable[[Any], Tensor] | None = None,
        strict: bool = False,
    ) -> Network:
        """Read any model, as layers of synapse and neuron.

        `nn.Sequential`s, nested or not, and `Layered` are split at their activations where all that
        they hold is known: each synapse is then evaluated for itself. Any other model is read by
        running it, see `recorded`. `is_recorded` tells which.

        Args:
            model: where it is in a `DistributedDataParallel`, that or its `.module`.
            also_allow: further module types that may stand in the synapse of a split model. They
                must be deterministic, act on each example apart, and hold no activation, since
                plain derivatives are used inside a synapse.
            leave: names of functions ("softmax"), of modules ("gate") or of their types ("GELU"),
                whose activations are left to exact derivatives.
            output: the tensor (N, …) that is the network's output, of what the model returns.
            strict: refuse a model of which a function is left to exact derivatives that may hide an
                activation.

        Raises:
            UnsupportedModuleError: names what can't be read, and the remedy.
            SettingError: `leave` names what there is not, or `output` is no function.
        """
        model, wrapper = unwrapped(model)
        if output is not None and not callable(output):
            raise SettingError(
                f"output must be a function of what the model returns, got {output!r}. Use output=lambda out: out[{output!r}], "
                "or the attribute of that name."
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UnsupportedModuleError("the model has no trainable parameter. Set requires_grad=True on some.")
        if not leave and output is None:
            try:
                reader = Reader(tuple(also_allow))
                network = Network(reader.layered(model) if type(model) is Layered else reader.chain(model), model)
                network.wrapper = wrapper
                return network
            except UnsupportedModuleError as error:
                # What can't be split may still be run.
                obstacle = str(error)
        else:
            obstacle = "leave= and output= are of models that are run"
        assert Network._by_running is not None
        network = Network._by_running(model, leave, output, strict, obstacle)  # type: ignore[call-arg, arg-type]
        network.wrapper = wrapper
        return network

    def on(self, x: Any) -> Network:
        """The network as this batch runs it. Modules in a row run every batch alike.

        Raises SettingError where the model holds other modules, hooks or forwards than it did when
        it was read, since the layers are those of then.
        """
        for name, module, nature in self._view:
            if _nature(module) != nature:
                raise SettingError(f"{_difference(name, module, nature)} was read. Read it again: Network.from_module(model).")
        return self

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

    def evaluation(self) -> AbstractEvaluation:
        """The evaluation of its local maps for one inference."""
        return SynapseEvaluation(self)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their name in the model."""
        return {name: p for layer in self.layers for name, p in layer.parameters.items()}

    @property
    def reads_integers(self) -> bool:
        """Whether the input may be integers: each synapse from it begins with an embedding, or with
        a module that `also_allow` named."""
        firsts = [next(iter(layer.synapse_from(0).modules.values()), None) for layer in self.layers if 0 in layer.sources]
        return all(first is not None and (kind(first) in EMBEDDINGS or kind(first) not in MAPS) for first in firsts)

    @property
    def is_chain(self) -> bool:
        """Whether every layer reads the one below alone."""
        return all(layer.sources == (k,) for k, layer in enumerate(self.layers))

    def counts_of_backprop(self, x: Any = None) -> dict[str, int]:
        """The synapse evaluations of one back-propagation step.

        Every synapse is driven. All but those from the input are pulled back through. Each that has
        parameters gives a gradient.
        """
        sources = [source for layer in self.layers for source in layer.sources]
        learning = sum(bool(synapse.parameters) for layer in self.layers for synapse in layer.synapses)
        return {"drives": len(sources), "feedbacks": len(sources) - sources.count(0), "gradients": learning}

    def run(self, module: nn.Module, x: Any) -> Tensor:
        """The output, (N, K), of a module of the same kind as this network's."""
        output: Tensor = module(x)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """The prediction (N, K): the module's forward pass, or without a module the layers'.

        Raises SettingError where x does not fit.
        """
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


def _nature(module: nn.Module) -> tuple[Any, ...]:
    """What the reading of a module depends on: its type, its parts, what is patched onto it, and
    its settings. A parametrization changes the type; feedback weights are followed."""
    own, kind = vars(module), without_feedback(type(module))
    patches = len(own["_forward_hooks"]), len(own["_forward_pre_hooks"]), len(own["_backward_hooks"]), "forward" in own
    return kind, patches, tuple(own["_modules"].items()), _settings(kind)(module)


def _difference(name: str, module: nn.Module, nature: tuple[Any, ...]) -> str:
    """What became of a module whose nature was this."""
    parts = dict(nature[2])
    exchanged = next((child for child, part in module._modules.items() if parts.get(child) is not part), None)
    if exchanged is not None:
        return f"'{f'{name}.' if name else ''}{exchanged}' was exchanged or added after the model"
    told = f"'{name}'" if name else "the model"
    return f"{told} has other parts, hooks or settings, or another forward, than when it"


def _settings(kind: Any) -> Callable[[nn.Module], Any]:
    """The values of what PyTorch lists as a module's constants: a stride, a slope, a mode."""
    if kind not in _CONSTANTS:
        names: Sequence[str] = getattr(kind, "__constants__", ()) if kind.__module__.startswith("torch.nn") else ()
        _CONSTANTS[kind] = operator.attrgetter(*names) if names else lambda module: None
    return _CONSTANTS[kind]


# By type of module. Each parametrization makes a type of its own.
_CONSTANTS: weakref.WeakKeyDictionary[Any, Callable[[nn.Module], Any]] = weakref.WeakKeyDictionary()
