"""Feedback weights B against plain modules: forward pass and dW are those of W, dx is that of a
plain module with weight B."""

import copy
import io
import pickle

import pytest
import torch
from comparison import assert_same, distance, rounding
from networks import autograd_gradients, batch, conv_net, drawn, images, mean_loss, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import dualprop as dp
from dualprop import feedback
from dualprop.network.local_maps import ConvolutionMap, LinearMap

# torch's own remark on such a padding's cost.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

every_kind = pytest.mark.parametrize("kind", feedback.KINDS)

# name: (shape of the whole input, the plain module)
MAPS = {
    "linear": ((5, 3), lambda: nn.Linear(3, 4)),
    "linear without bias": ((5, 3), lambda: nn.Linear(3, 4, bias=False)),
    "linear on one example": ((3,), lambda: nn.Linear(3, 4)),
    "linear on three dimensions": ((2, 5, 3), lambda: nn.Linear(3, 4)),
    "linear on four dimensions": ((2, 5, 2, 3), lambda: nn.Linear(3, 2)),
    "conv": ((3, 2, 6, 5), lambda: nn.Conv2d(2, 4, 3)),
    "conv without bias": ((3, 2, 6, 5), lambda: nn.Conv2d(2, 4, 3, bias=False)),
    "stride, pads, dilation": (
        (3, 2, 9, 8),
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    ),
    "stride that leaves a rest": ((3, 2, 8, 8), lambda: nn.Conv2d(2, 3, 3, stride=2)),
    "groups": ((3, 4, 6, 6), lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2)),
    "depthwise": ((3, 4, 6, 6), lambda: nn.Conv2d(4, 8, 3, groups=4)),
    "same": ((3, 2, 6, 6), lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2)),
    "same, even kernel": ((3, 2, 6, 7), lambda: nn.Conv2d(2, 3, (4, 3), padding="same")),
    "same, two even axes": ((3, 2, 6, 7), lambda: nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(3, 1))),
    "valid": ((3, 2, 6, 6), lambda: nn.Conv2d(2, 3, 3, padding="valid", stride=2)),
    "reflect": ((3, 2, 6, 5), lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect")),
    "replicate, strided": ((3, 2, 6, 5), lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="replicate")),
    "circular, same, even": ((3, 2, 6, 5), lambda: nn.Conv2d(2, 3, 2, padding="same", padding_mode="circular")),
    "unbatched": ((2, 6, 5), lambda: nn.Conv2d(2, 4, 3, padding=1)),
    "unbatched, reflect": ((2, 6, 5), lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")),
    "one dimension": ((3, 4, 12), lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2, groups=2)),
    "one dimension, unbatched": ((2, 12), lambda: nn.Conv1d(2, 3, 2, padding="same")),
    "one dimension, circular": ((3, 2, 12), lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular")),
    "three dimensions": ((2, 2, 4, 5, 4), lambda: nn.Conv3d(2, 3, (3, 2, 3), padding=1, stride=(1, 2, 1))),
    "three dimensions, unbatched": ((2, 4, 5, 4), lambda: nn.Conv3d(2, 4, 2, groups=2, padding="same")),
    "three dimensions, replicate": ((2, 2, 4, 4, 4), lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate")),
}
every_map = pytest.mark.parametrize("name", MAPS)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def pair(name, kind, dtype=torch.float64):
    """The plain module, a converted copy of it, and an input that wants a gradient."""
    shape, make = MAPS[name]
    plain = drawn(make, dtype=dtype)
    x = torch.randn(shape, generator=seeded(1), dtype=dtype).requires_grad_()
    return plain, feedback.convert(copy.deepcopy(plain), kind, generator=seeded()), x


def cotangent_like(output, seed=2):
    return torch.randn(output.shape, generator=seeded(seed), dtype=output.dtype)


def gradients(module, x, cotangent=None):
    """{"x" and every parameter: its gradient} for one random cotangent of the output."""
    named = {"x": x} if x.requires_grad else {}
    named |= {n: p for n, p in module.named_parameters() if p.requires_grad}
    output = module(x)
    cotangent = cotangent_like(output) if cotangent is None else cotangent
    return dict(zip(named, torch.autograd.grad(output, list(named.values()), cotangent), strict=True))


def with_weight(plain, weight):
    """A plain module whose weight is another: the oracle of dx."""
    other = copy.deepcopy(plain)
    other.weight = nn.Parameter(weight.detach().clone())
    return other


# The maps, one by one


@every_map
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_forward_pass_is_the_plain_modules_bit_for_bit(name, kind, dtype):
    """Were it only close, a converted network would predict something else, and no comparison of
    rules would be fair."""
    plain, converted, x = pair(name, kind, dtype)
    assert type(converted) is feedback.FEEDBACK_MODULES[type(plain)]
    assert torch.equal(converted(x), plain(x))
    with torch.no_grad():
        assert torch.equal(converted(x), plain(x))


@every_map
def test_with_b_set_to_w_every_gradient_is_autograds(name):
    """A stride, padding or group that is lost on the way back leaves every shape as it was."""
    plain, converted, x = pair(name, "kolen_pollack")
    with torch.no_grad():
        converted.feedback_weight.copy_(converted.weight)
    expected = gradients(plain, x)
    found = gradients(converted, x)
    assert torch.equal(found.pop("feedback_weight"), found["weight"])
    assert_same(found, expected, 1e-14)


@every_map
@every_kind
def test_the_inputs_gradient_is_that_of_a_plain_module_with_weight_b_and_the_weights_that_of_w(name, kind):
    """Feedback through W is back-propagation under another name; a dW through B would be
    neither."""
    plain, converted, x = pair(name, kind)
    b = converted.backward_weight().detach()
    assert b.shape == plain.weight.shape
    assert distance(b, plain.weight.detach()) > 0.1
    found, by_w, by_b = gradients(converted, x), gradients(plain, x), gradients(with_weight(plain, b), x)
    assert distance(by_b["x"], by_w["x"]) > 0.1, "the two can't be told apart"
    expected = by_w | {"x": by_b["x"]}
    if kind == "kolen_pollack":
        expected["feedback_weight"] = by_w["weight"]
    assert_same(found, expected, 1e-14)


@pytest.mark.parametrize("name", ["linear", "conv", "groups", "same, even kernel", "unbatched, reflect"])
def test_the_gradient_of_b_is_that_of_w_in_memory_of_its_own(name):
    """An optimizer or a clipping that writes into one gradient would otherwise write into the
    other."""
    _, converted, x = pair(name, "kolen_pollack")
    converted(x).square().sum().backward()
    assert torch.equal(converted.feedback_weight.grad, converted.weight.grad)
    converted.weight.grad.zero_()
    assert bool(converted.feedback_weight.grad.any())


@pytest.mark.parametrize("name", ["linear on three dimensions", "conv", "groups", "one dimension", "unbatched"])
@every_kind
def test_cotangents_of_any_layout_give_the_same_gradients(name, kind):
    """A sum hands down an expanded cotangent, a transpose a strided one."""
    _, converted, x = pair(name, kind)
    output = converted(x)
    expanded = torch.ones(1, dtype=x.dtype).expand(output.shape)
    strided = cotangent_like(output.mT).mT
    assert not strided.is_contiguous()
    for cotangent in (expanded, strided):
        assert_same(gradients(converted, x, cotangent), gradients(converted, x, cotangent.contiguous()), 1e-14)


@pytest.mark.parametrize("name", ["linear", "conv"])
@every_kind
@pytest.mark.parametrize("frozen", [(), ("weight",), ("feedback_weight",), ("weight", "feedback_weight"), ("bias",)], ids=str)
@pytest.mark.parametrize("wants_dx", [True, False])
def test_only_the_gradients_that_are_wanted_are_computed_and_that_of_the_weights_once(name, kind, frozen, wants_dx):
    """Counted in floating-point operations, a step costs what the plain module's costs; the first
    layer needs no dx."""
    plain, converted, x = pair(name, kind)
    x.requires_grad_(wants_dx)
    everything = gradients(converted, x)
    for leaf in set(frozen) & {n for n, _ in converted.named_parameters()}:
        converted.get_parameter(leaf).requires_grad_(False)
    learns = {n for n, p in converted.named_parameters() if p.requires_grad}
    plain.weight.requires_grad_(bool(learns & {"weight", "feedback_weight"}))
    plain.bias.requires_grad_("bias" in learns)
    counts = []
    for module in (plain, converted):
        x.grad, output = None, module(x)
        with FlopCounterMode(display=False) as counter:
            output.backward(cotangent_like(output))
        counts.append(counter.get_total_flops())
    found = {n: p.grad for n, p in (("x", x), *converted.named_parameters()) if p.grad is not None}
    assert_same(found, {n: g for n, g in everything.items() if n not in frozen}, 0.0)
    assert counts[0] == counts[1]
    assert bool(counts[0]) == (wants_dx or plain.weight.requires_grad)


@every_kind
def test_a_module_whose_parameters_are_all_frozen_still_passes_the_error_on(kind):
    """Freezing a layer must not cut the ones below off."""
    _, converted, x = pair("conv", kind)
    expected = gradients(converted, x)["x"]
    converted.requires_grad_(False)
    found = gradients(converted, x)
    assert list(found) == ["x"]
    assert torch.equal(found["x"], expected)
    assert not converted(x.detach()).requires_grad


@pytest.mark.parametrize("name", ["linear", "conv", "unbatched, reflect"])
def test_second_derivatives_are_autograds_where_b_is_w(name):
    """A gradient penalty differentiates the backward pass; a constant there would go unnoticed."""
    plain, converted, x = pair(name, "kolen_pollack")
    with torch.no_grad():
        converted.feedback_weight.copy_(converted.weight)
    found = []
    for module in (plain, converted):
        output = module(x).tanh()
        (dx,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        parameters = dict(module.named_parameters())
        second = torch.autograd.grad(dx.square().sum(), list(parameters.values()))
        found.append(dict(zip(parameters, second, strict=True)))
    # W is reached through the output alone; B through dx too, beside the gradient of W, which it
    # always gets.
    assert distance(found[1].pop("weight"), found[0]["weight"]) > 0.01
    found[1] = {"weight": found[1].pop("feedback_weight")} | found[1]
    assert_same(found[1], found[0], 1e-13)


def test_random_feedback_never_changes_and_sign_symmetric_feedback_follows_the_weights():
    """A B that an optimizer decays or trains is another algorithm; one that is not renewed loses
    its signs."""
    for kind in ("random", "sign_symmetric"):
        model = feedback.convert(mlp("tanh"), kind, generator=seeded())
        before = [layer.backward_weight().clone() for layer in model if isinstance(layer, feedback.FeedbackLinear)]
        optimizer, (x, y) = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1), batch()
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        for layer, b in zip([m for m in model if isinstance(m, feedback.FeedbackLinear)], before, strict=True):
            assert torch.equal(layer.backward_weight(), b) == (kind == "random")
            if kind == "sign_symmetric":
                now = layer.backward_weight()
                assert torch.equal(now.sign(), layer.weight.sign())
                torch.testing.assert_close(now.abs(), layer.weight.abs().mean().expand_as(now), rtol=1e-12, atol=0)
                assert [n for n, _ in layer.named_buffers()] == []


# Whole networks


def settings_net():
    """Maps that a short formula must get right, and one that is left to a tape."""
    return drawn(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(),
            nn.Conv2d(4, 4, 2, padding="same"), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect", dilation=1),
            nn.Tanh(), nn.Conv2d(3, 4, 3, padding="same"), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3),
        )
    )  # fmt: skip


