"""Target propagation against the formulas written out: G by PyTorch's own layers, its loss by
autograd, Jacobians in full."""

import itertools

import pytest
import torch
from comparison import assert_same, distance, report
from networks import ACTIVATIONS, autograd_gradients, batch, drawn, images, mlp
from torch import nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.rules.learned_feedback import FeedbackMap

# h with h'(f(a)) = f'(a); where f has kinks, the mask of the forward pass instead.
SMOOTH = {
    "identity": lambda t: t,
    "tanh": lambda t: t.clamp(-1, 1) - t.clamp(-1, 1) ** 3 / 3,
    "sigmoid": lambda t: t.clamp(0, 1) ** 2 / 2 - t.clamp(0, 1) ** 3 / 3,
}
# The activation and what stands around the weights of a layer that reads (N, 2, 6, 6), or (N, 5)
# for "linear".
MAPS = {
    "linear": lambda: [nn.Linear(5, 7)],
    "convolution": lambda: [nn.Conv2d(2, 3, 3, padding=1)],
    "strided convolution": lambda: [nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)],
    "convolution, max-pool": lambda: [nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2)],
    "max-pool, flatten, linear": lambda: [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 5)],
    "average pool, convolution": lambda: [nn.AvgPool2d(2), nn.Conv2d(2, 3, 3, padding=1)],
}


class Naive:
    """F and G of one layer, from the modules between two activations and the activation's name."""

    def __init__(self, modules, activation, below):
        self.modules, self.activation = modules, activation
        self.f = ACTIVATIONS[activation]()
        # By module: the size of its input, and for a max-pool the switches there.
        self.sizes, self.switches, s = [], [], below
        for module in modules:
            self.sizes.append(s.shape)
            self.switches.append(F.max_pool2d(s, 2, return_indices=True)[1] if isinstance(module, nn.MaxPool2d) else None)
            s = module(s)
        leaf = s.detach().requires_grad_()
        self.mask = torch.autograd.grad(self.f(leaf).sum(), leaf)[0]

    @property
    def weighted(self):
        (found,) = (m for m in self.modules if isinstance(m, nn.Linear | nn.Conv2d))
        return found

    def forward(self, s):
        for module in self.modules:
            s = module(s)
        return self.f(s)

    def back(self, t, weight):
        t = SMOOTH[self.activation](t) if self.activation in SMOOTH else self.mask * t
        for module, size, switches in reversed(list(zip(self.modules, self.sizes, self.switches, strict=True))):
            if isinstance(module, nn.Linear):
                t = t @ weight
            elif isinstance(module, nn.Conv2d):
                spare = [size[2 + i] - ((t.shape[2 + i] - 1) * module.stride[i] - 2 * 1 + 3) for i in range(2)]
                t = F.conv_transpose2d(
                    t, weight, stride=module.stride, padding=1, output_padding=spare, groups=module.groups
                )  # fmt: skip
            elif isinstance(module, nn.MaxPool2d):
                t = F.max_unpool2d(t, switches, 2, output_size=size)
            elif isinstance(module, nn.AvgPool2d):
                t = F.interpolate(t, scale_factor=2) / 4
            else:
                t = t.reshape(size)
        return t

    def loss(self, weight, x, dx, dy, noisy=None):
        """`noisy` is the layer read at x + dx, where what comes from there is unpooled by the
        switches there. Masks of activations with kinks stay those at x."""
        s = self.forward(x)
        from_noise = self.back
        if noisy is not None:
            noisy.mask = self.mask
            from_noise = noisy.back
        of_x = from_noise(self.forward(x + dx), weight) - self.back(s, weight)
        of_y = self.back(s + dy, weight) - self.back(s, weight)
        return (-2 * (dx * of_x).sum() + of_y.square().sum()) / len(x)


