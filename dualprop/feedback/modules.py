"""Separate feedback weights B: the input's cotangent comes back through B, not through W.

    forward    a = W s + b
    backward   dx = Bᵀ da        dW = da sᵀ        db = da

The same holds for convolutions. Three kinds of B:

    kolen_pollack    a parameter that receives the gradient of W; under weight decay W - B vanishes
                     (Kolen & Pollack 1994; Akrout et al. 2019)
    random           a fixed draw: feedback alignment (Lillicrap et al. 2016)
    sign_symmetric   mean|W| · sign(W), taken anew at each use
                     (Liao et al. 2016; Moskovitz et al. 2018)

Shapes: N batch, T any further axes, D features, C channels, X one to three spatial axes. B has the
shape of W.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dualprop.errors import SettingError, closest
from dualprop.feedback.autograd import ConvolutionWithFeedback, LinearWithFeedback, sign_symmetric

Kind = Literal["kolen_pollack", "random", "sign_symmetric"]
KINDS: tuple[str, ...] = get_args(Kind)


class AbstractFeedback(nn.Module):
    """A map with feedback weights: it adds `kind` and `backward_weight()` to the module it extends.

    It is constructed with that module's arguments, and by name `kind` and `generator`, which draws
    B.
    """

    weight: Tensor
    kind: Kind
    feedback_weight: Tensor

    def __init__(
        self, *args: Any, kind: Kind = "kolen_pollack", generator: torch.Generator | None = None, **kwargs: Any
    ) -> None:
        check_kind(kind)
        super().__init__(*args, **kwargs)
        install(self, kind, draw(self.weight, kind, generator))

    def backward_weight(self) -> Tensor:
        """B, in the shape of `weight`: the parameter or buffer, or a new sign-symmetric tensor."""
        return sign_symmetric(self.weight) if self.kind == "sign_symmetric" else self.feedback_weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, feedback={self.kind}"


class FeedbackLinear(AbstractFeedback, nn.Linear):
    """`nn.Linear`, (N, T…, D) or (D,) to (N, T…, D′) or (D′,). Back comes dx = da B."""

    def forward(self, input: Tensor) -> Tensor:
        return LinearWithFeedback.apply(*in_autocast(input, self.weight, _stored(self), self.bias))


class FeedbackConv1d(AbstractFeedback, nn.Conv1d):
    """`nn.Conv1d`, (N, C, X) or (C, X). dx is the transposed convolution with B."""

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input)


class FeedbackConv2d(AbstractFeedback, nn.Conv2d):
    """`nn.Conv2d`, (N, C, X, X) or (C, X, X). dx is the transposed convolution with B."""

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input)


class FeedbackConv3d(AbstractFeedback, nn.Conv3d):
    """`nn.Conv3d`, (N, C, X, X, X) or (C, X, X, X). dx is the transposed convolution with B."""

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input)


# Plain module → the same with feedback weights.
FEEDBACK_MODULES: dict[type[nn.Module], type[AbstractFeedback]] = {
    nn.Linear: FeedbackLinear,
    nn.Conv1d: FeedbackConv1d,
    nn.Conv2d: FeedbackConv2d,
    nn.Conv3d: FeedbackConv3d,
}


def backward_weight(module: nn.Module) -> Tensor:
    """The weight that errors come back through: the module's B, if any, else its `weight`."""
    return module.backward_weight() if isinstance(module, AbstractFeedback) else module.get_parameter("weight")


def exact(model: nn.Module) -> nn.Module:
    """A copy of `model` whose errors come back through W, as in plain PyTorch.

    It shares parameters and buffers. A `model` without feedback weights is returned itself. For
    comparing with the true gradient.
    """
    if not any(isinstance(module, AbstractFeedback) for module in model.modules()):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    plain: dict[type[nn.Module], type[nn.Module]] = {kind: base for base, kind in FEEDBACK_MODULES.items()}
    for module in twin.modules():
        if type(module) in plain:
            module._parameters.pop("feedback_weight", None)
            module._buffers.pop("feedback_weight", None)
            module.__class__ = plain[type(module)]
    return twin


