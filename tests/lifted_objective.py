"""The objective of lifted networks (LPOM) in plain torch: none of the package's potentials, drives
or losses."""

import math

import torch
from networks import ACTIVATIONS
from torch import nn
from torch.nn import functional as F

IDENTITY, RELU, LEAKY, HARD, SIGMOID, TANH, SOFTMAX = (
    type(ACTIVATIONS[name]()) for name in ("identity", "relu", "leaky_relu", "hard_sigmoid", "sigmoid", "tanh", "softmax")
)


def primitive(kind, a):
    """G*(a) = ∫ f."""
    return {
        IDENTITY: lambda: a.square() / 2,
        RELU: lambda: a.relu().square() / 2,
        LEAKY: lambda: torch.where(a > 0, a.square() / 2, 0.2 * a.square() / 2),
        HARD: lambda: torch.where(a > 1, a - 0.5, a.relu().square() / 2),
        SIGMOID: lambda: F.softplus(a),
        TANH: lambda: F.softplus(2 * a) - a,  # log cosh a + log 2; the constant goes into the potential
        SOFTMAX: lambda: a.logsumexp(1, keepdim=True).expand_as(a) / a.shape[1],  # one number for all units, shared out
    }[kind]()


def potential(kind, s):
    """G(s) inside the activation's range, which `reach` names."""
    return {
        IDENTITY: lambda: s.square() / 2,
        RELU: lambda: s.square() / 2,
        LEAKY: lambda: torch.where(s > 0, s.square() / 2, s.square() / 0.4),
        HARD: lambda: s.square() / 2,
        SIGMOID: lambda: torch.special.xlogy(s, s) + torch.special.xlogy(1 - s, 1 - s),
        SOFTMAX: lambda: torch.special.xlogy(s, s),
        TANH: lambda: (torch.special.xlogy(1 + s, 1 + s) + torch.special.xlogy(1 - s, 1 - s)) / 2 - math.log(2),
    }[kind]()


def reach(kind):
    return {RELU: (0.0, torch.inf), HARD: (0.0, 1.0)}.get(kind, (-torch.inf, torch.inf))


def layers(model):
    """[(modules of the synapse, kind of activation)] from the input up."""
    found, synapse = [], []
    for module in model:
        if type(module) in (IDENTITY, RELU, LEAKY, HARD, SIGMOID, TANH, SOFTMAX):
            found.append((nn.Sequential(*synapse), type(module)))
            synapse = []
        else:
            synapse.append(module)
    return [*found, (nn.Sequential(*synapse), IDENTITY)] if synapse else found


def objective(model, states, y, betas, loss="cross_entropy"):
    """J of each example, shape (N,): ℓ(X_L, y) + Σ_k (1/β_k) [G_k(X_k) + G_k*(a_k) - X_k·a_k];
    states are X_0 … X_L."""
    if loss == "cross_entropy":
        total = F.cross_entropy(states[-1], y, reduction="none")
    else:
        total = (states[-1] - F.one_hot(y, states[-1].shape[1])).square().sum(1) / 2
    for k, ((synapse, kind), beta) in enumerate(zip(layers(model), betas, strict=True), start=1):
        a = synapse(states[k - 1])
        total = total + (potential(kind, states[k]) + primitive(kind, a) - states[k] * a).flatten(1).sum(1) / beta
    return total


def forward_states(model, x):
    states = [x]
    for synapse, kind in layers(model):
        make = next(make for make in ACTIVATIONS.values() if type(make()) is kind)
        states.append(make()(synapse(states[-1])).detach())
    return states
