"""One layer of a network: the synapses into it, and its neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from dualprop.errors import SettingError
from dualprop.network.synapses import Synapse
from dualprop.neurons import AbstractNeuron


@dataclass(frozen=True)
class Layer:
    """One layer: its drive is the sum over `sources`, `neuron` maps the drive to the state.

    `sources` are earlier layers (0 is the input), each with the synapse that reads its state. In a
    chain there is one synapse, from the layer below.

    In a network that is read by running it there are no synapses. `title` then names the layer, and
    `learns` holds the trainable parameters that its drive reads, by their name in the model.
    """

    synapses: tuple[Synapse, ...]
    neuron: AbstractNeuron
    sources: tuple[int, ...]
    title: str = ""
    learns: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.title or self.synapses[0].name

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
        return dict(self.learns) | {name: p for synapse in self.synapses for name, p in synapse.parameters.items()}

    def forward(self, states: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """The drive at the states s_0, s_1, …, inside the autograd graph that they belong to.

        Raises SettingError where a state does not fit.
        """
        parts = [synapse.forward(states[source]) for source, synapse in zip(self.sources, self.synapses, strict=True)]
        return summed(parts, self.name, self.sources)


def summed(parts: Sequence[Tensor], layer: int | str, sources: Sequence[int]) -> Tensor:
    """The sum of what a layer's synapses give. Raises SettingError where their shapes differ."""
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
