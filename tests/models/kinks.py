"""How near a model's units are to where their derivative jumps, seen while it runs.

There no method of finite differences agrees with a derivative, at any β. So tests that compare the
two assert first that no unit is that near.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# The corners of each function. A slope that is continuous (ELU, Softplus, …) has none.
_AT_ZERO = (
    F.relu,
    F.relu_,
    F.leaky_relu,
    F.leaky_relu_,
    F.prelu,
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
)
_AT_ZERO += (F.selu, torch.selu, torch.selu_, F.rrelu)
CORNERS = {
    **dict.fromkeys(_AT_ZERO, (0.0,)),
    F.hardswish: (-3.0, 3.0),
    F.hardsigmoid: (-3.0, 3.0),
    F.relu6: (0.0, 6.0),
    F.hardtanh: (-1.0, 1.0),
}
MAXIMA = (torch.max, torch.amax, torch.Tensor.max, torch.Tensor.amax)


class Kinks(TorchFunctionMode):
    """`nearest`: the least distance of any unit to a corner, relative to its tensor's scale.

    The scale is the root mean square. For a maximum the distance is that of the two largest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nearest = float("inf")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in CORNERS and args[0].numel():
            corners = args[1:3] if func is F.hardtanh and len(args) > 2 else CORNERS[func]
            self.look(args[0], *(args[0] - corner for corner in corners))
        elif func in MAXIMA and len(args) + len(kwargs) > 1:
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            top = args[0].topk(2, dim=dim)[0]
            self.look(args[0], top.select(dim, 0) - top.select(dim, 1))
        elif func is F.max_pool2d:
            self.windows(args[0], args[1])
        return func(*args, **kwargs)

    def look(self, at: Tensor, *distances: Tensor) -> None:
        scale = float(at.detach().square().mean().sqrt())
        for distance in distances:
            if distance.numel():
                self.nearest = min(self.nearest, float(distance.detach().abs().min()) / scale)

    def windows(self, x: Tensor, size: int) -> None:
        """Of square windows that do not overlap. A tie of zeros is no kink: ReLU is flat there."""
        columns = F.unfold(x.flatten(0, 1)[:, None], size, stride=size)
        top = columns.topk(2, dim=1)[0]
        gap = top[:, 0] - top[:, 1]
        self.look(x, gap[top[:, 0] > 0])


def nearest_kink(run) -> float:
    """The least relative distance to a corner in `run()`."""
    with Kinks() as kinks:
        run()
    return kinks.nearest
