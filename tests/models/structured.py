"""Models whose data or control is unusual: points, graphs, experts, pairs, dictionaries, exits."""

import torch
from architecture import Architecture, classes, normal, values
from torch import nn
from torch.nn import functional as F


class PointNet(nn.Module):
    """One MLP for all points, the maximum over them, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, points):
        x = F.relu(self.conv1(points.transpose(1, 2)))
        x = torch.max(self.conv2(x), 2)[0]
        return self.fc2(F.relu(self.fc1(x)))


class DeepSets(nn.Module):
    """A sum over a set whose size differs: a mask leaves elements out."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 8), nn.ELU(), nn.Linear(8, 6))
        self.rho = nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 1))

    def forward(self, elements, mask):
        return self.rho((self.phi(elements) * mask[..., None]).sum(1)).squeeze(-1)


class GCN(nn.Module):
    """Nodes are the batch; a symmetric adjacency matrix mixes them."""

    def __init__(self):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, adjacency):
        a = adjacency + torch.eye(len(x), dtype=x.dtype)
        scale = a.sum(1).rsqrt()
        a = scale[:, None] * a * scale[None, :]
        x = F.relu(a @ self.lin1(x))
        return a @ self.lin2(x)


def graph(n, dtype):
    edges = (torch.rand(n, n) < 0.4).triu(1).to(dtype)
    return torch.randn(n, 5, dtype=dtype), edges + edges.T


def partly_labelled(n, dtype):
    y = torch.randint(3, (n,))
    y[::3] = -100
    return y


class Expert(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        return self.down(F.silu(self.up(x)))


class MixtureOfExperts(nn.Module):
    """Each token goes to its best expert, weighted by its gate; one expert gets no token at all."""

    def __init__(self, d=6, experts=4):
        super().__init__()
        self.gate, self.experts = nn.Linear(d, experts), nn.ModuleList(Expert(d) for _ in range(experts))
        self.gate.bias.data[-1] = -100.0
        self.head = nn.Linear(d, 4)

    def forward(self, x):
        flat = x.reshape(-1, x.size(-1))
        weight, chosen = self.gate(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == i)
            out = out.index_add(0, rows, weight[rows, None] * expert(flat[rows]))
        return self.head((x + out.view_as(x)).mean(1))


class Siamese(nn.Module):
    """Two inputs through one encoder, one after the other."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh())

    def forward(self, left, right):
        return self.encoder(left), self.encoder(right)


class TwoViews(nn.Module):
    """Two views of each example, concatenated along the batch: activations see 2N rows."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6))
        self.projector = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, first, second):
        z = self.projector(self.backbone(torch.cat([first, second])))
        return torch.stack(z.split(len(first)), dim=1)


def agreement(pair, y):
    """Squared distance of the two embeddings (N, 2, D), against the pair's target distance."""
    return ((pair[:, 0] - pair[:, 1]).square().sum(1) - y).square().mean()


def likeness(pair, y):
    """The dot product of the two embeddings, against a target."""
    return ((pair[:, 0] * pair[:, 1]).sum(1) - y).square().mean()


def two_vectors(n, dtype):
    return torch.randn(n, 5, dtype=dtype), torch.randn(n, 5, dtype=dtype)


class MultiModal(nn.Module):
    """Takes a dictionary, returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.text, self.fuse, self.head = nn.EmbeddingBag(9, 4), nn.Linear(7, 8), nn.Linear(8, 3)

    def forward(self, batch):
        features = torch.cat([self.image(batch["image"]), self.text(batch["text"])], dim=1)
        fused = F.silu(self.fuse(features))
        return {"logits": self.head(fused), "features": features}


class ControlFlow(nn.Module):
    """The batch's mean chooses the branch, and a value of the states the number of steps."""

    def __init__(self):
        super().__init__()
        self.first, self.low, self.high, self.step, self.last = (
            nn.Linear(5, 8),
            *(nn.Linear(8, 8) for _ in range(3)),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.high(h)) if x.mean() > 0 else F.silu(self.low(h))
        for _ in range(1 + int(x[0, 0] > -10)):
            h = h + F.gelu(self.step(h))
        return self.last(h)


