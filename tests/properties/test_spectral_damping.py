"""Spectral damping: its constants against singular values of dense matrices, its vectors as state,
and what it is for."""

import copy

import pytest
import torch
from comparison import assert_same, numbered
from networks import batch, conv_net, drawn, images, mlp
from torch import nn

import dualprop as dp
from dualprop.analysis.transcription import transcribe
from dualprop.network import spectra

# Per layer, so that the ratio of neighbours matters: a constant of the wrong layer or ratio is
# another one.
BETAS = (0.3, 1.0, 0.5, 4.0)
# The modules that enter the spectral norms above layers 1, 2, 3, with the shape of one example
# there.
CORES = {
    "mlp": ((2, (8,)), (4, (7,)), (6, (6,))),
    "none": ((2, (3, 6, 6)), (5, (144,)), (7, (5,))),
    "before": ((2, (3, 6, 6)), (6, (36,)), (8, (5,))),
    "after": ((2, (3, 6, 6)), (6, (36,)), (8, (5,))),
}
kinds = pytest.mark.parametrize("kind", CORES)


def problem(kind, scale=2.5, n=4, seed=0):
    """A network whose weights are `scale` times PyTorch's, and a batch."""
    model = mlp("relu", seed=seed) if kind == "mlp" else conv_net("relu", kind, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(scale if name.endswith("weight") else 1.0)
    return model, *(batch(n=n, seed=seed) if kind == "mlp" else images(n=n, seed=seed))


def squared_norms(kind, model):
    """‖W_{k+1}‖² of k = 1, 2, 3: the matrix column by column, without the bias, and all of its
    singular values."""
    found = []
    for index, shape in CORES[kind]:
        basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
        with torch.no_grad():
            columns = (model[index](basis) - model[index](torch.zeros_like(basis))).flatten(1)
        found.append(float(torch.linalg.svdvals(columns)[0]) ** 2)
    return found


def constants(kind, model, alpha, damping, betas=BETAS):
    """factor · max(0, r‖W_{k+1}‖² - 1)/2 with r = β_k/β_{k+1}: the papers' formula in numbers."""
    factor = abs(1 - 2 * alpha) if damping == "spectral" else 1.0
    ratios = [betas[k] / betas[k + 1] for k in range(3)]
    return tuple(factor * max(0.0, r * n - 1) / 2 for r, n in zip(ratios, squared_norms(kind, model), strict=True))


def converged(network, x, y, **settings):
    """The state after many calls on one example, each of which takes one step of power
    iteration."""
    rule, state = dp.DualPropagation(schedule=[1], **settings), None
    for _ in range(400):
        state = rule.infer(network, x[:1], y[:1], state=state)
    return state


@pytest.mark.sampled(5)
@kinds
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("damping", ["spectral", "spectral_full"])
def test_inference_is_that_with_the_constants_given_as_numbers(kind, alpha, damping):
    """Wrong constants still settle, only slower or less surely: nothing but the numbers shows them.

    The batch is another, larger one than the vectors were found on: they are of one example's
    shape.
    """
    model, x, y = problem(kind)
    network = dp.Network.from_module(model)
    expected = constants(kind, model, alpha, damping)
    assert min(expected) == 0 < max(expected), "one layer must need no damping, and one some"
    fixed = {"alpha": alpha, "beta": BETAS, "schedule": "up_down(3)"}
    rule = dp.DualPropagation(damping=damping, **fixed)
    found = rule.gradients(network, x, y, state=converged(network, x, y, alpha=alpha, beta=BETAS, damping=damping))
    given = dp.DualPropagation(damping=expected, **fixed)
    by_numbers = given.gradients(network, x, y)
    assert_same(numbered(found.state.plus, "s+"), numbered(by_numbers.state.plus, "s+"), 1e-9)
    assert_same(numbered(found.state.minus, "s-"), numbered(by_numbers.state.minus, "s-"), 1e-9)
    assert_same(found.gradients, by_numbers.gradients, 1e-8)
    plus, minus, gradients = transcribe(network, given, x, y, list(given.schedule.steps(4)))
    assert_same(numbered(found.state.plus, "s+"), numbered(plus, "s+"), 1e-9, "transcription")
    assert_same(numbered(found.state.minus, "s-"), numbered(minus, "s-"), 1e-9, "transcription")
    assert_same(found.gradients, gradients, 1e-8, "transcription")
    # The case tells the formula from its neighbours: without the ratio, and with the other kind's
    # factor.
    for other in (constants(kind, model, alpha, damping, (1.0,) * 4), constants(kind, model, 0.3, damping)):
        if other != expected:
            moved = dp.DualPropagation(damping=other, **fixed).gradients(network, x, y).gradients
            assert any(float((moved[n] - g).norm() / g.norm()) > 1e-4 for n, g in found.gradients.items())


def test_at_one_half_spectral_is_plain_dp_linearised_at_the_forward_pass():
    """There |1-2α| is nought, and DP needs no damping; spectral_full damps all the same."""
    model, x, y = problem("mlp")
    network = dp.Network.from_module(model)

    def found(**settings):
        return dp.DualPropagation(alpha=0.5, schedule="up_down(3)", **settings).gradients(network, x, y)

    plain, damped = found(linearize_at="forward"), found(damping="spectral")
    assert all(torch.equal(damped.gradients[name], gradient) for name, gradient in plain.gradients.items())
    assert all(a.equal(b) for a, b in zip(damped.state.means, plain.state.means, strict=True))
    for other in (found(), found(damping="spectral_full")):
        assert not all(torch.equal(other.gradients[name], gradient) for name, gradient in plain.gradients.items())


@kinds
def test_a_call_takes_one_step_of_power_iteration_from_the_vectors_of_the_state(kind):
    """Started anew at each call, the constants would stay some ten per cent too small for ever. The
    first call, which has no vectors yet, takes thirty steps: from one alone damping would be far
    too weak."""
    model, x, y = problem(kind)
    network = dp.Network.from_module(model)
    rule = dp.DualPropagation(alpha=0.0, damping="spectral")
    state, expected, before = None, [None] * 4, [None] * 4
    for call in range(3):
        state = rule.gradients(network, x, y, state=state).state
        for k, (index, shape) in [*enumerate(CORES[kind], start=1)] * (1 if call else 31):
            v = spectra.start_vector(shape, torch.float64) if expected[k] is None else expected[k]
            leaf = torch.zeros_like(v).unsqueeze(0).requires_grad_()
            forward = model[index](v.unsqueeze(0)) - model[index](leaf)
            w = torch.autograd.grad(model[index](leaf), leaf, forward.detach())[0].squeeze(0)
            momentum = 0 if before[k] is None else (0.99 / 2 * w.norm()) ** 2 * before[k]
            size = (w - momentum).norm()
            expected[k], before[k] = (w - momentum) / size, v / size
        assert state.directions[0] is None
        assert_same(numbered([pair[0] for pair in state.directions[1:]], "v"), numbered(expected[1:], "v"), 1e-8)


@pytest.mark.parametrize("start", ["forward", "previous"])
def test_the_vectors_are_returned_anew_and_survive_a_checkpoint(start):
    """A state that is written to, or comes back a little other than it was saved, makes a resumed
    run another run."""
    model, x, y = problem("after")
    network = dp.Network.from_module(model)
    rule = dp.DualPropagation(alpha=0.0, damping="spectral", start=start, schedule="up_down(1)")
    assert rule.keeps_state
    state = rule.gradients(network, x, y).state
    kept = copy.deepcopy(state)
    straight = rule.gradients(network, x.flip(0), y, state=state)
    for now, before in zip(state.directions[1:], kept.directions[1:], strict=True):
        assert torch.equal(now, before)
    assert all(a.equal(b) for a, b in zip(state.means, kept.means, strict=True))
    assert not any(a.equal(b) for a, b in zip(straight.state.directions[1:], state.directions[1:], strict=True))

    packed = rule.pack_state(state)
    assert ("means.1" in packed) == (start == "previous"), "states are saved where, and only where, they are used again"
    back = rule.unpack_state({name: tensor.clone() for name, tensor in packed.items()})
    assert len(back.directions) == 4
    assert all(a.equal(b) for a, b in zip(back.directions[1:], state.directions[1:], strict=True))
    resumed = rule.gradients(network, x.flip(0), y, state=back)
    assert all(torch.equal(resumed.gradients[name], gradient) for name, gradient in straight.gradients.items())
    assert rule.unpack_state(rule.pack_state(None)) is None


def test_the_batch_may_change_its_size_between_calls():
    """The last batch of an evaluation is smaller; the vectors are of one example's shape and must
    not notice."""
    model, x, y = problem("after", n=6)
    network, rule = dp.Network.from_module(model), dp.DualPropagation(alpha=1.0, damping="spectral", schedule="up_down(2)")
    state = rule.gradients(network, x, y).state
    small = rule.gradients(network, x[:2], y[:2], state=state)
    full = rule.gradients(network, x, y, state=state)
    for k in range(5):
        torch.testing.assert_close(small.state.means[k], full.state.means[k][:2], rtol=1e-9, atol=1e-11)
    assert all(a.equal(b) for a, b in zip(small.state.directions[1:], full.state.directions[1:], strict=True))


def test_vectors_of_another_architecture_are_dropped_and_not_misread():
    """A state kept over a change of the network would fail deep inside a product, or fit by
    accident."""
    model, x, y = problem("mlp")
    network, rule = dp.Network.from_module(model), dp.DualPropagation(alpha=1.0, damping="spectral")
    wide, (wide_x, wide_y) = mlp("relu", (5, 9, 9, 9, 4)), batch()
    state = rule.infer(dp.Network.from_module(wide), wide_x, wide_y)
    fresh = rule.gradients(network, x, y)
    found = rule.gradients(network, x, y, state=state)
    assert all(torch.equal(found.gradients[name], gradient) for name, gradient in fresh.gradients.items())


def test_a_call_without_a_state_is_deterministic_and_draws_from_no_global_generator():
    """A start drawn from the global generator would make two runs of one seed two runs."""
    model, x, y = problem("none")
    network, rule = dp.Network.from_module(model), dp.DualPropagation(alpha=0.0, damping="spectral_full")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rule.gradients(network, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = rule.gradients(network, x, y)
    assert all(torch.equal(second.gradients[name], gradient) for name, gradient in first.gradients.items())


def training_models():
    def convolutional():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip

    return {
        "mlp": (lambda: mlp("relu", (32, 64, 128, 10), dtype=torch.float32), (32,)),
        "conv": (lambda: drawn(convolutional, dtype=torch.float32), (3, 6, 6)),
    }


@pytest.mark.parametrize("kind", training_models())
def test_one_iteration_a_step_follows_the_norms_through_real_training(kind):
    """The constants are only as good as the norms. That one step of iteration a batch is enough is
    what makes damping cheap."""
    make, shape = training_models()[kind]
    model, (x, y) = make(), batch(shape, 10, 512, dtype=torch.float32)
    network, rule = dp.Network.from_module(model), dp.DualPropagation(alpha=0.0, damping="spectral", schedule="up_down(1)")
    optimizer, state = torch.optim.Adam(model.parameters(), lr=3e-3), None
    weights = [module for module in model if isinstance(module, nn.Linear | nn.Conv2d)][1:]
    shapes = [(64,), (128,)] if kind == "mlp" else [(8, 6, 6), (72,)]

    def norms():
        found = []
        for module, at in zip(weights, shapes, strict=True):
            basis = torch.eye(torch.Size(at).numel()).reshape(-1, *at)
            with torch.no_grad():
                columns = (module(basis) - module(torch.zeros_like(basis))).flatten(1)
            found.append(float(torch.linalg.svdvals(columns.double())[0]))
        return found

    at_first = norms()
    for step in range(100):
        rows = torch.arange(32) + 32 * (step % 16)
        optimizer.zero_grad()
        state = rule.backward(network, x[rows], y[rows], state=state).state
        optimizer.step()
    at_last = norms()
    assert all(abs(last / first - 1) > 0.2 for first, last in zip(at_first, at_last, strict=True)), "no weight has moved"
    for k, norm in enumerate(at_last, start=1):
        _, squared = spectra.accelerated_step(network.into(k + 1).synapse, state.directions[k])
        assert float(squared) ** 0.5 == pytest.approx(norm, rel=1e-3), f"‖W_{k + 1}‖"


@pytest.mark.parametrize("kind", ["mlp", "none"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_damped_dp_settles_where_plain_dp_does_not(kind, alpha):
    """What damping is for. A sign or a factor of two in the constants would leave it as unstable as
    plain DP."""
    model, x, y = problem(kind, scale=3.0, n=6)
    network = dp.Network.from_module(model)
    fixed = {"alpha": alpha, "schedule": "up_down(150)", "tolerance": 1e-3}
    plain = dp.DualPropagation(**fixed).gradients(network, x, y)
    assert (plain.status.ok, plain.diagnostics["passes"]) == (False, 150)
    assert plain.diagnostics["residual"] > 0.05
    for damping in ("spectral", "spectral_full"):
        state = converged(network, x, y, alpha=alpha, damping=damping)
        damped = dp.DualPropagation(damping=damping, **fixed).gradients(network, x, y, state=state)
        assert damped.status.ok, (damping, damped.diagnostics)
        assert 2 < damped.diagnostics["passes"] < 150


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_transposed_dp_settles_there_for_every_alpha_without_damping(alpha):
    """The claim of Høier & Zach (2024), at the weights and nudge at which plain DP fails above."""
    model, x, y = problem("mlp", scale=3.0, n=6)
    network = dp.Network.from_module(model)
    rule = dp.DualPropagation(coupling="transposed", alpha=alpha, schedule="up_down(50)", tolerance=1e-3)
    out = rule.gradients(network, x, y)
    assert out.status.ok, out.diagnostics
    assert out.diagnostics["residual"] <= 1e-3


@pytest.mark.parametrize("damping", ["spectral", "spectral_full"])
def test_a_layer_above_whose_core_is_not_affine_is_refused_with_a_remedy_that_exists(damping):
    """The norm of f(v) - f(0) is no spectral norm there; numbers of one's own are the way out."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4)).double()
    (x, y), rule = batch(), dp.DualPropagation(alpha=0.0, damping=damping)
    with pytest.raises(dp.SettingError, match="LayerNorm") as error:
        rule.gradients(dp.Network.from_module(model), x, y)
    assert "\n" not in str(error.value)
    assert "damping=(…)" in str(error.value)
    assert "update=" not in str(error.value), "no rule has a setting of that name"
    given = dp.DualPropagation(alpha=0.0, damping=(1.0, 0.5)).gradients(dp.Network.from_module(model), x, y)
    assert given.status.ok


def test_a_normalisation_below_the_first_layer_is_no_obstacle():
    """The synapse from the input is in no loop: its norm is not asked for."""
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    out = dp.DualPropagation(alpha=0.0, damping="spectral").gradients(dp.Network.from_module(model), *batch())
    assert out.status.ok
    assert len(out.state.directions) == 2


@pytest.mark.parametrize("settings", [{"damping": "spectral", "alpha": 0.0}, {"start": "previous"}])
def test_what_is_no_state_is_refused(settings):
    """It would fail somewhere inside, in words that say nothing of `state`."""
    model, x, y = problem("mlp")
    with pytest.raises(dp.SettingError, match=r"state must be the Dyads of an earlier call, got str\. Pass state=None"):
        dp.DualPropagation(**settings).gradients(dp.Network.from_module(model), x, y, state="foo")


@pytest.mark.parametrize("settings", [{"damping": (0.5, 0.5)}, {"damping": "spectral", "alpha": 0.0}])
def test_damped_states_keep_their_differences_under_bfloat16_autocast(settings):
    """Carried in bfloat16 from pass to pass, at β = 0.01 nearly nothing was left of them, with a
    status of ok."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    network, x, y = dp.Network.from_module(model), torch.randn(32, 4), torch.arange(32) % 3
    rule = dp.DualPropagation(beta=0.01, schedule="up_down(6)", **settings)
    exact = rule.gradients(network, x, y).gradients
    with torch.autocast("cpu", torch.bfloat16):
        found = rule.gradients(network, x, y).gradients
    for name, gradient in exact.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.15, name  # a unit or two change sides of a kink
