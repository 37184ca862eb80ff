"""Loops as people write them, by a rule with a tiny nudge and by plain PyTorch: the same gradients,
weights and buffers."""

import pytest
import torch
from loops import RULES, Residual, assert_as_plain, batch, chain, made, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_model = pytest.mark.parametrize("make", [Residual, chain])


def unequal_parts(model, loss):
    x, y = batch()
    for rows in (slice(0, 4), slice(4, 6)):
        (loss(x[rows], y[rows]) * len(y[rows]) / len(y)).backward()


def penalty_beside(model, loss):
    (loss(*batch()) + 0.1 * sum(p.square().sum() for p in model.parameters())).backward()


def asked_for(model, loss):
    parameters = list(model.parameters())
    for p, g in zip(parameters, torch.autograd.grad(loss(*batch()), parameters), strict=True):
        p.grad = g


def of_some(model, loss):
    loss(*batch()).backward(inputs=list(model.parameters())[:2])


def twice(model, loss):
    each = loss(*batch())
    each.backward(retain_graph=True)
    each.backward()


def function_of_the_loss(model, loss):
    each = loss(*batch())
    each.register_hook(lambda g: 2 * g)
    each.div_(4).exp().backward(gradient=torch.tensor(3.0, dtype=torch.float64))


def sharpness_aware(model, loss):
    """SAM: the gradient at the weights that are worst nearby."""
    loss(*batch()).backward()
    steps = [0.05 * p.grad / (p.grad.norm() + 1e-9) for p in model.parameters()]
    with torch.no_grad():
        torch._foreach_add_(list(model.parameters()), steps)
    model.zero_grad()
    loss(*batch()).backward()
    with torch.no_grad():
        torch._foreach_sub_(list(model.parameters()), steps)


def buffers_in_one_piece(model, loss):
    """Weights and gradients are views of two flat tensors, as sharding wrappers keep them."""
    parameters = list(model.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    gradients, sizes = torch.zeros_like(flat), [p.numel() for p in parameters]
    for p, value, gradient in zip(parameters, flat.split(sizes), gradients.split(sizes), strict=True):
        p.data, p.grad = value.view_as(p), gradient.view_as(p)
    for _ in range(2):
        loss(*batch()).backward()
    assert all(p.grad.untyped_storage().data_ptr() == gradients.untyped_storage().data_ptr() for p in parameters)


def saved_elsewhere(model, loss):
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy)
    with torch.autograd.set_detect_anomaly(True), hooks:
        each = loss(*batch())
    each.backward()


GRADIENTS = [
    unequal_parts, penalty_beside, asked_for, of_some, twice, function_of_the_loss, sharpness_aware, buffers_in_one_piece,
    saved_elsewhere,
]  # fmt: skip


@every_rule
@every_model
@pytest.mark.parametrize("loop", GRADIENTS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_gradients_are_those_of_the_same_loop_in_plain_pytorch(rule, make, loop):
    assert_as_plain(rule, lambda: made(make), loop)


def optimizer_in_backward(model, loss):
    """Steps as soon as a gradient is there, and frees it."""
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        loss(*batch()).backward()
    assert all(p.grad is None for p in model.parameters())


def line_search(model, loss):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        each = loss(*batch())
        each.backward()
        return each

    optimizer.step(closure)


def scaled_with_a_skipped_step(model, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss(*batch()) * (float("inf") if step == 1 else 1)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**12


def kept_gradients_and_many_tensors_at_once(model, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        loss(*batch()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5, foreach=True)
        optimizer.step()


def fused_optimizer(model, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        loss(*batch()).backward()
        optimizer.step()


def averaged_weights(model, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mean, moving = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        optimizer.zero_grad()
        loss(*batch()).backward()
        optimizer.step()
        mean.update_parameters(model)
        moving.update_parameters(model)
    update_bn([(2 * batch()[0],)], mean)
    model.load_state_dict(mean.module.state_dict())
    with torch.no_grad():
        for p, other in zip(model.parameters(), moving.module.parameters(), strict=True):
            p.add_(other)


def evaluation_between(model, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for size in (6, 3, 2):
        x, y = batch(size)
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            loss(x, y)
        model.train()


WEIGHTS = [
    optimizer_in_backward, line_search, scaled_with_a_skipped_step, kept_gradients_and_many_tensors_at_once, fused_optimizer,
    averaged_weights, evaluation_between,
]  # fmt: skip


@every_rule
@every_model
@pytest.mark.parametrize("loop", WEIGHTS)
def test_weights_and_buffers_are_those_of_the_same_loop_in_plain_pytorch(rule, make, loop):
    assert_as_plain(rule, lambda: made(make), loop, weights)
