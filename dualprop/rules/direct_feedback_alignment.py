"""Direct feedback alignment (DFA: Nøkland, 2016): every hidden layer hears of the error straight
from the output.

With the forward pass's drives a_k and states s_k = f(a_k), and fixed random matrices B_k of the
output's width K,

    e = ∂ℓ/∂a_L        δ_L = e,    δ_k = (B_k e) ⊙ f'(a_k)        gradient of layer k: δ_kᵀ ∂a_k/∂θ

averaged over the batch. Nothing comes back through a synapse. The output layer's gradient is the
true one; the others come to point its way while the forward weights learn to agree with B_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.network import Network
from dualprop.network.states import States
from dualprop.rules.base import AbstractRule
from dualprop.rules.problem import Problem


@dataclass(frozen=True)
class DirectFeedback:
    """The matrices B_k of the hidden layers, (K, units of layer k), by layer. Never written
    into."""

    matrices: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class DirectFeedbackAlignment(AbstractRule[tuple[States, DirectFeedback]]):
    """Direct feedback alignment. The matrices are drawn once, uniform on ±1/√K, and are the rule's
    state.

    They are drawn by the seed of the generator, wherever it stands. So a loop that hands on no
    state, but the same generator, has the same matrices in every step.
    """

    state_type = DirectFeedback
    precision = "half_products"
    approaches_gradient = False
    keeps_state = True
    needs_generator = True
    # Drawn at the first call alone, before any capture.
    capture_obstacle = ""
    stacking_obstacle = "each seed draws matrices of its own"

    def inference(self, problem: Problem) -> tuple[States, DirectFeedback]:
        """The forward pass, and the output's error sent to every layer."""
        states = problem.forward()
        problem.report(states.counts)
        feedback = problem.state or self._drawn(problem, states)
        self._check_state(feedback, states)
        error = self.output_error(problem, states)
        for k in range(1, problem.depth):
            a = states.drive(k)
            sent = (error.flatten(1) @ feedback.matrices[k].to(error.dtype)).view_as(a)
            states.set(k, states.means[k], sent * states.neuron(k).derivative(a))
            states.counts["feedbacks"] += 1
        states.set(problem.depth, states.means[-1], error)
        return states, feedback

    def output_error(self, problem: Problem, states: States) -> Tensor:
        """∂ℓ/∂a_L per example, the output's shape."""
        with torch.enable_grad():
            a = states.drive(problem.depth).detach().requires_grad_()
            loss = self.loss.total(states.neuron(problem.depth).f(a), problem.y)
            return torch.autograd.grad(loss, a)[0]

    def gradients_at(self, problem: Problem, settled: tuple[States, DirectFeedback]) -> dict[str, Tensor]:
        """δ_kᵀ ∂a_k/∂θ, averaged over the batch, for every layer."""
        return settled[0].gradients((1 / problem.terms,) * problem.depth)

    def states_at(self, problem: Problem, settled: tuple[States, DirectFeedback]) -> DirectFeedback:
        """The matrices."""
        return settled[1]

    def at_new_batch(self, state: Any) -> Any:
        """All of it: the matrices are no batch's own."""
        return state

    def check(self, network: Network) -> None:
        for layer in network.layers[:-1]:
            if not layer.neuron.is_elementwise:
                raise SettingError(
                    f"layer '{layer.name}' has {type(layer.neuron).__name__}, whose units are coupled: no error is of one "
                    "alone. Use another activation in hidden layers."
                )

    def _drawn(self, problem: Problem, states: States) -> DirectFeedback:
        generator, number = problem.generator, states.means[-1][0].numel()
        dtype = next(iter(problem.network.parameters.values())).dtype
        if generator is None:
            raise SettingError("DFA draws its matrices: pass generator=torch.Generator().manual_seed(0), say.")
        # Matrices of each step's own would teach nothing.
        generator = torch.Generator(generator.device).manual_seed(generator.initial_seed())
        matrices = {}
        for k, mean in enumerate(states.means[1:-1], start=1):
            drawn = torch.rand(number, mean[0].numel(), dtype=dtype, device=generator.device, generator=generator)
            matrices[k] = drawn.mul_(2).sub_(1).mul_(number**-0.5).to(mean.device)
        return DirectFeedback(matrices)

    def _check_state(self, feedback: DirectFeedback, states: States) -> None:
        needed = {k: (states.means[-1][0].numel(), mean[0].numel()) for k, mean in enumerate(states.means[1:-1], start=1)}
        if {k: tuple(matrix.shape) for k, matrix in feedback.matrices.items()} != needed:
            raise SettingError("the state's matrices are of another network. Pass state=None to draw new ones.")
