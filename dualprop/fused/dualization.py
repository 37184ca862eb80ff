"""`dualize`: dyadic activations in any module make `loss.backward()` dual propagation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from dualprop import kernels
from dualprop.fused import recompute
from dualprop.fused.conversion import replace_activations
from dualprop.fused.dyadic import Dualization, Dyadic
from dualprop.settings import as_tuple, checked_beta


def dualize(
    model: nn.Module,
    *,
    coupling: Literal["original", "transposed"] = "original",
    alpha: float = 0.5,
    beta: float | Sequence[float] = 1.0,
    loss_reduction: Literal["mean", "sum"] | int = "mean",
    loss_scale: float | Callable[[], float] = 1.0,
    leave: Sequence[str] = (),
    recompute_states: bool = True,
) -> nn.Module:
    """Convert every activation of `model` in place, so that `loss.backward()` is dual propagation.

    It is so in any training loop.

    Parameters and `state_dict` stay as they are. Modules and functional calls (`F.relu(x)`,
    `x.tanh()`) are converted. Anything else that might be an activation is refused by name, before
    anything is changed. Only `forward` methods are read: an activation in another method that you
    call yourself (`model.encode(x)`) stays with back-propagation. A rewritten forward keeps the
    values that the module's plain attributes have now, and can't be pickled.

    Args:
        coupling: "original" (DP) or "transposed" (DP⊤).
        alpha: in [0, 1], the weight of s⁺ in the mean.
        beta: nudging strength per example, > 0; one, or one per activation in the modules' order.
        loss_reduction: how the loss is reduced over the batch, since DP is not homogeneous in the
            loss: "mean" over the activations' first dimension, "sum", or the number of terms of the
            mean (tokens, say).
        loss_scale: any other factor of the loss: 1/4 when four batches accumulate,
            `scaler.get_scale` for a GradScaler. A function is asked at every forward pass.
        leave: names of modules, module types or functions to leave to plain back-propagation.
        recompute_states: keep each activation's drive alone and compute its state again in the
            backward pass. Memory is then no more than back-propagation's. If False, both are kept,
            which saves one elementwise pass a layer. Both are kept, too, inside other saved-tensor
            hooks: a checkpoint around the model, `save_on_cpu`.

    Returns:
        The model (a new module only where `model` itself is one activation).

    Raises:
        UnsupportedModuleError: names a module or function that can't be converted, and the remedy.
        SettingError: a setting out of its range.
    """
    settings = Dualization(coupling, alpha, loss_reduction, loss_scale)
    betas = as_tuple(checked_beta(beta))

    def make(activation: kernels.Activation, description: str, index: int) -> Dyadic:
        return Dyadic(activation, description, settings, betas[0] if len(betas) == 1 else betas[index])

    converted = replace_activations(model, make, tuple(leave), None if len(betas) == 1 else len(betas))
    if recompute_states:
        recompute.attach(converted)
    return converted
