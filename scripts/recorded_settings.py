"""What `record_numbers` records: tiny networks, and the settings of every rule on them.

A network is written "KIND ACTIVATION …". Further words: a pool ("max", "average", "soft") and its
place ("before" or "after" the activation), "softmax" (of the output), "float32", "bfloat16"
(autocast), "small" (weights), "vectors" (as targets), "frozen" (the first weight), "channels_last",
or a kind of feedback weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import dualprop as dp
from dualprop.recipes import variants

try:
    from dualprop.softmax import SoftmaxPool2d
except ImportError:
    from dualprop.pooling import SoftmaxPool2d

ACTIVATIONS = {
    "identity": nn.Identity, "relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "hard_sigmoid": lambda: nn.Hardtanh(0.0, 1.0), "softmax": lambda: nn.Softmax(1), "gelu": nn.GELU,
}  # fmt: skip
POOLS = {"max": lambda: nn.MaxPool2d(2), "average": lambda: nn.AvgPool2d(2), "soft": lambda: SoftmaxPool2d(2, 0.7)}


class Functional(nn.Module):
    """Activations that are called, not modules."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        s = nn.functional.relu(self.one(x))
        return self.three(self.activation(s + self.two(s).tanh()))


def model_of(kind: str, act: Any, pool: Any, words: set[str]) -> nn.Module:
    """The model of that kind, of four layers or fewer; `act` and `pool` make its modules."""
    block = [pool(), act()] if "before" in words else [act(), pool()]
    return {
        "mlp": lambda: nn.Sequential(nn.Linear(5, 8), act(), nn.Linear(8, 7), act(), nn.Linear(7, 6), act(), nn.Linear(6, 4)),
        "conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), act(), nn.Conv2d(3, 4, 3, padding=1), *block, nn.Flatten(),
                                      nn.Linear(36, 5), act(), nn.Linear(5, 4)),
        "skips": lambda: dp.Layered([
            (act(), {0: nn.Conv2d(2, 3, 3, padding=1)}),
            (act(), {1: nn.Conv2d(3, 4, 3, padding=1)}),
            (act(), {2: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), pool()), 1: nn.Conv2d(3, 4, 1, stride=2)}),
            (None, {3: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), 1: nn.Sequential(nn.Flatten(), nn.Linear(108, 4)),
                    0: nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 4))}),
        ]),
        # Several maps a synapse, no bias, groups, strides.
        "mixed": lambda: nn.Sequential(
            nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3, bias=False), nn.GroupNorm(2, 4), act(), nn.Conv2d(4, 4, 2, 2, groups=2), act(),
            nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(18, 6), nn.LayerNorm(6), act(), nn.Linear(6, 4)),
        "wide": lambda: nn.Sequential(nn.Linear(5, 9000), act(), nn.Linear(9000, 4)),
        "functional": lambda: Functional(act()),
    }[kind]()  # fmt: skip


