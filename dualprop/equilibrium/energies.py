"""Energies whose equilibria a network settles at, as the local maps of settling and learning.

Layer k reads a_k, the drive from the state below, and T_k = Σ J_jᵀ σ_j, the pull of the layers j
above. An energy says where the layer settles between the two. It also says what the layer sends
down: its signal σ_k, from which its parameters learn too.

    hopfield              E = Σ G_k(s_k) - s_k·a_k
                          s_k = f(a_k + T_k)                          σ_k = s_k
    predictive coding     E = Σ ½‖s_k - f(a_k)‖²
                          s_k = f(a_k + T_k) or P(f(a_k) + T_k)       σ_k = f'(a_k) ⊙ ε_k

Here ε_k = s_k - f(a_k), and P is the projection onto f's range where f itself is one (else none).
In both ∂E/∂θ_k = -σ_kᵀ ∂a_k/∂θ_k (Scellier & Bengio 2017; Kerjan, Høier & Scellier 2026, eq. 10).
The energies as numbers are in `objectives`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualprop import kernels
from dualprop.errors import SettingError, closest
from dualprop.feedback import AbstractFeedback
from dualprop.losses import AbstractLoss
from dualprop.network import Network
from dualprop.neurons import AbstractNeuron, Identity
from dualprop.settings import NamedPart

Update = Literal["auto", "mod_pgd", "pgd"]


class AbstractEnergy(NamedPart):
    """An energy as local maps. All tensors of a layer have the shape of its drive, (N, …).

    `free_is_forward`: whether its minimum without a nudge is the forward pass, where ∂E/∂θ = 0.
    `signal_reads_drive`: whether σ varies with the drive. `updates`: the updates that it has.
    """

    name: str
    free_is_forward: bool
    signal_reads_drive: bool
    updates: tuple[Update, ...]

    @abstractmethod
    def settle(self, neuron: AbstractNeuron, a: Tensor, pull: Tensor | None, update: Update) -> tuple[Tensor, Tensor | None]:
        """The state between the drive and the pull T from above, and its signal (None: 0)."""

    def sent(self, neuron: AbstractNeuron, a: Tensor, pull: Tensor | None, update: Update) -> Tensor | None:
        """The signal alone of where it would settle."""
        return self.settle(neuron, a, pull, update)[1]

    @abstractmethod
    def signal(self, neuron: AbstractNeuron, a: Tensor, state: Tensor) -> Tensor:
        """σ of any state."""

    @abstractmethod
    def nudge(self, loss: AbstractLoss, neuron: AbstractNeuron, a: Tensor, y: Tensor, strength: float) -> Tensor:
        """The output state that minimises its own energy plus strength · loss."""

    @abstractmethod
    def check(self, network: Network) -> None:
        """Raise SettingError where the energy is not defined for the network's neurons."""

    def check_update(self, network: Network, update: Update) -> None:
        """Raise SettingError where the network's neurons have no such update."""
        return

    def __str__(self) -> str:
        return self.name

    @classmethod
    def from_text(cls, text: str) -> AbstractEnergy:
        return from_name(text)

    @classmethod
    def choices(cls) -> str:
        return "|".join(ENERGIES)


@dataclass(frozen=True)
class Hopfield(AbstractEnergy):
    """The layered continuous Hopfield network: every layer is pulled from both sides.

    It predicts by its equilibrium.
    """

    name = "hopfield"
    free_is_forward = False
    signal_reads_drive = False
    updates = ("auto",)

    def settle(self, neuron: AbstractNeuron, a: Tensor, pull: Tensor | None, update: Update) -> tuple[Tensor, Tensor | None]:
        state = neuron.f(a if pull is None else a + pull)
        return state, state

    def signal(self, neuron: AbstractNeuron, a: Tensor, state: Tensor) -> Tensor:
        return state

    def nudge(self, loss: AbstractLoss, neuron: AbstractNeuron, a: Tensor, y: Tensor, strength: float) -> Tensor:
        return loss.nudge(neuron, a, y, strength)

    def check(self, network: Network) -> None:
        module = network.module
        if module is not None and any(isinstance(part, AbstractFeedback) for part in module.modules()):
            raise SettingError(
                "a Hopfield network with separate feedback weights has no energy. Use feedback='exact', or "
                "energy='predictive_coding'."
            )


