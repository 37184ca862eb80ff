"""The true gradient of a network's mean loss, by autograd through its forward weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dualprop import feedback
from dualprop.losses import AbstractLoss
from dualprop.network import Network
from dualprop.network.hooks import gradients_by
from dualprop.rules.checks import check_batch


def gradients(network: Network, x: Any, y: Any, loss: AbstractLoss) -> dict[str, Tensor]:
    """By trainable parameter; zero where one has no effect."""
    predict: Callable[[Any], Tensor] = network.forward
    parameters: dict[str, Tensor] = dict(network.parameters)
    if network.module is not None:
        model = feedback.exact(network.module)
        predict = partial(network.run, model)
        parameters = {name: p for name, p in model.named_parameters() if name in parameters}
    with torch.enable_grad():
        mean = loss.mean(predict(x), check_batch(network, x, y, loss))
        each = gradients_by(mean, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, each, strict=True))