NETWORKS = {
    "mlp": lambda act: (mlp(act), batch()),
    "conv": lambda act: (conv_net(act), images()),
    "conv, pool after": lambda act: (conv_net(act, "after"), images()),
    "settings": lambda act: (settings_net(), images()),
}


def converted_network(name, kind, activation="tanh"):
    """A converted network, a batch, and autograd's gradients, which differ from back-propagation's
    below the last layer."""
    model, (x, y) = NETWORKS[name](activation)
    exact = autograd_gradients(model, x, y)
    feedback.convert(model, kind, generator=seeded())
    expected = autograd_gradients(model, x, y)
    assert distance(expected["0.weight"], exact["0.weight"]) > 0.1, "B can't be told from W"
    return model, x, y, expected


@pytest.mark.parametrize("name", NETWORKS)
@every_kind
def test_backprop_is_autograd_on_the_converted_model(name, kind):
    """The twin must send its error back the same way as the rule that it is compared with."""
    model, x, y, expected = converted_network(name, kind)
    assert_same(dp.Backprop().gradients(dp.Network.from_module(model), x, y).gradients, expected, 0.0)


@pytest.mark.parametrize("name", NETWORKS)
@every_kind
@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_dual_propagation_at_a_small_beta_is_autograd_on_the_converted_model(name, kind, engine):
    """Feedback through W in one engine would give two rules one name. The error is of order β², and
    eps/β of rounding."""
    model, x, y, expected = converted_network(name, kind)
    out = dp.DualPropagation(beta=1e-4, engine=engine).gradients(dp.Network.from_module(model), x, y)
    assert_same(out.gradients, expected, 1e-6)
    assert out.status.ok