def problem(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, inputs and targets of "KIND ACTIVATION …", drawn from a seed."""
    kind, activation, *others = net.split()
    words, n = set(others), 64 if kind == "wide" else 6
    pool = next((make for name, make in POOLS.items() if name in words), POOLS["max"])
    torch.manual_seed(0)
    model = model_of(kind, ACTIVATIONS[activation], pool, words).double()
    if "softmax" in words:
        model.append(nn.Softmax(1))
    for p in model.parameters():
        p.data.mul_(0.5 if "small" in words else 1.4)
    if "frozen" in words:
        next(model.parameters()).requires_grad_(False)
    x = torch.randn(n, *((5,) if kind in ("mlp", "wide", "functional") else (2, 6, 6)), dtype=torch.float64)
    y = torch.randn(n, 4, dtype=torch.float64).softmax(1) if "vectors" in words else torch.randint(4, (n,))
    for feedback in words & {"kolen_pollack", "random", "sign_symmetric"}:
        dp.feedback.convert(model, feedback, generator=torch.Generator().manual_seed(1))
    if words & {"float32", "bfloat16"}:
        model, x, y = model.float(), x.float(), y.float() if y.dtype.is_floating_point else y
    if "channels_last" in words:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return model, x, y


RULES = {"dp": "dual_propagation", "ep": "equilibrium_propagation", "lpom": "lifted", "chl": "contrastive_hebbian",
         "pc": "predictive_coding", "dtp": "target_propagation", "bp": "backprop"}  # fmt: skip
BOTH, ALPHAS, LOSSES = ["original", "transposed"], [0.0, 0.3, 0.5, 1.0], ["cross_entropy", "squared_error"]
SCHEDULES = ["alternating_sweeps(1)", "alternating_sweeps(3)", "up_down(2)", "bottom_up(5)", "odd_even(3)", "even_odd(3)",
             "synchronous(7)", "random_order(30)"]  # fmt: skip
PROJECTIONS, SMOOTH = ["mlp identity", "mlp relu", "mlp hard_sigmoid"], ["mlp sigmoid", "mlp tanh"]
NEURONS = [*PROJECTIONS, *SMOOTH, "mlp leaky_relu"]
CONVS = ["conv relu max before", "conv tanh max after", "conv relu average after float32", "conv sigmoid soft before"]
OTHERS = ["skips tanh max", "skips relu average float32", "mixed relu frozen", "conv relu max before channels_last float32"]
FEEDBACKS = ["mlp relu kolen_pollack", "conv tanh max before random float32", "skips relu average sign_symmetric"]
ESTIMATORS = ["centered", "forward", "backward", "random_sign"]
SPLIT = {"engine": ["explicit", "fused", "auto"]}
BLOCKS, HOPFIELD = {"relaxation": "blocks"}, {"energy": "hopfield", "beta": 0.1}
HOLOMORPHIC = ["mlp sigmoid", "mlp tanh small vectors", "conv sigmoid soft before", "conv tanh small average after"]

# (rule, networks, settings). A list holds alternatives, and every combination is one setting.
TABLE: list[tuple[str, list[str], dict[str, Any]]] = [
    ("bp", [*NEURONS, *CONVS, *OTHERS, *FEEDBACKS, "mlp tanh vectors"], {"loss": LOSSES}),
    ("bp", ["mlp tanh softmax"], {"loss": "log_loss"}),
    ("dp", ["mlp relu"], {"coupling": BOTH, "alpha": ALPHAS, "schedule": [*SCHEDULES, "4,3,2,1", "4,1+3,2,1"], "beta": 0.7}),
    ("dp", ["mlp tanh"],
     {"coupling": BOTH, "alpha": ALPHAS, "start": "zeros", "schedule": ["synchronous(7)", "random_order(30)"]}),
    ("dp", ["mlp hard_sigmoid"], {"coupling": BOTH, "start": ["zeros", "previous"], "schedule": ["up_down(1)", "4,2,3,2,1"]}),
    ("dp", ["mlp tanh", "skips relu average"],
     {"coupling": BOTH, "start": "previous", "alpha": [0.0, 0.3], "schedule": "up_down(1)"}),
    ("dp", [*NEURONS, *CONVS, *OTHERS],
     {"coupling": BOTH, "alpha": 0.3, "schedule": "bottom_up(5)", "loss": LOSSES, "beta": 0.4}),
    ("dp", ["mlp relu", "mlp tanh vectors float32"], {"coupling": BOTH, "output_nudge": "exact", "loss": LOSSES, "beta": 0.6}),
    ("dp", ["mlp tanh softmax"], {"coupling": BOTH, "loss": "log_loss", "schedule": "up_down(2)"}),
    ("dp", ["mlp tanh softmax", "mlp softmax softmax vectors"], {"alpha": 1.0, "output_nudge": "exact", "loss": "log_loss"}),
    ("dp", ["mlp tanh", *OTHERS], {"coupling": BOTH, "linearize_at": ["current", "forward"], "schedule": "up_down(2)"}),
    ("dp", ["mlp relu", "conv tanh max after", "skips tanh max"],
     {"coupling": BOTH, "alpha": [0.0, 0.3], "damping": (1.0, 0.5, 2.0), "schedule": "up_down(3)"}),
    ("dp", ["mlp relu", "mlp sigmoid", "conv relu max before random"],
     {"coupling": BOTH, "alpha": [0.0, 0.3], "damping": ["spectral", "spectral_full"], "schedule": "up_down(3)",
      "start": ["forward", "previous"]}),
    ("dp", ["mlp relu", "conv tanh max before", "skips tanh max"],
     {"coupling": BOTH, "alpha": [0.0, 0.5], "beta": 0.1, "tolerance": 1e-4,
      "schedule": ["bottom_up(60)", "alternating_sweeps(3)"]}),
    ("dp", [*NEURONS, *CONVS, *OTHERS, *FEEDBACKS], {"coupling": "transposed", "alpha": 0.0, **SPLIT}),
    ("dp", ["mlp relu", "mlp tanh", "conv relu max after"],
     {"coupling": BOTH, "alpha": [0.3, 1.0], "beta": [0.01, 1.0], **SPLIT}),
    ("dp", ["mlp relu", "skips tanh max"], {"coupling": BOTH, "beta": (0.3, 0.5, 1.1, 0.7), "schedule": "up_down(2)"}),
    ("dp", ["conv relu max before"], {"coupling": BOTH, "alpha": 0.3, "beta": (0.3, 0.5, 1.1, 0.7), **SPLIT}),
    ("dp", ["mlp relu", "mlp leaky_relu float32", "conv hard_sigmoid max after", "mlp tanh"],
     {"alpha": 0.3, "kernel": ["native", "eager"], **SPLIT}),
    # Large enough for the eager kernel to walk it in pieces.
    ("dp", ["wide relu float32"], {"kernel": ["native", "eager"], "alpha": [0.3, 1.0], "engine": ["explicit", "fused"]}),
    ("dp", ["wide tanh float32"], {"kernel": "eager", "alpha": 0.3, "engine": ["explicit", "fused"]}),
    ("dp", ["mlp relu bfloat16", "conv tanh max before bfloat16"], {"coupling": BOTH, "kernel": ["auto", "eager"], **SPLIT}),
    ("dp", FEEDBACKS, {"coupling": BOTH, "alpha": 0.3, "schedule": "up_down(2)"}),
    ("ep", ["mlp relu", "conv tanh max before"],
     {"estimator": ESTIMATORS, "relaxation": "error_sweeps", "pairs": [1, 2, 3]}),
    ("ep", [*NEURONS, *CONVS, *OTHERS, *FEEDBACKS, "mlp tanh vectors"], {"loss": LOSSES}),
    ("ep", NEURONS, {"beta": 0.5, "pairs": 2}),
    ("ep", ["mlp relu", "conv tanh max after", "skips relu average"], {**BLOCKS, "schedule": [*SCHEDULES, "even_odd(10)"]}),
    ("ep", PROJECTIONS, {**BLOCKS, "update": ["auto", "mod_pgd", "pgd"], "step_size": [1.0, 0.5], "schedule": "even_odd(5)"}),
    ("ep", [*SMOOTH, "mlp leaky_relu", "conv sigmoid soft before"],
     {**BLOCKS, "update": ["auto", "pgd"], "step_size": [1.0, 0.5]}),
    ("ep", ["mlp relu", "conv hard_sigmoid max before"],
     {"relaxation": "error_sweeps", "update": ["mod_pgd", "pgd"], "pairs": [1, 2]}),
    ("ep", ["mlp relu", "conv relu max before", "conv tanh max after float32", "skips hard_sigmoid max"],
     {"jacobians": "free", "relaxation": ["error_sweeps", "blocks"], "beta": 0.3}),
    ("ep", ["mlp relu", "mlp tanh vectors", "conv tanh max after"],
     {"output_nudge": "exact", "relaxation": ["error_sweeps", "blocks"], "loss": LOSSES, "beta": 0.3}),
    ("ep", ["mlp relu", "mlp tanh vectors", "skips tanh max"],
     {"output_nudge": "clamped", "loss": "squared_error", "relaxation": ["auto", "blocks"],
      "estimator": ["centered", "random_sign"]}),
    ("ep", ["mlp relu", "conv tanh max before"], {"pairs": 20, "tolerance": [0.1, 1e-6]}),
    ("ep", ["mlp relu", "conv tanh max before"], {**BLOCKS, "schedule": "even_odd(40)", "tolerance": [0.1, 1e-6]}),
    ("ep", ["mlp sigmoid", "conv hard_sigmoid max before small"],
     {**HOPFIELD, "estimator": [*ESTIMATORS, "holomorphic(2)"], "schedule": "even_odd(15)"}),
    ("ep", HOLOMORPHIC,
     {**HOPFIELD, "estimator": ["holomorphic(3)", "holomorphic(4)"], "beta": 0.5, "tolerance": [None, 1e-3]}),
    ("ep", ["mlp sigmoid"], {**HOPFIELD, "schedule": SCHEDULES, "free_schedule": ["even_odd(60)", "up_down(30)"]}),
    ("ep", ["mlp tanh small", "skips tanh small average"],
     {**HOPFIELD, "start": ["forward", "zeros"], "step_size": [1.0, 0.5]}),
    ("ep", ["mlp identity small", "mlp relu small", "mlp leaky_relu small", "mlp sigmoid float32", "mixed relu small frozen"],
     {**HOPFIELD, **BLOCKS, "loss": LOSSES}),
    ("ep", ["mlp sigmoid", "conv tanh small average before"], {**HOPFIELD, "output_nudge": "exact", "loss": LOSSES}),
    ("ep", ["mlp sigmoid"], {**HOPFIELD, "output_nudge": "exact", "loss": "squared_error", "estimator": "holomorphic(4)"}),
    ("ep", ["mlp sigmoid", "mlp relu small"], {**HOPFIELD, "tolerance": [0.1, 1e-4], "schedule": "odd_even(100)"}),
    ("ep", ["mlp sigmoid softmax", "mlp softmax softmax vectors"],
     {**HOPFIELD, "loss": "log_loss", "estimator": ["centered", "forward"]}),
    ("lpom", [*NEURONS, "conv relu average after", "conv tanh max before", *OTHERS[:2], *FEEDBACKS],
     {"update": ["majorized", "fixed_point"], "tolerance": [0.0, 1e-3]}),
    ("lpom", ["mlp relu", "mlp tanh vectors float32"],
     {"output_nudge": ["exact", "linearized"], "loss": LOSSES, "max_sweeps": 4}),
    ("lpom", ["mlp relu", "skips tanh max"], {"beta": (0.05, 0.1, 0.2, 0.1), "update": ["majorized", "fixed_point"]}),
    ("lpom", ["mlp tanh softmax"], {"loss": "log_loss", "output_nudge": ["exact", "linearized"]}),
    ("chl", ["mlp sigmoid", "mlp tanh vectors", "mlp relu small", "conv hard_sigmoid max before float32", "skips tanh average"],
     {"loss": LOSSES, "gamma": [0.02, 0.1]}),
    ("chl", ["mlp sigmoid", "conv tanh average after"],
     {"schedule": ["alternating_sweeps(30)", "even_odd(30)"], "tolerance": [None, 1e-3]}),
    ("chl", ["mlp tanh softmax"], {"loss": "log_loss", "gamma": 0.1}),
    ("pc", [*NEURONS, *CONVS, *OTHERS, *FEEDBACKS, "mlp tanh vectors"], {"loss": LOSSES}),
    ("pc", ["mlp relu", "conv tanh max before"],
     {"momentum": [0.0, 0.7], "beta": [0.05, 1.0], "start": ["forward", "previous"]}),
    ("pc", ["mlp tanh", "skips relu average"],
     {"predictions": "fixed", "steps": [3, 8], "step_size": [1.0, 0.1], "momentum": [0.0, 0.5]}),
    ("pc", ["mlp relu", "conv tanh max after"],
     {"learn": "arrival", "predictions": ["current", "fixed"], "steps": [3, 5], "step_size": 1.0, "momentum": 0.0}),
    ("dtp", [*NEURONS, *CONVS], {"start": ["symmetric", "random"], "loss": LOSSES}),
    ("dtp", ["mlp tanh", "conv relu max before float32"],
     {"iterations": [0, 3, (2, 0, 5)], "noise": [0.1, (0.1, 0.2, 0.3)], "feedback_rate": [None, 0.01],
      "feedback_decay": [0.0, 0.1]}),
]  # fmt: skip
DUALIZE: list[tuple[list[str], dict[str, Any]]] = [
    (["functional gelu", "conv relu max before", "skips tanh max", "mlp hard_sigmoid random"],
     {"coupling": BOTH, "alpha": [0.0, 0.3], "beta": [0.1, 1.0]}),
    (["mlp relu", "conv leaky_relu max after float32"], {"kernel": ["native", "eager"], "loss_reduction": ["mean", "sum", 12]}),
    (["mlp tanh", "functional relu"], {"loss_scale": 0.25, "beta": (0.5, 0.1, 1.0), "recompute_states": [True, False]}),
]  # fmt: skip
ON_RECIPES = {
    "digits-mlp": list(variants.VARIANTS),
    "cifar10-cnn": ["dp-transposed-a0.5-b0.01", "p-dp", "damped-dp", "ep", "hep", "pc", "dtp"],
    "mnist-vgg5-ep-mse": ["ep-published", "ep-clamped", "ep-two-pairs", "ep-forward", "ep-hopfield"],
    "cifar10-hopfield-ep": ["ep", "ep-two-pairs", "ep-hopfield", "ep-random", "hep"],
    "mnist-mlp-ipc": ["pc", "ipc", "pc-fixed"],
}  # fmt: skip
TRAINED = [
    "bp",
    "dp",
    "ms-dp",
    "l-dp",
    "damped-dp",
    "dp-transposed",
    "kp-dp",
    "lpom",
    "chl",
    "ep",
    "ep-published",
    "hep",
    "ipc",
    "dtp",
]
