"""What is checked of a batch, a state and a network before a rule works on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network import Network, inputs

# Inference is safe in any numbers, in float32 with bfloat16 products, or in float32 or wider alone.
Precision = Literal["any", "half_products", "full"]


def check_surroundings() -> None:
    """Raise SettingError inside the transforms of torch.func, which differentiate by themselves."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise SettingError(
            "a rule takes derivatives of its own, which torch.func's transforms (grad, vmap, jvp) can't follow. "
            "Call it outside of them."
        )


def checked_state(state: Any, state_type: type | None) -> Any:
    """The state of an earlier call; None for a rule that has none. SettingError for another's."""
    if state_type is None or state is None:
        return None
    if not isinstance(state, state_type):
        raise SettingError(
            f"state must be the {state_type.__name__} of an earlier call, got {type(state).__name__}. Pass state=None."
        )
    return state


def check_synapses(network: Network, needs: str) -> None:
    """Raise SettingError where something of the rule needs synapses that the network has not."""
    if network.is_recorded and needs:
        raise SettingError(
            f"{needs}, but the model is read by running it. Write it as an nn.Sequential or dp.Layered of known modules, "
            "or use dp.DualPropagation."
        )


def check_batch(network: Network, x: Any, y: Any, loss: AbstractLoss) -> Any:
    """The targets as the loss reads them: int64 indices (N,), floating-point vectors (N, K) …

    Raises SettingError unless x and y are a batch: as many targets as examples, at least one.
    """
    if not isinstance(x, Tensor) and not network.is_recorded:
        raise SettingError(f"x must be a tensor, got {type(x).__name__}. Use torch.as_tensor.")
    kinds = [value.dtype for value in inputs.tensors(x) if value.is_floating_point()]
    if network.is_recorded:
        number = inputs.first(x).shape[:1]
        if not number or number[0] == 0:
            raise SettingError(f"x must hold a batch of at least one example, got {tuple(inputs.first(x).shape)}.")
        return loss.batch_targets(y, number[0], kinds[0] if kinds else torch.get_default_dtype())
    is_real = x.dtype.is_floating_point
    if not is_real and not network.reads_integers:
        raise SettingError(
            f"x must be floating point, got {x.dtype}. Convert it, x.float() say, or begin the model with nn.Embedding."
        )
    if x.dim() < (2 if is_real else 1) or x.shape[0] == 0:
        raise SettingError(f"x must hold a batch of at least one example, shape (N, …), got {tuple(x.shape)}.")
    return loss.batch_targets(y, len(x), x.dtype if is_real else torch.get_default_dtype())


def check_precision(parameters: Mapping[str, Tensor], x: Any, precision: Precision, loses: str) -> None:
    """Raise SettingError where inference would lose small differences, or parameters their updates.

    Half precision belongs to the products alone, under bfloat16 autocast: float16 has no room for
    differences of 1e-8. `loses` is what a rule of full precision would lose in half.
    """
    half = (torch.float16, torch.bfloat16)
    device = inputs.first(x).device.type
    is_half = any(value.dtype in half for value in inputs.tensors(x))
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if precision == "full" and (is_half or autocast is not None):
        raise SettingError(f"{loses} in half precision. Give it float32, outside autocast.")
    if precision != "half_products":
        return
    if autocast == torch.float16:
        raise SettingError(
            "explicit inference would lose its differences in float16. Use autocast in bfloat16, or engine='fused'."
        )
    if any(p.dtype in half for p in parameters.values()) or (is_half and autocast is None):
        raise SettingError(
            "explicit inference needs parameters and inputs of float32 or wider. For bfloat16 products use "
            "torch.autocast(device, torch.bfloat16)."
        )


def check_output(network: Network, loss: AbstractLoss) -> None:
    """Raise SettingError where the loss does not read what the output neuron gives.

    An output neuron gives logits or probabilities.
    """
    loss.check_output(network.into(network.depth).neuron)
