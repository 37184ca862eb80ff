"""Networks that are read by running them: as split ones, one model a step, right gradients."""

import random

import pytest
import torch
from comparison import assert_same
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.network.recorded import RecordedNetwork

N, CLASSES = 6, 4
RULES = {
    "dp": dp.DualPropagation(engine="explicit", beta=0.3),
    "dp, two rounds": dp.DualPropagation(engine="explicit", beta=0.3, schedule="alternating_sweeps(2)"),
    "dp, alpha 0": dp.DualPropagation(engine="explicit", beta=0.1, alpha=0.0),
    "dp, bottom up": dp.DualPropagation(engine="explicit", beta=0.3, schedule="bottom_up(5)"),
    "dp, synchronous": dp.DualPropagation(engine="explicit", beta=0.3, schedule="synchronous(5)"),
    "dp, from zeros": dp.DualPropagation(engine="explicit", beta=0.1, schedule="up_down(3)", start="zeros"),
    "dp, damped": dp.DualPropagation(engine="explicit", beta=0.3, schedule="alternating_sweeps(3)", damping=0.5),
    "dp, exact nudge": dp.DualPropagation(engine="explicit", beta=0.3, output_nudge="exact"),
    "dp, betas": dp.DualPropagation(engine="explicit", beta=(0.1, 0.2, 0.4)),
    "dp transposed": dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=0.3),
    "dp fused": dp.DualPropagation(engine="fused", beta=0.3),
    "ep": dp.EquilibriumPropagation(beta=0.1),
    "ep, two pairs": dp.EquilibriumPropagation(beta=0.1, relaxation="error_sweeps(2)"),
    "ep, blocks": dp.EquilibriumPropagation(beta=0.1, relaxation="blocks(even_odd(6))"),
    "ep, forward": dp.EquilibriumPropagation(beta=0.1, estimator="forward"),
    "pc": dp.PredictiveCoding(beta=0.1, steps=6),
    "pc, fixed": dp.PredictiveCoding(beta=0.1, steps=6, predictions="fixed"),
    "bp": dp.Backprop(),
}
SMOOTH = ("dp", "dp, alpha 0", "dp transposed", "dp fused", "ep")


def mlp(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 7), activation(), nn.Sequential(nn.Linear(7, 8), activation()), nn.Linear(8, CLASSES)
    ).double()


def batch(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, *shape, generator=generator).double(), torch.arange(N) % CLASSES


def exact(model, x, y):
    """Autograd's gradients, and the model as one forward pass leaves it."""
    loss = F.cross_entropy(model(x), y)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def worst(gradients, expected):
    """The name and relative error of the gradient that is furthest off."""
    errors = {name: float((gradients[name] - each).norm() / each.norm()) for name, each in expected.items()}
    return max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_chain_that_is_run_gives_what_its_synapses_give(rule, activation):
    """Both are the same network: another result is a wrong drive, feedback or gradient in one."""
    model, (x, y) = mlp(activation), batch(5)
    split, run = dp.Network.from_module(model), RecordedNetwork(model)
    assert not split.is_recorded
    one, other = rule.gradients(split, x, y), rule.gradients(run, x, y)
    assert other.unsettled == one.unsettled
    assert torch.equal(one.logits, other.logits)
    name, error = worst(other.gradients, one.gradients)
    assert error < 1e-11, (name, error)


FROM_STATES = {
    "l-dp": dp.DualPropagation(engine="explicit", beta=0.3, schedule="up_down(1)", start="previous"),
    "pc, one step": dp.PredictiveCoding(beta=0.5, steps=1, start="previous"),
}


