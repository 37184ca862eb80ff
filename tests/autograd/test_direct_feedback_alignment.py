"""Direct feedback alignment: back-propagation where the matrices are the network's own Jacobians,
and its formula."""

import pytest
import torch
from comparison import assert_same, rounding
from networks import autograd_gradients, batch, conv_net, images, mlp
from torch import nn

import dualprop as dp
from dualprop.rules.direct_feedback_alignment import DirectFeedback

ROUNDING = rounding(1.0)


def drawn():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_with_the_jacobians_of_a_linear_network_it_is_back_propagation(loss):
    """A δ that is scaled, transposed or of another layer would still train, more slowly."""
    model, (x, y) = mlp("identity"), batch()
    weights = [module.weight.detach() for module in model if isinstance(module, nn.Linear)]
    above, matrices = torch.eye(len(weights[-1]), dtype=torch.float64), {}
    for k in range(len(weights) - 1, 0, -1):
        above = matrices[k] = above @ weights[k]
    out = dp.DirectFeedbackAlignment(loss=loss).gradients(dp.Network.from_module(model), x, y, DirectFeedback(matrices))
    assert_same(out.gradients, autograd_gradients(model, x, y, loss), ROUNDING)


@pytest.mark.parametrize("pool", ["before", "after"])
def test_each_hidden_error_is_the_outputs_through_its_own_matrix(pool):
    """Through pools, with the derivative at the drive: each layer by autograd of that layer
    alone."""
    model, (x, y) = conv_net("tanh", pool), images()
    network, rule = dp.Network.from_module(model), dp.DirectFeedbackAlignment()
    out, states = rule.gradients(network, x, y, generator=drawn()), [x]
    for k in range(1, network.depth + 1):
        a = network.into(k).forward(states)
        error = torch.softmax(model(x), 1) - nn.functional.one_hot(y, 3)
        if k < network.depth:
            error = (error @ out.state.matrices[k]).view_as(a) * (1 - a.tanh() ** 2)
        parameters = network.into(k).parameters
        expected = torch.autograd.grad((a * error.detach()).sum() / len(x), list(parameters.values()))
        named = dict(zip(parameters, expected, strict=True))
        assert_same({name: out.gradients[name] for name in named}, named, ROUNDING, f"layer {k}")
        states.append(network.into(k).neuron.f(a).detach())
    assert tuple(out.diagnostics[n] for n in ("drives", "feedbacks", "gradients")) == (
        network.depth,
        network.depth - 1,
        network.depth,
    )


def test_the_matrices_are_drawn_once_and_of_one_network():
    """Drawn anew for each batch, no weights could come to agree with them."""
    network, (x, y), rule = dp.Network.from_module(mlp("relu")), batch(), dp.DirectFeedbackAlignment()
    first = rule.gradients(network, x, y, generator=drawn())
    again = rule.gradients(network, x, y, state=rule.unpack_state(rule.pack_state(first.state)))
    assert_same(again.gradients, first.gradients, 0.0)
    with pytest.raises(dp.SettingError, match=r"pass generator=torch\.Generator"):
        rule.gradients(network, x, y)
    with pytest.raises(dp.SettingError, match=r"of another network\. Pass state=None"):
        rule.gradients(dp.Network.from_module(mlp("relu", widths=(5, 3, 4))), x, y, state=first.state)
    with pytest.raises(dp.SettingError, match=r"of another network\. Pass state=None"):
        rule.gradients(dp.Network.from_module(mlp("relu", widths=(5, 7, 4))), x, y, state=first.state)
    with pytest.raises(dp.SettingError, match="units are coupled"):
        rule.gradients(dp.Network.from_module(mlp("softmax")), x, y, generator=drawn())


def test_matrices_drawn_in_one_precision_serve_in_another():
    """Drawn under autocast, they are as wide as the parameters, and a later step outside goes on
    from them."""
    model, (x, y) = mlp("relu", dtype=torch.float32), batch(dtype=torch.float32)
    network, rule = dp.Network.from_module(model), dp.DirectFeedbackAlignment()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = rule.gradients(network, x, y, generator=drawn())
    assert all(matrix.dtype == torch.float32 for matrix in narrow.state.matrices.values())
    assert rule.gradients(network, x, y, state=narrow.state).status.ok
    wide = dp.Network.from_module(mlp("relu"))
    assert rule.gradients(wide, *batch(), state=narrow.state).status.ok