@pytest.mark.parametrize("name", ["mlp", "conv", "conv, pool after"])
@every_kind
@pytest.mark.parametrize("engine", ["explicit", "fused"])
def test_transposed_dp_on_linear_networks_is_autograd_on_the_converted_model_to_the_last_digits(name, kind, engine):
    """Exact for every α and β, so that a scale that is lost in B's gradient shows whatever its
    size."""
    model, x, y, expected = converted_network(name, kind, "identity")
    for alpha, beta in ((0.0, 1.0), (0.5, 0.1)):
        rule = dp.DualPropagation(coupling="transposed", alpha=alpha, beta=beta, engine=engine)
        found = rule.gradients(dp.Network.from_module(model), x, y).gradients
        assert_same(found, expected, rounding(beta), f"alpha {alpha}")
        if kind == "kolen_pollack":
            for n, gradient in found.items():
                if n.endswith("feedback_weight"):
                    of_weight = found[n.replace("feedback_weight", "weight")]
                    assert torch.equal(gradient, of_weight)
                    assert gradient.data_ptr() != of_weight.data_ptr(), n


@every_kind
@pytest.mark.parametrize("first", ["dualize", "convert"])
def test_a_model_can_be_dualized_before_or_after_it_is_converted(kind, first):
    """dualize must neither refuse these modules nor undo them."""
    model, (x, y) = NETWORKS["settings"]("tanh")
    expected = autograd_gradients(feedback.convert(copy.deepcopy(model), kind, generator=seeded()), x, y)
    if first == "dualize":
        feedback.convert(dp.dualize(model, beta=1e-4), kind, generator=seeded())
    else:
        dp.dualize(feedback.convert(model, kind, generator=seeded()), beta=1e-4)
    assert_same(autograd_gradients(model, x, y), expected, 1e-6)


