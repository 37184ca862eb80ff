"""What stands around a step: torch.compile, threads, interrupts, copies; and what it leaves."""

import contextlib
import copy
import gc
import pickle
import threading

import pytest
import torch
from comparison import assert_same
from loops import RULES, Residual, assert_as_plain, batch, chain, grads, made, weights
from torch import nn
from torch.nn import functional as F

import dualprop as dp

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_model = pytest.mark.parametrize("make", [Residual, chain])


@pytest.mark.parametrize("way", ["loss", "backward"])
@pytest.mark.parametrize("name", ["dp", "ep", "dp fused"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at all
def test_a_training_step_may_be_compiled_around_a_rule_which_runs_as_it_is(name, way):
    """Inference sets random states, hooks and modes, in which torch.compile would break off."""
    rule, model, twin, (x, y) = RULES[name], made(Residual, 0.3), made(Residual, 0.3), batch()
    network = dp.Network.from_module(model)

    def step(x, y):
        x = 2 * x
        if way == "loss":
            (rule(network, x, y) / 2).backward()
        else:
            rule.backward(network, x, y)
        return x.sum()

    torch.manual_seed(1)
    torch.compile(step, backend="eager")(x, y)
    torch.manual_seed(1)
    loss = F.cross_entropy(twin(2 * x), y)
    (loss / 2 if way == "loss" else loss).backward()
    assert_same(grads(model), grads(twin), 1e-4)


@every_rule
@every_model
def test_models_trained_in_several_threads_are_those_trained_one_after_another(rule, make):
    start = made(make)

    def trained(number, results):
        model = copy.deepcopy(start)
        network, optimizer, (x, y) = dp.Network.from_module(model), torch.optim.SGD(model.parameters(), lr=0.05), batch()
        for _ in range(5):
            optimizer.zero_grad()
            rule(network, x + number, y).backward()
            optimizer.step()
        results[number] = weights(model)

    together, alone = {}, {}
    threads = [threading.Thread(target=trained, args=(number, together)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        trained(number, alone)
        assert_same(together[number], alone[number], 0.0)


class Breaks(Residual):
    """Raises in the middle of a pass. What is counted is the class's, which no pass puts back."""

    passes, at, error = 0, 0, KeyboardInterrupt

    def features(self, x):
        h = super().features(x)
        Breaks.passes += 1
        if Breaks.passes == Breaks.at:
            raise Breaks.error("in the middle")
        return h


@every_rule
@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_after_a_step_that_was_broken_off_the_next_one_is_right(rule, error, at):
    """Modes, hooks and random states that were set for the broken step would stay in force."""
    model, (x, y), Breaks.at = made(Breaks, 0.3), batch(), 0
    network = dp.Network.from_module(model)
    rule(network, x, y)
    model.stem.weight.register_hook(lambda g: None)
    Breaks.passes, Breaks.at, Breaks.error = 0, at, error
    with contextlib.suppress(error):
        rule(network, x, y)
    Breaks.at = 0
    assert len(model.stem.weight._backward_hooks) == 1
    assert torch.is_grad_enabled()
    assert not torch.overrides._get_current_function_mode_stack()
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    rule(network, x, y).backward()
    torch.manual_seed(3)
    F.cross_entropy(twin(x), y).backward()
    assert_same(grads(model), grads(twin), 1e-4)
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


@pytest.mark.sampled(7)
@every_rule
@every_model
@pytest.mark.parametrize("way", ["step", "read anew", "no backward"])
def test_steps_leave_no_tensors_behind_without_the_garbage_collector(rule, make, way):
    """A reference cycle holds a step's tapes until the collector runs, which may be too late."""
    model, (x, y) = made(make), batch()
    network, optimizer = dp.Network.from_module(model), torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        loss = rule(dp.Network.from_module(model) if way == "read anew" else network, x, y)
        if way != "no backward":
            loss.backward()
            optimizer.step()

    def alive():
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    for _ in range(3):
        step()
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(5):
            step()
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@every_model
def test_a_copy_of_a_network_trains_its_own_model(make, copied):
    network, (x, y), rule = dp.Network.from_module(made(make)), batch(), RULES["dp"]
    rule(network, x, y)
    other = copied(network)
    assert_as_plain(rule, lambda: copy.deepcopy(other.module), lambda model, loss: loss(x, y).backward())
    rule(other, x, y).backward()
    assert all(p.grad is not None for p in other.module.parameters())
    assert all(p.grad is None for p in network.module.parameters())


@every_rule
def test_a_batch_of_one_and_a_sparse_embedding_are_as_in_plain_pytorch(rule):
    def make():
        return made(lambda: nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)))

    def loop(model, loss):
        for rows in (1, 4):
            loss(torch.arange(rows) % 3, torch.arange(rows)).backward()
        assert model[0].weight.grad.is_sparse
        model[0].weight.grad = model[0].weight.grad.to_dense()

    assert_as_plain(rule, make, loop)
