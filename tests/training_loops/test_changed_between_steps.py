"""A model that changes while it is trained is learned as it is now, or it is refused."""

import pytest
import torch
from comparison import assert_same
from loops import RULES, Residual, assert_as_plain, batch, chain, made
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import dualprop as dp

every_model = pytest.mark.parametrize("make", [Residual, chain])
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def patched(model):
    forward = model.forward
    model.forward = lambda x: 2 * forward(x)


def leaky():
    return nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.1), nn.Linear(8, 4))


def convolution():
    return nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(15, 4))


# What the layers of a split model were made of, and how it is told.
CHANGES = {
    "a parametrization": (chain, lambda m: parametrize.register_parametrization(m[0], "weight", Halved()), r"'0\.param"),
    "a norm": (chain, lambda m: parametrizations.weight_norm(m[3]), r"'3\.parametrizations' was exchanged or added"),
    "pruning": (chain, lambda m: prune.l1_unstructured(m[3], "weight", 0.5), "'3' has other parts"),
    "a hook of the whole": (chain, lambda m: m.register_forward_hook(lambda *args: 2 * args[-1]), "the model has other"),
    "a hook before the whole": (chain, lambda m: m.register_forward_pre_hook(lambda *args: None), "the model has other"),
    "the whole's forward": (chain, patched, "the model has other parts, hooks or settings, or another forward"),
    "a layer more": (chain, lambda m: m.append(nn.Linear(4, 4)), "'6' was exchanged or added"),
    "an activation more": (chain, lambda m: m.append(nn.Tanh()), "'6' was exchanged or added"),
    "a layer less": (chain, lambda m: m.pop(5), "the model has other parts"),
    "a layer of another type": (chain, lambda m: setattr(m[0], "__class__", type("Mine", (nn.Linear,), {})), "'0' has other"),
    "a slope": (leaky, lambda m: setattr(m[1], "negative_slope", 0.9), "'1' has other parts, hooks or settings"),
    "a padding": (convolution, lambda m: setattr(m[1], "padding_mode", "circular"), "'1' has other"),
}


@every_rule
@pytest.mark.parametrize("change", CHANGES)
def test_a_split_model_that_was_changed_is_refused_until_it_is_read_again(rule, change):
    """Its layers are those of then: a part would be left out, or learn by another function."""
    make, changed, message = CHANGES[change]
    model, (x, y) = made(make), batch()
    network = dp.Network.from_module(model)
    rule(network, x, y)
    changed(model)
    with pytest.raises(dp.SettingError, match=rf"{message}.*Read it again"):
        rule(network, x, y)
    if change != "a layer more":  # which is not of float64
        rule(dp.Network.from_module(model), x, y).backward()


def scaled(model):
    return {name: 2 * value if value.is_floating_point() else value.clone() for name, value in model.state_dict().items()}


def layer(model):
    return model[3] if isinstance(model, nn.Sequential) else model.branch


# What is read anew in every step, of any model.
ALLOWED = {
    "a new parameter": lambda m: setattr(layer(m), "weight", nn.Parameter(2 * layer(m).weight.detach())),
    "data": lambda m: setattr(layer(m).weight, "data", 2 * layer(m).weight.detach()),
    "a state_dict": lambda m: m.load_state_dict(scaled(m)),
    "a state_dict that is assigned": lambda m: m.load_state_dict(scaled(m), assign=True),
    "no bias": lambda m: setattr(layer(m), "bias", None),
    "frozen": lambda m: layer(m).requires_grad_(False),
    "frozen but one": lambda m: (m.requires_grad_(False), layer(m).weight.requires_grad_(True)),
    "there and back": lambda m: m.float().double(),
    "evaluation": lambda m: m.eval(),
    "an attribute of the user's": lambda m: setattr(layer(m), "note", "seen"),
}


@every_rule
@every_model
@pytest.mark.parametrize("change", ALLOWED)
def test_weights_and_modes_may_change_between_steps(rule, make, change):
    def loop(model, loss):
        loss(*batch()).backward()
        ALLOWED[change](model)
        model.zero_grad()
        loss(*batch()).backward()

    assert_as_plain(rule, lambda: made(make), loop)


@every_rule
@every_model
def test_a_mode_that_changes_between_forward_and_backward_changes_nothing(rule, make):
    def loop(model, loss):
        each = loss(*batch())
        model.eval()
        each.backward()
        model.train()

    assert_as_plain(rule, lambda: made(make), loop)


@pytest.mark.parametrize("rule", [*RULES.values(), dp.DirectFeedbackAlignment()], ids=[*RULES, "dfa"])
@every_model
def test_a_model_that_was_frozen_as_a_whole_is_refused_by_name(rule, make):
    model, (x, y) = made(make), batch()
    network = dp.Network.from_module(model)
    model.requires_grad_(False)
    with pytest.raises(dp.SettingError, match="no parameter of the network asks for a gradient"):
        rule(network, x, y, generator=torch.Generator())


def test_the_feedback_of_dfa_stays_what_it_is_in_a_loop_that_hands_on_no_state():
    """New matrices in every step would be noise, to which no weights can align."""
    network, generator, rule = (
        dp.Network.from_module(made(chain)),
        torch.Generator().manual_seed(3),
        dp.DirectFeedbackAlignment(),
    )
    first = rule(network, *batch(), generator=generator).outcome
    torch.rand(5, generator=generator)
    again = rule(network, *batch(), generator=generator).outcome
    kept = rule(network, *batch(), state=first.state).outcome
    assert_same(again.gradients, first.gradients, 0.0)
    assert_same(kept.gradients, first.gradients, 0.0)


def test_a_lazy_module_without_a_size_is_refused_by_name():
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.Linear(8, 4)).double()
    with pytest.raises(dp.UnsupportedModuleError, match=r"'1\.running_mean' is of a lazy module.*Run it once"):
        dp.Network.from_module(model)
    x, y = batch()
    with torch.no_grad():
        model(x)
    dp.DualPropagation()(dp.Network.from_module(model), x, y).backward()
