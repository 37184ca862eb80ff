"""Evidence that the rules are right on this machine: claims, what was measured, and its bound.

Bounds come from the mathematics: rounding in float64 where two computations are the same, an order
of convergence where one is the limit of the other. `check` is what `dualprop check` does.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dualprop import neurons, schedules
from dualprop.alignment import LayerAlignment, alignment
from dualprop.analysis.keywords import by_keyword
from dualprop.analysis.transcription import transcribe
from dualprop.errors import DataError
from dualprop.fused.dualization import dualize
from dualprop.losses import CrossEntropy
from dualprop.models import MLP, ConvNet
from dualprop.network import Network
from dualprop.rules import AbstractRule, Backprop, DualPropagation

# Two ways to compute the same in float64 may differ by rounding, and by its growth through layers.
ROUNDING = 1e-10


@dataclass(frozen=True)
class Evidence:
    """`measured` must be at most `bound`."""

    claim: str
    measured: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.bound


@dataclass(frozen=True)
class CheckOptions:
    """Show the evidence that the rules are right on this machine.

    Attributes:
        reference: folder of cases (.npz) computed by the authors' code; by
            default $DUALPROP_REFERENCE, where that is set.
        seed: of the random networks.
    """

    reference: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Check:
    """All evidence; the folder of the authors' cases, where there is one; and by rule and network
    the alignment of each layer's gradient with back-propagation's."""

    evidence: list[Evidence]
    reference: Path | None
    alignments: list[tuple[str, list[LayerAlignment]]]

    @property
    def failed(self) -> list[Evidence]:
        return [item for item in self.evidence if not item.holds]


@by_keyword(CheckOptions)
def check(options: CheckOptions) -> Check:
    """Gather the evidence. The arguments are the fields of `CheckOptions`.

    Raises DataError where the folder holds no case, or a damaged one.
    """
    return run_check(options)


def run_check(options: CheckOptions) -> Check:
    """What `check` does by options that are there already."""
    folder = options.reference or (Path(path) if (path := os.environ.get("DUALPROP_REFERENCE")) else None)
    evidence = list(reference_cases(folder)) if folder else []
    evidence += [*transcription_cases(options.seed), *autograd_cases(options.seed)]
    return Check(evidence, folder, layer_alignments(options.seed))


def reference_cases(folder: Path) -> Iterator[Evidence]:
    """States and gradients of every case (.npz) in `folder`, by the authors' code, against ours.

    Raises DataError where the folder holds no case, or a damaged one.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise DataError(f"{folder} holds no reference case (*.npz). Give the folder that does with --reference.")
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as case:
                yield Evidence(f"authors' code: {path.stem}", _reference_error(case), ROUNDING)
        except (KeyError, ValueError, OSError) as error:
            raise DataError(f"reference case {path} can't be read: {error}. Restore it.") from error


def _reference_error(case: Any) -> float:
    meta = json.loads(str(case["meta"]))
    depth = len(meta["layers"])
    network = Network.from_module(_reference_model(case, meta))
    rule = DualPropagation(
        coupling="transposed" if meta["rule"] == "transposed" else "original",
        alpha=meta["alpha"],
        beta=meta["beta"],
        schedule=meta["order"],
        damping=tuple(case["damping"].tolist()) if meta["rule"] == "damped" else None,
        engine="explicit",
        loss=meta["loss"],
    )
    x, y = torch.from_numpy(case["x"]), torch.from_numpy(case["labels"])
    dyads, outcome = rule.infer(network, x, y), rule.gradients(network, x, y)
    errors = [0.0]
    for k in range(1, depth + 1):
        errors += [_error(dyads.plus[k], case[f"s_plus{k}"]), _error(dyads.minus[k], case[f"s_minus{k}"])]
        for name in network.into(k).parameters:
            errors.append(_error(outcome.gradients[name], case[f"grad_{name.rpartition('.')[2]}{k}"]))
    return max(errors)


def _reference_model(case: Any, meta: dict[str, Any]) -> nn.Sequential:
    names = {
        "relu": "relu",
        "hard_sigmoid": "hard_sigmoid",
        "hardsigmoid": "hard_sigmoid",
        "tanh": "tanh",
        "sigmoid": "sigmoid",
    }
    modules: list[nn.Module] = []
    flat = meta["arch"] == "mlp"
    for k, layer in enumerate(meta["layers"], start=1):
        weight, bias = torch.from_numpy(case[f"weight{k}"]), torch.from_numpy(case[f"bias{k}"])
        if layer["kind"] == "linear":
            modules += [] if flat else [nn.Flatten()]
            flat = True
            synapse: nn.Linear | nn.Conv2d = nn.Linear(weight.shape[1], weight.shape[0])
        else:
            synapse = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        synapse.weight, synapse.bias = nn.Parameter(weight), nn.Parameter(bias)
        modules += [synapse, *([nn.MaxPool2d(2)] if layer["pool"] else [])]
        if k < len(meta["layers"]):
            modules.append(neurons.module(names[meta["activation"]]))
    return nn.Sequential(*modules)


def _error(state: Tensor, expected: np.ndarray) -> float:
    return float((state - torch.from_numpy(expected)).abs().max())


