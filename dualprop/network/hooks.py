"""Derivatives of local tapes, and what they keep apart from the user's own backward pass.

Inference takes many derivatives by parameters. They set off none of the parameters' own hooks: such
a hook is meant for the gradient that reaches `.grad`, and there it runs once (`rules.delivery`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dualprop.errors import SettingError


def end_here(leaf: Tensor) -> None:
    """Refuse a backward pass of the user's own at a leaf where a local tape begins.

    A loss on what the model has kept would teach one layer, and none below. The library's own
    derivatives accumulate nothing there.
    """
    leaf.register_post_accumulate_grad_hook(_refuse)


def _refuse(leaf: Tensor) -> None:
    leaf.grad = None
    raise SettingError(
        "a loss reads what the model kept of its forward pass (an attribute, a hook's output), which inference cuts at every "
        "activation: the layers below would not learn from it. Detach it, or use dp.dualize(model) and its own loss."
    )


def gradients_by(output: Any, parameters: Sequence[Tensor], cotangent: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """`torch.autograd.grad` by `parameters`, without their tensor hooks; each its `own`."""
    with silenced(parameters):
        return own(torch.autograd.grad(output, parameters, cotangent, **options))


def own(gradients: Iterable[Any]) -> tuple[Any, ...]:
    """Each gradient in memory of its own, so that it may be written into.

    Autograd gives one tensor to several parameters where they were merely added, in a batch of one
    say.
    """
    taken: set[int] = set()
    return tuple(_apart(gradient, taken) for gradient in gradients)


def _apart(gradient: Any, taken: set[int]) -> Any:
    """The gradient, or a copy where its memory is among those taken."""
    if gradient is None or gradient.layout != torch.strided:  # None is what allow_unused gives
        return gradient
    address = gradient.untyped_storage().data_ptr()
    if address and address in taken:
        return gradient.clone()
    taken.add(address)
    return gradient


@contextmanager
def silenced(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, no tensor hook of these runs."""
    # Autograd reads this dict whenever it runs. An alias in the module's place would change the
    # module for whoever else looks at it.
    held = [(hooks, list(hooks.items())) for p in parameters if (hooks := p._backward_hooks)]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, each in held:
            hooks.update(each)
