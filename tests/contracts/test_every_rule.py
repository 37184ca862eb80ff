"""What every registered rule must do on any network that it reads, whatever its algorithm."""

import copy
import dataclasses
import re

import numpy
import pytest
import torch
from comparison import assert_same, cosine, report
from networks import autograd_gradients, batch, conv_net, images, mlp

import dualprop as dp

# Every rule at its defaults, and at settings that are algorithms of their own.
CASES = {
    **{name: kind() for name, kind in dp.RULES.items()},
    "equilibrium_propagation by random signs": dp.EquilibriumPropagation(estimator="random_sign"),
    "equilibrium_propagation by block updates": dp.EquilibriumPropagation(relaxation="blocks(even_odd(20))"),
    "equilibrium_propagation of a Hopfield network": dp.EquilibriumPropagation(
        energy="hopfield",
        estimator="holomorphic(2)",
        beta=0.25,
        relaxation="blocks(odd_even(60))",
        free_schedule="odd_even(100)",
    ),
    "equilibrium_propagation of a Hopfield network, one-sided and held": dp.EquilibriumPropagation(
        energy="hopfield",
        estimator="forward(held)",
        beta=0.02,
        relaxation="blocks(odd_even(60))",
        free_schedule="odd_even(200)",
    ),
    "predictive_coding, fixed": dp.PredictiveCoding(predictions="fixed", step_size=1.0, momentum=0.0),
    "predictive_coding from previous states": dp.PredictiveCoding(start="previous"),
    "predictive_coding alongside the states": dp.PredictiveCoding(start="previous", learn="alongside"),
    "dual_propagation from previous states": dp.DualPropagation(start="previous", schedule="up_down(2)"),
}
every_rule = pytest.mark.parametrize("name", dp.RULES)
every_case = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
each_kind = pytest.mark.parametrize("kind", ["mlp", "conv"])


def problem(kind, dtype=torch.float64, name=""):
    """A model, inputs and targets; for a Hopfield network with weights under which it settles."""
    if kind == "mlp":
        model, (x, y) = mlp("relu", dtype=dtype), batch(n=32, dtype=dtype)
    else:
        model, (x, y) = conv_net("tanh", "before", dtype=dtype), images(n=16, dtype=dtype)
    if "Hopfield" in name:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
    return model, x, y


def run(name, network, x, y, state=None):
    return CASES[name].gradients(network, x, y, state=state, generator=torch.Generator().manual_seed(0))


@every_case
@each_dtype
@each_kind
def test_gradients_have_the_names_shapes_and_dtypes_of_the_parameters(name, dtype, kind):
    """Any optimizer steps with them: a transposed or widened gradient would broadcast, silently,
    into the weights."""
    model, x, y = problem(kind, dtype, name)
    out = run(name, dp.Network.from_module(model), x, y)
    assert list(out.gradients) == [n for n, _ in model.named_parameters()]
    for n, p in model.named_parameters():
        assert out.gradients[n].shape == p.shape, n
        assert out.gradients[n].dtype == p.dtype, n
        assert out.gradients[n].device == p.device, n
        assert bool(out.gradients[n].any()), f"{n} gets no gradient at all"


@every_case
@each_dtype
@each_kind
def test_the_gradients_point_the_way_of_back_propagation_and_have_its_scale(name, dtype, kind):
    """A rule with a sign, a batch size or a β too many still lowers some loss with Adam."""
    model, x, y = problem(kind, dtype, name)
    network = dp.Network.from_module(model)
    out, expected = run(name, network, x, y), autograd_gradients(model, x, y)
    if not CASES[name].approaches_gradient:  # of the output layer it is the gradient, of the others it has the scale
        last = [n for n in expected if n in network.into(network.depth).parameters]
        assert all(cosine(out.gradients[n], expected[n]) > 0.9 for n in last), report(out.gradients, expected)
        ratios = [float(out.gradients[n].norm() / expected[n].norm()) for n in expected]
        assert all(0.02 < ratio < 50 for ratio in ratios), report(out.gradients, expected)
        return
    if "Hopfield" in name:  # of another prediction's loss, tests/autograd/test_equilibrium_orders.py
        expected = CASES[name].exact_gradients(network, x, y)
    for n in expected:
        assert cosine(out.gradients[n], expected[n]) > 0.9, f"{n}\n{report(out.gradients, expected)}"
        ratio = float(out.gradients[n].norm() / expected[n].norm())
        assert 0.5 < ratio < 2, f"{n}\n{report(out.gradients, expected)}"


