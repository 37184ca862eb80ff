"""Which modules may stand between two activations, by exact type. `activations` lists those."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from dualprop.feedback import FEEDBACK_MODULES
from dualprop.network.stacked import StackedLinear
from dualprop.softmax import SoftmaxPool2d

RESHAPES = (nn.Flatten, nn.Unflatten)
# Maps of integers, which only the input may be.
EMBEDDINGS: tuple[type[nn.Module], ...] = (nn.Embedding, nn.EmbeddingBag)
# Affine maps of one example, which have a linear part: f(s) - f(0).
AFFINE: tuple[type[nn.Module], ...] = (
    *RESHAPES,
    *FEEDBACK_MODULES.values(),
    nn.Linear,
    StackedLinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)
# Deterministic, per example, and no activation: what may stand between two activations.
MAPS: tuple[type[nn.Module], ...] = (
    *AFFINE,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    SoftmaxPool2d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    *EMBEDDINGS,
)


def without_feedback(module_type: type[nn.Module]) -> type[nn.Module]:
    """The type that it was before its modules were given feedback weights."""
    return _PLAIN.get(module_type, module_type)


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {converted: plain for plain, converted in FEEDBACK_MODULES.items()}


def kind(module: nn.Module) -> type[nn.Module]:
    """The module's type, under its parametrizations if it has any."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
