"""The model of a run, ready for new examples: it normalises its inputs itself and knows the names
of its outputs.

    x  →  (x - mean) / std  →  the run's network  →  outputs

Shapes: N examples, C channels, H×W space, D features, K outputs.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualprop import softmax
from dualprop.data import Description
from dualprop.errors import SettingError
from dualprop.losses import BinaryCrossEntropy, CrossEntropy, LogLoss
from dualprop.network import Network
from dualprop.training.recipe import Recipe

# Pictures whose numbers span less than this share of those that were trained on are in other units.
_SMALL = 1 / 10
# The losses whose outputs are probabilities or their logits.
_OF_PROBABILITIES: dict[str, tuple[type, ...]] = {
    "classification": (CrossEntropy, LogLoss),
    "multilabel": (BinaryCrossEntropy,),
    "regression": (),
}


class Standardisation(nn.Module):
    """x ↦ (x - mean) / std, of images with a border of zeros around them first.

    Attributes:
        mean, std: in the units of x, see `data.Description`.
        border: rows and columns of zeros.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, border: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.mean.dtype)
        return ((F.pad(x, (self.border,) * 4) if self.border else x) - self.mean) / self.std


class Trained(nn.Module):
    """Outputs (N, K) for examples as the data set holds them: (N, C, H, W) or (N, D), numbers of
    any type, not normalised.

    It is in `eval()`. For outputs as words: `names`, `probabilities`, `predict`. A UserWarning
    tells of first examples whose numbers are in other units than those that were trained on.

    Attributes:
        network: the run's model, as plain as its recipe builds it, on normalised inputs.
        standardisation: what normalises them.
        description: what its inputs and outputs are.
        recipe: of the run.
    """

    def __init__(self, network: nn.Module, description: Description, recipe: Recipe) -> None:
        super().__init__()
        self.standardisation = Standardisation(description.mean, description.std, description.border)
        self.network, self.description, self.recipe = network, description, recipe
        if recipe.dtype == "float64":
            self.standardisation.double()
        self._read = Network.from_module(network) if recipe.rule.predicts_by_equilibrium else None
        self._is_checked = False
        self.eval()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K outputs: the classes, in order."""
        return self.description.task.names

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (N, K): logits of classes, where it learned by cross-entropy. Arrays and
        lists are taken too.

        Raises SettingError where an example has another shape.
        """
        x = x if isinstance(x, Tensor) else torch.as_tensor(x)
        shape = self.description.input_shape
        if tuple(x.shape[1:]) != shape:
            raise SettingError(f"x must have shape (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}.")
        if not self._is_checked and not torch.compiler.is_compiling():
            self._is_checked = True
            if told := self.doubt(x):
                warnings.warn(told, UserWarning, stacklevel=2)
        return self.of_normalised(self.standardisation(x))

    def of_normalised(self, x: Tensor) -> Tensor:
        """The outputs for normalised inputs, as the trainer's batches are."""
        if self._read is None:
            outputs: Tensor = self.network(x)
            return outputs
        with torch.no_grad():
            return self.recipe.rule.predict(self._read, x)

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Of each class, or of each label, (N, K). Raises SettingError where the outputs are
        none."""
        return self.as_probabilities(self(x))

    @property
    def gives_probabilities(self) -> bool:
        """Whether its outputs are probabilities, or their logits: where it learned by a loss of
        these."""
        return isinstance(self.recipe.rule.loss, _OF_PROBABILITIES[self.description.task.kind])

    def as_probabilities(self, outputs: Tensor) -> Tensor:
        """Those of outputs. Raises SettingError where they are none."""
        if not self.gives_probabilities:
            raise SettingError(
                f"it learned by {self.recipe.rule.loss.name}, and its outputs are no probabilities. Take them as they are: "
                "model(x)."
            )
        if self.description.task.kind == "multilabel":
            return outputs.sigmoid()
        return outputs if isinstance(self.recipe.rule.loss, LogLoss) else softmax.softmax(outputs, 1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> list[str]:
        """The name of the class of each example. Raises SettingError where it predicts no classes,
        and where an example's outputs are no numbers, as of one with gaps."""
        if self.description.task.kind != "classification":
            raise SettingError(f"it predicts {self.description.task}, and no classes. Take its outputs: model(x).")
        outputs = self(x)
        if not torch.isfinite(outputs).all():
            raise SettingError(
                "x holds NaN or numbers beyond the model's, and no class follows from that. Fill gaps, with "
                "model.description.mean say, as dualprop predict does."
            )
        return [self.names[k] for k in outputs.argmax(1).tolist()]

    def doubt(self, x: Tensor) -> str:
        """Why the numbers of examples seem to be in other units than those that were trained on, in
        a sentence; empty where they don't."""
        if not x.numel():
            return ""
        lowest, largest = float(x.min()), float(x.max())
        known = self.description
        span = known.largest - known.lowest
        # Pixels end at black and white; a table may go on beyond what it had.
        below, above = (0.0, known.white) if known.white else (known.lowest - span, known.largest + span)
        is_beyond = lowest < below or largest > above
        is_small = known.is_image and x.is_floating_point() and 0 < largest - lowest <= _SMALL * span
        if not (is_beyond or is_small):
            return ""
        return (
            f"the inputs have numbers from {lowest:.4g} to {largest:.4g}, and training had {known.lowest:.4g} to "
            f"{known.largest:.4g}: give them as the data set holds them, not normalised."
        )
