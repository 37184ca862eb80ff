"""Equilibrium propagation against a slow transcription of Kerjan et al. (2026), eq. 7 to 20.

Every derivative is by autograd, and nothing is reused.
"""

import itertools

import pytest
import torch
from comparison import assert_same
from networks import batch, conv_net, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.equilibrium.energies import Hopfield, PredictiveCoding
from dualprop.network.states import States

F64 = torch.float64


def blocks_of(model):
    """The model's layers as functions (drive, activation), split here anew: a layer ends behind
    each activation."""
    blocks, maps = [], []
    for module in model:
        if isinstance(module, nn.ReLU | nn.Tanh | nn.Hardtanh | nn.Sigmoid):
            blocks.append((nn.Sequential(*maps), module))
            maps = []
        else:
            maps.append(module)
    return [*blocks, (nn.Sequential(*maps), nn.Identity())]


def predictive_energy(blocks, states):
    return sum((s - f(a(below))).square().sum() / 2 for (a, f), below, s in zip(blocks, states, states[1:], strict=False))


def one_hot(y, k):
    return F.one_hot(y, k).to(F64)


def cost(loss, h, y):
    if loss == "cross_entropy":
        return F.cross_entropy(h, y, reduction="sum")
    return (h - one_hot(y, h.shape[1])).square().sum() / 2


def slow_phase(blocks, x, y, beta, loss, order, update, clamped=False):
    """mod-PGD or PGD with step 1 by eq. 15-20: T_k is minus the derivative of the energy of the
    layer above alone."""
    states = [x]
    for a, f in blocks:
        states.append(f(a(states[-1])).detach())
    depth, free_output = len(blocks), states[-1]
    if clamped:
        states[depth] = (1 - beta) * free_output + beta * one_hot(y, free_output.shape[1])
    for k in order:
        a, f = blocks[k - 1]
        drive = a(states[k - 1]).detach()
        if k == depth:
            if not clamped:
                output = states[k].clone().requires_grad_()
                states[k] = drive - beta * torch.autograd.grad(cost(loss, output, y), output)[0]
            continue
        above, f_above = blocks[k]
        h = states[k].clone().requires_grad_()
        pull = -torch.autograd.grad((states[k + 1] - f_above(above(h))).square().sum() / 2, h)[0]
        states[k] = f(drive + pull) if update == "mod_pgd" else clip(f, f(drive) + pull)
    return states


def clip(f, h):
    low, high = {nn.ReLU: (0, None), nn.Hardtanh: (0, 1)}.get(type(f), (None, None))
    return h if low is None else h.clamp(low, high)


def energy_gradient(model, blocks, states):
    return torch.autograd.grad(predictive_energy(blocks, [s.detach() for s in states]), list(model.parameters()))


def even_odd(depth, k):
    return [*range(2, depth + 1, 2), *range(1, depth + 1, 2)] * k


MODELS = {
    "mlp relu": lambda: (mlp("relu"), batch(n=8)),
    "mlp tanh": lambda: (mlp("tanh"), batch(n=8)),
    "mlp hard sigmoid": lambda: (mlp("hard_sigmoid"), batch(n=8)),
    "conv, pool before": lambda: (conv_net("relu", "before"), images(8)),
    "conv, pool after": lambda: (conv_net("relu", "after"), images(8)),
}
CASES = [
    (name, update, loss, estimator)
    for name, update, loss, estimator in itertools.product(
        MODELS, ("mod_pgd", "pgd"), ("cross_entropy", "squared_error"), ("centered", "forward", "backward")
    )
    if not (update == "mod_pgd" and "tanh" in name)
]
WEIGHTS = {"centered": {1: 0.5, -1: -0.5}, "forward": {1: 1.0}, "backward": {-1: -1.0}}


@pytest.mark.parametrize(("name", "update", "loss", "estimator"), CASES)
@pytest.mark.parametrize(("passes", "beta"), [(1, 0.3), (4, 0.05)])
def test_block_updates_are_the_papers_iteration_and_its_estimators(name, update, loss, estimator, passes, beta):
    """A sign of T, a parity, a mask or a phase that starts elsewhere still trains, towards
    something worse."""
    model, (x, y) = MODELS[name]()
    blocks, network = blocks_of(model), dp.Network.from_module(model)
    rule = dp.EquilibriumPropagation(
        relaxation=f"blocks(even_odd({passes}), update={update})", loss=loss, estimator=estimator, beta=beta
    )
    out = rule.gradients(network, x, y)
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for (sign, weight), (_, inferred) in zip(WEIGHTS[estimator].items(), rule.infer(network, x, y).nudged, strict=True):
        states = slow_phase(blocks, x, y, sign * beta, loss, even_odd(len(blocks), passes), update)
        for k, (found, wanted) in enumerate(zip(inferred, states, strict=True)):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12, msg=lambda m, k=k: f"layer {k}: {m}")
        for n, g in zip(expected, energy_gradient(model, blocks, states), strict=True):
            expected[n] += weight / (beta * len(y)) * g
    assert_same(out.gradients, expected, 1e-9)


