"""Two processes under DistributedDataParallel, and what each of them measures.

The pair is started once: every rule in every form of the wrapper, each as one entry of the results.
"""

import os

import torch
import torch.distributed as dist
from networks import batch, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dualprop as dp

SIZE = 2
RULES = {
    **{name: kind() for name, kind in dp.RULES.items()},
    # The noise of its feedback's learning is drawn for a batch, and half a batch draws other noise.
    "target_propagation": dp.TargetPropagation(iterations=0),
    # With a tolerance a batch takes as many passes as it needs, and its halves others.
    "lifted": dp.Lifted(tolerance=0),
    "dual_propagation, fused": dp.DualPropagation(engine="fused"),
}
# How the wrapper is made, and which of the two the network is read from.
WAYS = {
    "wrapper": ({}, "wrapper"),
    "module": ({}, "module"),
    "views of buckets": ({"gradient_as_bucket_view": True}, "wrapper"),
    "unused": ({"find_unused_parameters": True}, "module"),
    "static": ({"static_graph": True}, "wrapper"),
}


class Unread(nn.Module):
    """A model with a part that the network does not hold."""

    def __init__(self, body):
        super().__init__()
        self.body, self.unread = body, nn.Linear(2, 2).double()

    def forward(self, x):
        return self.body(x)


class Step(nn.Module):
    """A step as the wrapper's forward, as Lightning runs one."""

    def __init__(self, body, rule):
        super().__init__()
        self.body, self.rule = body, rule

    def forward(self, x, y):
        return self.rule(dp.Network.from_module(self.body), x, y, generator=generator())


def generator():
    return torch.Generator().manual_seed(0)


def whole():
    return batch(n=8)


def part(rank):
    x, y = whole()
    n = len(x) // SIZE
    return x[n * rank : n * (rank + 1)], y[n * rank : n * (rank + 1)]


def single(rule):
    """The gradients of the whole batch in one process."""
    return rule.gradients(dp.Network.from_module(mlp("tanh")), *whole(), generator=generator()).gradients


def error(model, wanted):
    return max(float((p.grad - wanted[n]).abs().max()) for n, p in model.named_parameters())


# Every rule in the plain wrapper, and one rule in every form of it.
CASES = [(name, way) for name in RULES for way in WAYS if way in ("wrapper", "module") or name == "dual_propagation"]


def measured(rule, options, read, rank):
    """Largest errors of a step, of the next one, by `backward`, of an accumulated one; and how many
    hooks ran in a step, and how far apart the parts' gradients are."""
    model, (x, y), wanted, ran = mlp("tanh"), part(rank), single(rule), []
    wrapper = DistributedDataParallel(model, **options)
    network = dp.Network.from_module(wrapper if read == "wrapper" else wrapper.module)
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: ran.append(p))
    row = {}
    for step in ("first", "second", "backward"):
        wrapper.zero_grad()
        ran.clear()
        if step == "backward":
            rule.backward(network, x, y, generator=generator())
        else:
            rule(network, x, y, generator=generator()).backward()
        row[step], row["hooks"] = error(model, wanted), len(ran) / len(wanted)
    wrapper.zero_grad()
    with wrapper.no_sync():
        (rule(network, x, y, generator=generator()) / 4).backward()
    row["apart"] = 4 * error(model, {n: g / 4 for n, g in wanted.items()})
    (rule(network, x, y, generator=generator()) * 0.75).backward()
    row["accumulated"] = error(model, wanted)
    return row


def other_forms(rank):
    """What is not a network in its own wrapper. By name, the largest error."""
    rule, (x, y) = dp.DualPropagation(), part(rank)
    wanted, rows = single(rule), {}

    body = mlp("tanh")
    wrapper = DistributedDataParallel(Unread(body), find_unused_parameters=True)
    for _ in range(2):
        wrapper.zero_grad()
        rule(dp.Network.from_module(body), x, y).backward()
    rows["a part is unread"] = error(body, wanted)

    body = mlp("tanh")
    wrapper = DistributedDataParallel(Step(body, rule))
    for _ in range(2):
        wrapper.zero_grad()
        wrapper(x, y).backward()
    rows["called in the wrapper's forward"] = error(body, wanted)

    body = mlp("tanh")
    network = dp.Network.from_module(body)
    rule(network, x, y).backward()
    rows["no wrapper"] = error(body, rule.gradients(network, x, y).gradients)
    body.zero_grad()
    wrapper = DistributedDataParallel(body)
    rule(network, x, y).backward()
    rows["wrapped after the first call"] = error(body, wanted)

    del wrapper
    wrapper = DistributedDataParallel(body)
    wrapper.zero_grad()
    rule(network, x, y).backward()
    rows["wrapped anew"] = error(body, wanted)

    body = mlp("tanh")
    wrappers = [DistributedDataParallel(body) for _ in range(2)]
    try:
        rule(dp.Network.from_module(body), x, y)
    except dp.SettingError as refusal:
        rows["wrapped twice"] = str(refusal)
    del wrappers
    rows["a head is unread"] = with_a_head_unread(rule, rank)
    rows["sharded"] = refusal_of_shards()
    rows["buffers"] = with_buffers(x, y)
    return rows


class Heads(nn.Module):
    """The first process reads the one, the second the other."""

    def __init__(self, rank):
        super().__init__()
        self.head, self.other, self.third, self.rank = mlp("tanh"), mlp("tanh"), mlp("tanh"), rank

    def forward(self, x):
        return (self.other if self.rank else self.head)(x)


def with_a_head_unread(rule, rank):
    """Largest error of the heads that one process reads, which the other adds nothing to; and
    whether one that none reads has a gradient."""
    model = Heads(rank)
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    for _ in range(2):
        wrapper.zero_grad()
        rule(dp.Network.from_module(wrapper), *part(rank)).backward()
    halves = (whole()[0][:4], whole()[1][:4]), (whole()[0][4:], whole()[1][4:])
    errors = [
        error(read, {n: g / SIZE for n, g in rule.gradients(dp.Network.from_module(mlp("tanh")), *half).gradients.items()})
        for read, half in zip((model.head, model.other), halves, strict=True)
    ]
    return max(errors), any(p.grad is not None for p in model.third.parameters())


def with_buffers(x, y):
    """Largest difference in gradients and buffers to plain back-propagation in the same wrapper."""
    models = [nn.Sequential(nn.BatchNorm1d(x.shape[1]).double(), mlp("tanh")) for _ in range(2)]
    by_rule, plain = (DistributedDataParallel(model) for model in models)
    network = dp.Network.from_module(by_rule)
    for _ in range(2):
        by_rule.zero_grad(), plain.zero_grad()
        dp.Backprop()(network, x, y).backward()
        nn.functional.cross_entropy(plain(x), y).backward()
    wanted = {name: p.grad for name, p in models[1].named_parameters()} | dict(models[1].named_buffers())
    found = {name: p.grad for name, p in models[0].named_parameters()} | dict(models[0].named_buffers())
    return max(float((found[name] - value).abs().max()) for name, value in wanted.items())


def refusal_of_shards():
    from torch.distributed.fsdp import fully_shard

    body = mlp("tanh")
    fully_shard(body)
    try:
        dp.Network.from_module(body)
    except dp.UnsupportedModuleError as refusal:
        return str(refusal)
    return ""


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=SIZE)
    rows = {(name, way): measured(RULES[name], *WAYS[way], rank) for name, way in CASES}
    torch.save((rows, other_forms(rank)), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
