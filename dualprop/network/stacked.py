"""Several models of one shape stacked as one: a step of it computes a step of each.

A batch of the stack holds as many examples for each model, one model's after another's. Their
blocks do not touch, and the loss is the sum of the models' mean losses. So whatever a rule makes of
a model's block is what it makes of that model alone. Where a model is too small to fill the device,
a stack takes as long as one.

S models, N examples for each, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dualprop.feedback import in_autocast


class StackedLinear(nn.Module):
    """S `nn.Linear`s: (S·N, D), the first N of the first one, to (S·N, D′).

    `weight` is (S, D′, D), `bias` (S, D′) or None.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.num_models = len(modules)
        self.weight = _stacked([module.weight for module in modules])
        self.register_parameter("bias", None if modules[0].bias is None else _stacked([module.bias for module in modules]))

    def forward(self, input: Tensor) -> Tensor:
        a: Tensor = _Products.apply(*in_autocast(self.apart(input), self.weight, self.bias))
        return a.view(*input.shape[:-1], a.shape[-1])

    def apart(self, examples: Tensor) -> Tensor:
        """(S·N, …, D) as (S, N·…, D)."""
        return examples.reshape(self.num_models, -1, examples.shape[-1])

    def extra_repr(self) -> str:
        num_models, out_features, in_features = self.weight.shape
        return f"{num_models} models, in_features={in_features}, out_features={out_features}, bias={self.bias is not None}"


class _Products(torch.autograd.Function):
    """s (S, N, D), W (S, D′, D), b (S, D′) to s Wᵀ + b, (S, N, D′).

    Autograd's own gradient of W would be laid out as Wᵀ is, and cost a copy.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(s, weight)
        return torch.bmm(s, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), s, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        s, weight = ctx.saved_tensors
        of_s, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(signal, weight) if of_s else None,
            torch.bmm(signal.mT, s) if of_weight else None,
            signal.sum(1) if of_bias else None,
        )


def stack(models: Sequence[nn.Module]) -> nn.Sequential:
    """The models as one, its parameters under the same names, with a first dimension more. Each is
    an `nn.Sequential`, whose modules with parameters are all `nn.Linear`."""
    first = models[0]
    assert isinstance(first, nn.Sequential)
    stacked = nn.Sequential()
    for name, module in first.named_children():
        if isinstance(module, nn.Linear):
            alike = [model.get_submodule(name) for model in models]
            stacked.add_module(name, StackedLinear([each for each in alike if isinstance(each, nn.Linear)]))
        else:
            assert next(module.parameters(), None) is None, f"'{name}' can't be stacked"
            stacked.add_module(name, copy.deepcopy(module))
    return stacked.train(first.training)


def num_models(model: nn.Module | None) -> int:
    """How many models are stacked in it; 1 in any other."""
    modules = [] if model is None else model.modules()
    return next((module.num_models for module in modules if isinstance(module, StackedLinear)), 1)


def _stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([parameter.detach() for parameter in parameters]))