@pytest.mark.parametrize("same_batch", [True, False], ids=["several updates a batch (MS-DP)", "the next batch (L-DP)"])
@pytest.mark.parametrize("rule", FROM_STATES.values(), ids=FROM_STATES)
def test_states_of_before_are_taken_up_as_by_synapses(rule, same_batch):
    """A state that is lost, or of another moment, gives the gradients of a fresh start."""
    models = [mlp(nn.Tanh), mlp(nn.Tanh)]
    networks = [dp.Network.from_module(models[0]), RecordedNetwork(models[1])]
    x, y = batch(5)
    states = [None, None]
    for step in range(4):
        x = x if same_batch else x.roll(1, 0) + 0.1
        outs = [rule.gradients(n, x, y, state=state) for n, state in zip(networks, states, strict=True)]
        assert_same(outs[1].gradients, outs[0].gradients, 1e-11)
        fresh = rule.gradients(networks[1], x, y)
        first = "0.weight"
        assert step == 0 or float((outs[1].gradients[first] - fresh.gradients[first]).norm()) > 1e-5
        states = [out.state for out in outs]
        for model, out in zip(models, outs, strict=True):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter -= 0.05 * out.gradients[name]


@pytest.mark.parametrize("kind", dp.feedback.KINDS)
@pytest.mark.parametrize("rule", ["dp", "dp transposed", "dp fused", "ep"])
def test_errors_of_a_residual_network_come_back_through_feedback_weights(rule, kind):
    """At small β the gradients are autograd's through the same feedback weights, and not BP's."""
    model, (x, y) = dp.feedback.convert(resnet(), kind, generator=torch.Generator().manual_seed(3)), batch(2, 6, 6)
    out = SMALL[rule].gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok, out.status.message
    twin = dp.feedback.convert(resnet(), kind, generator=torch.Generator().manual_seed(3))
    rounding = ("a.bias", "b.bias", "stem.bias")
    expected = {n: g for n, g in exact(twin, x, y).items() if not n.endswith(rounding)}
    assert set(out.gradients) >= set(expected)
    name, error = worst(out.gradients, expected)
    assert error < 1e-4, (name, error)
    plain = {n: g for n, g in exact(resnet(), x, y).items() if n in expected}
    assert worst(out.gradients, plain)[1] > 0.1


def test_a_split_and_a_run_convolutional_net_agree_past_pools():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, CLASSES),
    ).double()
    x, y = batch(2, 8, 8)
    for rule in (RULES["dp"], RULES["ep"], RULES["pc"]):
        one, other = rule.gradients(dp.Network.from_module(model), x, y), rule.gradients(RecordedNetwork(model), x, y)
        assert worst(other.gradients, one.gradients)[1] < 1e-10


