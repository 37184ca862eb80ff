"""A rule called like a loss does in one process what PyTorch's own losses do."""

import copy

import pytest
import torch
from comparison import assert_same
from networks import batch, mlp
from torch import nn

import dualprop as dp

# Every rule, and those whose inference differentiates by parameters in ways of its own.
CASES = {
    **{name: kind() for name, kind in dp.RULES.items()},
    "dual_propagation, recorded": dp.DualPropagation(),
    "equilibrium_propagation, recorded": dp.EquilibriumPropagation(),
    "predictive_coding, recorded": dp.PredictiveCoding(),
    "dual_propagation, fused": dp.DualPropagation(engine="fused"),
    "equilibrium_propagation, holomorphic": dp.EquilibriumPropagation(
        energy="hopfield",
        estimator="holomorphic(2)",
        beta=0.25,
        relaxation="blocks(odd_even(60))",
        free_schedule="odd_even(100)",
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def taped(norm=nn.LayerNorm):
    """A model whose synapses are differentiated on a tape, and so by the parameters themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 6), norm(6), nn.Tanh(), nn.Linear(6, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model.double()


class Whole(nn.Module):
    """A module that is read by running it."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


def problem(name):
    """A model, its network, inputs and targets, and a generator to be drawn from anew."""
    is_chain = name in ("target_propagation", "equilibrium_propagation, holomorphic")
    # Lifted networks ask for affine maps.
    model = mlp("tanh") if is_chain else taped(nn.Identity) if name == "lifted" else taped()
    x, y = batch(n=8)
    if is_chain:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
    if "recorded" not in name:
        return model, dp.Network.from_module(model), x, y
    network = dp.Network.from_module(Whole(model))
    assert network.is_recorded
    return network.module, network, x, y


def generator():
    return torch.Generator().manual_seed(0)


def called(name, network, x, y):
    return CASES[name](network, x, y, generator=generator())


def expected(name, network, x, y):
    return CASES[name].gradients(network, x, y, generator=generator()).gradients


def grads(model):
    return {name: p.grad for name, p in model.named_parameters()}


@every_case
def test_backward_of_the_loss_delivers_the_rules_gradients(name):
    model, network, x, y = problem(name)
    wanted, loss = expected(name, network, x, y), called(name, network, x, y)
    assert loss.shape == ()
    assert torch.equal(loss, loss.outcome.loss)
    assert loss.outcome.status.ok
    loss.backward()
    assert_same(grads(model), wanted, 0.0)
    assert_same(loss.outcome.gradients, wanted, 0.0)


@every_case
def test_what_multiplies_the_loss_scales_the_gradients_and_not_the_nudge(name):
    """A scaler's 2^16 in β would leave nothing of the derivative."""
    model, network, x, y = problem(name)
    wanted = expected(name, network, x, y)
    (called(name, network, x, y) * 65536).backward()
    assert_same(grads(model), {n: 65536 * g for n, g in wanted.items()}, 0.0)


@every_case
def test_accumulated_parts_are_the_sum_and_go_into_the_same_tensor(name):
    """A bucket, a flat buffer or a captured graph looks at the tensor that was there first."""
    model, network, x, y = problem(name)
    held = {n: torch.full_like(p, 2.0) for n, p in model.named_parameters()}
    for n, p in model.named_parameters():
        p.grad = held[n]
    parts = [expected(name, network, x[k : k + 4], y[k : k + 4]) for k in (0, 4)]
    for k in (0, 4):
        (called(name, network, x[k : k + 4], y[k : k + 4]) / 2).backward()
    CASES[name].backward(network, x[:4], y[:4], generator=generator())
    for n, p in model.named_parameters():
        assert p.grad is held[n]
        torch.testing.assert_close(p.grad, 2 + parts[0][n] / 2 + parts[1][n] / 2 + parts[0][n], rtol=1e-14, atol=1e-14)


@every_case
@pytest.mark.parametrize("way", ["loss", "backward"])
def test_hooks_of_parameters_run_once_and_what_they_return_is_kept(name, way):
    """Inference takes many derivatives by parameters. A hook there would mask, clip or count what
    no one delivers."""
    model, network, x, y = problem(name)
    wanted, seen, done = expected(name, network, x, y), {n: [] for n, _ in model.named_parameters()}, []
    for n, p in model.named_parameters():
        p.register_hook(lambda g, n=n: seen[n].append(g.clone()) or 3 * g)
        p.register_post_accumulate_grad_hook(lambda p: done.append(p.grad.clone()))
    if way == "loss":
        loss = called(name, network, x, y)
        assert not any(seen.values()), "inference set off hooks"
        loss.backward()
    else:
        CASES[name].backward(network, x, y, generator=generator())
    assert_same({n: g for n, (g,) in seen.items()}, wanted, 0.0)
    assert_same(grads(model), {n: 3 * g for n, g in wanted.items()}, 0.0)
    assert len(done) == len(wanted)


def test_exact_gradients_set_off_no_hook_either_and_hooks_come_back():
    model, network, x, y = problem("backprop")
    seen = []
    handle = model[0].weight.register_hook(lambda g: seen.append(g))
    dp.Backprop().exact_gradients(network, x, y)
    assert not seen
    model(x).sum().backward()
    assert len(seen) == 1
    handle.remove()
    model(x).sum().backward()
    assert len(seen) == 1


def test_the_implicit_gradient_sets_off_no_hook():
    """It is taken to compare with while training goes on."""
    name = "equilibrium_propagation, holomorphic"
    model, network, x, y = problem(name)
    seen = []
    model[0].weight.register_hook(lambda g: seen.append(g))
    assert CASES[name].predicts_by_equilibrium
    CASES[name].exact_gradients(network, x, y)
    assert not seen


@every_case
@pytest.mark.parametrize("way", ["loss", "scaled", "backward"])
def test_what_is_done_to_grad_leaves_the_outcomes_gradients_alone(name, way):
    """Clipping would change the record of what the rule found."""
    model, network, x, y = problem(name)
    wanted = expected(name, network, x, y)
    if way == "backward":
        outcome = CASES[name].backward(network, x, y, generator=generator())
    else:
        loss = called(name, network, x, y)
        outcome = loss.outcome
        (loss * 2 if way == "scaled" else loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()) <= 1e-3
    assert_same(outcome.gradients, wanted, 0.0)
    for g in outcome.gradients.values():
        g.zero_()
    assert all(bool(p.grad.any()) for p in model.parameters())


def test_a_scaler_clipping_and_an_optimizer_step_as_after_any_loss():
    """One loop by the rule BP and the same by PyTorch: the same weights."""
    model, network, x, y = problem("backprop")
    twin, weights = copy.deepcopy(model), []
    for trained in (model, twin):
        scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            loss = dp.Backprop()(network, x, y) if trained is model else nn.functional.cross_entropy(twin(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        weights.append({n: p.detach() for n, p in trained.named_parameters()})
    assert_same(*weights, 1e-14)


def test_a_scaler_leaves_out_a_step_whose_gradients_overflow():
    model, network, x, y = problem("backprop")
    before = copy.deepcopy(model.state_dict())
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(dp.Backprop()(network, x * float("inf"), y)).backward()
    scaler.step(optimizer)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_losses_are_summed_like_any_others():
    """A penalty, and two rules on one network."""
    model, network, x, y = problem("backprop")
    wanted = [expected(name, network, x, y) for name in ("dual_propagation", "predictive_coding")]
    penalty = sum(p.square().sum() for p in model.parameters())
    (called("dual_propagation", network, x, y) + 2 * called("predictive_coding", network, x, y) + penalty).backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[0][n] + 2 * wanted[1][n] + 2 * p.detach(), rtol=1e-13, atol=1e-13)


@every_case
def test_without_grad_the_loss_is_a_plain_number(name):
    model, network, x, y = problem(name)
    with torch.no_grad():
        loss = called(name, network, x, y)
        outcome = CASES[name].backward(network, x, y, generator=generator())
    assert not loss.requires_grad
    assert torch.equal(loss, loss.outcome.loss)
    assert_same(grads(model), outcome.gradients, 0.0, "backward was asked for by name")


def test_a_second_backward_is_refused_or_doubles_where_the_graph_is_kept():
    model, network, x, y = problem("backprop")
    wanted, loss = expected("dual_propagation", network, x, y), called("dual_propagation", network, x, y)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same(grads(model), {n: 2 * g for n, g in wanted.items()}, 0.0)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_no_second_derivative_is_made_up():
    """A penalty on the gradients would have the derivative zero."""
    model, network, x, y = problem("backprop")
    loss = called("dual_propagation", network, x, y)
    with pytest.raises(dp.SettingError, match="Leave out create_graph"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def test_an_input_that_asks_for_a_gradient_is_refused():
    """An encoder below the network would stay as it is, without a word."""
    _, network, x, y = problem("backprop")
    with pytest.raises(dp.SettingError, match=r"x requires a gradient.* x\.detach\(\)"):
        dp.DualPropagation()(network, x.requires_grad_(), y)


def test_a_parameter_frozen_later_gets_no_gradient():
    model, network, x, y = problem("backprop")
    model[0].weight.requires_grad_(False)
    called("dual_propagation", network, x, y).backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None


def test_data_parallel_is_refused_by_name():
    with pytest.raises(dp.UnsupportedModuleError, match="Use DistributedDataParallel"):
        dp.Network.from_module(nn.DataParallel(mlp("tanh")))


def test_a_hook_on_the_node_that_accumulates_runs_in_backward_too():
    """Reducers stand there. What holds no node can't wait for a gradient; what does is served."""
    network, (x, y) = dp.Network.from_module(mlp("tanh")), batch()
    weight, ran = next(iter(network.parameters.values())), []
    node = torch.autograd.graph.get_gradient_edge(weight).node
    handle = node.register_hook(lambda *gradients: ran.append(1))
    rule = dp.DualPropagation()
    rule.backward(network, x, y)
    rule.backward(network, x, y)
    assert ran == [1, 1]
    handle.remove()
    del node
    rule.backward(network, x, y)
    assert ran == [1, 1]
    assert torch.allclose(weight.grad, 3 * rule.gradients(network, x, y).gradients[next(iter(network.parameters))])