@every_kind
def test_a_network_that_was_read_before_the_conversion_follows_it(kind):
    """It is a view of the model: a formula that kept the plain module would train by
    back-propagation unsaid."""
    model, (x, y) = NETWORKS["conv"]("identity")
    network = dp.Network.from_module(model)
    feedback.convert(model, kind, generator=seeded())
    found = dp.DualPropagation(coupling="transposed", alpha=0.0, engine="explicit").gradients(network, x, y).gradients
    assert_same(found, autograd_gradients(model, x, y), rounding(1.0))


@every_kind
def test_a_converted_network_costs_what_it_cost(kind):
    """Off the short formula it would be driven again for each new mean: right, and slow."""
    for model, (x, y), pool in ((mlp("tanh"), batch(), False), (conv_net("tanh", "none"), images(), True)):
        feedback.convert(model, kind, generator=seeded())
        network = dp.Network.from_module(model)
        cores = [type(network.into(k).synapse.core) for k in range(1, 5)]
        assert set(cores) == ({LinearMap, ConvolutionMap} if pool else {LinearMap})
        out = dp.DualPropagation(alpha=0.3).gradients(network, x, y)
        assert out.diagnostics == {"drives": 4, "feedbacks": 3, "gradients": 4}


@pytest.mark.parametrize("engine", ["explicit", "fused"])
@pytest.mark.parametrize("frozen", ["0.weight", "2.weight", "2.feedback_weight", "4.bias", "6.feedback_weight"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_frozen_w_or_b_gets_no_gradient_and_the_other_keeps_its_own(engine, frozen, kind):
    """B learns from the gradient of W also where W itself does not."""
    model, (x, y) = (mlp("identity"), batch()) if kind == "mlp" else (conv_net("identity", "none"), images())
    frozen = {"4.bias": "5.bias", "6.feedback_weight": "7.feedback_weight"}.get(frozen, frozen) if kind == "conv" else frozen
    feedback.convert(model, "kolen_pollack", generator=seeded())
    everything = autograd_gradients(model, x, y)
    model.get_parameter(frozen).requires_grad_(False)
    rule = dp.DualPropagation(coupling="transposed", alpha=0.0, engine=engine)
    network = dp.Network.from_module(model)
    assert list(network.parameters) == [n for n in everything if n != frozen]
    found = rule.gradients(network, x, y).gradients
    assert_same(found, {n: g for n, g in everything.items() if n != frozen}, rounding(1.0))


# Kolen and Pollack's alignment


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_under_weight_decay_b_aligns_with_w_at_exactly_the_rate_of_the_decay(optimizer):
    """W - B = (1 - lr·wd)ᵗ (W₀ - B₀) whatever the gradients are, as long as B's are those of W."""
    model = feedback.convert(conv_net("tanh"), "kolen_pollack", generator=seeded())
    layers = [m for m in model if isinstance(m, feedback.AbstractFeedback)]
    start = [(m.weight - m.feedback_weight).detach().clone() for m in layers]
    began = feedback.alignment(model)
    assert all(abs(found.cosine) < 0.7 for found in began), began
    lr, decay, steps = 0.05, 0.4, 400
    optimizer = optimizer(model.parameters(), lr=lr, weight_decay=decay)
    for step in range(steps):
        x, y = images(seed=step)
        optimizer.zero_grad()
        (model(x) * 5 * cotangent_like(torch.zeros(len(y), 3, dtype=x.dtype), seed=step)).sum().backward()
        optimizer.step()
    for layer, difference in zip(layers, start, strict=True):
        # Not (W - B): at the end that is a difference of nearly equal numbers.
        expected = layer.feedback_weight + (1 - lr * decay) ** steps * difference
        torch.testing.assert_close(layer.weight, expected, rtol=1e-11, atol=1e-12)
    for found in feedback.alignment(model):
        assert found.cosine > 0.999, found
        assert abs(found.norm_ratio - 1) < 0.05, found


def test_the_alignment_is_the_cosine_and_the_ratio_of_norms():
    """Which of the two norms stands on top, and degrees, are easily confused."""
    model = feedback.convert(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Conv1d(2, 2, 1), nn.LayerNorm(2)), "kolen_pollack")
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model[0].feedback_weight.copy_(-2 * model[0].weight)
        model[2].weight.copy_(torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]]))
        model[2].feedback_weight.copy_(torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]]))
    first, second = feedback.alignment(model)
    assert (first.layer, second.layer) == ("0", "2")
    assert first.cosine == pytest.approx(-1)
    assert first.norm_ratio == pytest.approx(2)
    assert first.angle == pytest.approx(180)
    assert second.angle == pytest.approx(45)
    assert second.norm_ratio == pytest.approx(2**0.5)
    with torch.no_grad():
        model[0].weight.zero_()
    assert str(feedback.alignment(model)[0].angle) == "nan"
    assert feedback.alignment(mlp()) == []