@dataclass(frozen=True)
class DiscountedHopfield(AbstractEnergy):
    """A Hopfield network whose layers count γ times as much as the ones below (Xie & Seung 2003).

    s_k = f(a_k + γ T_k).

    `pull` is T_k without its γ. The pulls of layers further above are already discounted by their
    distance beyond the next.
    """

    gamma: float
    name = "discounted_hopfield"
    free_is_forward = False
    signal_reads_drive = False
    updates = ("auto",)

    def settle(self, neuron: AbstractNeuron, a: Tensor, pull: Tensor | None, update: Update) -> tuple[Tensor, Tensor | None]:
        state = neuron.f(a if pull is None else torch.add(a, pull, alpha=self.gamma))
        return state, state

    def signal(self, neuron: AbstractNeuron, a: Tensor, state: Tensor) -> Tensor:
        return state

    def nudge(self, loss: AbstractLoss, neuron: AbstractNeuron, a: Tensor, y: Tensor, strength: float) -> Tensor:
        return loss.nudge(neuron, a, y, strength)

    def check(self, network: Network) -> None:
        Hopfield().check(network)


@dataclass(frozen=True)
class PredictiveCoding(AbstractEnergy):
    """The predictive coding network (PCN): a layer's error is its state less its prediction."""

    name = "predictive_coding"
    free_is_forward = True
    signal_reads_drive = True
    updates = ("auto", "mod_pgd", "pgd")

    def settle(self, neuron: AbstractNeuron, a: Tensor, pull: Tensor | None, update: Update) -> tuple[Tensor, Tensor | None]:
        if pull is None:
            return neuron.f(a), None
        if isinstance(neuron, Identity):
            return a + pull, pull
        if neuron.is_projection and neuron.is_affine:
            step = neuron.derivative(a) * pull
            return neuron.f(a) + step, step
        if update == "pgd" and neuron.is_projection:
            state = (neuron.f(a) + pull).clamp(*neuron.reach)
            return state, self.signal(neuron, a, state)
        return kernels.settled(neuron, a, pull)

    def sent(self, neuron: AbstractNeuron, a: Tensor, pull: Tensor | None, update: Update) -> Tensor | None:
        if pull is None or isinstance(neuron, Identity):
            return pull
        if neuron.is_affine or update == "pgd":
            return self.settle(neuron, a, pull, update)[1]
        return kernels.signal(neuron, a, pull)

    def signal(self, neuron: AbstractNeuron, a: Tensor, state: Tensor) -> Tensor:
        error = state - neuron.f(a)
        return error if isinstance(neuron, Identity) else neuron.pull(a, error)

    def nudge(self, loss: AbstractLoss, neuron: AbstractNeuron, a: Tensor, y: Tensor, strength: float) -> Tensor:
        return loss.nudge(Identity(), neuron.f(a), y, strength)

    def check(self, network: Network) -> None:
        return

    def check_update(self, network: Network, update: Update) -> None:
        for layer in network.layers:
            if update == "mod_pgd" and not layer.neuron.is_projection:
                raise SettingError(
                    f"update='mod_pgd' needs activations that are projections (ReLU, hard sigmoid, none), but layer "
                    f"'{layer.name}' has {type(layer.neuron).__name__}. Use update='auto'."
                )


ENERGIES: dict[str, type[AbstractEnergy]] = {"predictive_coding": PredictiveCoding, "hopfield": Hopfield}


def from_name(name: str | AbstractEnergy) -> AbstractEnergy:
    """The energy of that name, or the energy itself. Raises SettingError for an unknown name."""
    if isinstance(name, AbstractEnergy):
        return name
    if not isinstance(name, str) or name not in ENERGIES:
        raise SettingError(f"unknown energy '{name}'.{closest(name, list(ENERGIES))} Known: {', '.join(ENERGIES)}.")
    return ENERGIES[name]()
