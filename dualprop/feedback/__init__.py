"""Separate feedback weights, through which errors come back. `convert` gives them to any model."""

from dualprop.feedback.conversion import convert
from dualprop.feedback.modules import (
    FEEDBACK_MODULES,
    KINDS,
    AbstractFeedback,
    FeedbackConv1d,
    FeedbackConv2d,
    FeedbackConv3d,
    FeedbackLinear,
    Kind,
    WeightAlignment,
    alignment,
    backward_weight,
    exact,
    in_autocast,
)

__all__ = [
    "FEEDBACK_MODULES",
    "KINDS",
    "AbstractFeedback",
    "FeedbackConv1d",
    "FeedbackConv2d",
    "FeedbackConv3d",
    "FeedbackLinear",
    "Kind",
    "WeightAlignment",
    "alignment",
    "backward_weight",
    "convert",
    "exact",
    "in_autocast",
]
