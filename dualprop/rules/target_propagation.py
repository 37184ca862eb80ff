"""Difference target propagation (DTP: Lee et al., 2015) with feedback maps that learn to be the transposed Jacobians (L-DRL:
Ernoult et al., 2022). From the forward pass s_k, and with a map G_k of its own back through every layer above the first,

    t_L = s_L - β ∇ℓ(s_L)        t_{k-1} = s_{k-1} + G_k(t_k) - G_k(s_k)

and each layer's weights learn from one local step on ½‖s_k - t_k‖², with t_k held, divided by β. Before the targets, every G_k
takes some steps on its own loss, from noise. As β → 0 the gradients are back-propagation's, of the forward weights where
J_G = J_Fᵀ: what the maps learn (`reconstruction`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from dualprop import losses
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.rules import learned_feedback
from dualprop.rules.base import AbstractRule, Outcome, check_batch, check_output, check_targets, check_wide
from dualprop.rules.learned_feedback import FeedbackMap
from dualprop.settings import as_tuple, check_choices, check_numbers, one_or_more

# The share of the stable rate that feedback weights learn at by themselves: their error is then some 7 %.
RATE = 0.01
REMEDY = "Lower the learning rate or beta, or the feedback's learning rate, or check the inputs for extreme values."

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class FeedbackWeights:
    """The feedback weights B_k and their momenta by layer, 2…L, each in the shape of the layer's W. Never written into."""

    weights: Mapping[int, Tensor]
    momenta: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class TargetPropagation(AbstractRule):
    """Difference target propagation, its feedback maps trained by the local difference reconstruction loss (L-DRL).

    What is given per layer is one for all, or one for each layer that has a feedback map, 2…L.

    Attributes:
        beta: how far the output's target lies along -∇ℓ, per example, > 0.
        iterations: steps that the feedback weights take on each batch, at least 0; per layer. 0 leaves them as they started.
        noise: σ of the Gaussian noise that they learn from, > 0; per layer.
        feedback_rate: their learning rate, > 0, of the loss summed over units; per layer. None: 0.01 (1-momentum) / (σ² (M
            + D/N)), M places at which a weight is used, D inputs and outputs of one place (channels × kernel), N examples.
        feedback_momentum: of their SGD, in [0, 1).
        feedback_decay: their weight decay, at least 0.
        start: of the feedback weights: "symmetric", the forward weights, which they then learn to follow, or "random", drawn as
            PyTorch draws the layers' own (published): gradients point anywhere until these have learned, some tens of batches.
        loss: `dp.losses.CrossEntropy()`, `SquaredError()`, or a loss's name.

    Raises:
        SettingError: a value out of its range.
    """

    beta: float = 0.1
    iterations: int | tuple[int, ...] = 10
    noise: float | tuple[float, ...] = 0.03
    feedback_rate: float | tuple[float, ...] | None = None
    feedback_momentum: float = 0.9
    feedback_decay: float = 0.0
    start: Literal["symmetric", "random"] = "symmetric"
    loss: AbstractLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_choices(self, {"start": ("symmetric", "random")})
        check_numbers(self)
        object.__setattr__(self, "loss", losses.from_name(self.loss))
        if not 0 < self.beta < math.inf:
            raise SettingError(f"beta must be one positive, finite number, got {self.beta:g}. Use 0.1, say.")
        object.__setattr__(self, "iterations", _checked_iterations(self.iterations))
        object.__setattr__(self, "noise", _checked_positive(self.noise, "noise", "For no feedback learning use iterations=0."))
        if self.feedback_rate is not None:
            rate = _checked_positive(self.feedback_rate, "feedback_rate", "Use None for one that is stable.")
            object.__setattr__(self, "feedback_rate", rate)
        if not 0 <= self.feedback_momentum < 1:
            raise SettingError(f"feedback_momentum must be in [0, 1), got {self.feedback_momentum:g}. Use 0.9, say.")
        if not 0 <= self.feedback_decay < math.inf:
            raise SettingError(f"feedback_decay must be at least 0 and finite, got {self.feedback_decay:g}. Use 0 for none.")

    @property
    def keeps_state(self) -> bool:
        return True

    @property
    def needs_generator(self) -> bool:
        return self.start == "random" or any(as_tuple(self.iterations))

    @property
    def capture_obstacle(self) -> str:
        return "the feedback's noise is drawn anew for each batch" if any(as_tuple(self.iterations)) else ""

    def at_new_batch(self, state: Any) -> Any:
        """All of it: feedback weights are no batch's own."""
        return state

    def pack_state(self, state: Any) -> dict[str, Tensor]:
        if state is None:
            return {}
        named = {f"weight.{k}": weight for k, weight in state.weights.items()}
        return named | {f"momentum.{k}": momentum for k, momentum in state.momenta.items()}

    def unpack_state(self, tensors: dict[str, Tensor]) -> Any:
        if not tensors:
            return None
        found: dict[str, dict[int, Tensor]] = {"weight": {}, "momentum": {}}
        for name, tensor in tensors.items():
            kind, _, k = name.partition(".")
            found[kind][int(k)] = tensor
        return FeedbackWeights(found["weight"], found["momentum"])

    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Train the feedback maps, set the targets, and ∂W_k of ½‖s_k - t_k‖² / β averaged over the batch, for every layer.

        Args:
            x: (N, …) in the dtype of the parameters, float32 or float64.
            y: (N,) class indices or (N, K) target vectors.
            state: the last call's, whose feedback weights learn on; None starts new ones.
            generator: draws the noise, and the first feedback weights.

        Raises:
            SettingError: x or y of the wrong shape, or settings or a state that don't fit the network.
            UnsupportedModuleError: a layer that no feedback map is known for.
        """
        with torch.no_grad():
            pass_ = self._forward(network, x, y)
            feedback = self._trained(pass_, self._started(network, state, generator), generator)
            return self._outcome(pass_, feedback)

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """ "feedback_alignment": the cosine of B_k and W_k after learning on this batch, per layer with feedback weights."""
        with torch.no_grad():
            feedback = self._trained(self._forward(network, x, y), self._started(network, state, generator), generator)
            forward = {k: learned_feedback.forward_weight(network.into(k)) for k in feedback.weights}
            return {"feedback_alignment": [_cosine(weight, forward[k]) for k, weight in feedback.weights.items()]}

    def _forward(self, network: Network, x: Tensor, y: Tensor) -> _ForwardPass:
        y = check_batch(x, y)
        check_output(network, self.loss)
        learned_feedback.check_network(network)
        check_wide(x, "the feedback's noise would be lost")
        return _ForwardPass(network, x, y)

    def _started(self, network: Network, state: Any, generator: torch.Generator | None) -> FeedbackWeights:
        """The state to learn on from."""
        if generator is None and self.needs_generator:
            raise SettingError(
                "target propagation draws noise and feedback weights: pass generator=torch.Generator().manual_seed(0), say."
            )
        learning = {k: network.into(k) for k in range(2, network.depth + 1) if learned_feedback.has_weights(network.into(k))}
        if state is None:
            weights = {
                k: learned_feedback.forward_weight(layer).clone(memory_format=torch.contiguous_format)
                if generator is None or self.start == "symmetric"
                else learned_feedback.drawn_weight(layer, generator)
                for k, layer in learning.items()
            }
            return FeedbackWeights(weights, {k: torch.zeros_like(weight) for k, weight in weights.items()})
        held = {k: weight.shape for k, weight in state.weights.items()}
        if held != {k: learned_feedback.forward_weight(layer).shape for k, layer in learning.items()}:
            raise SettingError("the state's feedback weights are of another network. Pass state=None to start new ones.")
        return FeedbackWeights(dict(state.weights), dict(state.momenta))

    def _trained(self, pass_: _ForwardPass, feedback: FeedbackWeights, generator: torch.Generator | None) -> FeedbackWeights:
        """The feedback weights after their steps on this batch, layer by layer: momentum SGD on the L-DRL."""
        depth = pass_.network.depth
        iterations, noise = per_layer(self.iterations, "iterations", depth), per_layer(self.noise, "noise", depth)
        rates = None if self.feedback_rate is None else per_layer(self.feedback_rate, "feedback_rate", depth)
        weights, momenta = dict(feedback.weights), dict(feedback.momenta)
        for k in weights:
            if not iterations[k - 2]:
                continue
            back, sigma = pass_.maps[k], noise[k - 2]
            rate = RATE * (1 - self.feedback_momentum) * back.stable_rate(sigma) if rates is None else rates[k - 2]
            weights[k], momenta[k] = weights[k].clone(), momenta[k].clone()
            for _ in range(iterations[k - 2]):
                dx, dy = drawn(back.below, sigma, generator), drawn(back.state, sigma, generator)
                gradient = back.loss_gradient(weights[k], dx, dy)
                momenta[k].mul_(self.feedback_momentum).add_(gradient).add_(weights[k], alpha=self.feedback_decay)
                weights[k].sub_(momenta[k], alpha=rate)
            pass_.count(drives=iterations[k - 2], feedbacks=iterations[k - 2], gradients=2 * iterations[k - 2])
        return FeedbackWeights(weights, momenta)

    def _outcome(self, pass_: _ForwardPass, feedback: FeedbackWeights) -> Outcome:
        network, output = pass_.network, pass_.maps[pass_.network.depth].state
        # What the targets differ from the states by: differences are held, so that a small β costs no digits.
        change = self.loss.gradient(output, pass_.y).to(output.dtype) * -self.beta
        found: dict[str, Tensor] = {}
        for k in range(network.depth, 0, -1):
            back = pass_.maps[k]
            if back.layer.parameters:
                delta = back.layer.neuron.derivative(back.drive) * change
                found |= back.layer.synapse.gradient(back.tape, delta, -1 / (self.beta * len(pass_.y)))
                pass_.count(gradients=1)
            if k > 1:
                change = back.target_difference(change, feedback.weights.get(k))
                pass_.count(feedbacks=1)
        return Outcome(
            gradients={name: found[name] for name in network.parameters},
            loss=self.loss.value(output, pass_.y).mean(),
            logits=output,
            state=feedback,
            diagnostics=dict(pass_.counts),
            remedy=REMEDY,
        )


class _ForwardPass:
    """The forward pass on one batch: by layer its feedback map there, which holds its state; and what has been counted."""

    def __init__(self, network: Network, x: Tensor, y: Tensor) -> None:
        self.network, self.y = network, y
        self.maps: dict[int, FeedbackMap] = {}
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        state = x
        for k in range(1, network.depth + 1):
            layer, below = network.into(k), state
            drive, tape = layer.synapse.drive(below)
            state = layer.neuron.f(drive)
            self.maps[k] = FeedbackMap(layer, below, drive, tape, state)
        self.count(drives=network.depth)
        check_targets(y, state)

    def count(self, **evaluations: int) -> None:
        for name, number in evaluations.items():
            self.counts[name] += number


def drawn(like: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    """σ N(0, I) in the shape, dtype and device of `like`."""
    assert generator is not None
    noise = torch.randn(like.shape, dtype=like.dtype, device=generator.device, generator=generator)
    return noise.mul_(sigma).to(like.device)


def per_layer(values: Number | tuple[Number, ...], name: str, depth: int) -> tuple[Number, ...]:
    """One value for each of layers 2…L. Raises SettingError where a list has another length."""
    if not isinstance(values, tuple):
        return (values,) * (depth - 1)
    if len(values) != depth - 1:
        raise SettingError(
            f"{name} lists {len(values)} values, but {depth - 1} layers have a feedback map, 2…{depth}. Give one for each."
        )
    return values


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def _checked_iterations(values: int | Iterable[int]) -> int | tuple[int, ...]:
    is_one = isinstance(values, Integral)
    found = (values,) if is_one or not isinstance(values, list | tuple) else tuple(values)
    if not found or not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 0 for n in found):
        raise SettingError(f"iterations must be whole numbers of at least 0, got {values!r}. Use 20, say.")
    whole = tuple(int(n) for n in found)
    return whole[0] if is_one else whole


def _checked_positive(values: float | Iterable[float], name: str, remedy: str) -> float | tuple[float, ...]:
    found = one_or_more(values, name)
    if not as_tuple(found) or not all(0 < value < math.inf for value in as_tuple(found)):
        raise SettingError(f"{name} must be positive and finite, got {found}. {remedy}")
    return found
