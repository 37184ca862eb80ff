"""`gradients` is a pure function; `backward` adds its result into `.grad`, as autograd does."""

import copy

import pytest
import torch
from comparison import assert_same, numbered
from networks import batch, conv_net, drawn, images, mlp
from torch import nn

import dualprop as dp

RULES = {
    "backprop": dp.Backprop(),
    "one sweep": dp.DualPropagation(),
    "fused": dp.DualPropagation(engine="fused"),
    "transposed, up and down": dp.DualPropagation(coupling="transposed", alpha=0.0, schedule="up_down(2)", engine="explicit"),
    "synchronous from zeros": dp.DualPropagation(alpha=0.3, schedule="synchronous(8)", start="zeros"),
    "lazy": dp.DualPropagation(alpha=0.3, schedule="up_down(1)", start="previous"),
    "random": dp.DualPropagation(schedule="random_order(12)"),
    "exact": dp.DualPropagation(output_nudge="exact", schedule="bottom_up(3)"),
    "damped": dp.DualPropagation(alpha=1.0, damping=(0.5, 1.0, 0.1), schedule="bottom_up(5)"),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def problem(kind):
    return (mlp("tanh"), *batch()) if kind == "mlp" else (conv_net("relu", "after"), *images())


def run(rule, network, x, y, state, seed=0):
    return rule.gradients(network, x, y, state=state, generator=torch.Generator().manual_seed(seed))


def state_of(rule, network, x, y):
    return run(rule, network, x, y, None, seed=9).state


@every_rule
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_gradients_changes_nothing_that_exists(rule, kind):
    """A changed input, buffer, state or generator would make training depend on what was looked at
    in between."""
    model, x, y = problem(kind)
    network = dp.Network.from_module(model)
    state = state_of(rule, network, x.flip(0), y)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    before = copy.deepcopy((dict(model.named_parameters()), dict(model.named_buffers()), x, y, state))
    grads = [p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    random_state, mode, training = torch.get_rng_state(), torch.is_grad_enabled(), model.training
    run(rule, network, x, y, state)
    assert torch.equal(torch.get_rng_state(), random_state), "the global generator moved"
    assert torch.is_grad_enabled() == mode
    assert model.training == training
    assert [p._version for p in model.parameters()] == versions, "a parameter was written to"
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
    assert torch.equal(x, before[2])
    assert torch.equal(y, before[3])
    assert not x.requires_grad
    if state is not None:
        assert_same(numbered(state.plus, "s+"), numbered(before[4].plus, "s+"), 0.0)
        assert_same(numbered(state.minus, "s-"), numbered(before[4].minus, "s-"), 0.0)
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules()), "a hook was left behind"


@every_rule
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_gradients_is_deterministic_and_does_not_depend_on_autograds_mode(rule, kind):
    """A bit that differs between two calls is a bit that no resumed run can reproduce."""
    model, x, y = problem(kind)
    network = dp.Network.from_module(model)
    state = state_of(rule, network, x.flip(0), y)
    first = run(rule, network, x, y, state)
    with torch.no_grad():
        second = run(rule, network, x, y, state)
    third = run(rule, dp.Network.from_module(copy.deepcopy(model)), x.clone().requires_grad_(), y.clone(), state)
    for again in (second, third):
        assert_same(again.gradients, first.gradients, 0.0)
        assert torch.equal(again.logits, first.logits)
        assert torch.equal(again.loss, first.loss)
        assert again.diagnostics == first.diagnostics


@every_rule
def test_nothing_that_comes_back_hangs_on_a_graph_or_on_the_parameters(rule):
    """Keeping outcomes would keep every tape in memory; an aliased gradient would change at the
    optimizer's step."""
    model, x, y = problem("mlp")
    network = dp.Network.from_module(model)
    out = run(rule, network, x, y, state_of(rule, network, x, y))
    kept = {name: g.clone() for name, g in out.gradients.items()}
    tensors = [*out.gradients.values(), out.loss, out.logits]
    tensors += [*out.state.plus, *out.state.minus] if out.state is not None else []
    assert not any(t.requires_grad for t in tensors)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert_same(out.gradients, kept, 0.0)


@every_rule
def test_backward_adds_into_grad(rule):
    """Accumulation over micro-batches replaces the first by the last if it sets, and shares memory
    if it aliases."""
    model, x, y = problem("mlp")
    network = dp.Network.from_module(model)
    state = state_of(rule, network, x, y)
    expected = run(rule, network, x, y, state).gradients
    assert all(p.grad is None for p in model.parameters())
    for times in (1, 2, 3):
        out = rule.backward(network, x, y, state=state, generator=torch.Generator().manual_seed(0))
        found = {name: p.grad for name, p in model.named_parameters()}
        assert_same(found, {name: times * g for name, g in expected.items()}, 1e-14, f"after {times} calls")
        assert_same(out.gradients, expected, 0.0, "the outcome of a call is that call's own")


def test_an_optimizer_step_on_accumulated_gradients_does_not_reach_into_the_outcome():
    """zero_grad(set_to_none=False) zeroes in place: an outcome that is kept must survive it."""
    model, x, y = problem("mlp")
    out = dp.DualPropagation().backward(dp.Network.from_module(model), x, y)
    dp.DualPropagation().backward(dp.Network.from_module(model), x, y)
    kept = {name: g.clone() for name, g in out.gradients.items()}
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad(set_to_none=False)
    assert_same(out.gradients, kept, 0.0)


def test_a_passed_state_is_used_only_with_start_previous():
    """A rule that starts from the forward pass must not be lazy by accident, nor a lazy one start
    anew."""
    model, x, y = problem("mlp")
    network = dp.Network.from_module(model)
    state = dp.DualPropagation(beta=5.0).infer(network, x.flip(0), y)
    for start, used in (("forward", False), ("zeros", False), ("previous", True)):
        rule = dp.DualPropagation(start=start, schedule=[4, 2])
        found = run(rule, network, x, y, state).state
        assert torch.equal(found.plus[1], state.plus[1]) is used, start
        assert rule.keeps_state is used
    fresh = run(dp.DualPropagation(start="previous"), network, x, y, None)
    assert_same(fresh.gradients, run(dp.DualPropagation(), network, x, y, None).gradients, 0.0, "without a state")


def test_start_from_zeros_is_from_zeros():
    """Layers that the schedule never reaches show what inference started from."""
    model, x, y = problem("mlp")
    dyads = dp.DualPropagation(start="zeros", schedule=[4]).infer(dp.Network.from_module(model), x, y)
    assert all(not bool(dyads.mean(k).any()) for k in (1, 2, 3))
    # Layer 4 reads the zero state below: a_4 is its bias, nudged along the gradient at that drive.
    expected = model[6].bias.detach().expand(6, 4)
    torch.testing.assert_close(dyads.mean(4), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("schedule", [[4, 3], "up_down(1)"])
def test_a_state_comes_back_from_named_tensors_as_it_was(schedule):
    """A lazy run that is resumed from a checkpoint must go on from the very states, unreached
    layers included."""
    model, x, y = problem("mlp")
    network, rule = dp.Network.from_module(model), dp.DualPropagation(alpha=0.3, start="previous", schedule=schedule)
    state = rule.infer(network, x, y)
    packed = rule.pack_state(state)
    assert all(isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in packed.items())
    back = rule.unpack_state(packed)
    assert_same(numbered(back.plus, "s+"), numbered(state.plus, "s+"), 0.0)
    assert_same(numbered(back.minus, "s-"), numbered(state.minus, "s-"), 0.0)
    again = [rule.gradients(network, x.flip(0), y, state=s) for s in (state, back)]
    assert_same(again[1].gradients, again[0].gradients, 0.0)
    assert again[1].diagnostics == again[0].diagnostics
    assert rule.pack_state(None) == {}
    assert rule.unpack_state({}) is None


def test_a_state_of_many_layers_comes_back_in_their_order_whatever_the_order_of_the_tensors():
    """A file lists its tensors by name, "means.10" before "means.2"."""
    means = tuple(torch.full((1, 1), float(k)) for k in range(12))
    state = dp.Dyads(means, (None, *means[1:]), alpha=0.3)
    rule = dp.DualPropagation(alpha=0.3, start="previous")
    packed = rule.pack_state(state)
    back = rule.unpack_state({name: packed[name] for name in sorted(packed)})
    assert [float(mean) for mean in back.means] == list(range(12))
    assert back.differences[0] is None
    assert [float(delta) for delta in back.differences[1:]] == list(range(1, 12))
    assert back.alpha == 0.3


def test_dyads_hold_what_their_docstring_says():
    """s̄ = α s⁺ + (1-α) s⁻ and δ = s⁺ - s⁻ must hold of what is handed out; layer 0 is the
    input."""
    model, x, y = problem("mlp")
    for coupling in ("original", "transposed"):
        dyads = dp.DualPropagation(alpha=0.3, coupling=coupling, beta=2.0).infer(dp.Network.from_module(model), x, y)
        assert dyads.mean(0) is x
        assert not bool(dyads.difference(0).any())
        for k in range(1, 5):
            torch.testing.assert_close(dyads.mean(k), 0.3 * dyads.plus[k] + 0.7 * dyads.minus[k], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(dyads.difference(k), dyads.plus[k] - dyads.minus[k], rtol=1e-12, atol=1e-12)


def test_infer_gives_the_states_of_gradients():
    """Two methods, one inference."""
    model, x, y = problem("mlp")
    network = dp.Network.from_module(model)
    for rule in (RULES["one sweep"], RULES["damped"], RULES["random"]):
        dyads = rule.infer(network, x, y, generator=torch.Generator().manual_seed(0))
        assert_same(numbered(dyads.plus, "s+"), numbered(run(rule, network, x, y, None).state.plus, "s+"), 0.0)


@pytest.mark.parametrize("index", range(4))
def test_beta_of_one_layer_acts_on_that_layers_difference_alone(index):
    """δ_k scales with β_k where units are linear, and the gradient, divided by it, does not."""
    model, (x, y) = mlp("identity"), batch()
    network = dp.Network.from_module(model)
    betas = [1.0] * 4
    betas[index] = 3.0
    plain = dp.DualPropagation(coupling="transposed", beta=1.0).gradients(network, x, y)
    found = dp.DualPropagation(coupling="transposed", beta=tuple(betas)).gradients(network, x, y)
    for k in range(1, 5):
        factor = 3.0 if k == index + 1 else 1.0
        torch.testing.assert_close(found.state.difference(k), factor * plain.state.difference(k), rtol=1e-12, atol=1e-14)
    assert_same(found.gradients, plain.gradients, 1e-12)


def test_reading_a_network_changes_nothing_and_keeps_names():
    """The model stays the user's own: parameters, names, state_dict, prediction."""
    model = drawn(
        lambda: nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(6, 5)), nn.Sequential(nn.Tanh(), nn.Linear(5, 3)))
    )
    before, text = {n: v.clone() for n, v in model.state_dict().items()}, repr(model)
    network = dp.Network.from_module(model)
    assert list(network.parameters) == ["0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias"]
    assert all(p is model.get_parameter(name) for name, p in network.parameters.items())
    assert repr(model) == text
    assert list(model.state_dict()) == list(before)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(network.forward(x), model(x))
    assert network.depth == 2
    assert [network.into(k).sources for k in (1, 2)] == [(0,), (1,)]
    assert [network.out_of(k) for k in (0, 1, 2)] == [(1,), (2,), ()]
    assert [type(network.into(k).neuron).__name__ for k in (1, 2)] == ["Tanh", "Identity"]
    assert repr(network).splitlines()[1:3] == ["  1: 0.1 → Tanh", "  2: 1.1 → Identity"]


@pytest.mark.parametrize("alpha", [0, 1])
def test_a_whole_number_is_a_setting_like_its_float(alpha):
    """Kept as it is given, it could be no part of a checkpoint, and would make another run's
    digest."""
    rule = dp.DualPropagation(coupling="transposed", alpha=alpha, beta=(1, 1, 1), start="previous", schedule="bottom_up(3)")
    assert type(rule.alpha) is float
    assert [type(beta) for beta in rule.beta] == [float] * 3
    network, (x, y) = dp.Network.from_module(mlp("relu", widths=(5, 8, 8, 4))), batch()
    state = rule.gradients(network, x, y).state
    again = rule.unpack_state(rule.pack_state(state))
    assert again.alpha == state.alpha
    assert all(torch.equal(a, b) for a, b in zip(again.means, state.means, strict=True))


def test_a_number_beyond_any_float_is_refused():
    for settings in ({"beta": 10**400}, {"alpha": 10**400}, {"tolerance": 10**400, "schedule": "bottom_up(3)"}):
        with pytest.raises(dp.SettingError, match=next(iter(settings))):
            dp.DualPropagation(**settings)
    with pytest.raises(dp.SettingError, match="max_sweeps"):
        dp.Lifted(max_sweeps=10**400)