def layer_problem(kind, activation, n=6):
    """The layer's modules and activation, the state below, feedback weights other than the forward
    ones, and the map."""
    model = drawn(lambda: nn.Sequential(*MAPS[kind](), ACTIVATIONS[activation]()), seed=3)
    x = (batch((5,), n=n) if kind == "linear" else images(n))[0]
    layer = dp.Network.from_module(model).into(1)
    drive, tape = layer.synapse.drive(x)
    naive = Naive(list(model)[:-1], activation, x)
    weight = torch.randn(naive.weighted.weight.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    return naive, x, weight, FeedbackMap(layer, x, drive, tape, layer.neuron.f(drive))


def noise_like(t, sigma, seed):
    return sigma * torch.randn(t.shape, generator=torch.Generator().manual_seed(seed), dtype=t.dtype)


CASES = [("linear", activation) for activation in ACTIVATIONS if activation != "softmax"]
CASES += [(kind, activation) for kind in MAPS if kind != "linear" for activation in ("relu", "tanh")]


@pytest.mark.parametrize(("kind", "activation"), CASES)
def test_the_feedback_weights_learn_by_the_gradient_of_the_loss_as_it_is_written(kind, activation):
    """A term with the wrong sign or point, or a pool by the switches of the noisy pass, still
    lowers some loss."""
    naive, x, weight, found = layer_problem(kind, activation)
    dx, dy = noise_like(x, 0.5, 7), noise_like(found.state, 0.5, 8)
    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(naive.loss(leaf, x, dx, dy), leaf)
    with torch.no_grad():
        assert distance(found.loss_gradient(weight, dx, dy), expected) < 1e-12


@pytest.mark.parametrize(("kind", "activation"), [case for case in CASES if "max-pool" in case[0]])
def test_unpooled_by_the_noisy_passs_switches_it_is_the_gradient_of_the_authors_loss(kind, activation):
    """scalingDTP's: G(F(x+dx)) by the switches at x+dx, G(F(x)) and G(F(x)+dy) by those at x."""
    naive, x, weight, found = layer_problem(kind, activation)
    dx, dy = noise_like(x, 0.5, 7), noise_like(found.state, 0.5, 8)
    leaf = weight.clone().requires_grad_()
    noisy = Naive(naive.modules, activation, x + dx)
    assert any(s is not None and not torch.equal(s, t) for s, t in zip(naive.switches, noisy.switches, strict=True))
    (expected,) = torch.autograd.grad(naive.loss(leaf, x, dx, dy, noisy), leaf)
    with torch.no_grad():
        assert distance(found.loss_gradient(weight, dx, dy, is_noisy=True), expected) < 1e-12
        assert distance(found.loss_gradient(weight, dx, dy), expected) > 0.01


def pooled_net(pool="before"):
    """One layer with a map back and a max-pool, before its activation or after the one below."""
    pooled = [nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)]
    middle = pooled if pool == "before" else pooled[::-1]
    below, above = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh()], [nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)]
    return drawn(lambda: nn.Sequential(*below, *middle, *above), seed=1)


@pytest.mark.parametrize("pool", ["before", "after"])
def test_by_clean_switches_the_feedback_weights_near_the_forward_ones_and_by_noisy_ones_less(pool):
    """What the page says of the choice. Noisy switches pick what the noise has raised, and the loss
    rewards B for it: B grows too long, and past a pool behind the activation it turns away."""
    model, (x, y) = pooled_net(pool), images(16)
    forward = model[2 if pool == "before" else 3].weight.detach()
    cosines, lengths = {}, {}
    for unpool in ("clean", "noisy"):
        rule = dp.TargetPropagation(iterations=300, noise=0.1, start="random", unpool=unpool)
        generator = torch.Generator().manual_seed(0)
        weight = rule.gradients(dp.Network.from_module(model), x, y, generator=generator).state.weights[2]
        cosines[unpool] = float(F.cosine_similarity(weight.flatten(), forward.flatten(), dim=0))
        lengths[unpool] = float(weight.norm() / forward.norm())
    assert cosines["clean"] > 0.97, cosines
    assert lengths["clean"] < 1.05, lengths
    assert lengths["noisy"] > 1.2, lengths
    assert cosines["noisy"] < (0.97 if pool == "before" else 0.7), cosines


def test_noisy_switches_are_of_networks_that_have_some():
    """On any other the option would do nothing, unsaid."""
    generator = torch.Generator().manual_seed(0)
    rule, (x, y) = dp.TargetPropagation(unpool="noisy"), images()
    average = drawn(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)))
    for model, data in ((mlp("tanh"), batch()), (average, (x, y))):
        with pytest.raises(dp.SettingError, match=r"unpool='noisy' is of max-pools.*Use unpool='clean'"):
            rule.gradients(dp.Network.from_module(model), *data, generator=generator)
    out = rule.gradients(dp.Network.from_module(pooled_net()), x, y, generator=generator)
    assert out.diagnostics == {"drives": 3 + 20, "feedbacks": 2 + 20, "gradients": 3 + 30 + 20}


@pytest.mark.parametrize(("kind", "activation"), CASES)
def test_the_difference_of_feedback_is_gs_own_also_for_targets_out_of_the_activations_range(kind, activation):
    """It is computed by its own factors, where G(t) and G(s) would lose their digits in float32."""
    naive, _, weight, found = layer_problem(kind, activation)
    for size in (1e-3, 0.5, 5.0):
        change = noise_like(found.state, size, 9)
        expected = naive.back(found.state + change, weight) - naive.back(found.state, weight)
        assert distance(found.target_difference(change, weight), expected) < 1e-11


