"""Two processes that share a batch have the gradients of one that has it all, in a dualized model
under DistributedDataParallel and under FSDP2."""

import torch
import torch.distributed as dist
from comparison import assert_same
from torch import nn
from torch.nn import functional as F

import dualprop as dp


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def problem():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(8) % 3


def _whole(p):
    gradient = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
    return gradient.detach().clone()


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, y = problem()
    found = {}
    # The mean of the halves' means is the whole's mean, and each half's N goes with its own mean.
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def sharded(model):
        for layer in (model[0], model[2], model[4]):
            fully_shard(layer)
        return fully_shard(model)

    for name, wrap in (
        ("ddp", lambda m: DistributedDataParallel(dp.dualize(m, beta=3.0, alpha=0.3))),
        ("ddp inside", lambda m: dp.dualize(DistributedDataParallel(m), beta=3.0, alpha=0.3)),
        ("fsdp", lambda m: sharded(dp.dualize(m, beta=3.0, alpha=0.3))),
        ("fsdp inside", lambda m: dp.dualize(sharded(m), beta=3.0, alpha=0.3)),
    ):
        model = wrap(made().to(torch.float64))
        F.cross_entropy(model(x[4 * rank : 4 * rank + 4]), y[4 * rank : 4 * rank + 4]).backward()
        found[name] = {n.removeprefix("module."): _whole(p) for n, p in model.named_parameters()}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Hooks that ran once too often, or on shards, would change β or what is read."""
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    model, (x, y) = dp.dualize(made(), beta=3.0, alpha=0.3), problem()
    F.cross_entropy(model(x), y).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    assert len(found) == 4
    for gradients in found.values():
        assert_same(gradients, expected, 1e-13)
