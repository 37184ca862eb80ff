"""The fused engine: explicit inference where the mean stays f(a), else its own definition in plain
tensors."""

import pytest
import torch
from comparison import assert_same, distance, report, rounding
from networks import ACTIVATIONS, autograd_gradients, batch, conv_net, drawn, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.kernels import dyadic as kernels

EVERY = list(ACTIVATIONS)


def gradients(model, x, y, **settings):
    return dp.DualPropagation(**{"engine": "explicit", **settings}).gradients(dp.Network.from_module(model), x, y).gradients


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 10.0, (0.5, 2.0, 1.0, 0.1)])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_fused_is_explicit_for_transposed_dp_at_alpha_zero_and_one(activation, alpha, beta, loss):
    """There s̄ = f(a), so one downward sweep is a backward pass with differences for derivatives:
    any gap is a defect."""
    model, (x, y) = mlp(activation), batch()
    settings = {"coupling": "transposed", "alpha": alpha, "beta": beta, "loss": loss}
    smallest = min(beta) if isinstance(beta, tuple) else beta
    if activation == "softmax":
        smallest /= 10  # its derivative s (1 - s) shrinks the differences layer by layer, and so their digits
    explicit = gradients(model, x, y, **settings)
    assert_same(gradients(model, x, y, engine="fused", **settings), explicit, rounding(smallest))


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("pool", ["before", "after", "none"])
def test_fused_is_explicit_on_convolutions_and_pools(activation, alpha, pool):
    """Switches of the pools come from the same mean in both."""
    model, (x, y) = conv_net(activation, pool), images()
    settings = {"coupling": "transposed", "alpha": alpha, "beta": 2.0}
    assert_same(gradients(model, x, y, engine="fused", **settings), gradients(model, x, y, **settings), rounding(1.0))


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_fused_is_explicit_at_any_depth(depth):
    """One layer has no hidden unit at all, nine let a wrong power of β or N grow."""
    model, (x, y) = mlp("tanh", (5, *[6] * (depth - 1), 4)), batch()
    settings = {"coupling": "transposed", "alpha": 1.0, "beta": 5.0}
    assert_same(gradients(model, x, y, engine="fused", **settings), gradients(model, x, y, **settings), rounding(1.0))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_an_output_that_is_not_linear_is_nudged_through_its_neuron_in_both_engines(activation, beta):
    """s_L± = f(a ∓ β g): an output neuron left to its derivative would be plain BP in the last
    layer."""
    model = drawn(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), ACTIVATIONS[activation]()))
    x, y = batch()
    settings = {"coupling": "transposed", "alpha": 0.0, "beta": beta, "loss": "squared_error"}
    explicit = gradients(model, x, y, **settings)
    assert_same(gradients(model, x, y, engine="fused", **settings), explicit, rounding(beta))
    assert distance(explicit["2.weight"], autograd_gradients(model, x, y, "squared_error")["2.weight"]) > 1e-6


def by_definition(model, x, y, coupling, alpha, betas, loss):
    """States of the forward pass; the cotangent times f' replaced by a difference, layer by layer,
    in plain tensors.

    In the nudge Δ_k = -β_k N dy_k:  δ_k = f(a_k + up Δ_k) - f(a_k - down Δ_k),  dy below =
    Jᵀ(-δ_k/(β_k N)).
    """
    up, down = (alpha, 1 - alpha) if coupling == "original" else (1 - alpha, alpha)
    n, states, drives, maps, fs = len(x), [x], [], [], []
    modules = list(model)
    while modules:
        stretch = []
        while modules and not isinstance(modules[0], tuple(type(make()) for make in ACTIVATIONS.values())):
            stretch.append(modules.pop(0))
        maps.append(nn.Sequential(*stretch))
        fs.append(modules.pop(0) if modules else nn.Identity())
        drives.append(maps[-1](states[-1]).detach())
        states.append(fs[-1](drives[-1]).detach())
    s = states[-1].requires_grad_()
    value = F.cross_entropy(s, y) if loss == "cross_entropy" else (s - F.one_hot(y, s.shape[1])).pow(2).sum() / (2 * n)
    (dy,) = torch.autograd.grad(value, s)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for k in reversed(range(len(maps))):
        nudge = -betas[k] * n * dy
        delta = fs[k](drives[k] + up * nudge) - fs[k](drives[k] - down * nudge)
        below = states[k].detach().requires_grad_()
        inputs = [below, *maps[k].parameters()]
        dy, *of_parameters = torch.autograd.grad(maps[k](below), inputs, -delta / (betas[k] * n))
        found |= {names[id(p)]: g.detach() for p, g in zip(maps[k].parameters(), of_parameters, strict=True)}
    return {name: found[name] for name, _ in model.named_parameters()}


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("beta", [0.01, 3.0])
def test_fused_is_its_own_definition_everywhere(activation, coupling, alpha, beta):
    """Off the exact cases no other engine can check it: only forward states and dyadic differences,
    written out."""
    model, (x, y) = mlp(activation), batch()
    settings = {"coupling": coupling, "alpha": alpha, "beta": beta}
    expected = by_definition(model, x, y, coupling, alpha, [beta] * 4, "cross_entropy")
    assert_same(gradients(model, x, y, engine="fused", **settings), expected, rounding(beta))


