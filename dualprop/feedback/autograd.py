"""Linear maps and convolutions whose input's cotangent comes back through feedback weights B.

    forward    a = W s + b
    backward   dx = Bᵀ da        dW = da sᵀ = dB        db = da

Shapes: N batch, T any further axes, D features, C channels, X one to three spatial axes. B has the
shape of W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def sign_symmetric(weight: Tensor) -> Tensor:
    """mean|W| · sign(W): every sign of W, and one magnitude per layer.

    (Moskovitz et al. 2018, uniform sign-concordant.)
    """
    return weight.sign() * weight.abs().mean()


class LinearWithFeedback(torch.autograd.Function):
    """a = x Wᵀ + b. `feedback` is B, or None: the sign-symmetric one, which W determines."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, feedback: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, feedback, _ = inputs
        ctx.is_sign_symmetric = feedback is None
        ctx.save_for_backward(x, weight if feedback is None else feedback)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (da,), (x, stored) = cotangents, ctx.saved_tensors
        of_x, of_weight, of_feedback, of_bias = ctx.needs_input_grad
        dx = dw = db = None
        if of_x:
            dx = da @ (sign_symmetric(stored) if ctx.is_sign_symmetric else stored)
        da = da.reshape(-1, da.shape[-1])
        if of_weight or of_feedback:
            dw = da.T @ x.reshape(-1, x.shape[-1])
        if of_bias:
            db = da.sum(0)
        return dx, dw if of_weight else None, _second(dw, of_weight, of_feedback), db


class ConvolutionWithFeedback(torch.autograd.Function):
    """a = W ∗ x + b, zero-padded alike on both sides. x is (N, C, X…).

    `feedback` is as for the linear map.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        feedback: Tensor | None,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> Tensor:
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, feedback, bias, *ctx.settings = inputs
        ctx.is_sign_symmetric = feedback is None
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight if feedback is None else feedback)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (da,), (x, stored) = cotangents, ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        of_x, of_weight, of_feedback, of_bias = ctx.needs_input_grad[:4]
        # The weight passed here matters to dx alone: one call gives dx by B, dW and db as usual.
        dx, dw, db = torch.ops.aten.convolution_backward(
            da, x, sign_symmetric(stored) if ctx.is_sign_symmetric and of_x else stored, ctx.bias_sizes,
            stride, padding, dilation, False, [0] * len(stride), groups, [of_x, of_weight or of_feedback, of_bias],
        )  # fmt: skip
        return dx, dw if of_weight else None, _second(dw, of_weight, of_feedback), db, None, None, None, None


def _second(dw: Tensor | None, of_weight: bool, of_feedback: bool) -> Tensor | None:
    """The gradient of B: a copy of W's, since an optimizer may write into either."""
    if dw is None or not of_feedback:
        return None
    return dw.clone() if of_weight else dw