def test_sign_symmetric_weights_of_a_fresh_layer_stand_at_the_angle_of_uniform_numbers():
    """cos = mean|w| / rms(w), which for w uniform about zero is √3/2, 30 degrees; and B is as long
    as its magnitude says."""
    model = feedback.convert(drawn(lambda: nn.Linear(300, 300)), "sign_symmetric")
    (found,) = feedback.alignment(model)
    assert found.angle == pytest.approx(30, abs=0.3)
    assert found.norm_ratio == pytest.approx(3**0.5 / 2, abs=0.01)


# What the conversion keeps, and what it draws


@every_kind
def test_conversion_keeps_modules_parameters_hooks_and_mode(kind):
    """An optimizer that was made before holds these very parameters."""
    model = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), "b": nn.Linear(4, 3)}).eval()
    modules, parameters, calls = dict(model.named_modules()), dict(model.named_parameters()), []
    model["b"].register_forward_hook(lambda *_: calls.append("forward"))
    model["b"].register_full_backward_hook(lambda *_: calls.append("backward"))
    assert feedback.convert(model, kind) is model
    assert {n: id(m) for n, m in model.named_modules()} == {n: id(m) for n, m in modules.items()}
    for n, p in parameters.items():
        assert model.get_parameter(n) is p
    added = {n for n, _ in (*model.named_parameters(), *model.named_buffers()) if n.endswith("feedback_weight")}
    assert added == (set() if kind == "sign_symmetric" else {"a.0.feedback_weight", "b.feedback_weight"})
    assert not model["b"].training
    model["b"](torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert calls == ["forward", "backward"]
    assert kind in repr(model)


def test_b_has_the_device_and_dtype_of_w_and_learns_if_w_does():
    """A B that learned beside a frozen W would run away from it."""
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.bfloat16), nn.Linear(4, 2, device="meta"))
    model[0].requires_grad_(False)
    feedback.convert(model, "kolen_pollack", generator=seeded())
    assert model[0].feedback_weight.dtype == torch.bfloat16
    assert model[1].feedback_weight.device.type == "meta"
    assert not model[0].feedback_weight.requires_grad
    assert model[1].feedback_weight.requires_grad