@every_case
@each_kind
def test_the_outcome_holds_the_predictions_loss_and_logits(name, kind):
    """Training curves are drawn from them; nudged outputs would show a loss that no one can reach.
    Most rules predict by the forward pass, and none by anything far from it at its defaults."""
    model, x, y = problem(kind, name=name)
    network = dp.Network.from_module(model)
    rule = CASES[name]
    out, predicted = run(name, network, x, y), rule.predict(network, x).detach()
    assert isinstance(out, dp.Outcome)
    torch.testing.assert_close(out.logits, predicted, rtol=1e-12, atol=1e-12)
    if not rule.predicts_by_equilibrium:
        torch.testing.assert_close(predicted, model(x).detach(), rtol=1e-12, atol=1e-12)
    if "Hopfield" not in name:
        assert float((predicted - model(x).detach()).norm()) < 0.2 * float(model(x).detach().norm())
    assert out.loss.shape == ()
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(predicted, y), rtol=1e-12, atol=1e-12)
    assert all(isinstance(out.diagnostics[count], int) for count in ("drives", "feedbacks", "gradients"))
    assert all(number >= 0 for number in out.diagnostics.values())
    assert out.diagnostics["drives"] >= network.depth, "the free phase is not reported"
    assert out.diagnostics["gradients"] > 0
    assert out.status.ok
    assert out.status == dp.Status(True)


@every_case
@each_kind
def test_a_rule_is_pure_and_deterministic(name, kind):
    """Whatever it changed or drew would make a resumed run another run."""
    model, x, y = problem(kind, name=name)
    network = dp.Network.from_module(model)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = run(name, network, x, y), run(name, network, x, y)
    assert_same(second.gradients, first.gradients, 0.0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    rule = CASES[name]
    held = {n: tensor.clone() for n, tensor in rule.pack_state(first.state).items()}
    third = run(name, network, x, y, state=first.state)
    if rule.keeps_state:
        # It goes on from the state, which may lead elsewhere; from the same state twice, to the
        # same.
        assert held, "a rule that keeps state packs it, or a resumed run would be another run"
        assert_same(run(name, network, x, y, state=first.state).gradients, third.gradients, 0.0)
        assert_same(rule.pack_state(first.state), held, 0.0, "the state that was passed in")
    else:
        assert_same(third.gradients, first.gradients, 0.0, "the default start keeps no state")


@every_case
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numerical_trouble_is_a_status_with_a_remedy(name, value):
    """Not an exception in the middle of an epoch, and not a NaN in the weights."""
    model, x, y = problem("mlp")
    with torch.no_grad():
        model[2].weight[0, 0] = value
    out = run(name, dp.Network.from_module(model), x, y)
    assert not out.status.ok
    assert "loss is" in out.status.message or "not finite" in out.status.message
    assert re.search(r"\. (Lower|Use|Shrink|Raise) ", out.status.message)
    assert "\n" not in out.status.message


@every_rule
def test_a_gradient_that_is_not_finite_is_named(name):
    """The loss may still be finite when a gradient is not: the message says which one."""
    model, x, y = problem("mlp")
    out = run(name, dp.Network.from_module(model), x, y)
    broken = {n: g.clone() for n, g in out.gradients.items()}
    broken["4.bias"][0] = float("nan")
    status = dp.Outcome(gradients=broken, loss=out.loss, logits=out.logits).status
    assert not status.ok
    assert "'4.bias' is not finite" in status.message
    status = dp.Outcome(gradients=out.gradients, loss=torch.tensor(float("inf")), logits=out.logits).status
    assert not status.ok
    assert "the loss is inf" in status.message


@every_rule
def test_backward_lets_any_optimizer_step_downhill(name):
    """The whole promise of the twelve lines in the README."""
    model, x, y = problem("mlp")
    network, optimizer = dp.Network.from_module(model), torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(float(dp.RULES[name]().backward(network, x, y, generator=torch.Generator().manual_seed(0)).loss))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0], losses


