"""`dualize` on models of the user's own: the same as the fused engine, exact about β, and nothing
converted unsaid."""

import copy
import warnings

import pytest
import torch
from comparison import assert_same, cosine, distance, rounding
from networks import autograd_gradients, batch, conv_net, drawn, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp


def backward(model, x, y, loss=F.cross_entropy):
    """The gradients that `loss(model(x), y).backward()` leaves."""
    model.zero_grad(set_to_none=True)
    loss(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hard_sigmoid", "tanh", "sigmoid"])
@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.01, 5.0])
def test_dualize_is_the_fused_engine(activation, coupling, alpha, beta):
    """Two doors to one algorithm; a user who changes from one to the other must not change the
    algorithm."""
    model, (x, y) = mlp(activation), batch()
    settings = {"coupling": coupling, "alpha": alpha, "beta": beta}
    expected = dp.DualPropagation(engine="fused", **settings).gradients(dp.Network.from_module(model), x, y).gradients
    assert_same(backward(dp.dualize(model, **settings), x, y), expected, rounding(beta))


def test_dualize_takes_one_beta_per_activation():
    """In order of execution; a shifted list would give each layer its neighbour's
    strength."""
    model, (x, y), betas = conv_net("tanh", "before"), images(), (0.5, 2.0, 0.1)
    rule = dp.DualPropagation(engine="fused", alpha=0.3, beta=(*betas, 1.0))
    expected = rule.gradients(dp.Network.from_module(model), x, y).gradients
    assert_same(backward(dp.dualize(model, alpha=0.3, beta=betas), x, y), expected, rounding(0.1))


class Block(nn.Module):
    """BatchNorm, GELU, a residual sum and functional calls, as users write them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.gelu = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU()
        self.second, self.third, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.gelu(self.norm(self.first(x)))
        h = h + F.silu(self.second(h))
        return self.last(torch.tanh(self.third(h)) + h.relu())


def dyadic_difference(f, a, dy, up, down, b):
    """In place of f'(a) dy: s⁺ - s⁻ for the nudge Δ = -b dy, with the sign and scale of a
    cotangent."""
    nudge = -b * dy
    return (f(a + up * nudge) - f(a - down * nudge)) / -b


def by_hand(model, x, y, up, down, b):
    """The backward pass of Block written out, with a dyadic difference at each of its four
    activations."""
    named = dict(model.named_parameters())
    grad = torch.autograd.grad
    a1 = model.norm(model.first(x))
    h1 = F.gelu(a1).detach().requires_grad_()
    a2 = model.second(h1)
    h2 = (h1 + F.silu(a2)).detach().requires_grad_()
    a3 = model.third(h2)
    inside = (torch.tanh(a3) + torch.relu(h2)).detach().requires_grad_()
    loss = F.cross_entropy(model.last(inside), y)
    dy, gw, gb = grad(loss, [inside, named["last.weight"], named["last.bias"]])
    found = {"last.weight": gw, "last.bias": gb}
    da3 = dyadic_difference(torch.tanh, a3.detach(), dy, up, down, b)
    dh2, gw, gb = grad(a3, [h2, named["third.weight"], named["third.bias"]], da3)
    found |= {"third.weight": gw, "third.bias": gb}
    dh2 = dh2 + dyadic_difference(torch.relu, h2.detach(), dy, up, down, b)
    da2 = dyadic_difference(F.silu, a2.detach(), dh2, up, down, b)
    dh1, gw, gb = grad(a2, [h1, named["second.weight"], named["second.bias"]], da2)
    found |= {"second.weight": gw, "second.bias": gb}
    da1 = dyadic_difference(F.gelu, a1.detach(), dh1 + dh2, up, down, b)
    first = ["first.weight", "first.bias", "norm.weight", "norm.bias"]
    found |= dict(zip(first, grad(a1, [named[n] for n in first], da1), strict=True))
    return {name: found[name] for name in named}


@pytest.mark.parametrize(("coupling", "alpha"), [("original", 0.3), ("transposed", 0.0), ("transposed", 0.3)])
def test_batchnorm_residuals_and_functional_activations_are_the_backward_pass_written_out(coupling, alpha):
    """A functional call that stays with autograd is plain BP in that place; a residual counted
    twice is a factor of two."""
    model, (x, y), beta = drawn(Block), batch(), 2.0
    up, down = (alpha, 1 - alpha) if coupling == "original" else (1 - alpha, alpha)
    expected = by_hand(copy.deepcopy(model), x, y, up, down, beta * len(x))
    found = backward(dp.dualize(model, coupling=coupling, alpha=alpha, beta=beta), x, y)
    # A bias before BatchNorm has gradient zero: what remains there is rounding.
    expected["first.bias"], found["first.bias"] = expected["first.bias"] + 1, found["first.bias"] + 1
    assert_same(found, expected, rounding(1.0))


class Attribute(nn.Module):
    """States by attribute, method and operator of the functional kind, some with settings."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x):
        x = F.leaky_relu(self.one(x), 0.3)
        x = self.two(x).clamp(min=-0.2, max=0.9)
        x = F.gelu(input=self.three(x), approximate="tanh")
        return self.four(F.elu(x, alpha=0.5).sigmoid())


