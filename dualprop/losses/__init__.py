"""Losses on the network's output: four by name, PyTorch's by type, and the user's own."""

from dualprop.losses import base, pytorch
from dualprop.losses.base import LOSSES, AbstractLoss, describe, from_name, targets, wide
from dualprop.losses.known import BinaryCrossEntropy, CrossEntropy, LogLoss, SquaredError
from dualprop.losses.own import OwnLoss, from_function
from dualprop.losses.pytorch import TorchLoss, from_torch

LOSSES.update({loss.name: loss for loss in (CrossEntropy, SquaredError, LogLoss, BinaryCrossEntropy)})
base.READERS[:] = [pytorch.read]

__all__ = [
    "LOSSES",
    "AbstractLoss",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "LogLoss",
    "OwnLoss",
    "SquaredError",
    "TorchLoss",
    "describe",
    "from_function",
    "from_name",
    "from_torch",
    "targets",
    "wide",
]
