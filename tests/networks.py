"""Small random networks and batches in float64, drawn from a seed of their own; and plain
autograd."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "hard_sigmoid": lambda: nn.Hardtanh(0.0, 1.0),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(1),
}


def drawn(make: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The module that `make` builds, its parameters drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype)


def mlp(
    activation: str = "relu", widths: Sequence[int] = (5, 8, 7, 6, 4), seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Linear layers of these widths, input and output included; the output is linear."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for below, above in pairwise(widths):
            layers += [nn.Linear(below, above), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers[:-1])

    return drawn(make, seed, dtype)  # type: ignore[return-value]


def conv_net(
    activation: str = "relu", pool: str = "before", seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Images (N, 2, 6, 6) to 3 logits; the max-pool stands "before" or "after" the activation, or
    nowhere ("none")."""

    def block(inputs: int, outputs: int, pooled: bool) -> list[nn.Module]:
        conv, act = nn.Conv2d(inputs, outputs, 3, padding=1), ACTIVATIONS[activation]()
        if not pooled or pool == "none":
            return [conv, act]
        return [conv, nn.MaxPool2d(2), act] if pool == "before" else [conv, act, nn.MaxPool2d(2)]

    def make() -> nn.Module:
        flat = 4 * (36 if pool == "none" else 9)
        return nn.Sequential(
            *block(2, 3, pooled=False), *block(3, 4, pooled=True), nn.Flatten(),
            nn.Linear(flat, 5), ACTIVATIONS[activation](), nn.Linear(5, 3),
        )  # fmt: skip

    return drawn(make, seed, dtype)  # type: ignore[return-value]


def batch(
    shape: Sequence[int] = (5,), classes: int = 4, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Inputs (N, *shape) and class indices (N,)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)


def images(n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A batch for `conv_net`."""
    return batch((2, 6, 6), 3, n, seed, dtype)


def mean_loss(loss: str, output: Tensor, y: Tensor) -> Tensor:
    """The mean loss over the batch in PyTorch's own words: none of the package's."""
    if loss == "cross_entropy":
        return F.cross_entropy(output, y)
    target = y if y.dtype.is_floating_point else F.one_hot(y, output.shape[1]).to(output.dtype)
    return (output - target).square().sum() / (2 * len(y))


def autograd_gradients(model: nn.Module, x: Tensor, y: Tensor, loss: str = "cross_entropy") -> dict[str, Tensor]:
    """The gradient of the mean loss by plain autograd, for every trainable parameter."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(mean_loss(loss, model(x), y), list(named.values()))
    return dict(zip(named, found, strict=True))