class EarlyExit(nn.Module):
    """A classifier after each stage; all are trained."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Linear(d, 6), nn.SELU()) for d in (5, 6, 6))
        self.exits = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))

    def forward(self, x):
        logits = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            logits.append(leave(x))
        return tuple(logits)


def weighted_exits(logits, y):
    """Of logits (N, E, K): the later an exit, the more it counts."""
    return sum((i + 1) * F.cross_entropy(logits[:, i], y) for i in range(logits.shape[1]))


class HyperNetwork(nn.Module):
    """One network makes the weights of another's layer, for each example."""

    def __init__(self):
        super().__init__()
        self.hyper = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6 * 5))
        self.head = nn.Linear(6, 3)

    def forward(self, x, condition):
        w = self.hyper(condition).view(-1, 6, 5)
        return self.head(torch.tanh(torch.einsum("noi,ni->no", w, x)))


class Recommender(nn.Module):
    """User and item embeddings, an MLP beside their product, one score (N,)."""

    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(7, 4), nn.Embedding(9, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 4), nn.LeakyReLU())
        self.out = nn.Linear(8, 1)

    def forward(self, user, item):
        u, i = self.user(user), self.item(item)
        return self.out(torch.cat([u * i, self.mlp(torch.cat([u, i], -1))], -1)).squeeze(-1)


STRUCTURED = (
    Architecture(name="pointnet", build=PointNet, inputs=normal(6, 3), targets=classes(4), seed=1),
    Architecture(
        name="deep_sets", build=DeepSets, targets=values(), loss=F.mse_loss,
        inputs=lambda n, dtype: {"elements": torch.randn(n, 5, 3, dtype=dtype), "mask": (torch.rand(n, 5) < 0.7).to(dtype)},
    ),
    Architecture(
        name="graph_network", build=GCN, inputs=graph, targets=partly_labelled, ties_examples=True,
        notes="nodes without a label are left out of the loss",
    ),
    Architecture(
        name="mixture_of_experts", build=MixtureOfExperts, inputs=normal(4, 6), targets=classes(4), notes="an empty expert",
        without_gradient=tuple(f"experts.3.{name}" for name in ("up.weight", "up.bias", "down.weight", "down.bias")),
    ),
    Architecture(
        name="siamese", build=Siamese, inputs=two_vectors, targets=values(), loss=agreement,
        output=lambda out: torch.stack(out, dim=1),
    ),
    Architecture(name="two_views", build=TwoViews, inputs=two_vectors, targets=values(), loss=likeness),
    Architecture(
        name="dictionaries", build=MultiModal, targets=classes(3), output=lambda out: out["logits"],
        inputs=lambda n, dtype: ({"image": torch.randn(n, 1, 5, 5, dtype=dtype), "text": torch.randint(9, (n, 4))},),
    ),
    Architecture(
        name="control_flow", build=ControlFlow, inputs=normal(5), targets=classes(3), ties_examples=True,
        without_gradient=("high.weight", "high.bias"),
    ),
    Architecture(
        name="early_exit", build=EarlyExit, inputs=normal(5), targets=classes(3), loss=weighted_exits,
        output=lambda out: torch.stack(out, dim=1),
    ),
    Architecture(
        name="hypernetwork", build=HyperNetwork, targets=classes(3),
        inputs=lambda n, dtype: (torch.randn(n, 5, dtype=dtype), torch.randn(n, 3, dtype=dtype)),
    ),
    Architecture(
        name="recommender", build=Recommender, loss=F.binary_cross_entropy_with_logits,
        inputs=lambda n, dtype: (torch.randint(7, (n,)), torch.randint(9, (n,))),
        targets=lambda n, dtype: torch.rand(n, dtype=dtype).round(),
    ),
)  # fmt: skip
