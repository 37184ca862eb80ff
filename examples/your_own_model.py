"""Dual propagation on your own model with your own optimizer: twelve lines, then the same in any
training loop."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import dualprop as dp

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


class Residual(nn.Module):
    """Any forward will do: it is read by running it."""

    def __init__(self, width=128):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x):
        h = self.stem(x).relu()
        return self.head(h + nn.functional.gelu(self.body(h)))


# 1. Explicit: the dyads of every layer are inferred, and you can look at them.
model = Residual()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
network = dp.Network.from_module(model)
rule = dp.DualPropagation(alpha=0.5, beta=1.0, loss=dp.losses.CrossEntropy())
for _ in range(300):
    batch = torch.randint(len(x), (64,))
    optimizer.zero_grad()
    loss = rule(network, x[batch], y[batch])
    loss.backward()
    optimizer.step()
accuracy = (model(x).argmax(1) == y).float().mean()
print(f"explicit: loss {loss:.4f}, accuracy {accuracy:.3f}, {loss.outcome.diagnostics}")

dyads = rule.infer(network, x[:100], y[:100])
print(network)
for k in range(1, len(dyads.means)):
    print(f"layer {k}: mean |s⁺ - s⁻| = {dyads.difference(k).abs().mean():.1e}")

# 2. Fused: any module, any training loop; `loss.backward()` is dual propagation.
model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 10))
model = dp.dualize(model, coupling="transposed", alpha=0.0)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(300):
    batch = torch.randint(len(x), (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
model.eval()
print(f"fused: loss {loss:.4f}, accuracy {(model(x).argmax(1) == y).float().mean():.3f}")
