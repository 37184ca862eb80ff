"""What can't be done is refused in one line that names the remedy; nothing is trained silently by
something else."""

import re

import pytest
import torch
from networks import batch, mlp
from torch import nn

import dualprop as dp
from dualprop.network import Layer
from dualprop.network.synapses import Synapse


class OwnForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(5, 5)

    def forward(self, x):
        return self.one(x).relu()


class Bare(nn.Module):
    def forward(self, x):
        return 2 * x


class NotQuiteReLU(nn.ReLU):
    def forward(self, x):
        return super().forward(x) ** 2


def hooked():
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    return model


def patched():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    model.forward = lambda x: x
    return model


def shared_module():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied_weight():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def frozen():
    return nn.Sequential(nn.Linear(5, 4)).requires_grad_(False)


def after(*modules):
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), *modules)


UNSUPPORTED = {
    "dropout": (lambda: after(nn.Dropout(0.5)), r"layer 2 holds Dropout\(p=0.5.*\('2'\).*Remove it, or use dp\.dualize"),
    "dropout of maps": (lambda: after(nn.Dropout2d()), "drawn? anew at each evaluation"),
    "batch norm": (lambda: after(nn.BatchNorm1d(4)), r"BatchNorm1d.*tie the examples.*[Uu]se GroupNorm, or dp\.dualize"),
    "softmax over the batch": (
        lambda: after(nn.Softmax(0)),
        r"layer 2 holds Softmax\(dim=0\).*Use nn\.Softmax\(dim=1\)",
    ),
    "softmax over a guessed dim": (lambda: after(nn.Softmax()), r"got None\. Use nn\.Softmax\(dim=1\)"),
    "softmin": (lambda: after(nn.Softmin(1)), r"couples units.*losses\.CrossEntropy\(\) works on logits"),
    "log-softmax": (lambda: after(nn.LogSoftmax(1)), "drop it"),
    "GELU": (lambda: after(nn.Linear(4, 4), nn.GELU()), r"GELU.*not monotone.*Use ReLU or LeakyReLU, or dp\.dualize"),
    "SiLU": (lambda: after(nn.SiLU()), "not monotone"),
    "Hardsigmoid": (lambda: after(nn.Hardsigmoid()), r"papers' hard sigmoid is Hardtanh\(0, 1\)"),
    "Softplus": (lambda: after(nn.Softplus()), r"neither a known activation \(.*ReLU.*\) nor a known map\. Replace it, or use"),
    "PReLU": (lambda: after(nn.PReLU()), "neither a known activation"),
    "recurrent": (lambda: after(nn.LSTM(4, 4)), "LSTM"),
    "attention": (lambda: after(nn.TransformerEncoderLayer(4, 1)), r"TransformerEncoderLayer.*can't be split"),
    "subclass of an activation": (lambda: nn.Sequential(nn.Linear(5, 4), NotQuiteReLU()), "can't be split|neither"),
    "own module": (
        lambda: nn.Sequential(Custom()),
        r"layer 1 holds Custom \('0'\).*also_allow=.*dualize",
    ),
    "bare module": (lambda: after(Bare()), r"Bare.*also_allow="),
    "whole model of one's own": (Custom, "Custom.*can't be split at its activations"),
    "Sequential with a forward": (lambda: OwnForward(nn.Linear(5, 4)), "forward of its own.*Use a plain nn.Sequential"),
    "Sequential with a patched forward": (patched, "forward of its own"),
    "Sequential with hooks": (hooked, r"'0' is an nn\.Sequential with forward hooks.*Remove them"),
    "module in two places": (shared_module, r"'2'.*shares parameters with '0'.*Give each place its own module"),
    "tied weight": (tied_weight, "shares parameters with '0'"),
    "leaky slope 0": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(0.0)), r"layer 1 holds LeakyReLU.*For 0 use ReLU"),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_a_model_that_cant_be_split_is_run_and_told_why(what):
    """Split wrongly it would train, with plain derivatives where dyads were promised."""
    make, message = UNSUPPORTED[what]
    model = make()
    before = [(name, id(m)) for name, m in model.named_modules()]
    network = dp.Network.from_module(model)
    assert network.is_recorded
    assert re.search(message, repr(network))
    assert [(name, id(m)) for name, m in model.named_modules()] == before


@pytest.mark.parametrize("make", [nn.Sequential, frozen, lambda: nn.Sequential(nn.ReLU())], ids=["none", "frozen", "ReLU"])
def test_a_model_without_anything_to_train_is_refused_by_name(make):
    with pytest.raises(dp.UnsupportedModuleError, match=r"no trainable parameter. Set requires_grad=True"):
        dp.Network.from_module(make())