@pytest.mark.parametrize(("kind", "activation"), CASES)
def test_with_the_forward_weights_the_feedback_jacobian_is_the_forward_one_transposed(kind, activation):
    """What learning is to reach must be within reach: of the activation, the pools and the
    transposed convolution."""
    naive, x, _, found = layer_problem(kind, activation, n=1)
    jacobian = torch.autograd.functional.jacobian
    forward = jacobian(naive.forward, x).reshape(found.state.numel(), x.numel())
    weight = naive.weighted.weight.detach()
    back = jacobian(lambda t: naive.back(t, weight), found.state).reshape(x.numel(), found.state.numel())
    torch.testing.assert_close(back, forward.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("linear", "identity"), ("linear", "tanh"), ("linear", "relu"), ("convolution, max-pool", "tanh")],
)
def test_the_feedback_jacobian_nears_the_forward_one_transposed_as_iterations_grow(kind, activation):
    """The claim of the loss. From a random start, at rates that fall as the iterations grow, so
    that what is left is not the noise of the last steps; Jacobians in full, by autograd, over some
    examples."""

    def make():
        below = nn.Linear(5, 5) if kind == "linear" else nn.Conv2d(2, 2, 3, padding=1)
        return nn.Sequential(below, nn.Tanh(), *MAPS[kind](), ACTIVATIONS[activation](), nn.Flatten())

    model = drawn(make, seed=3)
    above = list(model)[2:-2]
    x = (batch((5,), n=200) if kind == "linear" else images(64))[0]
    y = torch.zeros(len(x), dtype=torch.long)
    errors = []
    rate = (0.02 if kind == "linear" else 0.003) / 0.01**2
    for iterations, slower in ((0, 1), (10, 1), (100, 4), (1000, 30)):
        rule = dp.TargetPropagation(iterations=iterations, start="random", noise=0.01, feedback_rate=rate / slower)
        out = rule.gradients(dp.Network.from_module(model), x, y, generator=torch.Generator().manual_seed(1))
        total = size = 0.0
        for i in range(4):
            s = model[1](model[0](x[i : i + 1])).detach()
            naive = Naive(above, activation, s)
            jacobian = torch.autograd.functional.jacobian
            forward = jacobian(naive.forward, s).reshape(-1, s.numel())
            weight = out.state.weights[2]
            back = jacobian(lambda t, naive=naive, weight=weight: naive.back(t, weight), naive.forward(s).detach())
            total += float((back.reshape(s.numel(), -1) - forward.T).square().sum())
            size += float(forward.square().sum())
        errors.append((total / size) ** 0.5)
    assert errors[0] > 0.5, errors
    for before, after in itertools.pairwise(errors):
        assert after < 0.6 * before, errors
    assert errors[-1] < 0.05, errors


def test_gradients_are_those_of_local_steps_towards_difference_targets_written_out():
    """At a β and feedback weights far from back-propagation's: the correction, the order, and what
    is held while learning."""
    beta, (x, y) = 0.7, batch()
    for activation in ("tanh", "relu", "sigmoid"):
        model = mlp(activation)
        network, generator = dp.Network.from_module(model), torch.Generator().manual_seed(2)
        rule = dp.TargetPropagation(beta=beta, iterations=0, start="random")
        out = rule.gradients(network, x, y, generator=generator)
        maps = [m for m in model if isinstance(m, nn.Linear)]
        states, layers = [x], []
        for k, linear in enumerate(maps, start=1):
            layers.append(Naive([linear], "identity" if k == len(maps) else activation, states[-1]))
            states.append(layers[-1].forward(states[-1]).detach())
        output = states[-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(output, y, reduction="sum"), output)
        targets = {len(maps): states[-1] - beta * slope}
        for k in range(len(maps), 1, -1):
            weight = out.state.weights[k]
            back = layers[k - 1].back
            targets[k - 1] = states[k - 1] + back(targets[k], weight) - back(states[k], weight)
        total = sum((layers[k - 1].forward(states[k - 1]) - targets[k]).square().sum() / (2 * beta * len(x)) for k in targets)
        found = torch.autograd.grad(total, list(model.parameters()))
        expected = dict(zip((name for name, _ in model.named_parameters()), found, strict=True))
        assert_same(out.gradients, expected, 1e-11, activation)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_with_symmetric_feedback_gradients_near_back_propagations_in_proportion_to_beta(activation, loss):
    """The targets lie on one side: the error is of order β, no better and no worse."""
    model, (x, y) = mlp(activation), batch()
    expected = autograd_gradients(model, x, y, loss)
    errors = []
    for beta in (1e-2, 1e-3, 1e-4):
        rule = dp.TargetPropagation(beta=beta, iterations=0, loss=loss)
        errors.append(distance(rule.gradients(dp.Network.from_module(model), x, y).gradients["0.weight"], expected["0.weight"]))
    assert errors[0] < 0.1
    for larger, smaller in itertools.pairwise(errors):
        assert 9 < larger / smaller < 11, errors