@dataclass(frozen=True)
class WeightAlignment:
    """How near a layer's feedback weights B are to its weights W, each read as one long vector.

    Attributes:
        layer: the module's name in the model.
        cosine: B·W / ‖B‖‖W‖, in [-1, 1]; NaN where one of them is zero.
        norm_ratio: ‖B‖ / ‖W‖.
    """

    layer: str
    cosine: float
    norm_ratio: float

    @property
    def angle(self) -> float:
        """The angle between B and W in degrees, 0 to 180; for independent draws about 90."""
        return math.degrees(math.acos(max(-1.0, min(1.0, self.cosine)))) if math.isfinite(self.cosine) else math.nan


def alignment(model: nn.Module) -> list[WeightAlignment]:
    """The alignment of B and W in every module that has a B, in order. Waits for the device."""
    alignments = []
    for name, module in model.named_modules():
        if isinstance(module, AbstractFeedback):
            backward, forward = (w.detach().cpu().double().flatten() for w in (module.backward_weight(), module.weight))
            sizes = backward.norm(), forward.norm()
            alignments.append(
                WeightAlignment(name, float(backward @ forward / (sizes[0] * sizes[1])), float(sizes[0] / sizes[1]))
            )
    return alignments


def _stored(module: AbstractFeedback) -> Tensor | None:
    return None if module.kind == "sign_symmetric" else module.feedback_weight


def in_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's dtype where it is on, as it converts them for PyTorch's maps."""
    first = tensors[0]
    assert first is not None
    device = first.device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    # As autocast does, float64 and integers are left alone.
    return [t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _convolve(conv: FeedbackConv1d | FeedbackConv2d | FeedbackConv3d, x: Tensor) -> Tensor:
    """The convolution of (N, C, X…) or (C, X…).

    Paddings other than equal zeros are applied before it, by autograd.
    """
    is_batched = x.dim() == len(conv.kernel_size) + 2
    if not is_batched:
        x = x.unsqueeze(0)
    padding = [0] * len(conv.kernel_size)
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    elif not isinstance(conv.padding, str):
        padding = list(conv.padding)
    elif conv.padding == "same":
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        padding = [span // 2 for span in spans]
        # An odd span has its last zero on the right, as in PyTorch.
        if any(span % 2 for span in spans):
            x = F.pad(x, [zeros for span in reversed(spans) for zeros in (0, span % 2)])
    tensors = in_autocast(x, conv.weight, _stored(conv), conv.bias)
    a = ConvolutionWithFeedback.apply(*tensors, list(conv.stride), padding, list(conv.dilation), conv.groups)
    return a if is_batched else a.squeeze(0)


def draw(weight: Tensor, kind: str, generator: torch.Generator | None) -> Tensor | None:
    """A new B, as `nn.Linear` and `nn.ConvNd` draw W; None where W alone determines it."""
    if kind == "sign_symmetric":
        return None
    drawn = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device if generator is not None else weight.device)
    drawn = nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator).to(weight.device)
    # A B that learns beside a frozen W would run away from it.
    return nn.Parameter(drawn, requires_grad=weight.requires_grad) if kind == "kolen_pollack" else drawn


def install(module: AbstractFeedback, kind: Kind, feedback: Tensor | None) -> None:
    module.kind = kind
    if isinstance(feedback, nn.Parameter):
        module.register_parameter("feedback_weight", feedback)
    elif feedback is not None:
        module.register_buffer("feedback_weight", feedback)


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        kinds = ", ".join(map(repr, KINDS))
        raise SettingError(f"unknown kind of feedback {kind!r}.{closest(str(kind), list(KINDS))} There are {kinds}.")


def type_of(module: nn.Module) -> type[nn.Module]:
    """The module's type; of a parametrized one, the type that it had before."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