def test_a_module_that_the_user_vouches_for_may_stand_in_a_synapse():
    """also_allow is the remedy that a refusal names: it must work."""
    model = nn.Sequential(nn.Linear(5, 4), Bare(), nn.ReLU(), nn.Linear(4, 3)).double()
    assert dp.Network.from_module(model, also_allow=[Bare]).depth == 2
    x, y = batch(classes=3)
    found = dp.DualPropagation(beta=1e-4).gradients(dp.Network.from_module(model, also_allow=[Bare]), x, y).gradients
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for (name, gradient), wanted in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("sources", [(), (0, 0), (2,), (1,), (-1,)])
def test_a_layer_must_read_earlier_layers(sources):
    """A layer that reads itself or a later one has no forward pass."""
    synapses = tuple(Synapse({"0": nn.Linear(5, 5)}) for _ in sources)
    with pytest.raises(dp.SettingError, match="layer 1 must read earlier layers, each once"):
        dp.Network([Layer(synapses, dp.neurons.ReLU(), sources)])


WRONG_RULES = [
    ({"coupling": "dp"}, "coupling must be one of 'original', 'transposed', got 'dp'"),
    ({"start": "random"}, "start must be one of 'forward', 'zeros', 'previous'"),
    ({"output_nudge": "soft"}, "output_nudge must be one of"),
    ({"linearize_at": "mean"}, "linearize_at must be one of 'current', 'forward', None"),
    ({"engine": "fast"}, "engine must be one of 'auto', 'explicit', 'fused'"),
    ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
    ({"alpha": -0.1}, r"alpha must be in \[0, 1\]"),
    ({"alpha": float("nan")}, r"alpha must be in \[0, 1\]"),
    ({"beta": 0.0}, "beta must be positive and finite, got 0"),
    ({"beta": -1}, "beta must be positive"),
    ({"beta": float("inf")}, "beta must be positive and finite"),
    ({"beta": float("nan")}, "beta must be positive and finite"),
    ({"beta": ()}, "beta must be positive"),
    ({"beta": (1.0, 0.0)}, "beta must be positive"),
    ({"damping": (-1.0,)}, "damping must be at least 0 and finite"),
    ({"damping": (float("nan"),)}, "damping must be at least 0 and finite"),
    ({"damping": "spectrum"}, "damping must be 'spectral', 'spectral_full', a number, or one number per layer"),
    ({"tolerance": 0.0}, "tolerance must be positive and finite"),
    ({"tolerance": float("nan")}, "tolerance must be positive and finite"),
    ({"tolerance": 0.1, "schedule": "random_order(9)"}, "tolerance needs a schedule of passes"),
    ({"tolerance": 0.1, "schedule": (2, 1)}, "tolerance needs a schedule of passes"),
    ({"tolerance": 0.1, "engine": "fused"}, "engine='fused' needs tolerance=None"),
    ({"output_nudge": "exact", "linearize_at": "forward"}, "linearize_at has no meaning.*Leave it at None"),
    ({"engine": "fused", "schedule": "bottom_up(2)"}, r"engine='fused' needs schedule=.*Use engine='explicit'"),
    ({"engine": "fused", "start": "zeros"}, "engine='fused' needs start='forward'"),
    ({"engine": "fused", "output_nudge": "exact"}, "engine='fused' needs output_nudge='linearized'"),
    ({"engine": "fused", "damping": (1.0,)}, "engine='fused' needs damping=None"),
    ({"loss": "hinge"}, "unknown loss 'hinge'"),
    ({"schedule": "upward(2)"}, "unknown schedule 'upward'"),
    ({"schedule": []}, "non-empty sequence"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_RULES)
def test_a_setting_out_of_range_is_refused_when_the_rule_is_made(settings, message):
    """Later it would be a NaN, or a silent run with the default."""
    with pytest.raises(dp.SettingError, match=message) as refusal:
        dp.DualPropagation(**settings)
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, ValueError)


def test_a_rule_can_not_be_changed_after_it_was_checked():
    """Frozen: a changed alpha would escape its check."""
    with pytest.raises(AttributeError):
        dp.DualPropagation().alpha = 2.0


X, Y = batch()

