"""The running mean of a model's weights, which a recipe may have validated and tested in their
place."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def running_mean(model: nn.Module, steps: float) -> AveragedModel | None:
    """A copy of the model that becomes the mean over about so many steps, of its buffers too: by
    each `update_parameters(model)` a ← a + (w - a) / steps, the first time a ← w. None of 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / steps), use_buffers=True) if steps else None
