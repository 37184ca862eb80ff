"""Multilayer perceptrons in the styles people write: where an activation may hide in the code."""

import math

import torch
from architecture import Architecture, classes, normal, values
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Perceptron(nn.Module):
    """Three linear layers; a subclass activates them in its own style."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc3(self.act2(self.fc2(self.act1(self.fc1(x)))))


class ByFunction(Perceptron):
    """The activation is an argument, a function or a string."""

    def __init__(self, activation):
        super().__init__()
        self.act1 = self.act2 = getattr(F, activation) if isinstance(activation, str) else activation


class ByMethod(Perceptron):
    def forward(self, x):
        x = self.fc1(x).relu()
        x = self.fc2(x)
        x.relu_()
        return self.fc3(x)


class InplaceReadLater(Perceptron):
    """`F.relu(h, inplace=True)` as a statement: its argument, read afterwards, has changed."""

    def forward(self, x):
        h = self.fc1(x)
        F.relu(h, inplace=True)
        g = self.fc2(h)
        torch.relu_(g)
        return self.fc3(g + h)


class NewGELU(nn.Module):
    """The hand-written GELU of GPT-2: a tanh inside, no torch activation around it."""

    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ClassInstantier(dict):
    def __getitem__(self, key):
        return super().__getitem__(key)()


ACT2FN = ClassInstantier({"gelu_new": NewGELU, "quick_gelu": QuickGELU, "silu": nn.SiLU})


class ByRegistry(Perceptron):
    """Transformers' way: `get_activation(config.hidden_act)`."""

    def __init__(self, hidden_act, inner_act):
        super().__init__()
        self.act1, self.act2 = ACT2FN[hidden_act], ACT2FN[inner_act]


class PReLUNet(Perceptron):
    def __init__(self):
        super().__init__()
        self.act1, self.act2 = nn.PReLU(), nn.PReLU(8)


class GLUNet(nn.Module):
    """nn.GLU, F.glu, and SwiGLU by chunk."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = nn.Linear(5, 12), nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 3)
        self.glu = nn.GLU(dim=-1)

    def forward(self, x):
        x = F.glu(self.fc2(self.glu(self.fc1(x))), dim=-1)
        gate, value = self.fc3(x).chunk(2, dim=-1)
        return self.fc4(F.silu(gate) * value)


class ReGLU(Perceptron):
    """A gate that is a ReLU; squared ReLU (Primer) after it."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(5, 8)

    def forward(self, x):
        x = self.fc1(x) * F.relu(self.gate(x))
        return self.fc3(torch.square(F.relu(self.fc2(x))))


class ModuleTables(nn.Module):
    """Layers in a ModuleList, activations chosen from a ModuleDict."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((5, 8), (8, 8), (8, 8), (8, 3)))
        self.acts = nn.ModuleDict({"tanh": nn.Tanh(), "gelu": nn.GELU(), "sigmoid": nn.Sigmoid()})

    def forward(self, x):
        for layer, name in zip(self.layers, ("tanh", "gelu", "sigmoid"), strict=False):
            x = self.acts[name](layer(x))
        return self.layers[-1](x)


class KeywordOnly(Perceptron):
    def forward(self, *, features, scale=None):
        h = F.mish(self.fc1(features))
        h = h if scale is None else h * scale
        return self.fc3(F.elu(self.fc2(h)))


class Checkpointed(Perceptron):
    """The middle is computed again in the backward pass."""

    def block(self, x):
        return torch.tanh(self.fc2(F.gelu(self.fc1(x))))

    def forward(self, x):
        return self.fc3(checkpoint(self.block, x, use_reentrant=False))


class PositiveScale(Perceptron):
    """Softplus, sigmoid and tanh of parameters alone, which are no neurons."""

    def __init__(self):
        super().__init__()
        self.raw, self.gate, self.shift = (
            nn.Parameter(torch.randn(8)),
            nn.Parameter(torch.randn(())),
            nn.Parameter(torch.randn(8)),
        )

    def forward(self, x):
        h = torch.tanh(self.fc1(x)) * F.softplus(self.raw)
        h = torch.sigmoid(self.gate) * h + F.silu(self.fc2(h)) + self.shift.tanh()
        return self.fc3(h)


def dropout_mlp():
    return nn.Sequential(
        nn.Linear(5, 10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def spectral_mlp():
    norm = parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(5, 8)), nn.LeakyReLU(0.1), norm(nn.Linear(8, 8)), nn.LeakyReLU(0.1), nn.Linear(8, 3))


def weight_normed_mlp():
    norm = parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(5, 8)), nn.SiLU(), norm(nn.Linear(8, 8)), nn.SiLU(), norm(nn.Linear(8, 3)))


class FineTuned(nn.Module):
    """A frozen backbone in eval, its last layer and a new head trained."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
        self.backbone[:3].requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        return self.head(self.backbone(x))


def sigmoid_outputs():
    return nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3), nn.Sigmoid())


def softmax_inside():
    return nn.Sequential(nn.Linear(5, 8), nn.Softmax(-1), nn.Linear(8, 6), nn.Hardtanh(), nn.Linear(6, 3))


def regression():
    return nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0))


VECTORS = {"inputs": normal(5), "targets": classes(3)}
MANY = {"inputs": normal(5), "targets": lambda n, dtype: torch.rand(n, 3, dtype=dtype).round()}

STYLES = (
    Architecture(name="activation_as_function", build=lambda: ByFunction(torch.tanh), **VECTORS),
    Architecture(name="activation_as_string", build=lambda: ByFunction("silu"), **VECTORS),
    Architecture(name="activation_as_method", build=ByMethod, **VECTORS),
    Architecture(name="inplace_read_later", build=InplaceReadLater, **VECTORS),
    Architecture(name="activation_registry", build=lambda: ByRegistry("gelu_new", "quick_gelu"), **VECTORS),
    Architecture(name="prelu", build=PReLUNet, **VECTORS),
    Architecture(name="glu", build=GLUNet, **VECTORS),
    Architecture(name="relu_gate_and_square", build=ReGLU, **VECTORS),
    Architecture(name="module_tables", build=ModuleTables, **VECTORS),
    Architecture(
        name="keyword_only", build=KeywordOnly, targets=classes(3),
        inputs=lambda n, dtype: {"features": torch.randn(n, 5, dtype=dtype), "scale": torch.rand(n, 1, dtype=dtype)},
    ),
    Architecture(name="checkpointed", build=Checkpointed, **VECTORS),
    Architecture(name="positive_scale", build=PositiveScale, **VECTORS, notes="activations of parameters"),
    Architecture(name="dropout", build=dropout_mlp, **VECTORS, is_random=True),
    Architecture(name="spectral_norm", build=spectral_mlp, **VECTORS, notes="buffers change in forward"),
    Architecture(name="weight_norm", build=weight_normed_mlp, **VECTORS),
    Architecture(name="fine_tuned", build=FineTuned, **VECTORS, notes="a frozen part in eval"),
    Architecture(name="sigmoid_outputs", build=sigmoid_outputs, **MANY, loss=F.binary_cross_entropy),
    Architecture(name="multi_label", build=lambda: ByFunction(F.hardtanh), **MANY, loss=F.multilabel_soft_margin_loss),
    Architecture(name="softmax_inside", build=softmax_inside, **VECTORS),
    Architecture(name="regression", build=regression, inputs=normal(5), targets=values(), loss=F.smooth_l1_loss),
)  # fmt: skip
