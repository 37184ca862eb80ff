"""What every learning rule offers: gradients of the mean loss over a batch, as a pure function of what is passed in.

N batch, K classes. `x` is (N, …); `y` is (N,) class indices or (N, K) target vectors. A rule's gradients estimate the
gradient of the loss's *mean* over the batch, on the scale of back-propagation's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualprop import feedback
from dualprop.errors import SettingError
from dualprop.losses import AbstractLoss
from dualprop.network import Network


@dataclass(frozen=True)
class Status:
    """Whether the numbers can be trusted; if not, `message` says what happened and what to do.

    `is_finite` tells the two kinds of trouble apart: with gradients that are not finite no step can be taken; where inference
    merely did not settle (`ok` false, `is_finite` true), one can.
    """

    ok: bool
    message: str = "ok"
    is_finite: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a rule found on one batch.

    Attributes:
        gradients: by parameter name, for every trainable parameter; estimates of the gradient of the mean loss.
        loss: of the prediction (`AbstractRule.predict`), the mean over the batch, shape ().
        logits: of the prediction, shape (N, K).
        state: the inferred states, reusable as the next call's `state`; None where the rule keeps none.
        diagnostics: numbers about the inference: "drives", "feedbacks" and "gradients" count the synapse evaluations; a
            rule that iterates adds "passes" and "residual".
        unsettled: why inference did not settle and what to do; empty where it did, or where the rule does not iterate.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    logits: Tensor
    state: Any = None
    diagnostics: dict[str, float] = field(default_factory=dict)
    unsettled: str = ""
    remedy: str = "Lower the learning rate or beta, or check the inputs for extreme values."

    @cached_property
    def status(self) -> Status:
        """Not ok where the loss or a gradient is not finite, or inference did not settle. Found out when first asked for: it
        waits for the device."""
        if not bool(torch.isfinite(self.loss)):
            return Status(False, f"the loss is {float(self.loss)}. {self.remedy}", is_finite=False)
        for name, gradient in self.gradients.items():
            if not bool(torch.isfinite(gradient).all()):
                return Status(False, f"the gradient of '{name}' is not finite. {self.remedy}", is_finite=False)
        return Status(False, self.unsettled) if self.unsettled else Status(True)


@dataclass(frozen=True, kw_only=True)
class AbstractRule(ABC):
    """A frozen set of hyperparameters and a pure function of (network, x, y, state, generator)."""

    loss: AbstractLoss

    @property
    def keeps_state(self) -> bool:
        """Whether the next call should be given this call's `state`."""
        return False

    # Whether its elementwise work is given to `kernels`; else it is left to PyTorch.
    uses_kernels: ClassVar[bool] = False

    def chosen_engine(self, depth: int) -> str:
        """The engine that finds the gradients of a network of `depth` layers; empty where there is but one."""
        return ""

    @property
    def needs_generator(self) -> bool:
        """Whether inference draws random numbers."""
        return False

    @property
    def capture_obstacle(self) -> str:
        """Why a step by this rule can't be captured and replayed as it is; empty where it can."""
        return "the order of updates is drawn anew for each batch" if self.needs_generator else ""

    @property
    def predicts_by_equilibrium(self) -> bool:
        """Whether `predict` settles states, and `exact_gradients` are the implicit gradient there, not back-propagation's."""
        return False

    def predict(self, network: Network, x: Tensor) -> Tensor:
        """The network's output for x, (N, K), which accuracies are taken of: of the forward pass, for most rules."""
        return network.forward(x)

    def exact_gradients(self, network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What the rule's gradients are estimates of, by trainable parameter: the true gradient of the mean loss of `predict`.

        For most rules back-propagation's: through the forward weights, also where the network has feedback weights.
        """
        predict: Callable[[Tensor], Tensor] = network.forward
        parameters: dict[str, Tensor] = dict(network.parameters)
        if network.module is not None:
            predict = model = feedback.exact(network.module)
            parameters = {name: p for name, p in model.named_parameters() if name in parameters}
        with torch.enable_grad():
            loss = self.loss.value(predict(x), check_batch(x, y)).mean()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    def at_new_batch(self, state: Any) -> Any:
        """What of a state outlives its batch where a recipe resets the states: what is not the batch's own; else None."""
        return None

    def pack_state(self, state: Any) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint. Empty where the rule keeps none."""
        return {}

    def unpack_state(self, tensors: dict[str, Tensor]) -> Any:
        """The inverse of `pack_state`; None for no tensors."""
        return None

    def statistics(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Numbers about one inference, for the record of a training run; empty for a rule that infers no states.

        "residual": how far one more update of every layer would move the states, relative to their displacement from the
        forward pass (see `states.residual`); "kink_crossing": per layer, the share of units whose nudges reach across a kink
        of the activation, where the difference of the states is not the derivative.
        """
        return {}

    @abstractmethod
    def gradients(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Infer, and return gradients, loss, logits and state; nothing that was passed in is changed."""

    def backward(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """The same, and add the gradients into `parameter.grad`, as `loss.backward()` does; any optimizer then steps."""
        outcome = self.gradients(network, x, y, state=state, generator=generator)
        for name, parameter in network.parameters.items():
            gradient = outcome.gradients[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return outcome


def check_batch(x: Tensor, y: Tensor) -> Tensor:
    """The targets as int64 indices (N,) or floating-point vectors (N, K).

    Raises SettingError unless x and y are a batch: as many targets as examples, at least one.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise SettingError(f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}. Use torch.as_tensor.")
    if x.dim() < 2 or x.shape[0] == 0:
        raise SettingError(f"x must hold a batch of at least one example, shape (N, …), got {tuple(x.shape)}.")
    if not x.dtype.is_floating_point:
        raise SettingError(f"x must be floating point, got {x.dtype}. Convert it, x.float() say.")
    if y.shape[:1] != x.shape[:1]:
        raise SettingError(f"x holds {x.shape[0]} examples but y has shape {tuple(y.shape)}. They must agree.")
    if y.dim() == 1 and (y.dtype.is_floating_point or y.dtype == torch.bool):
        raise SettingError(f"class indices y must be integers, got {y.dtype}. Convert them, y.long() say.")
    if y.dtype.is_floating_point:
        return y
    return y.long() if y.dim() == 1 else y.to(x.dtype)


def check_precision(network: Network, x: Tensor) -> None:
    """Raise SettingError where explicit inference would lose its small differences or its updates: half precision belongs to
    the products alone, under bfloat16 autocast, and not to parameters; float16 has no room for differences of 1e-8."""
    half = (torch.float16, torch.bfloat16)
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if autocast == torch.float16:
        raise SettingError(
            "explicit inference would lose its differences in float16. Use autocast in bfloat16, or engine='fused'."
        )
    if any(p.dtype in half for p in network.parameters.values()) or (x.dtype in half and autocast is None):
        raise SettingError(
            "explicit inference needs parameters and inputs of float32 or wider. For bfloat16 products use "
            "torch.autocast(device, torch.bfloat16)."
        )


def check_wide(x: Tensor, lost: str) -> None:
    """Raise SettingError in half precision, of inputs or by autocast; `lost` says what the rule would lose."""
    if x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type):
        raise SettingError(f"{lost} in half precision. Give it float32, outside autocast.")


def check_output(network: Network, loss: AbstractLoss) -> None:
    """Raise SettingError where the loss does not read what the network's output neuron gives: logits or probabilities."""
    loss.check_output(network.into(network.depth).neuron)


def check_targets(y: Tensor, logits: Tensor) -> None:
    """Raise SettingError where targets don't fit outputs (N, K). Index ranges are checked on the CPU, where it is free."""
    if logits.dim() != 2:
        raise SettingError(f"the network's outputs must have shape (N, K), got {tuple(logits.shape)}. Add nn.Flatten().")
    if y.dim() > 1 and y.shape != logits.shape:
        raise SettingError(f"target vectors y have shape {tuple(y.shape)} but the outputs {tuple(logits.shape)}.")
    if y.dim() == 1 and y.device.type == "cpu":
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= logits.shape[1]:
            raise SettingError(
                f"class indices must be in 0…{logits.shape[1] - 1}, got {low}…{high}. Give the model an output per class."
            )