ZOO = {
    "functional calls with settings": (Attribute, (5,), 5),
    "SiLU": (lambda: nn.Sequential(nn.Linear(5, 6), nn.SiLU(), nn.Linear(6, 4)), (5,), 1),
    "ELU, Softplus, Mish": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ELU(), nn.Linear(6, 6), nn.Softplus(beta=2), nn.Linear(6, 4), nn.Mish()),
        (5,),
        3,
    ),
    "CELU, SELU, Softsign": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.CELU(0.7), nn.Linear(6, 6), nn.SELU(), nn.Linear(6, 4), nn.Softsign()),
        (5,),
        3,
    ),
    "Hardswish, Hardsigmoid": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Hardswish(), nn.Linear(6, 6), nn.Hardsigmoid(), nn.Linear(6, 4)),
        (5,),
        2,
    ),
    "block": (Block, (5,), 4),
    "BatchNorm2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 4)),
        (2, 6, 6),
        1,
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_activation_is_converted_with_its_settings_and_tends_to_autograd(name):
    """A lost setting (a slope, a clamp's end, GELU's approximation) changes the function; at tiny β
    it would be visible."""
    make, shape, count = ZOO[name]
    model, (x, y) = drawn(make), batch(shape)
    plain = copy.deepcopy(model)
    values, logits = autograd_gradients(plain, x, y), copy.deepcopy(model)(x).detach()
    dualized = dp.dualize(model, beta=1e-4)
    assert len(dp.describe(dualized, x).events) == count
    found = backward(dualized, x, y)
    torch.testing.assert_close(copy.deepcopy(plain)(x).detach(), logits, rtol=0, atol=0)
    for gone in [n for n, g in values.items() if float(g.norm()) < 1e-12]:  # a bias before BatchNorm
        assert float(found.pop(gone).norm()) < 1e-9
        values.pop(gone)
    # Second order in β = 1e-4, a batch of six, curvature of order one; kinks are crossed by no unit
    # at such a β.
    assert_same(found, values, 1e-5)
    far = backward(dp.dualize(copy.deepcopy(plain), beta=20.0), x, y)
    assert any(distance(far[n], values[n]) > 1e-4 for n in values), "not a single activation was dyadic"