@pytest.mark.parametrize("kind", ["kolen_pollack", "random"])
def test_b_is_drawn_from_the_generator_as_pytorch_draws_w(kind):
    """Draws of another size would make the first steps of a run something else; draws of W's own
    would be W."""
    for make, fan_in in ((lambda: nn.Linear(400, 100), 400), (lambda: nn.Conv2d(40, 100, 3, groups=2), 180)):
        plain = drawn(make)
        state = torch.get_rng_state()
        first, second, other = (feedback.convert(copy.deepcopy(plain), kind, generator=seeded(s)) for s in (7, 7, 8))
        assert torch.equal(torch.get_rng_state(), state), "a generator was passed, and another was used"
        b = first.backward_weight().detach()
        assert torch.equal(b, second.backward_weight())
        assert not torch.equal(b, other.backward_weight())
        assert not torch.equal(b, first.weight)
        bound = fan_in**-0.5
        assert 0.99 * bound < float(b.abs().max()) <= bound
        assert float(b.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    two = feedback.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), kind, generator=seeded())
    assert not torch.equal(two[0].backward_weight(), two[1].backward_weight())
    with torch.random.fork_rng(devices=[]):
        drawn_by_default = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn_by_default.append(feedback.convert(copy.deepcopy(plain), kind).backward_weight())
    assert torch.equal(*drawn_by_default)


def test_a_module_in_two_places_is_converted_once_and_tied_weights_share_their_b():
    """With a B each, tied weights would get the sum of two gradients and their Bs one each: they
    would not align."""
    for kind in feedback.KINDS:
        shared = nn.Linear(4, 4)
        tied = nn.Linear(4, 4, bias=False)
        tied.weight = shared.weight
        model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), tied).double()
        feedback.convert(model, kind, generator=seeded())
        assert model[0] is model[2]
        assert model[0].weight is model[4].weight
        if kind != "sign_symmetric":
            assert model[0].feedback_weight is model[4].feedback_weight
        if kind == "kolen_pollack":
            assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias", "0.feedback_weight"]
            model(torch.randn(3, 4, generator=seeded(), dtype=torch.float64)).square().sum().backward()
            assert_same({"B": shared.feedback_weight.grad}, {"B": shared.weight.grad}, 1e-14)