@pytest.mark.parametrize("pool", ["before", "after"])
def test_fused_is_its_own_definition_on_convolutions_with_a_beta_per_layer(pool):
    """Each layer divides by its own β what it multiplied by it."""
    model, (x, y), betas = conv_net("tanh", pool), images(), (0.5, 2.0, 1.0, 0.1)
    settings = {"coupling": "original", "alpha": 0.3, "beta": betas, "loss": "squared_error"}
    expected = by_definition(model, x, y, "original", 0.3, betas, "squared_error")
    assert_same(gradients(model, x, y, engine="fused", **settings), expected, rounding(0.1))


def test_fused_differs_from_explicit_where_the_mean_moves():
    """DP with α ≠ ½ on curved units: equality there would mean that explicit inference ignores its
    own mean."""
    model, (x, y) = mlp("tanh"), batch()
    explicit, fused = (gradients(model, x, y, alpha=0.0, beta=1.0, engine=e) for e in ("explicit", "fused"))
    assert distance(fused["2.weight"], explicit["2.weight"]) > 1e-3, report(fused, explicit)


def test_the_forward_prediction_of_both_engines_is_the_models():
    """Loss and logits are reported to the user as the model's own."""
    model, (x, y) = mlp("tanh"), batch()
    for engine in ("explicit", "fused"):
        out = dp.DualPropagation(engine=engine, start="forward").gradients(dp.Network.from_module(model), x, y)
        torch.testing.assert_close(out.logits, model(x).detach(), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(out.loss, F.cross_entropy(model(x), y).detach(), rtol=1e-14, atol=1e-14)
        assert not out.logits.requires_grad
        assert not out.loss.requires_grad


@pytest.mark.parametrize("engine", ["explicit", "fused"])
@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_batch_is_the_mean_of_its_examples(engine, coupling, alpha):
    """β is per example: a batch size that leaks into the nudge changes the algorithm with the
    batch."""
    for model, (x, y) in ((mlp("tanh"), batch()), (conv_net("relu", "after"), images())):
        settings = {"coupling": coupling, "alpha": alpha, "beta": 3.0, "engine": engine}
        together = gradients(model, x, y, **settings)
        apart = [gradients(model, x[i : i + 1], y[i : i + 1], **settings) for i in range(len(x))]
        mean = {name: torch.stack([g[name] for g in apart]).mean(0) for name in together}
        assert_same(together, mean, rounding(1.0))


@pytest.mark.parametrize("engine", ["explicit", "fused"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("rule", [dp.DualPropagation, dp.Backprop])
def test_class_indices_are_one_hot_vectors(engine, loss, rule):
    """And soft targets are taken as they are: the cross-entropy's mass need not be one."""
    model, (x, y) = mlp("tanh"), batch()
    settings = {"loss": loss} | ({"engine": engine} if rule is dp.DualPropagation else {})
    network = dp.Network.from_module(model)
    one_hot = F.one_hot(y, 4).double()
    by_index = rule(**settings).gradients(network, x, y).gradients
    assert_same(rule(**settings).gradients(network, x, one_hot).gradients, by_index, rounding(1.0))
    soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_bp = dp.Backprop(loss=loss).gradients(network, x, soft).gradients
    settings |= {"beta": 1e-4} if rule is dp.DualPropagation else {}
    # Second order in β = 1e-4, with curvature of order one.
    assert_same(rule(**settings).gradients(network, x, soft).gradients, by_bp, 1e-6)


@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_large_tensors_are_walked_in_pieces_without_a_seam(engine, monkeypatch):
    """The kernel splits what doesn't fit the cache: a piece skipped or written twice would be noise
    in some units."""
    model, (x, y) = mlp("tanh", (5, 40, 30, 4)), batch(n=16)
    settings = {"alpha": 0.3, "beta": 2.0, "engine": engine}
    whole = gradients(model, x, y, **settings)
    assert x.shape[0] * 40 > 64
    monkeypatch.setattr(kernels, "PIECE", 37)
    assert_same(gradients(model, x, y, **settings), whole, rounding(1.0))


def test_half_precision_differences_are_taken_in_float32():
    """In bfloat16 s⁺ - s⁻ of states near one has no digit left at |δ| = 0.01 (32 % error)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, generator=generator).add(1).bfloat16()
    delta = torch.randn(4000, generator=generator).mul(0.01).bfloat16()
    for up, down in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
        found = kernels.difference(dp.neurons.Tanh(), a, delta, up, down)
        assert found.dtype == torch.bfloat16
        a64, d64 = a.double(), delta.double()
        exact = torch.tanh(a64 + up * d64) - torch.tanh(a64 - down * d64)
        # One rounding to bfloat16 of the result, 2⁻⁹ relative; float32's own is eps/0.01, far
        # below.
        assert distance(found.double(), exact) < 2**-8