@pytest.mark.parametrize("name", ["mlp relu", "conv, pool before"])
def test_a_clamped_output_stays_where_it_is_put(name):
    """(1-β) h⁰ + β y, eq. 8: an output that drifts back with its drive is a nudge, not a clamp."""
    model, (x, y) = MODELS[name]()
    blocks, network = blocks_of(model), dp.Network.from_module(model)
    rule = dp.EquilibriumPropagation(relaxation="blocks(even_odd(4))", output_nudge="clamped", loss="squared_error", beta=0.05)
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for beta in (0.05, -0.05):
        states = slow_phase(blocks, x, y, beta, "squared_error", even_odd(len(blocks), 4), "mod_pgd", clamped=True)
        for n, g in zip(expected, energy_gradient(model, blocks, states), strict=True):
            expected[n] += g / (2 * beta * len(y))
    assert_same(rule.gradients(network, x, y).gradients, expected, 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_a_pair_of_error_sweeps_is_two_lines_of_algebra(name):
    """Down: ε_k = s_k - f(a_k) with s_k where T_k puts it at the free drives; up: the same T_k at
    the new drives."""
    model, (x, y) = MODELS[name]()
    blocks, network = blocks_of(model), dp.Network.from_module(model)
    beta, loss = 0.05, "cross_entropy"
    depth = len(blocks)
    free = [x]
    for a, f in blocks:
        free.append(f(a(free[-1])).detach())

    def settled(f, drive, pull):
        return f(drive + pull) if isinstance(f, nn.ReLU | nn.Hardtanh) else f(drive) + pull

    rule = dp.EquilibriumPropagation(beta=beta, loss=loss)
    for sign, (_, inferred) in zip((1, -1), rule.infer(network, x, y).nudged, strict=True):
        output = free[-1].clone().requires_grad_()
        pull = -sign * beta * torch.autograd.grad(cost(loss, output, y), output)[0]
        pulls = {depth: pull}
        error = pull
        for k in range(depth - 1, 0, -1):
            a, f = blocks[k]
            h = free[k].clone().requires_grad_()
            pulls[k] = torch.autograd.grad((f(a(h)) * error.detach()).sum(), h)[0]
            a, f = blocks[k - 1]
            drive = a(free[k - 1]).detach()
            error = settled(f, drive, pulls[k]) - f(drive)
        states = [x]
        for k, (a, f) in enumerate(blocks, start=1):
            states.append(settled(f, a(states[-1]).detach(), pulls[k]))
        for k, (found, wanted) in enumerate(zip(inferred, states, strict=True)):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12, msg=lambda m, k=k: f"layer {k}: {m}")


def hopfield_states(blocks, states, y, beta, passes):
    """s ← f(∂Φ/∂s) of all layers together, Φ = Σ s_k·a_k(s_{k-1}) - β ℓ: the code of Laborieux et
    al. (2021)."""
    for _ in range(passes):
        leaves = [states[0], *(s.detach().requires_grad_() for s in states[1:])]
        phi = sum((a(below) * s).sum() for (a, _), below, s in zip(blocks, leaves, leaves[1:], strict=False))
        pulls = torch.autograd.grad(phi - beta * cost("cross_entropy", leaves[-1], y), leaves[1:])
        states = [states[0], *(f(pull).detach() for (_, f), pull in zip(blocks, pulls, strict=True))]
    return states


def hopfield_gradient(model, blocks, states):
    phi = sum((a(below) * s).sum() for (a, _), below, s in zip(blocks, states, states[1:], strict=False))
    return torch.autograd.grad(-phi, list(model.parameters()))