def sums(output, y):
    return F.cross_entropy(output, y, reduction="sum")


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_beta_is_per_example_whatever_the_reduction_of_the_loss(alpha):
    """DP is not homogeneous in the loss: a sum for a mean is another β, and trains, and is not what
    was asked for."""
    model, (x, y) = mlp("tanh"), batch()

    def dualized(**settings):
        return dp.dualize(copy.deepcopy(model), alpha=alpha, beta=2.0, **settings)

    mean = backward(dualized(), x, y)
    n = len(x)
    cases = {
        "sum": (dualized(loss_reduction="sum"), sums, n),
        "number of terms": (dualized(loss_reduction=7), lambda o, y: sums(o, y) / 7, n / 7),
        "loss scale": (dualized(loss_scale=1024.0), lambda o, y: 1024 * F.cross_entropy(o, y), 1024),
        "accumulation": (dualized(loss_scale=0.25), lambda o, y: F.cross_entropy(o, y) / 4, 0.25),
        "sum and scale": (dualized(loss_reduction="sum", loss_scale=8.0), lambda o, y: 8 * sums(o, y), 8 * n),
    }
    for what, (dual, loss, factor) in cases.items():
        scaled = {name: g / factor for name, g in backward(dual, x, y, loss).items()}
        assert_same(scaled, mean, rounding(1.0), what)
    wrong = backward(dualized(), x, y, sums)
    assert distance(wrong["0.weight"] / n, mean["0.weight"]) > 1e-4, "the reduction makes no difference here"


def test_a_loss_scale_function_is_asked_at_every_forward_pass():
    """A GradScaler changes its scale during training: one read at conversion would be stale from
    then on."""
    model, (x, y), scale = mlp("tanh"), batch(), [1.0]
    mean = backward(dp.dualize(copy.deepcopy(model), beta=2.0), x, y)
    dual = dp.dualize(model, beta=2.0, loss_scale=lambda: scale[0])
    for factor in (1.0, 64.0, 0.5):
        scale[0] = factor
        found = backward(dual, x, y, lambda o, y, factor=factor: factor * F.cross_entropy(o, y))
        assert_same({n: g / factor for n, g in found.items()}, mean, rounding(1.0), f"scale {factor}")


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 64), nn.Linear(64, 4)

    def forward(self, x):
        return self.two(F.dropout(F.relu(self.one(x)), 0.5, training=self.training))


