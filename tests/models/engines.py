"""What the tests ask of an engine: one step on an architecture, and what it left behind.

An engine is a function of (architecture, batch, β). The model is built anew for every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from architecture import Architecture, Inputs, itself
from torch import Tensor, nn

import dualprop as dp

Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True)
class Step:
    """One step: the gradients by name, the model's output before it, and the buffers after it."""

    gradients: dict[str, Tensor]
    output: Tensor
    buffers: dict[str, Tensor]


def seen(model: nn.Module, gradients: dict[str, Tensor | None], output: Tensor) -> Step:
    """A parameter without a gradient has zeros: the two mean the same to an optimizer of means."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    filled = {name: torch.zeros_like(p) if gradients.get(name) is None else gradients[name] for name, p in named.items()}
    return Step(filled, output.detach(), {name: b.clone() for name, b in model.named_buffers()})


def stepped(architecture: Architecture, model: nn.Module, batch: Batch) -> Step:
    """`loss.backward()`, as every training loop has it."""
    inputs, y = batch
    output = architecture.output(architecture.outputs(model, inputs))
    architecture.loss(output, y).backward()
    return seen(model, {name: p.grad for name, p in model.named_parameters()}, output)


def autograd(architecture: Architecture, batch: Batch) -> Step:
    return stepped(architecture, architecture.model(), batch)


def autograd_loss(architecture: Architecture) -> Tensor:
    """The model's own mean loss on its batch."""
    return architecture.mean_loss(architecture.model(), *architecture.batch()).detach()


def fused(architecture: Architecture, batch: Batch, beta: float) -> Step:
    return stepped(architecture, dp.dualize(architecture.model(), beta=beta), batch)


def argument(inputs: Inputs) -> Any:
    """x as a rule takes it: a tensor, a tuple of positional arguments, or a dict of keywords."""
    return inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 and isinstance(inputs[0], Tensor) else inputs


def network_of(architecture: Architecture, model: nn.Module) -> dp.Network:
    chosen = {} if architecture.output is itself else {"output": architecture.output}
    # A router's branches follow its softmax, which must then not be moved by inference.
    leave = ("softmax",) if architecture.name == "mixture_of_experts" else ()
    return dp.Network.from_module(model, leave=leave, **chosen)


def by_rule(architecture: Architecture, batch: Batch, rule_of: Callable[[dp.Network, Any], dp.AbstractRule]) -> Step:
    model = architecture.model()
    network = network_of(architecture, model)
    rule = rule_of(network, dp.losses.from_function(architecture.loss))
    inputs, y = batch
    torch.manual_seed(architecture.seed)
    outcome = rule.gradients(network, argument(inputs), y)
    return seen(model, dict(outcome.gradients), outcome.logits)


def dual_propagation(architecture: Architecture, batch: Batch, beta: float) -> Step:
    return by_rule(architecture, batch, lambda network, loss: dp.DualPropagation(engine="explicit", beta=beta, loss=loss))


def transposed(architecture: Architecture, batch: Batch, beta: float) -> Step:
    def rule(network: dp.Network, loss: Any) -> dp.AbstractRule:
        return dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=beta, loss=loss)

    return by_rule(architecture, batch, rule)


def equilibrium_propagation(architecture: Architecture, batch: Batch, beta: float) -> Step:
    return by_rule(architecture, batch, lambda network, loss: dp.EquilibriumPropagation(beta=beta, loss=loss))


def predictive_coding(architecture: Architecture, batch: Batch, beta: float) -> Step:
    """At small β with fixed predictions, by at least as many steps as layers: an exact case."""

    def rule(network: dp.Network, loss: Any) -> dp.AbstractRule:
        if beta > 1e-3:
            return dp.PredictiveCoding(beta=beta, loss=loss)
        return dp.PredictiveCoding(beta=beta, loss=loss, predictions="fixed", steps=60, step_size=1.0, momentum=0.0)

    return by_rule(architecture, batch, rule)


@dataclass(frozen=True)
class Engine:
    """`large`: a β at which its gradients are far from autograd's, and all is still finite."""

    name: str
    step: Callable[[Architecture, Batch, float], Step]
    large: float


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("fused", fused, 100.0),
        Engine("dual_propagation", dual_propagation, 100.0),
        Engine("transposed", transposed, 100.0),
        Engine("equilibrium_propagation", equilibrium_propagation, 5.0),
        Engine("predictive_coding", predictive_coding, 1.0),
    )
}


def disagreement(
    found: dict[str, Tensor], expected: dict[str, Tensor], cosine: float, ratio: float, nothing: float = 1e-12
) -> list[str]:
    """A line for each parameter that is not within `cosine` and `ratio` of what is expected.

    A gradient below `nothing` has no direction: what is found must be small beside the largest.
    """
    largest = max(float(g.norm()) for g in expected.values())
    lines = []
    for name, g in expected.items():
        size, found_size = float(g.norm()), float(found[name].norm())
        if size < nothing:
            if not found_size <= 1e-4 * largest:
                lines.append(f"{name}: norm {found_size:.3g} where the gradient is zero")
            continue
        alike = float((found[name] * g).sum()) / (size * found_size or 1.0)
        if not (alike >= cosine and abs(found_size / size - 1) <= ratio):
            lines.append(f"{name}: cosine {alike:.8f}, norm ratio {found_size / size:.8g}")
    return lines


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """‖found - expected‖ / ‖expected‖ over all parameters."""
    squares = sum(float((found[name] - g).square().sum()) for name, g in expected.items())
    return (squares / sum(float(g.square().sum()) for g in expected.values())) ** 0.5