@pytest.mark.parametrize("passes", [(5, 4), (9, 3)])
@pytest.mark.parametrize(("estimator", "sign"), [("forward", 1), ("backward", -1)])
@pytest.mark.parametrize("free", ["held", "running"])
def test_the_free_state_of_one_sided_ep_is_held_where_the_phase_ended_or_runs_on(free, estimator, sign, passes):
    """The published code contrasts the nudged states with those of the free phase's end. Ours run
    on for as long, so that what is left of the motion cancels; either must be what it says."""
    model, (x, y) = mlp("sigmoid", widths=(5, 6, 7, 4)), batch(n=8)
    beta, (first, second), blocks = 0.3, passes, blocks_of(model)
    settled = hopfield_states(blocks, [x, *(torch.zeros(len(x), n, dtype=F64) for n in (6, 7, 4))], y, 0.0, first)
    nudged = hopfield_states(blocks, settled, y, sign * beta, second)
    contrasted = settled if free == "held" else hopfield_states(blocks, settled, y, 0.0, second)
    moved = hopfield_states(blocks, settled, y, 0.0, 1)
    assert any(not torch.equal(one, other) for one, other in zip(settled, moved, strict=True))
    pairs = zip(*(hopfield_gradient(model, blocks, states) for states in (nudged, contrasted)), strict=True)
    names = [name for name, _ in model.named_parameters()]
    expected = {name: sign * (one - other) / (beta * len(y)) for name, (one, other) in zip(names, pairs, strict=True)}
    rule = dp.EquilibriumPropagation(
        energy="hopfield", estimator=f"{estimator}(held)" if free == "held" else estimator, beta=beta,
        free_schedule=f"synchronous({first})", relaxation=f"blocks(synchronous({second}))",
    )  # fmt: skip
    network = dp.Network.from_module(model)
    out = rule.gradients(network, x, y)
    assert_same(out.gradients, expected, 1e-10)
    # Held, it makes no pass of its own.
    assert out.diagnostics["passes"] == first + second * (1 if free == "held" else 2)


def test_a_sign_drawn_for_an_example_is_forward_or_backward_with_the_state_held_too():
    """A free term that runs on, or without its sign, would still fall on the average."""
    model, (x, y) = mlp("sigmoid", widths=(5, 6, 7, 4)), batch(n=1)
    settings = {"energy": "hopfield", "beta": 0.3, "free_schedule": "odd_even(3)", "relaxation": "blocks(odd_even(3))"}
    network = dp.Network.from_module(model)
    one_sided = [
        dp.EquilibriumPropagation(estimator=f"{name}(held)", **settings).gradients(network, x, y).gradients
        for name in ("forward", "backward")
    ]
    met = set()
    for seed in range(8):
        rule = dp.EquilibriumPropagation(estimator="random_sign(held)", **settings)
        found = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(seed)).gradients
        near = [all(torch.allclose(found[n], g[n], rtol=1e-9, atol=1e-13) for n in found) for g in one_sided]
        assert sum(near) == 1
        met.add(near.index(True))
    assert met == {0, 1}


@pytest.mark.parametrize("energy", [PredictiveCoding(), Hopfield()], ids=str)
@pytest.mark.parametrize(("activation", "pool"), [("tanh", "none"), ("sigmoid", "before"), ("tanh", "after")])
def test_the_local_maps_are_the_derivatives_of_the_energy(energy, activation, pool):
    """Where the states settle, how they pull and what the weights learn are one function's
    derivatives, or no energy falls."""
    model, (x, _) = conv_net(activation, pool), images(3)
    network = dp.Network.from_module(model)
    scalar = dp.objectives.hopfield if energy.name == "hopfield" else dp.objectives.predictive_coding
    generator = torch.Generator().manual_seed(1)
    states, drives = [x], []
    for layer in network.layers:
        drives.append(layer.forward(states).detach())
        free = layer.neuron.f(drives[-1])
        noise = 0.1 * torch.rand(free.shape, generator=generator, dtype=F64) * (1 if activation == "tanh" else 0.5)
        states.append((free + noise * (1 - free.abs()) if layer is not network.layers[-1] else free + noise).detach())
    drives = [layer.forward(states).detach() for layer in network.layers]
    leaves = [states[0], *(s.clone().requires_grad_() for s in states[1:])]
    value = scalar(network, leaves).sum()
    of_states = torch.autograd.grad(value, leaves[1:], retain_graph=True)
    of_parameters = dict(zip(network.parameters, torch.autograd.grad(value, list(network.parameters.values())), strict=True))
    acts = States(network, x)
    for k, (layer, s, a) in enumerate(zip(network.layers, states[1:], drives, strict=True), start=1):
        acts.set(k, s, energy.signal(layer.neuron, a, s))
    with torch.no_grad():
        learned = acts.gradients((-1.0,) * network.depth)
    assert_same(learned, of_parameters, 1e-11, "∂E/∂θ")
    for k, (layer, s, a) in enumerate(zip(network.layers, states[1:], drives, strict=True), start=1):
        pull = acts.feedback(k) if k < network.depth else torch.zeros_like(s)
        own = dp.objectives.inverse(layer.neuron, s) - a if energy.name == "hopfield" else s - layer.neuron.f(a)
        wanted = own - pull
        torch.testing.assert_close(of_states[k - 1], wanted, rtol=1e-9, atol=1e-11, msg=lambda m, k=k: f"layer {k}: {m}")