def transcription_cases(seed: int = CheckOptions.seed) -> Iterator[Evidence]:
    """The explicit engine against the slow transcription, over many settings."""
    settings: list[tuple[str, str, dict[str, Any]]] = [
        ("mlp", "relu", {"alpha": 0.5, "schedule": "alternating_sweeps(2)"}),
        ("mlp", "tanh", {"alpha": 0.3, "schedule": "up_down(3)", "beta": (0.5, 1.0, 2.0, 0.3)}),
        ("mlp", "hard_sigmoid", {"alpha": 1.0, "schedule": "bottom_up(4)", "damping": (3.0, 2.0, 1.0)}),
        ("mlp", "sigmoid", {"coupling": "transposed", "alpha": 0.7, "schedule": "synchronous(9)", "start": "zeros"}),
        ("conv, pool before", "relu", {"coupling": "transposed", "alpha": 0.0, "schedule": "odd_even(4)", "beta": 10.0}),
        ("conv, pool after", "leaky_relu", {"alpha": 0.8, "schedule": "even_odd(3)", "beta": 0.1}),
        ("conv, pool after", "tanh", {"alpha": 0.5, "schedule": "4,3+1,2,4+2,3,1"}),
        ("mlp", "softmax", {"alpha": 0.3, "schedule": "up_down(2)", "damping": (0.5, 2.0, 1.0)}),
    ]
    for architecture, activation, fields in settings:
        rule = DualPropagation(**fields, engine="explicit")
        network, x, y = _example(architecture, activation, seed)
        steps = list(schedules.parse(rule.schedule).steps(network.depth))
        plus, minus, gradients = transcribe(network, rule, x, y, steps)
        dyads, outcome = rule.infer(network, x, y), rule.gradients(network, x, y)
        pairs = [*zip(dyads.plus, plus, strict=True), *zip(dyads.minus, minus, strict=True)]
        pairs += [(outcome.gradients[name], gradient) for name, gradient in gradients.items()]
        error = max(float((a - b).abs().max()) for a, b in pairs)
        sign = "DP⊤" if rule.coupling == "transposed" else "DP"
        claim = f"slow transcription: {sign} α = {rule.alpha:g}, {rule.schedule}, {architecture}, {activation}"
        yield Evidence(claim, error, ROUNDING)


def autograd_cases(seed: int = CheckOptions.seed) -> Iterator[Evidence]:
    """Where dual propagation must equal, or converge to, the gradient that autograd finds."""
    network, x, y = _example("mlp", "identity", seed)
    for alpha in (0.0, 0.25, 1.0):
        rule = DualPropagation(coupling="transposed", alpha=alpha, beta=3.0)
        error = _relative_error(network, rule, x, y)
        yield Evidence(f"linear network: DP⊤, α = {alpha:g}, β = 3 is back-propagation", error, ROUNDING)
    network, x, y = _example("mlp", "tanh", seed)
    for alpha, order in ((0.5, 2), (0.25, 1)):
        coarse, fine = (_relative_error(network, DualPropagation(alpha=alpha, beta=beta), x, y) for beta in (0.1, 0.05))
        measured = math.log2(coarse / fine)
        yield Evidence(
            f"tanh: DP, α = {alpha:g}, error falls as β^{order} (order found: {measured:.3f})", abs(measured - order), 0.1
        )
    for alpha in (0.0, 1.0):
        network, x, y = _example("conv, pool after", "tanh", seed)
        rule = DualPropagation(coupling="transposed", alpha=alpha, beta=2.0, engine="explicit")
        explicit = rule.gradients(network, x, y).gradients
        assert network.module is not None
        model = dualize(network.module, coupling="transposed", alpha=alpha, beta=2.0)
        parameters = dict(model.named_parameters())
        loss = CrossEntropy().value(model(x), y).mean()
        fused = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        error = max(float((explicit[name] - fused[name]).abs().max()) for name in explicit)
        yield Evidence(f"fused engine = explicit engine: DP⊤, α = {alpha:g}, β = 2, pooled conv, tanh", error, ROUNDING)


def layer_alignments(seed: int = CheckOptions.seed) -> list[tuple[str, list[LayerAlignment]]]:
    """Cosine and norm ratio to back-propagation per layer, float32, on two random networks."""
    rules = {
        "DP α=½ β=1": DualPropagation(),
        "DP α=½ β=0.01": DualPropagation(beta=0.01),
        "DP⊤ α=0 β=1": DualPropagation(coupling="transposed", alpha=0.0),
        "DP⊤ α=1 β=1": DualPropagation(coupling="transposed", alpha=1.0),
    }
    by_label = []
    for architecture in ("mlp", "conv, pool after"):
        network, x, y = _example(architecture, "relu", seed, torch.float32)
        name = architecture.split(",")[0]
        by_label += [(f"{label}, {name}", alignment(network, rule, x, y)) for label, rule in rules.items()]
    return by_label


def _example(
    architecture: str, activation: str, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Network, Tensor, Tensor]:
    """A small random network of four layers, with a batch of six."""
    generator = torch.Generator().manual_seed(seed)
    shape = (12,) if architecture == "mlp" else (3, 8, 8)
    conv = ConvNet(channels=(5, 6, 7), activation=activation, pool="after" if "after" in architecture else "before")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = MLP(widths=(20, 16, 12), activation=activation) if architecture == "mlp" else conv
        model = builder.build(shape, 10).to(dtype)
    x = torch.randn(6, *shape, generator=generator, dtype=dtype)
    return Network.from_module(model), x, torch.randint(10, (6,), generator=generator)


def _relative_error(network: Network, rule: AbstractRule, x: Tensor, y: Tensor) -> float:
    """The greatest error over parameters, relative to the norm of the exact gradient."""
    gradients = rule.gradients(network, x, y).gradients
    exact = Backprop(loss=rule.loss).gradients(network, x, y).gradients
    return max(float((gradients[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
