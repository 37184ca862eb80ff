"""Models of sequences and loops: recurrent cells, dilated convolutions, layers that are reused."""

import torch
from architecture import Architecture, classes, normal, tokens, values
from torch import nn
from torch.nn import functional as F


class LSTMClassifier(nn.Module):
    """Embedding, nn.LSTM, its last state, a tanh head. The cells' gates are torch's own code."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(12, 6), nn.LSTM(6, 7, batch_first=True, bidirectional=True)
        self.fc, self.out = nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, idx):
        _, (h, _) = self.lstm(self.embedding(idx))
        return self.out(torch.tanh(self.fc(torch.cat([h[0], h[1]], dim=-1))))


class GRUClassifier(nn.Module):
    """Time first, packed nothing, the mean over time; GELU head."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, num_layers=2)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x):
        h, _ = self.gru(x.permute(1, 0, 2))
        return self.head(h.mean(0))


class CellByHand(nn.Module):
    """An LSTM cell written out: gates by chunk, three sigmoids and two tanh in every step."""

    def __init__(self, d=6):
        super().__init__()
        self.x2h, self.h2h, self.out, self.d = nn.Linear(4, 4 * d), nn.Linear(d, 4 * d, bias=False), nn.Linear(d, 3), d

    def forward(self, x):
        h = c = x.new_zeros(x.size(0), self.d)
        for t in range(x.size(1)):
            i, f, g, o = (self.x2h(x[:, t]) + self.h2h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class ElmanNetwork(nn.Module):
    """nn.RNNCell in a loop, its output read at every step."""

    def __init__(self):
        super().__init__()
        self.cell, self.mix, self.out = nn.RNNCell(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h, outputs = None, []
        for step in x.unbind(1):
            h = self.cell(step, h)
            outputs.append(self.out(F.mish(self.mix(h))))
        return torch.stack(outputs, dim=1).mean(1)


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    """Bai et al. (2018): causal dilated convolutions, a residual, a ReLU after the sum."""

    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        pad = 2 * dilation
        self.net = nn.Sequential(
            nn.Conv1d(inputs, outputs, 3, padding=pad, dilation=dilation), Chomp(pad), nn.ReLU(),
            nn.Conv1d(outputs, outputs, 3, padding=pad, dilation=dilation), Chomp(pad), nn.ReLU(),
        )  # fmt: skip
        self.downsample = nn.Conv1d(inputs, outputs, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.net(x) + self.downsample(x))


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.fc = nn.Sequential(TemporalBlock(3, 6, 1), TemporalBlock(6, 6, 2)), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.blocks(x)[:, :, -1])


class WaveNet(nn.Module):
    """Gated activations: tanh of one half, times the sigmoid of the other; skips are summed."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(2, 4, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(3))
        self.residual, self.skip = (nn.ModuleList(nn.Conv1d(4, c, 1) for _ in range(3)) for c in (4, 5))
        self.end = nn.Conv1d(5, 1, 1)

    def forward(self, x):
        x, total = self.start(x), 0
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            filtered, gate = dilated(x).chunk(2, dim=1)
            h = torch.tanh(filtered) * torch.sigmoid(gate)
            total = total + skip(h)[..., -1]
            x = residual(h) + x[..., -h.size(-1) :]
        return self.end(F.softplus(total)[..., None]).flatten()


class DEQ(nn.Module):
    """Three steps of a fixed-point iteration; the input is injected into each."""

    def __init__(self):
        super().__init__()
        self.inject, self.core, self.norm, self.head = (
            nn.Linear(5, 8),
            nn.Linear(8, 8, bias=False),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        injected = self.inject(x)
        z = torch.zeros_like(injected)
        for _ in range(3):
            z = self.norm(torch.tanh(self.core(z) + injected))
        return self.head(z)


class SharedLayer(nn.Module):
    """One layer, applied three times, and its one ReLU module with it."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.act, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = self.layer(self.act(x))
        return self.last(x)


class SelectiveScan(nn.Module):
    """Mamba's idea: a gated linear recurrence whose step size is a softplus of the input."""

    def __init__(self, d=6, state=3):
        super().__init__()
        self.in_proj, self.conv = nn.Linear(4, 2 * d), nn.Conv1d(d, d, 3, padding=2, groups=d)
        self.x_proj, self.dt_proj = nn.Linear(d, 2 * state + 2), nn.Linear(2, d)
        self.A_log, self.D, self.out = nn.Parameter(torch.randn(d, state)), nn.Parameter(torch.ones(d)), nn.Linear(d, 3)
        self.state = state

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.size(1)]).transpose(1, 2)
        dt, b, c = self.x_proj(u).split([2, self.state, self.state], dim=-1)
        dt, a = F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log)
        h, outputs = 0, []
        for t in range(x.size(1)):
            h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None, :]
            outputs.append((h * c[:, t, None, :]).sum(-1))
        y = torch.stack(outputs, 1) + u * self.D
        return self.out((y * F.silu(z)).mean(1))


RECURRENT = (
    Architecture(name="lstm_classifier", build=LSTMClassifier, inputs=tokens(5, 12), targets=classes(3)),
    Architecture(name="gru_classifier", build=GRUClassifier, inputs=normal(5, 5), targets=classes(3), notes="(T, N, D)"),
    Architecture(name="lstm_cell_by_hand", build=CellByHand, inputs=normal(4, 4), targets=classes(3)),
    Architecture(name="elman_network", build=ElmanNetwork, inputs=normal(4, 4), targets=classes(3)),
    Architecture(name="tcn", build=TCN, inputs=normal(3, 10), targets=classes(3)),
    Architecture(name="wavenet", build=WaveNet, inputs=normal(2, 10), targets=values(), loss=F.mse_loss, notes="outputs (N,)",
                 without_gradient=("residual.2.weight", "residual.2.bias")),
    Architecture(name="deq_loop", build=DEQ, inputs=normal(5), targets=classes(3)),
    Architecture(name="shared_layer", build=SharedLayer, inputs=normal(5), targets=classes(3)),
    Architecture(name="selective_scan", build=SelectiveScan, inputs=normal(5, 4), targets=classes(3)),
)  # fmt: skip
