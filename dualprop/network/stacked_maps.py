"""The local map of stacked Linears, and the choice of a core's map.

S models, N examples for each, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualprop.network import local_maps
from dualprop.network.local_maps import AbstractLocalMap, Modules, Record
from dualprop.network.stacked import StackedLinear


class StackedLinearMap(AbstractLocalMap):
    """One `StackedLinear`, as `LinearMap` of each model: a = s Wᵀ + b, batched products."""

    depends_on_state = False

    def __init__(self, name: str, module: StackedLinear) -> None:
        self.name, self.module = name, module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return local_maps.trainable({self.name: self.module})

    def run(self, s: Tensor) -> Record:
        return Record(s, self.module(s))

    def linear(self, s: Tensor) -> Record:
        return Record(s, self._product(s, self.module.weight.mT))

    def pull(self, record: Record, signal: Tensor) -> Tensor:
        return self._product(signal, self.module.weight)

    def gradient(self, record: Record, signal: Tensor, scale: float, is_biased: bool = True) -> dict[str, Tensor]:
        parameters, dtype = self.parameters, self.module.weight.dtype
        weight, bias = local_maps.learning(parameters)
        signal, s = self.module.apart(signal), self.module.apart(record.input)
        of_weight = torch.baddbmm(signal.new_zeros(1), signal.mT, s, beta=0, alpha=scale).to(dtype) if weight else None
        of_bias = signal.sum(1, dtype=dtype).mul_(scale) if bias and is_biased else None
        return local_maps.by_name(parameters, of_weight, of_bias)

    def contrast(
        self, record: Record, signal: Tensor, other: Record, other_signal: Tensor, scale: complex
    ) -> dict[str, Tensor]:
        return local_maps.contrasted(self, record, signal, other, other_signal, scale)

    def _product(self, rows: Tensor, matrices: Tensor) -> Tensor:
        product = torch.bmm(self.module.apart(rows), matrices)
        return product.view(*rows.shape[:-1], product.shape[-1])


def core_map(modules: Modules) -> AbstractLocalMap:
    """The direct formula for one plain Linear, stack of them or convolution; a tape for others."""
    name, module = next(iter(modules.items()), ("", None))
    if len(modules) == 1 and isinstance(module, StackedLinear):
        return StackedLinearMap(name, module)
    return local_maps.core_map(modules)
