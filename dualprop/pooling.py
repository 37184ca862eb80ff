"""Softmax pooling: a max-pool that is differentiable everywhere, and holomorphic (Laborieux & Zenke 2022).

Over each window z_1…z_n it gives Σ_i z_i softmax(z/T)_i: the maximum as T → 0, the average as T → ∞. N batch, C channels,
H×W space.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from dualprop import simplex
from dualprop.errors import SettingError


class SoftmaxPool2d(nn.Module):
    """(N, C, H, W), real or complex, to (N, C, H // kernel, W // kernel): windows of kernel × kernel that do not overlap; what
    fills none is left out, as in `nn.MaxPool2d`.

    Args:
        kernel_size: the side of a window.
        temperature: T > 0.

    Raises:
        SettingError: either out of range.
    """

    # What `holomorphic` asks of a module that is not affine: its forward takes complex numbers, with a complex derivative.
    is_holomorphic = True

    def __init__(self, kernel_size: int = 2, temperature: float = 1.0) -> None:
        super().__init__()
        if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1:
            raise SettingError(f"kernel_size must be a whole number of at least 1, got {kernel_size!r}.")
        if not 0 < temperature < math.inf:
            raise SettingError(f"temperature must be positive and finite, got {temperature:g}. For T = 0 use nn.MaxPool2d.")
        self.kernel_size, self.temperature = kernel_size, temperature

    def forward(self, z: Tensor) -> Tensor:
        side = self.kernel_size
        windows = z.unfold(-2, side, side).unfold(-2, side, side).flatten(-2)  # (N, C, H // k, W // k, k²)
        return (windows * simplex.softmax(windows / self.temperature, -1)).sum(-1)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, temperature={self.temperature:g}"