class Block(nn.Module):
    """A residual block as people write it: in-place activations, BatchNorm, an addition."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.na, self.nb = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.nb(self.b(self.act(self.na(self.a(x)))))
        out += x
        return self.act(out)


class ResNet(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            h = block(h)
        return self.head(self.dropout(h.mean((2, 3))))


def resnet(dropout=0.0):
    torch.manual_seed(0)
    return ResNet(dropout).double()


SMALL = {
    "dp": dp.DualPropagation(engine="explicit", beta=1e-5),
    "dp, two rounds": dp.DualPropagation(engine="explicit", beta=1e-5, schedule="alternating_sweeps(2)"),
    "dp transposed": dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, beta=1e-5),
    "dp fused": dp.DualPropagation(engine="fused", beta=1e-5),
    "ep": dp.EquilibriumPropagation(beta=1e-5),
    "pc, fixed": dp.PredictiveCoding(beta=1e-3, steps=400, step_size=0.2, momentum=0.0, predictions="fixed"),
    "bp": dp.Backprop(),
}


@pytest.mark.parametrize("rule", SMALL.values(), ids=SMALL)
def test_a_residual_network_with_batchnorm_learns_as_by_backprop_for_small_nudges(rule):
    model, (x, y) = resnet(), batch(2, 6, 6)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert out.status.ok, out.status.message
    name, error = worst(
        out.gradients, {n: g for n, g in exact(resnet(), x, y).items() if not n.endswith(("a.bias", "b.bias", "stem.bias"))}
    )
    assert error < 1e-4, (name, error)


@pytest.mark.parametrize("rule", SMALL.values(), ids=SMALL)
def test_a_step_is_one_model(rule):
    """Dropout drawn anew in a second pass, or statistics moved twice, would be another model."""
    x, y = batch(2, 6, 6)
    model, twin = resnet(0.4), resnet(0.4)
    torch.manual_seed(5)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    logits = twin(x)
    assert torch.equal(out.logits, logits.detach())
    assert torch.equal(after, torch.get_rng_state())
    for (name, buffer), (_, expected) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name


def test_what_python_and_attributes_hold_changes_once_a_step():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.calls, self.seen, self.gain = nn.Linear(5, 6), nn.Linear(6, CLASSES), 0, [], 1.0

        def forward(self, x):
            self.calls += 1
            self.seen.append(self.calls)
            self.gain *= 0.5
            return self.b(torch.tanh(self.a(x) * self.gain * random.random()))

    torch.manual_seed(0)
    model = Counting().double()
    x, y = batch(5)
    random.seed(3)
    rule = dp.DualPropagation(engine="explicit", beta=1e-6)
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert out.diagnostics["drives"] == 4  # two passes of two layers
    assert (model.calls, model.seen, model.gain) == (1, [1], 0.5)
    drawn = random.random()
    random.seed(3)
    random.random()
    assert drawn == random.random()
    random.seed(3)
    twin = Counting().double()
    twin.load_state_dict(model.state_dict())
    assert worst(out.gradients, exact(twin, x, y))[1] < 1e-5


def test_counts_are_passes_of_all_layers_and_reuse_is_exact():
    """A pass that changes nothing is not run again: DP⊤ at α = 0 keeps the forward pass."""
    model, (x, y) = resnet(), batch(2, 6, 6)
    network = dp.Network.from_module(model)
    transposed = dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0, schedule="alternating_sweeps(4)")
    assert transposed.gradients(network, x, y).diagnostics == {"drives": 6, "feedbacks": 5, "gradients": 6}
    plain = dp.DualPropagation(engine="explicit")
    assert plain.gradients(network, x, y).diagnostics == {"drives": 12, "feedbacks": 5, "gradients": 6}
    centered = dp.EquilibriumPropagation().gradients(network, x, y).diagnostics
    assert (centered["drives"], centered["feedbacks"], centered["gradients"]) == (18, 10, 12)
    assert dp.Backprop().gradients(network, x, y).diagnostics == {"drives": 6, "feedbacks": 5, "gradients": 6}


def test_tied_weights_learn_from_every_place():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            h = self.embed(tokens).mean(1)
            return self.head(F.gelu(self.mix(torch.tanh(self.mix(h)))))

    torch.manual_seed(0)
    model = Tied().double()
    tokens, y = torch.randint(9, (N, 3)), torch.randint(9, (N,))
    for rule in (SMALL["dp"], SMALL["dp transposed"], SMALL["ep"]):
        out = rule.gradients(dp.Network.from_module(model), tokens, y)
        name, error = worst(out.gradients, exact(model, tokens, y))
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("write", ["iadd", "method", "setitem", "argument"])
def test_a_model_may_write_over_its_states(write):
    """The state that the model writes over must not be the one that inference holds."""

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, CLASSES)

        def forward(self, x):
            a = self.a(x)
            if write == "argument":  # the argument of an activation in place is read afterwards
                F.relu(a, inplace=True)
                return self.b(a)
            h = F.silu(a)
            if write == "iadd":
                h += 1
            elif write == "method":
                h.mul_(2)
            else:
                h[:, 0] = 0
            return self.b(h)

    torch.manual_seed(0)
    model, (x, y) = Writes().double(), batch(5)
    network = dp.Network.from_module(model)
    for rule in (SMALL["dp"], SMALL["dp transposed"], SMALL["ep"], SMALL["dp fused"]):
        for _ in range(2):
            name, error = worst(rule.gradients(network, x, y).gradients, exact(model, x, y))
            assert error < 1e-4, (name, error)


def test_hooks_on_parameters_do_not_meet_the_parts_of_a_gradient():
    model, (x, y) = resnet(), batch(2, 6, 6)
    calls = []
    model.head.weight.register_hook(calls.append)
    SMALL["dp"].gradients(dp.Network.from_module(model), x, y)
    assert calls == []


def test_a_branch_that_inference_leaves_is_refused_by_name():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
            self.calls = 0

        def forward(self, x):
            h = torch.tanh(self.a(x))
            if float(h.detach().sum()) == Branches.first:
                h = torch.tanh(self.b(h))
            return self.c(h)

    torch.manual_seed(0)
    model, (x, y) = Branches().double(), batch(5)
    Branches.first = float(torch.tanh(model.a(x)).detach().sum())
    with pytest.raises(dp.SettingError, match="branches on its states"):
        dp.DualPropagation(engine="explicit", beta=0.5, alpha=1.0).gradients(dp.Network.from_module(model), x, y)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (dp.EquilibriumPropagation(energy="hopfield"), "energy='hopfield'"),
        (dp.EquilibriumPropagation(jacobians="free"), "Use jacobians='current'"),
        (dp.ContrastiveHebbian(), "contrasts the phases"),
        (dp.Lifted(), "penalties"),
        (dp.TargetPropagation(), "a map back"),
        (dp.PredictiveCoding(learn="arrival", step_size=1.0, momentum=0.0), "learn='arrival'"),
        (dp.DualPropagation(damping="spectral", alpha=0.2), "spectral damping .* Give the constants yourself"),
    ],
    ids=lambda value: getattr(type(value), "__name__", "") if not isinstance(value, str) else "",
)
def test_rules_that_need_synapses_say_so(rule, reason):
    model, (x, y) = resnet(), batch(2, 6, 6)
    with pytest.raises(dp.SettingError, match=reason):
        rule.gradients(dp.Network.from_module(model), x, y, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", [SMALL["dp"], SMALL["ep"], dp.PredictiveCoding(beta=0.1, steps=5)], ids=["dp", "ep", "pc"])
def test_states_of_a_run_network_are_those_of_its_activations(rule):
    model, (x, y) = resnet(), batch(2, 6, 6)
    network = dp.Network.from_module(model)
    states = rule.infer(network, x, y)
    assert states is not None
    assert set(rule.statistics(network, x, y)) >= {"residual"}


def test_a_compiled_scripted_or_hooked_model_is_refused():
    model = resnet()
    with pytest.raises(dp.UnsupportedModuleError, match="compiled"):
        dp.Network.from_module(torch.compile(model, backend="eager"))
    with pytest.raises(dp.UnsupportedModuleError, match="is dualized"):
        dp.Network.from_module(dp.dualize(resnet()))
    model.head.register_full_backward_hook(lambda *args: None)
    with pytest.raises(dp.UnsupportedModuleError, match="'head' has full backward hooks"):
        dp.Network.from_module(model)


def test_strict_refuses_what_may_hide_an_activation():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)).square())

    model, (x, y) = Squares().double(), batch(5)
    network = dp.Network.from_module(model)
    SMALL["dp"].gradients(network, x, y)
    assert "left to exact derivatives inside a synapse: square" in repr(network)
    with pytest.raises(dp.UnsupportedModuleError, match="square"):
        SMALL["dp"].gradients(dp.Network.from_module(model, strict=True), x, y)


def test_a_module_exchanged_after_a_chain_was_read_is_noticed():
    """The layers are those of then: the new module would never learn."""
    model, (x, y) = mlp(), batch(5)
    network = dp.Network.from_module(model)
    model[3] = nn.Linear(8, CLASSES).double()
    with pytest.raises(dp.SettingError, match="'3' was exchanged"):
        RULES["dp"].gradients(network, x, y)