@every_rule
def test_a_rule_is_a_frozen_set_of_settings_that_compares_by_value(name):
    """Recipes are compared and written to disk by them."""
    rule = dp.RULES[name]
    assert rule() == rule()
    assert hash(rule()) == hash(rule())
    with pytest.raises(AttributeError):
        rule().loss = None
    with pytest.raises(TypeError):
        rule("cross_entropy")
    assert dp.rules.from_name(name) is rule
    assert getattr(dp, rule.__name__) is rule, "dualprop.rules.__all__ does not name it"
    assert issubclass(rule, dp.AbstractRule)


@every_rule
@pytest.mark.parametrize(
    ("loss", "last", "message"),
    [
        ("cross_entropy", torch.nn.Softmax(1), r"takes logits, but .* is Softmax\. Use losses\.LogLoss\(\), or remove"),
        ("log_loss", torch.nn.Identity(), r"takes probabilities, but .* is Identity\. End the model with nn\.Softmax\(dim=1\)"),
        ("log_loss", torch.nn.Sigmoid(), r"takes probabilities, but .* is Sigmoid\."),
    ],
)
def test_a_loss_that_does_not_read_what_the_output_gives_is_refused(name, loss, last, message):
    """Cross-entropy of probabilities, or the log of logits: either would train, towards something
    else."""
    model, x, y = problem("mlp")
    network = dp.Network.from_module(torch.nn.Sequential(*model, last))
    with pytest.raises(dp.SettingError, match=message) as refusal:
        dp.RULES[name](loss=loss).gradients(network, x, y, generator=torch.Generator().manual_seed(0))
    assert "\n" not in str(refusal.value)


FIELDS = [(name, field.name, str(field.type)) for name, kind in dp.RULES.items() for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("name", "field", "annotated"), FIELDS, ids=[f"{name}-{field}" for name, field, _ in FIELDS])
def test_a_setting_of_a_wrong_type_is_refused_in_one_line_that_names_it(name, field, annotated):
    """Compared with a number, text raises a TypeError that names neither the setting nor the
    remedy; True passes for 1."""
    wrong = [object(), {"a": 1}]
    if "float" in annotated or "int" in annotated.split(" | "):
        wrong += ["2", True, torch.tensor(0.5) > 0, *([None] if "None" not in annotated else [])]
        wrong += [] if "tuple" in annotated else [(1.0,), torch.tensor(0.5)]
    if annotated.startswith("int"):
        wrong += [1.5]
    elif annotated.startswith("float"):
        wrong += [10**400]
    for value in wrong:
        with pytest.raises(dp.SettingError, match=field.removeprefix("free_")) as error:
            dp.RULES[name](**{field: value})
        assert "\n" not in str(error.value)
    if annotated in ("float", "int"):
        default = getattr(dp.RULES[name](), field)
        made = dp.RULES[name](**{field: numpy.asarray([default], dtype=annotated + "32")[0]})
        assert type(getattr(made, field)) is type(default), "no recipe could be written"
    kept = getattr(dp.RULES[name](), field)
    assert getattr(dp.RULES[name](**{field: kept}), field) == kept


@every_case
def test_half_precision_is_refused_or_costs_no_direction(name):
    """Small differences vanish in bfloat16, and what is left of them points anywhere, without a
    word."""
    model, x, y = problem("mlp", torch.float32, name)
    network = dp.Network.from_module(model)
    wide, refused = run(name, network, x, y), ""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            narrow = run(name, network, x, y)
    except dp.SettingError as refusal:
        refused = str(refusal)
    if refused:
        assert "half precision" in refused
        return
    for n, gradient in wide.gradients.items():
        is_near = cosine(narrow.gradients[n], gradient) > 0.95
        assert is_near or not narrow.status.ok, f"{n}\n{report(narrow.gradients, wide.gradients)}"


@every_rule
def test_an_order_that_is_drawn_is_said_to_need_a_generator_or_refused(name):
    """The trainer would pass none, and the command line has no way to."""
    kinds = {field.name for field in dataclasses.fields(dp.RULES[name])}
    if "schedule" not in kinds:
        return
    refused = ""
    try:
        rule = dp.RULES[name](schedule="random_order(9)")
    except dp.SettingError as refusal:
        refused = str(refusal)
    assert "fixed order" in refused if refused else rule.needs_generator