@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "hard_sigmoid"])
def test_with_symmetric_feedback_and_piecewise_linear_units_it_is_back_propagation_at_any_beta(activation, beta):
    """Masks are those of the forward pass, so that this form is numerically back-propagation, and
    labelled so."""
    model, (x, y) = mlp(activation), batch()
    out = dp.TargetPropagation(beta=beta, iterations=0).gradients(dp.Network.from_module(model), x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), 1e-12, activation)


def test_a_small_beta_costs_no_digits_in_float32():
    """Differences of targets and states are held, not targets."""
    model, (x, y) = mlp("tanh", dtype=torch.float32), batch(dtype=torch.float32)
    out = dp.TargetPropagation(beta=1e-6, iterations=0).gradients(dp.Network.from_module(model), x, y)
    expected = autograd_gradients(model, x, y)
    assert_same(out.gradients, expected, 1e-5, report(out.gradients, expected))


def test_a_layer_at_its_target_leaves_those_below_where_they_are():
    """The difference correction: without it, imperfect reconstruction would move states that need
    no moving."""
    model, (x, _) = mlp("tanh"), batch()
    y = model(x).detach()
    rule = dp.TargetPropagation(beta=0.5, start="random", loss="squared_error")
    out = rule.gradients(dp.Network.from_module(model), x, y, generator=torch.Generator().manual_seed(0))
    assert all(not bool(gradient.any()) for gradient in out.gradients.values())


def test_feedback_weights_take_the_steps_of_pytorchs_sgd_on_the_written_out_loss():
    """Momentum, decay and rate per layer, over two batches: a published setting must mean here what
    it means there."""
    model, (x, y) = mlp("tanh", widths=(5, 6, 4, 3)), batch(classes=3)
    settings = {"iterations": (3, 2), "noise": (0.3, 0.2), "feedback_rate": (0.05, 0.1)}
    rule = dp.TargetPropagation(**settings, feedback_momentum=0.8, feedback_decay=0.01, start="random")
    network, generator = dp.Network.from_module(model), torch.Generator().manual_seed(4)
    start = dp.TargetPropagation(iterations=0, start="random").gradients(network, x, y, generator=generator).state
    generator.manual_seed(6)
    first = rule.gradients(network, x, y, state=start, generator=generator)
    second = rule.gradients(network, 2 * x, y, state=first.state, generator=generator)

    generator.manual_seed(6)
    weights = {k: weight.clone().requires_grad_() for k, weight in start.weights.items()}
    groups = [{"params": [weights[k]], "lr": settings["feedback_rate"][k - 2]} for k in weights]
    optimizers = {
        k: torch.optim.SGD([group], momentum=0.8, weight_decay=0.01) for k, group in zip(weights, groups, strict=True)
    }
    for inputs in (x, 2 * x):
        state = model[1](model[0](inputs)).detach()
        for k, (linear, activation) in {2: (model[2], "tanh"), 3: (model[4], "identity")}.items():
            naive = Naive([linear], activation, state)
            above = naive.forward(state).detach()
            for _ in range(settings["iterations"][k - 2]):
                sigma = settings["noise"][k - 2]
                dx, dy = (sigma * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (state, above))
                optimizers[k].zero_grad()
                loss = naive.loss(weights[k], state, dx, dy)
                (weights[k].grad,) = torch.autograd.grad(loss, weights[k])
                optimizers[k].step()
            state = above
    found = {str(k): weight for k, weight in second.state.weights.items()}
    assert_same(found, {str(k): weight.detach() for k, weight in weights.items()}, 1e-11)


def test_from_a_random_start_the_feedback_learns_over_batches_and_gradients_turn_to_back_propagations():
    """The published start: what the default's symmetric one is spared must be reachable without
    it."""
    model, (x, y) = mlp("tanh"), batch(n=64)
    network, generator, state = dp.Network.from_module(model), torch.Generator().manual_seed(0), None
    expected, cosines = autograd_gradients(model, x, y)["0.weight"], []
    for _ in range(60):
        out = dp.TargetPropagation(start="random").gradients(network, x, y, state=state, generator=generator)
        state = out.state
        cosines.append(float(F.cosine_similarity(out.gradients["0.weight"].flatten(), expected.flatten(), dim=0)))
    assert cosines[0] < 0.7, cosines[0]
    assert cosines[-1] > 0.95, cosines[-1]