@pytest.mark.parametrize("was_training", [True, False])
def test_functional_dropout_keeps_depending_on_train_and_eval(was_training):
    """A tracer bakes in the mode of the moment: the model would drop units in evaluation, or never
    again in training."""
    model = drawn(WithDropout).train(was_training)
    x, _ = batch()
    expected = copy.deepcopy(model).eval()(x)
    dual = dp.dualize(model)
    assert dual.training is was_training
    dual.eval()
    torch.testing.assert_close(dual(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(dual(x), expected)
    dual.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = dual(x), dual(x)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("make", [Block, Attribute, WithDropout, lambda: mlp("relu")])
def test_a_dualized_model_is_copied_saved_and_evaluated_as_before(make):
    """A deep copy whose forward is bound to the original would train the original; a changed
    state_dict can't be loaded."""
    model = drawn(make).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = batch(classes=4)
    logits = model(x).detach()
    dual = dp.dualize(model, beta=2.0)
    assert dual is model
    assert list(dual.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in dual.state_dict().items())
    assert torch.equal(dual(x), logits)
    twin = copy.deepcopy(dual)
    expected = backward(dual, x, y)
    dual.zero_grad(set_to_none=True)
    assert_same(backward(twin, x, y), expected, 0.0)
    assert all(p.grad is None for p in dual.parameters())
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(dual(x), logits)


def test_autocast_in_bfloat16_runs_and_points_the_way_of_backprop():
    """The difference of half-precision states is the weak spot; a norm far off would show it."""
    model, (x, y) = mlp("tanh", (5, 64, 64, 4), dtype=torch.float32), batch(n=64, dtype=torch.float32)

    def cast(output, y):
        return F.cross_entropy(output.float(), y)

    def run(model):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(x)
        assert output.dtype == torch.bfloat16
        cast(output, y).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    expected = run(copy.deepcopy(model))
    found = run(dp.dualize(model, beta=0.1))
    for name in expected:
        assert found[name].dtype == torch.float32
        # Cotangents are rounded to bfloat16 (2⁻⁹) at each of a few operations, the same in both.
        assert distance(found[name], expected[name]) < 0.02, f"{name}: {distance(found[name], expected[name])}"
        assert cosine(found[name], expected[name]) > 0.999


# dynamo's own: it builds an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", [lambda: mlp("tanh"), Attribute])
def test_torch_compile_gives_the_same_gradients(backend, make):
    """A graph break that drops the custom backward pass would leave plain back-propagation."""
    model, (x, y) = drawn(make), batch(classes=4)
    expected = backward(dp.dualize(copy.deepcopy(model), alpha=0.3, beta=2.0), x, y)
    dual = dp.dualize(model, alpha=0.3, beta=2.0)
    torch._dynamo.reset()
    compiled = torch.compile(dual, backend=backend)
    dual.zero_grad(set_to_none=True)
    F.cross_entropy(compiled(x), y).backward()
    assert_same({n: p.grad for n, p in dual.named_parameters()}, expected, rounding(1.0))


def test_a_model_that_is_one_activation_is_dyadic():
    """It has no parent, and no parameters."""
    dual = dp.dualize(nn.Tanh(), alpha=0.3)
    a = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(5, 1).requires_grad_()
    (found,) = torch.autograd.grad(dual(a).sum() / 5, a)
    expected = dyadic_difference(torch.tanh, a.detach(), torch.full_like(a, 1 / 5), 0.3, 0.7, 5.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def num_dyadic(output):
    """How many activations of the graph of `output` are dyadic."""
    stack, seen = [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(below for below, _ in node.next_functions)
    return sum(type(node).__name__ in ("_DyadicActivationBackward", "_WrittenOverBackward") for node in seen)


def test_what_is_named_in_leave_stays_with_back_propagation():
    """By dotted name, type or function; the rest is converted all the same."""
    x, y = batch()
    model = mlp("tanh")
    dual = dp.dualize(copy.deepcopy(model), beta=20.0, leave=["1", "3"])
    assert num_dyadic(dual(x)) == 1
    block = dp.dualize(drawn(Block), leave=["silu", "GELU"])
    assert num_dyadic(block(x)) == 2
    # Behind the only dyadic activation, the last layer still has BP's gradient.
    expected = autograd_gradients(model, x, y)
    found = backward(dual, x, y)
    assert_same({n: found[n] for n in ("6.weight", "6.bias")}, {n: expected[n] for n in ("6.weight", "6.bias")}, rounding(1.0))
    assert distance(found["0.weight"], expected["0.weight"]) > 1e-4


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act = nn.Linear(5, 4), nn.ReLU()

    def forward(self, x):
        h = self.act(self.one(x))
        return h * h


class Exponential(Squares):
    def forward(self, x):
        return torch.exp(self.act(self.one(x)))


def scripted(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(make()), nn.ReLU())


HIDDEN = {
    "a ScriptModule": (lambda: scripted(Squares), r"'0' is a ScriptModule.*leave=\('0',\)"),
    "a compiled child": (lambda: nn.Sequential(torch.compile(Squares(), backend="eager"), nn.ReLU()), r"'0' is compiled"),
    "twice": (lambda: dp.dualize(mlp("relu")), r"dyadic already.*dp\.undualize\(model\)"),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_hides_its_activations_is_named_with_the_remedy(what):
    """Half a conversion would train a mixture of DP and BP without a word."""
    make, message = HIDDEN[what]
    model = make()
    with pytest.raises(dp.UnsupportedModuleError, match=message) as refusal:
        dp.dualize(model)
    assert "\n" not in str(refusal.value)


LEFT = {
    "square": (Squares, "mul"),
    "exp": (Exponential, "exp"),
    "LogSoftmax": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.LogSoftmax(1)), "log_softmax in '2'"),
    "LSTM": (lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.LSTM(5, 4)), "lstm"),
}


@pytest.mark.parametrize("what", LEFT)
def test_strict_refuses_in_the_first_pass_what_is_left_to_exact_derivatives(what):
    """Told by describe, and refused before anything is trained."""
    make, named = LEFT[what]
    model, (x, _) = make().double(), batch()
    assert any(named.split(" ")[0] in name for name, _ in dp.describe(model, x).left)
    dp.dualize(model, strict=True)
    with pytest.raises(dp.UnsupportedModuleError, match=f"strict: exact derivatives would be taken of {named}"):
        model(x)
    dp.undualize(model)
    assert dp.dualize(mlp("relu"), strict=True)(batch()[0]).requires_grad


@pytest.mark.parametrize("last", [nn.Identity(), nn.Softmax(0)])
def test_a_model_of_which_nothing_is_dyadic_is_refused_in_its_first_pass(last):
    """It would train by back-propagation under another name. A softmax over the examples couples
    them and is no neuron."""
    model = dp.dualize(nn.Sequential(nn.Linear(5, 4), last).double())
    with pytest.raises(dp.UnsupportedModuleError, match="ran no known activation above a trainable parameter"):
        model(batch()[0])


def fingerprint(model):
    """Everything about the modules that a conversion could change."""
    return [(name, id(m), type(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for name, m in model.named_modules()]


WRONG_SETTINGS = [
    ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
    ({"alpha": float("nan")}, r"alpha must be in \[0, 1\]"),
    ({"beta": 0.0}, "beta must be positive and finite"),
    ({"beta": [1.0, -1.0, 1.0]}, "beta must be positive and finite"),
    ({"beta": float("inf")}, "beta must be positive and finite"),
    ({"beta": []}, "beta must be positive"),
    ({"beta": {"7": 1.0}}, "beta names '7', which is no module of the model"),
    ({"beta": {0: 1.0}}, "activations are counted from 1"),
    ({"when": "eval"}, "when must be 'training' or 'always'"),
    ({"coupling": "dp"}, "coupling must be 'original' or 'transposed'"),
    ({"loss_reduction": "none"}, "loss_reduction must be 'mean', 'sum' or the number of terms"),
    ({"loss_reduction": 0}, "loss_reduction must be"),
    ({"loss_reduction": True}, "loss_reduction must be"),
    ({"loss_scale": 0.0}, "loss_scale must be positive"),
    ({"leave": ["SiLU"]}, r"leave names 'SiLU', which the model does not hold. Remove it"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS)
def test_a_setting_out_of_range_is_refused_and_nothing_is_changed(settings, message):
    """β = 0 would divide by zero at the first backward pass, far from its cause."""
    model = mlp("relu")
    before = fingerprint(model)
    with pytest.raises(dp.SettingError, match=message):
        dp.dualize(model, **settings)
    assert fingerprint(model) == before


def test_a_list_of_betas_that_does_not_fit_is_refused_in_the_first_pass():
    """A value that is left over, or missing, gives some layer another's strength."""
    for betas, message in (([1.0, 1.0], "more activations"), ([1.0] * 4, "lists 4 values, but the model has 3 activations")):
        with pytest.raises(dp.SettingError, match=message):
            dp.dualize(mlp("relu"), beta=betas)(batch()[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_is_compiled_holds_no_addition_with_a_factor_of_its_own(alpha):
    """Inductor folds add(a, product, alpha) into addmm and forgets the alpha
    (pytorch/pytorch#167313 and its kin): the nudges of one-sided DP were N times too small under
    torch.compile, without a word."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    targets = []

    def capture(graph, inputs):
        targets.extend((node.target, dict(node.kwargs)) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    model, (x, y) = mlp("relu", dtype=torch.float32), batch(dtype=torch.float32)
    dp.dualize(model, coupling="transposed", alpha=alpha)
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=capture, bw_compiler=capture))
    torch.nn.functional.cross_entropy(compiled(x), y).backward()
    names = [str(target) for target, _ in targets]
    assert any("mm" in name for name in names), "the graphs were not seen"
    assert any("aten.maximum" in name for name in names), "the dyads' differences were not seen"
    assert not [name for name, (_, kwargs) in zip(names, targets, strict=True) if "alpha" in kwargs]
