"""Difference target propagation (DTP: Lee et al., 2015; feedback as in Ernoult et al., 2022).

From the forward pass s_k, and with a map G_k of its own back through every layer above the first,

    t_L = s_L - β ∇ℓ(s_L)        t_{k-1} = s_{k-1} + G_k(t_k) - G_k(s_k)

Each layer's weights learn from one local step on ½‖s_k - t_k‖² / β, with t_k held. Before the
targets, every G_k takes some steps on its own loss (L-DRL), from noise: it learns to be the
transposed Jacobian. As β → 0 the gradients are back-propagation's, of the forward weights where
J_G = J_Fᵀ, which is what the maps learn (`learned_feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss, CrossEntropy
from dualprop.network import Network
from dualprop.rules import learned_feedback
from dualprop.rules.base import AbstractRule
from dualprop.rules.learned_feedback import FeedbackMap
from dualprop.rules.problem import Problem
from dualprop.settings import CountPerLayer, GivenBeta, PerLayer, Remedy, as_tuple, per_layer

# The feedback weights' share of the stable rate. Their error is then some 7 %.
RATE = 0.01


@dataclass(frozen=True)
class FeedbackWeights:
    """The feedback weights B_k and their momenta by layer, 2…L. Never written into.

    Each has the shape of the layer's W.
    """

    weights: Mapping[int, Tensor]
    momenta: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class TargetPropagation(AbstractRule["Taught"]):
    """Difference target propagation, its feedback maps trained by a local loss (L-DRL).

    A setting per layer is one number for all, or one for each layer that has a feedback map, 2…L.

    Attributes:
        beta: how far the output's target lies along -∇ℓ, per example.
        iterations: steps of the feedback weights on each batch; per layer. 0 leaves them alone.
        noise: σ of the Gaussian noise that they learn from; per layer.
        feedback_rate: their learning rate, of the loss summed over units; per layer. None is
            0.01 (1-momentum) / (σ² (M + D/N)): M places at which a weight is used, D inputs and
            outputs of one place (channels × kernel), N examples.
        feedback_momentum: of their SGD.
        feedback_decay: their weight decay.
        start: "symmetric": feedback weights start as the forward weights, which they then follow.
            "random" (published): drawn as PyTorch draws the layers' own. Gradients point anywhere
            until these have learned, some tens of batches.
        unpool: what comes back from the noisy pass, F(x+dx), by the max-pools' switches of the
            "clean" pass or of the "noisy" one, as in the authors' code. Clean, B nears W.
    """

    beta: GivenBeta = 0.1
    iterations: CountPerLayer = 10
    noise: Annotated[PerLayer, Remedy("For no feedback learning use iterations=0.")] = 0.03
    feedback_rate: Annotated[PerLayer, Remedy("Use None for one that is stable.")] | None = None
    feedback_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    feedback_decay: Annotated[float, Ge(0)] = 0.0
    start: Literal["symmetric", "random"] = "symmetric"
    unpool: Literal["clean", "noisy"] = "clean"
    loss: AbstractLoss = CrossEntropy()

    state_type = FeedbackWeights
    precision = "full"
    needs_synapses = "target propagation learns a map back for each synapse that is a module"
    loses = "the feedback's noise would be lost"
    remedy = "Lower the learning rate or beta, or the feedback's learning rate, or check the inputs for extreme values."

    def inference(self, problem: Problem) -> Taught:
        """The forward pass, and the feedback maps' own learning at it."""
        forward = ForwardPass(problem)
        problem.report(forward.counts)
        started = self._started(problem.network, problem.state, problem.generator)
        return forward, self._trained(forward, started, problem.generator)

    def gradients_at(self, problem: Problem, settled: Taught) -> dict[str, Tensor]:
        """Targets, layer by layer downwards, and the mean ∂W_k of ½‖s_k - t_k‖² / β with them."""
        (forward, feedback), network = settled, problem.network
        output = forward.maps[problem.depth].state
        # Target less state. Differences are held, so that a small β costs no digits.
        change = self.loss.gradient(output, problem.y).to(output.dtype) * -self.beta
        gradients: dict[str, Tensor] = {}
        for k in range(network.depth, 0, -1):
            back = forward.maps[k]
            if back.layer.parameters:
                delta = back.layer.neuron.derivative(back.drive) * change
                gradients |= back.layer.synapse.gradient(back.tape, delta, -1 / (self.beta * problem.terms))
                forward.count(gradients=1)
            if k > 1:
                change = back.target_difference(change, feedback.weights.get(k))
                forward.count(feedbacks=1)
        return gradients

    def states_at(self, problem: Problem, settled: Taught) -> FeedbackWeights:
        """The feedback weights after learning on this batch."""
        return settled[1]

    def statistics_at(self, problem: Problem, settled: Taught) -> dict[str, Any]:
        """The "feedback_alignment": cos(B_k, W_k) after learning, by layer that has a B."""
        weights = settled[1].weights
        forward = {k: learned_feedback.forward_weight(problem.network.into(k)) for k in weights}
        return {"feedback_alignment": [_cosine(weight, forward[k]) for k, weight in weights.items()]}

    def check(self, network: Network) -> None:
        learned_feedback.check_network(network)
        if self.unpool == "noisy" and not any(map(learned_feedback.has_switches, network.layers[1:])):
            raise SettingError("unpool='noisy' is of max-pools, and no layer above the first has one. Use unpool='clean'.")

    @property
    def keeps_state(self) -> bool:
        return True

    @property
    def needs_generator(self) -> bool:
        return self.start == "random" or any(as_tuple(self.iterations))

    @property
    def capture_obstacle(self) -> str:
        return "the feedback's noise is drawn anew for each batch" if any(as_tuple(self.iterations)) else ""

    @property
    def stacking_obstacle(self) -> str:
        return "the feedback weights that it learns are not stacked"

    def at_new_batch(self, state: Any) -> Any:
        """All of it: feedback weights belong to no batch."""
        return state

    def _started(self, network: Network, state: Any, generator: torch.Generator | None) -> FeedbackWeights:
        """The state that learning goes on from."""
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

    def _trained(self, pass_: ForwardPass, feedback: FeedbackWeights, generator: torch.Generator | None) -> FeedbackWeights:
        """The feedback weights after this batch's steps: momentum SGD on the L-DRL, by layer."""
        layers = range(2, pass_.network.depth + 1)
        iterations, noise = per_layer(self.iterations, "iterations", layers), per_layer(self.noise, "noise", layers)
        rates = None if self.feedback_rate is None else per_layer(self.feedback_rate, "feedback_rate", layers)
        weights, momenta = dict(feedback.weights), dict(feedback.momenta)
        for k in weights:
            if not iterations[k - 2]:
                continue
            back, sigma = pass_.maps[k], noise[k - 2]
            is_noisy = self.unpool == "noisy" and learned_feedback.has_switches(back.layer)
            rate = RATE * (1 - self.feedback_momentum) * back.stable_rate(sigma) if rates is None else rates[k - 2]
            weights[k], momenta[k] = weights[k].clone(), momenta[k].clone()
            for _ in range(iterations[k - 2]):
                dx, dy = drawn(back.below, sigma, generator), drawn(back.state, sigma, generator)
                gradient = back.loss_gradient(weights[k], dx, dy, is_noisy)
                momenta[k].mul_(self.feedback_momentum).add_(gradient).add_(weights[k], alpha=self.feedback_decay)
                weights[k].sub_(momenta[k], alpha=rate)
            gradients = (3 if is_noisy else 2) * iterations[k - 2]
            pass_.count(drives=iterations[k - 2], feedbacks=iterations[k - 2], gradients=gradients)
        return FeedbackWeights(weights, momenta)


class ForwardPass:
    """The forward pass on one batch, with counts.

    `maps` holds by layer its feedback map there, which holds the layer's state.
    """

    def __init__(self, problem: Problem) -> None:
        self.network = network = problem.network
        self.maps: dict[int, FeedbackMap] = {}
        self.counts = {"drives": 0, "feedbacks": 0, "gradients": 0}
        state = problem.x
        for k in range(1, network.depth + 1):
            layer, below = network.into(k), state
            drive, tape = layer.synapse.drive(below)
            state = layer.neuron.f(drive)
            self.maps[k] = FeedbackMap(layer, below, drive, tape, state)
        self.count(drives=network.depth)
        problem.predicted(state)

    def count(self, **evaluations: int) -> None:
        for name, number in evaluations.items():
            self.counts[name] += number


def drawn(like: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    """σ N(0, I) in the shape, dtype and device of `like`."""
    assert generator is not None
    noise = torch.randn(like.shape, dtype=like.dtype, device=generator.device, generator=generator)
    return noise.mul_(sigma).to(like.device)


# A forward pass, and the feedback weights after their learning at it.
Taught = tuple[ForwardPass, FeedbackWeights]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))
