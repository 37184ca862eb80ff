"""What `dualize` can read: the modules and functions that are activations, or exact in autograd.

A name in neither table may hide an activation, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualprop import neurons
from dualprop.kernels import Activation
from dualprop.network.modules import MAPS


@dataclass(frozen=True)
class Elementwise:
    """An activation that is not a neuron: it has no potential, or none here.

    It is not written over its argument.
    """

    f: Callable[[Tensor], Tensor]
    is_elementwise = True
    piecewise = None

    def f_(self, a: Tensor) -> Tensor:
        return self.f(a)


def _neuron(module: nn.Module) -> Activation:
    return neurons.from_module(module, "")


# Activation modules → function of the same.
ACTIVATION_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    **{kind: _neuron for kind in neurons.NEURONS if kind is not nn.Identity},
    nn.GELU: lambda m: Elementwise(partial(F.gelu, approximate=m.approximate)),
    nn.SiLU: lambda m: Elementwise(F.silu),
    nn.Mish: lambda m: Elementwise(F.mish),
    nn.Hardswish: lambda m: Elementwise(F.hardswish),
    nn.Hardsigmoid: lambda m: Elementwise(F.hardsigmoid),
    nn.ELU: lambda m: Elementwise(partial(F.elu, alpha=m.alpha)),
    nn.SELU: lambda m: Elementwise(F.selu),
    nn.CELU: lambda m: Elementwise(partial(F.celu, alpha=m.alpha)),
    nn.Softplus: lambda m: Elementwise(partial(F.softplus, beta=m.beta, threshold=m.threshold)),
    nn.Softsign: lambda m: Elementwise(F.softsign),
}

# Functional activations by name: the function, or the neuron that it is, and the names of the
# arguments that may follow the tensor.
ACTIVATION_FUNCTIONS: dict[str, tuple[Callable[..., Any] | neurons.AbstractNeuron, tuple[str, ...]]] = {
    "relu": (neurons.ReLU(), ()),
    "relu6": (neurons.HardSigmoid(0.0, 6.0), ()),
    "leaky_relu": (F.leaky_relu, ("negative_slope",)),
    "hardtanh": (F.hardtanh, ("min_val", "max_val")),
    "clamp": (torch.clamp, ("min", "max")),
    "clip": (torch.clamp, ("min", "max")),
    "clamp_min": (torch.clamp_min, ("min",)),
    "clamp_max": (torch.clamp_max, ("max",)),
    "sigmoid": (neurons.Sigmoid(), ()),
    "tanh": (neurons.Tanh(), ()),
    "gelu": (F.gelu, ("approximate",)),
    "silu": (F.silu, ()),
    "mish": (F.mish, ()),
    "hardswish": (F.hardswish, ()),
    "hardsigmoid": (F.hardsigmoid, ()),
    "elu": (F.elu, ("alpha",)),
    "selu": (F.selu, ()),
    "celu": (F.celu, ("alpha",)),
    "softplus": (F.softplus, ("beta", "threshold")),
    "softsign": (F.softsign, ()),
}

# Left to autograd, which is exact: linear maps, reshapes, pools, norms, dropout, indexing, sizes.
EXACT_MODULES: tuple[type[nn.Module], ...] = (
    *MAPS,
    nn.Identity,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.Fold,
    nn.Unfold,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.ChannelShuffle,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
)
# Neither these nor their children belong to a forward pass that could hide an activation.
UNREAD_MODULES = (nn.modules.loss._Loss, nn.utils.parametrize.ParametrizationList, nn.ParameterList, nn.ParameterDict)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
EXACT_FUNCTIONS = frozenset(
    """
    add sub rsub neg pos mul div truediv true_divide iadd isub imul itruediv matmul mm bmm mv addmm baddbmm einsum linear
    bilinear embedding one_hot conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d
    max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d boolean_dispatch batch_norm layer_norm group_norm
    instance_norm rms_norm dropout dropout1d dropout2d dropout3d alpha_dropout interpolate pad unfold fold pixel_shuffle
    pixel_unshuffle cat concat concatenate stack hstack vstack flatten unflatten reshape view view_as reshape_as permute
    transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as repeat repeat_interleave tile
    broadcast_to chunk split tensor_split unbind narrow select index_select gather take_along_dim roll flip rot90 tril
    triu masked_fill mean sum cumsum contiguous to type type_as float half bfloat16 double clone detach cpu cuda
    requires_grad_ size dim numel ndimension getattr getitem floordiv mod len zeros ones empty full arange tensor
    zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full
    """.split()  # noqa: SIM905 — a page of quotes says no more
)
