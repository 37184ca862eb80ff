"""A rule called like a loss: its gradients reach `.grad` by autograd's own accumulation.

    loss = rule(network, x, y)      inference; the mean loss of the prediction, shape ()
    loss.backward()                 adds g ∂L/∂loss into .grad, for each parameter's gradient g

L is what the user makes of the loss: `loss / 4`, a scaler's multiple, a sum of losses. That scales
the gradients, and not the nudge. Parameters'
hooks, a DistributedDataParallel's reducer, and whatever else waits for a gradient is served.

A parameter that the prediction does not depend on gets no gradient, and not one of zero.

A second backward needs retain_graph, as after any loss. Gradients of gradients are refused, and so
are x and y that ask for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from dualprop.errors import SettingError
from dualprop.network import Network
from dualprop.network.wrappers import wrapper_to_run
from dualprop.rules.outcome import Outcome

_LOOK = "dualprop: looked at"
# The outcome of a batch, and the parameters that its gradients are delivered to.
Inferred = tuple[Outcome, dict[str, nn.Parameter]]
Infer = Callable[[Any, Tensor], Inferred]


def loss(network: Network, x: Any, y: Tensor, infer: Infer) -> Tensor:
    """The outcome's loss, in a graph that delivers the gradients. `loss.outcome` is the outcome."""
    _check_detached(x=x, y=y)
    delivered, outcome = _connected(network, x, y, infer)
    delivered.outcome = outcome  # type: ignore[attr-defined]
    return delivered


def deliver(network: Network, x: Any, y: Tensor, infer: Infer) -> Outcome:
    """The outcome, its gradients delivered."""
    _check_detached(x=x, y=y)
    with torch.enable_grad():
        if _wrapper(network) is None:
            outcome, parameters = infer(x, y)
            _accumulate({p: outcome.gradients[name] for name, p in parameters.items()})
            return outcome
        delivered, outcome = _connected(network, x, y, infer, is_whole=True)
    delivered.backward()
    return outcome


def _check_detached(**given: Any) -> None:
    """Raise SettingError where x or y asks for a gradient, which no rule has."""
    for name, value in given.items() if torch.is_grad_enabled() else ():
        if any(isinstance(part, Tensor) and part.requires_grad for part in tree_leaves(value)):
            raise SettingError(
                f"{name} requires a gradient, but a rule gives one to its network's parameters alone. Pass {name}.detach()."
            )


def _accumulate(gradients: dict[nn.Parameter, Tensor]) -> None:
    """Add gradients into `.grad`, by autograd where anything waits for one."""
    watched = {p: gradients[p] for p in _watched(list(gradients))}
    with torch.no_grad():
        for p in gradients.keys() - watched.keys():
            if p.grad is None:
                p.grad = _laid_out_as(p, gradients[p])
            else:
                p.grad.add_(gradients[p])
    if watched:
        torch.autograd.backward(list(watched), [_own(gradient) for gradient in watched.values()])


def _watched(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those with hooks, or whose node that accumulates their gradient something holds.

    Such a node, on which hooks can stand, else lives no longer than a look at it.
    """
    if not parameters:
        return []
    for node in _accumulators(parameters):
        node.metadata[_LOOK] = True
        del node
    held = [node.metadata.pop(_LOOK, None) is not None for node in _accumulators(parameters)]
    return [
        p
        for p, is_held in zip(parameters, held, strict=True)
        if is_held or p._backward_hooks or p._post_accumulate_grad_hooks or (p.grad is not None and p.grad.requires_grad)
    ]


def _accumulators(parameters: list[nn.Parameter]) -> Iterator[Any]:
    """The nodes that accumulate the parameters' gradients."""
    with torch.enable_grad():
        seen: Any = _Seen.apply(*parameters)
    return (node for node, _ in seen.grad_fn.next_functions)


class _Seen(torch.autograd.Function):
    """A function of parameters, by which their nodes are found at once."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, ...]:
        raise AssertionError("nobody differentiates it")


def _wrapper(network: Network) -> DistributedDataParallel | None:
    """The wrapper whose forward must run around the inference."""
    if network.module is None or not torch.is_grad_enabled():
        return None
    return wrapper_to_run(network.module, network.wrapper)


def _connected(network: Network, x: Any, y: Tensor, infer: Infer, is_whole: bool = False) -> tuple[Tensor, Outcome]:
    inference = _Inference(infer, is_whole)
    wrapper = _wrapper(network)
    if wrapper is None:
        delivered = inference(x, y)
    else:
        # The wrapper's forward broadcasts buffers, prepares its reducer and looks for parameters
        # without a gradient in the graph of what comes out. It does so around any module.
        module = wrapper._modules["module"]
        inference.stands_for = (wrapper.module,)
        wrapper._modules["module"] = inference
        try:
            delivered = wrapper(x, y)
        finally:
            wrapper._modules["module"] = module
    assert inference.outcome is not None
    return delivered, inference.outcome


class _Inference(nn.Module):
    """A rule's inference as a module, which a wrapper runs in its own module's place.

    `is_whole`: the loss is what is differentiated, with nothing between, so that ∂L/∂loss is 1.
    """

    def __init__(self, infer: Infer, is_whole: bool) -> None:
        super().__init__()
        self.infer, self.is_whole = infer, is_whole
        self.outcome: Outcome | None = None
        # In a tuple, so that PyTorch does not take it for a part.
        self.stands_for: tuple[nn.Module, ...] = ()

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Those of the module in whose place it runs, which the wrapper broadcasts."""
        for module in self.stands_for:
            yield from module.named_buffers(*args, **kwargs)

    def forward(self, x: Any, y: Tensor) -> Tensor:
        outcome, parameters = self.infer(x, y)
        self.outcome = outcome
        gradients = [outcome.gradients[name] for name in parameters]
        return _Delivery.apply(outcome.loss, self.is_whole, gradients, *parameters.values())


class _Delivery(torch.autograd.Function):
    """The loss as a function of the parameters, with the given gradients for its derivatives."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, is_whole: bool, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.is_whole = is_whole
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SettingError("a rule's gradients are numbers without a derivative of their own. Leave out create_graph=True.")
        (scale,) = scales
        # On a GPU the question would wait for the device.
        is_one = ctx.is_whole or (scale.device.type == "cpu" and float(scale) == 1)
        return None, None, None, *(_own(g) if is_one else g * scale.to(g.device) for g in ctx.saved_tensors)


def _laid_out_as(p: nn.Parameter, gradient: Tensor) -> Tensor:
    """The gradient as autograd accumulates it: a fused optimizer walks both as memory lies."""
    return _own(gradient) if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient)


def _own(gradient: Tensor) -> Tensor:
    """A tensor of the same numbers that may be written into, copied only then if it can be."""
    if gradient.device.type != "cpu":
        return gradient.clone()
    try:
        return gradient._lazy_clone()
    except (AttributeError, RuntimeError):
        return gradient.clone()