WRONG_CALLS = [
    ({"beta": (1.0, 1.0)}, {}, "beta lists 2 values, but it is of 4 layers, 1 to 4. Give one per layer"),
    ({"beta": (1.0, 1.0), "engine": "fused"}, {}, "beta lists 2 values, but it is of 4 layers"),
    ({"beta": (1.0,) * 5}, {}, "beta lists 5 values, but it is of 4 layers, 1 to 4"),
    ({"damping": (1.0,)}, {}, "damping lists 1 values, but it is of 3 layers, 1 to 3"),
    ({"damping": (1.0,) * 4}, {}, "damping lists 4 values, but it is of 3 layers, 1 to 3"),
    ({"schedule": [5, 1]}, {}, "names layer 5, but the network has layers 1 to 4"),
    ({"schedule": "random_order(3)"}, {}, r"pass generator=torch\.Generator\(\)\.manual_seed"),
    ({}, {"x": X[0]}, r"shape \(N, …\), got \(5,\)"),
    ({}, {"x": X[:0], "y": Y[:0]}, "at least one example"),
    ({}, {"x": X.long()}, r"x must be floating point, got torch\.int64.*x\.float\(\)"),
    ({}, {"x": X[:, :4]}, r"can't read a state of shape \(6, 4\).*Check the shape and dtype of x"),
    ({}, {"x": X.float()}, r"can't read a state of shape \(6, 5\) and torch\.float32"),
    ({}, {"y": Y[:4]}, r"x holds 6 examples but y has shape \(4,\). They must agree"),
    ({}, {"y": Y.double()}, r"class indices y must be integers, got torch\.float64.*y\.long\(\)"),
    ({}, {"y": Y > 1}, "class indices y must be integers, got torch.bool"),
    ({}, {"y": torch.tensor([0, 1, 2, 3, 4, 0])}, "class indices must be in 0…3, got 0…4"),
    ({}, {"y": torch.tensor([0, 1, 2, 3, -1, 0])}, "class indices must be in 0…3, got -1"),
    ({}, {"y": torch.zeros(6, 3)}, r"target vectors y have shape \(6, 3\) but the outputs \(6, 4\)"),
]


# The fused engine infers no dyads, and says so in a test of its own.
@pytest.mark.parametrize(
    ("method", "settings", "changed", "message"),
    [
        (method, *call)
        for method in ("gradients", "backward", "infer")
        for call in WRONG_CALLS
        if method != "infer" or call[0].get("engine") != "fused"
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_nothing_is_changed(settings, changed, message, method):
    """A class index that wraps around, or targets that broadcast, would train on other labels."""
    model = mlp()
    call = getattr(dp.DualPropagation(**settings), method)
    arguments = {"x": X, "y": Y} | changed
    with pytest.raises(dp.SettingError, match=message) as refusal:
        call(dp.Network.from_module(model), arguments["x"], arguments["y"])
    assert "\n" not in str(refusal.value)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("rule", [dp.Backprop(), dp.DualPropagation(engine="fused")], ids=["backprop", "fused"])
@pytest.mark.parametrize(("changed", "message"), [case[1:] for case in WRONG_CALLS if not case[0]])
def test_the_other_engines_refuse_the_same_batches(rule, changed, message):
    """Autograd's own message would name none of the user's arguments."""
    arguments = {"x": X, "y": Y} | changed
    if "can't read" in message:
        message = "can't read"
    with pytest.raises(dp.SettingError, match=message) as refusal:
        rule.gradients(dp.Network.from_module(mlp()), arguments["x"], arguments["y"])
    assert "\n" not in str(refusal.value)


def test_outputs_that_are_not_vectors_are_refused():
    """A loss over (N, C, H, W) would be summed over the wrong axes."""
    model = nn.Sequential(nn.Conv1d(1, 4, 3)).double()
    with pytest.raises(dp.SettingError, match=r"\(N, K\), got \(6, 4, 3\).*nn\.Flatten"):
        dp.DualPropagation().gradients(dp.Network.from_module(model), X.unsqueeze(1), Y)


def test_a_state_of_another_batch_size_is_refused():
    """The last, smaller batch of an epoch meets a lazy start here."""
    network, rule = dp.Network.from_module(mlp()), dp.DualPropagation(start="previous")
    state = rule.infer(network, X, Y)
    with pytest.raises(dp.SettingError, match=r"previous state has shapes.*Keep the batch size.*or pass state=None"):
        rule.gradients(network, X[:3], Y[:3], state=state)


def test_fused_infers_no_dyads():
    """Returning forward states instead would look like dyads with no difference."""
    with pytest.raises(dp.SettingError, match=r"engine='fused' holds no dyads\. Use engine='explicit'"):
        dp.DualPropagation(engine="fused").infer(dp.Network.from_module(mlp()), X, Y)


def test_explicit_inference_refuses_float16():
    """It has no room for differences of 1e-8: they would be zero with a status of ok."""
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(dp.SettingError, match="lose its differences in float16"):
        dp.DualPropagation().gradients(dp.Network.from_module(mlp()), X, Y)


def test_an_unknown_rule_is_named_with_the_nearest():
    """A misspelt rule must not fall back to another."""
    with pytest.raises(dp.SettingError, match=r"unknown rule 'dualpropagation'.*Did you mean 'dual_propagation'"):
        dp.rules.from_name("dualpropagation")
