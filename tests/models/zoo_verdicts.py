"""What the tests and the script of the public zoo ask of an engine: right, wrong, refused, failed.

Right: in every parameter the cosine to autograd's gradient is at least `RIGHT` at one of `BETAS`.
Units near a kink need a small β, parameters with tiny gradients a large one: rounding is eps/β,
with the eps of float32 where a model itself computes in it (Mixtral's router). All else is float64,
in training mode, at a batch of 4, the draws in forward from one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Entry

import dualprop as dp
from dualprop.errors import DualpropError

RIGHT = 0.999
BETAS = (1e-5, 1e-3, 1e-7, 0.1)
Gradients = dict[str, Tensor]


@dataclass
class Case:
    """A model, its batch and the gradient by plain autograd."""

    entry: Entry
    inputs: Any
    y: Tensor
    gradients: Gradients

    def model(self) -> nn.Module:
        return built(self.entry)

    def output(self, outputs: Any) -> Tensor:
        return outputs if self.entry.output is None else self.entry.output(outputs)


def built(entry: Entry) -> nn.Module:
    """Drawn from one seed, a little noise on every parameter.

    Many a network starts with branches at exactly zero. Units there lie at their kink, where a
    dyad's slope is ½ and the derivative is 0.
    """
    torch.manual_seed(0)
    model = entry.build().double().train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def called(model: Callable[..., Any], inputs: Any) -> Any:
    torch.manual_seed(2)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def mean_loss(output: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of (…, K), a mean over all positions."""
    return F.cross_entropy(output.flatten(0, -2), y.flatten())


def named_gradients(model: nn.Module) -> Gradients:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def case_of(entry: Entry) -> Case:
    generator = torch.Generator().manual_seed(1)
    case, model = Case(entry, entry.inputs(generator), torch.empty(0), {}), built(entry)
    output = case.output(called(model, case.inputs))
    case.y = torch.randint(output.shape[-1], output.shape[:-1], generator=generator)
    mean_loss(output, case.y).backward()
    case.gradients = named_gradients(model)
    if not case.gradients or not all(bool(g.isfinite().all()) for g in case.gradients.values()):
        raise RuntimeError("autograd's own gradients are not finite, or there are none")
    return case


def autograd(case: Case, beta: float) -> Gradients:
    model = case.model()
    mean_loss(case.output(called(model, case.inputs)), case.y).backward()
    return named_gradients(model)


def fused(case: Case, beta: float) -> Gradients:
    model = dp.dualize(case.model(), beta=beta)
    mean_loss(case.output(called(model, case.inputs)), case.y).backward()
    return named_gradients(model)


def by_rule(case: Case, rule: Callable[[Any], dp.AbstractRule]) -> Gradients:
    model = case.model()
    chosen: dict[str, Any] = {} if case.entry.output is None else {"output": case.entry.output}
    network = dp.Network.from_module(model, **chosen)
    loss = dp.losses.from_function(mean_loss)  # type: ignore[attr-defined]
    x = case.inputs[0] if isinstance(case.inputs, tuple) and len(case.inputs) == 1 else case.inputs
    torch.manual_seed(2)
    return dict(rule(loss).gradients(network, x, case.y).gradients)


def explicit(case: Case, beta: float) -> Gradients:
    return by_rule(case, lambda loss: dp.DualPropagation(engine="explicit", beta=beta, loss=loss))


def equilibrium(case: Case, beta: float) -> Gradients:
    return by_rule(case, lambda loss: dp.EquilibriumPropagation(beta=beta, loss=loss))


ENGINES: dict[str, Callable[[Case, float], Gradients]] = {
    "autograd": autograd,
    "fused": fused,
    "explicit": explicit,
    "ep": equilibrium,
}


def cosines(found: Gradients, expected: Gradients) -> dict[str, float]:
    """By parameter that has a gradient.

    A missing or non-finite one counts as -1. A gradient that is rounding alone has no direction.
    """
    floor = 1e-9 * max(float(g.norm()) for g in expected.values())
    each = {}
    for name, g in expected.items():
        if float(g.norm()) > floor:
            other = found.get(name)
            alike = -1.0 if other is None else float((other * g).sum() / (other.norm() * g.norm()))
            each[name] = alike if alike == alike else -1.0
    return each


def verdict(engine: Callable[[Case, float], Gradients], case: Case, betas: Sequence[float] = BETAS) -> tuple[str, str, str]:
    """A word, the cell, and a line beneath where there is more to say."""
    best: dict[str, float] = {}
    try:
        for beta in betas:
            for name, cosine in cosines(engine(case, beta), case.gradients).items():
                best[name] = max(cosine, best.get(name, -1.0))
            if min(best.values()) >= RIGHT:
                break
    except DualpropError as error:
        return "refused", "refused", str(error)
    except Exception as error:
        return "failed", "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    where, least = min(best.items(), key=lambda item: item[1])
    return ("right", f"{least:.6f}", "") if least >= RIGHT else ("wrong", f"WRONG {least:.4f}", f"least in {where}")