@every_kind
def test_copies_pickles_and_state_dicts_carry_b(kind):
    """Resumed without its B, a run would go on with other feedback."""
    model, (x, y) = NETWORKS["conv"]("tanh")
    plain = copy.deepcopy(model)
    feedback.convert(model, kind, generator=seeded())
    expected = autograd_gradients(model, x, y)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = feedback.convert(copy.deepcopy(plain), kind, generator=seeded(99))
    loaded.load_state_dict(model.state_dict())
    # Recomputed at each use, sign-symmetric weights have no state.
    assert (set(model.state_dict()) == set(plain.state_dict())) == (kind == "sign_symmetric")
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False), loaded]
    for other in copies:
        assert_same(autograd_gradients(other, x, y), expected, 0.0)


@every_kind
def test_a_module_can_be_made_directly_with_its_kind(kind):
    """Whoever writes a model of these modules gets what a conversion gives."""
    made = feedback.FeedbackConv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64, kind=kind, generator=seeded())
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64)
    with torch.no_grad():
        plain.load_state_dict({n: p for n, p in made.state_dict().items() if n != "feedback_weight"})
    expected = feedback.convert(plain, kind, generator=seeded())
    x = torch.randn(2, 4, 5, 5, generator=seeded(1), dtype=torch.float64).requires_grad_()
    assert_same(gradients(made, x), gradients(expected, x), 0.0)
    assert type(feedback.FeedbackLinear(3, 4, False).feedback_weight) is nn.Parameter
    with pytest.raises(dp.SettingError, match="Did you mean 'random'"):
        feedback.FeedbackLinear(3, 4, kind="randm")


# Autocast, compilation, checkpointing, function transforms


@pytest.mark.parametrize("name", ["linear", "linear on three dimensions", "conv", "unbatched, reflect", "one dimension"])
@every_kind
def test_under_autocast_it_computes_what_plain_modules_compute(name, kind):
    """Without the cast, an autograd.Function would run in float32, or fail on a mixture of dtypes
    in the backward pass."""
    plain, converted, x = pair(name, kind, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = converted(x), plain(x)
    assert output.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    cotangent = cotangent_like(output)
    b = converted.backward_weight()
    by_b = with_weight(plain, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(converted, x, cotangent)
        wanted = gradients(plain, x, cotangent) | {"x": gradients(by_b, x, cotangent)["x"]}
    if kind == "kolen_pollack":
        wanted["feedback_weight"] = wanted["weight"]
    assert all(g.dtype == torch.float32 for g in found.values())
    assert_same(found, wanted, 1e-2)
    x64 = x.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert converted.double()(x64).dtype == torch.float64


@pytest.mark.sampled(5)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["mlp", "settings"])
@every_kind
@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_into_one_graph(name, kind, autocast):
    """A graph break at every layer would cost what compilation is to gain; a Function seen through
    would give BP."""
    model, (x, y) = NETWORKS[name]("tanh")
    feedback.convert(model.float(), kind, generator=seeded())
    x = x.float()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for callable_ in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = mean_loss("cross_entropy", callable_(x), y)
        loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert_same(found[1], found[0], 3e-2 if autocast else 1e-5)


@every_kind
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(kind, use_reentrant):
    """What a Function keeps for its backward pass is not seen by a checkpoint unless it is saved in
    the right place."""
    model, x, y, expected = converted_network("conv", kind)
    x.requires_grad_()
    loss = mean_loss("cross_entropy", checkpoint(model, x, use_reentrant=use_reentrant), y)
    loss.backward()
    assert_same({n: p.grad for n, p in model.named_parameters()}, expected, 0.0)


@every_kind
def test_function_transforms_see_the_feedback_weights(kind):
    """torch.func.grad would refuse a Function in the old form."""
    model, x, y, expected = converted_network("conv", kind)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(p):
        return mean_loss("cross_entropy", torch.func.functional_call(model, p, (x,)), y)

    assert_same(torch.func.grad(loss)(parameters), expected, 1e-14)
