"""The precisions that steps are compared in: what the products of a step are taken in, weights being float32 in all.

float32    IEEE single precision, also where PyTorch would take less (convolutions on a GPU)
tf32       the same tensors, products with 10 bits of mantissa on NVIDIA's tensor cores
bfloat16   products under autocast: 7 bits of mantissa
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dualprop.errors import SettingError, closest


@dataclass(frozen=True)
class Precision:
    """`recipe_dtype` is what a recipe calls it, `dtype` that of the factors, `allows_tf32` whether products may be rounded."""

    name: str
    dtype: torch.dtype
    allows_tf32: bool = False

    def why_not(self, device: str) -> str:
        """Why it can't run on this device; empty where it can. What runs, but by emulation many times slower, counts as not."""
        is_cuda = device.startswith("cuda")
        if self.allows_tf32 and not (is_cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
            return "TF32 needs an NVIDIA GPU of compute capability 8.0 or later"
        if self.dtype is torch.bfloat16 and is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "this GPU has no bfloat16 instructions"
        if self.dtype is torch.bfloat16 and device.startswith("cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this CPU has no bfloat16 instructions (AVX-512 or AMX)"
        return ""

    @contextlib.contextmanager
    def in_effect(self) -> Iterator[None]:
        """Set the process's rounding of float32 products on GPUs for the time being."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.allows_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.allows_tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


PRECISIONS = {
    "float32": Precision("float32", torch.float32),
    "tf32": Precision("tf32", torch.float32, allows_tf32=True),
    "bfloat16": Precision("bfloat16", torch.bfloat16),
}


def from_name(name: str) -> Precision:
    """The precision of that name. Raises SettingError for an unknown one."""
    if name not in PRECISIONS:
        raise SettingError(f"unknown precision '{name}'.{closest(name, list(PRECISIONS))} Known: {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
