"""Convolutional classifiers of images (N, 3, 8, 8), as their papers' code is written."""

import torch
from architecture import Architecture, classes, normal
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """ResNet's: functional and in-place ReLU, BatchNorm, a projection where shapes change."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += identity
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))
        self.layer2 = nn.Sequential(BasicBlock(6, 10, 2))
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class PreActivationBlock(nn.Module):
    """He et al. (2016): normalise and activate first; one ReLU module serves twice."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.n2, self.c2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None
        self.relu = nn.ReLU()

    def forward(self, x):
        h = self.relu(self.n1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        return skip + self.c2(self.relu(self.n2(self.c1(h))))


def preactivation_resnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), PreActivationBlock(6, 6, 1), PreActivationBlock(6, 8, 2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class DenseNet(nn.Module):
    """Each layer reads all maps before it; a transition halves them."""

    def __init__(self, growth=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + growth * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + growth * i, growth, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.transition, self.fc = nn.BatchNorm2d(18), nn.Conv2d(18, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        maps = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(conv(F.relu(norm(torch.cat(maps, 1)))))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(torch.cat(maps, 1)))), 2)
        return self.fc(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate of their means; the gate's function is given."""

    def __init__(self, channels, inner, gate):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.act, self.gate = inner_activation(gate), gate

    def forward(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


def inner_activation(gate):
    return nn.ReLU(inplace=True) if isinstance(gate, nn.Hardsigmoid) else nn.SiLU(inplace=True)


class InvertedResidual(nn.Module):
    """MobileNetV3's and EfficientNet's block: expand, depthwise, squeeze-excite, project."""

    def __init__(self, channels, expanded, act, gate):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), act())
        depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(expanded), act())
        self.se = SqueezeExcite(expanded, 4, gate())
        self.project = nn.Sequential(nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        return x + self.project(self.se(self.depthwise(self.expand(x))))


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish(inplace=True))
        self.blocks = nn.Sequential(*(InvertedResidual(6, 12, nn.Hardswish, nn.Hardsigmoid) for _ in range(2)))
        self.head = nn.Sequential(nn.Linear(6, 10), nn.Hardswish(inplace=True), nn.Linear(10, 4))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(*(InvertedResidual(6, 12, nn.SiLU, nn.Sigmoid) for _ in range(2)))
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        x = self.blocks(F.silu(self.bn(self.stem(x)), inplace=True))
        return self.classifier(x.mean((-2, -1)))


def drop_path(x, p, training):
    """Drops the branch of whole examples."""
    if p == 0.0 or not training:
        return x
    return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - p).div_(1 - p)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, LayerNorm with channels last, GELU, layer scale, drop path."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.act = nn.Linear(channels, 3 * channels), nn.GELU()
        self.pwconv2 = nn.Linear(3 * channels, channels)
        self.gamma = nn.Parameter(0.1 * torch.ones(channels))

    def forward(self, x):
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        h = self.gamma * self.pwconv2(self.act(self.pwconv1(h)))
        return x + drop_path(h.permute(0, 3, 1, 2), 0.2, self.training)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 2, 2), nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


class StochasticDepth(nn.Module):
    """Whole blocks are left out by a draw of Python's kind: `if torch.rand(1) < p`."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if self.training and torch.rand(1).item() < 0.4:
                continue
            x = x + F.elu(block(x))
        return self.fc(x.mean((2, 3)))


def lenet_tanh():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 4),
    )  # fmt: skip


class VGG(nn.Module):
    """Max-pooling after ReLU, dropout in the classifier."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(24, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 4))

    def forward(self, x):
        return self.classifier(self.features(x).view(x.size(0), -1))


IMAGES = {"inputs": normal(3, 8, 8), "targets": classes(4)}

CONVOLUTIONAL = (
    Architecture(name="resnet_functional", build=ResNet, **IMAGES, ties_examples=True),
    Architecture(name="resnet_preactivation", build=preactivation_resnet, **IMAGES, seed=1, ties_examples=True),
    Architecture(name="densenet", build=DenseNet, **IMAGES, seed=1, ties_examples=True),
    Architecture(name="mobilenet_v3", build=MobileNetV3, **IMAGES, ties_examples=True),
    Architecture(name="efficientnet", build=EfficientNet, **IMAGES, ties_examples=True),
    Architecture(name="convnext", build=ConvNeXt, **IMAGES, is_random=True),
    Architecture(
        name="stochastic_depth", build=StochasticDepth, **IMAGES, is_random=True, notes="two blocks are left out",
        without_gradient=tuple(f"blocks.{i}.{name}" for i in (2, 3) for name in ("weight", "bias")),
    ),
    Architecture(name="lenet_tanh", build=lenet_tanh, **IMAGES),
    Architecture(name="vgg_with_dropout", build=VGG, **IMAGES, seed=1, is_random=True),
)  # fmt: skip
