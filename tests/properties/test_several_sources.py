"""Networks whose layers read several earlier ones: every explicit rule, against autograd and the
slow transcription."""

import re
from itertools import pairwise

import pytest
import torch
from comparison import assert_same, cosine, distance
from networks import autograd_gradients, batch, drawn
from torch import nn

import dualprop as dp
from dualprop.analysis.transcription import transcribe
from dualprop.network import Layer
from dualprop.network.synapses import Synapse


def skips(activation=nn.Tanh, pool=True, seed=0, dtype=torch.float64):
    """Images (N, 2, 6, 6) → 3 logits. Layer 3 reads 1 and 2, layer 4 reads 3, 1 and the input."""

    def make():
        return dp.Layered(
            [
                (activation(), {0: nn.Conv2d(2, 3, 3, padding=1)}),
                (activation(), {1: nn.Conv2d(3, 4, 3, padding=1)}),
                (
                    activation(),
                    {
                        2: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *([nn.MaxPool2d(2)] if pool else [nn.AvgPool2d(2)])),
                        1: nn.Conv2d(3, 4, 1, stride=2),
                    },
                ),
                (
                    None,
                    {
                        3: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
                        1: nn.Sequential(nn.Flatten(), nn.Linear(108, 3)),
                        0: nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(8, 3)),
                    },
                ),
            ]
        )

    return drawn(make, seed, dtype)


def problem(n=6):
    return batch((2, 6, 6), 3, n)


def linear():
    return skips(nn.Identity, pool=False)


def test_a_layered_model_predicts_the_sum_of_what_its_layers_read():
    model, (x, _) = skips(), problem()
    one = torch.tanh(model.maps(1)[0](x))
    two = torch.tanh(model.maps(2)[1](one))
    three = torch.tanh(model.maps(3)[2](two) + model.maps(3)[1](one))
    expected = model.maps(4)[3](three) + model.maps(4)[1](one) + model.maps(4)[0](x)
    torch.testing.assert_close(model(x), expected)
    network = dp.Network.from_module(model)
    torch.testing.assert_close(network.forward(x), expected)
    assert [network.out_of(k) for k in range(5)] == [(1, 4), (2, 3, 4), (3,), (4,), ()]
    assert set(network.parameters) == {n for n, _ in model.named_parameters()}


def test_a_network_of_layers_alone_predicts_and_learns_as_its_module_does():
    """`dp.Network` given layers and sources directly."""
    model, (x, y) = skips(), problem()
    read = dp.Network.from_module(model)
    alone = dp.Network(read.layers)
    torch.testing.assert_close(alone.forward(x), model(x))
    for rule in (dp.Backprop(), dp.DualPropagation(beta=1e-3), dp.EquilibriumPropagation()):
        assert_same(rule.gradients(alone, x, y).gradients, rule.gradients(read, x, y).gradients, 1e-12)
        assert_same(rule.exact_gradients(alone, x, y), rule.exact_gradients(read, x, y), 1e-12)


@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["alternating_sweeps(2)", "bottom_up(5)", "synchronous(3)", "random_order(9)"])
def test_explicit_inference_is_the_slow_transcription(coupling, alpha, schedule):
    """A feedback of one reader alone, or a part of a drive that is kept when its source has
    moved."""
    network, (x, y) = dp.Network.from_module(skips()), problem()
    beta = (0.3, 0.5, 1.1, 0.7) if coupling == "original" else 0.7  # each reader's own β counts
    rule = dp.DualPropagation(coupling=coupling, alpha=alpha, beta=beta, schedule=schedule, engine="explicit")
    dyads = rule.infer(network, x, y, generator=torch.Generator().manual_seed(5))
    out = rule.gradients(network, x, y, generator=torch.Generator().manual_seed(5))
    steps = list(rule.schedule.steps(network.depth, torch.Generator().manual_seed(5)))
    plus, minus, gradients = transcribe(network, rule, x, y, steps)
    for k in range(1, network.depth + 1):
        torch.testing.assert_close(dyads.plus[k], plus[k], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(dyads.minus[k], minus[k], rtol=1e-10, atol=1e-12)
    assert_same(out.gradients, gradients, 1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.01, 1.0])
def test_transposed_dp_equals_backprop_on_linear_networks_with_skips(alpha, beta):
    model, (x, y) = linear(), problem()
    rule = dp.DualPropagation(coupling="transposed", alpha=alpha, beta=beta, engine="explicit")
    out = rule.gradients(dp.Network.from_module(model), x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), 1e-9 / beta)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_fused_engine_is_the_explicit_one_where_the_mean_is_free(alpha):
    network, (x, y) = dp.Network.from_module(skips()), problem()
    found = [
        dp.DualPropagation(coupling="transposed", alpha=alpha, beta=0.5, engine=engine).gradients(network, x, y)
        for engine in ("explicit", "fused")
    ]
    assert_same(found[1].gradients, found[0].gradients, 1e-11)
    assert found[0].diagnostics == found[1].diagnostics == {"drives": 7, "feedbacks": 5, "gradients": 7}


def test_equilibrium_propagation_tends_to_back_propagation_over_skips():
    model, (x, y) = skips(pool=False), problem()
    network, expected = dp.Network.from_module(model), autograd_gradients(model, x, y)
    for settings in ({}, {"relaxation": "blocks(even_odd(100))"}):
        errors = []
        for beta in (0.02, 0.01):
            out = dp.EquilibriumPropagation(beta=beta, **settings).gradients(network, x, y)
            errors.append(max(distance(out.gradients[n], expected[n]) for n in expected))
        assert 3.3 < errors[0] / errors[1] < 4.8, (settings, errors)
    counts = dp.EquilibriumPropagation().gradients(network, x, y).diagnostics
    # A phase: five synapses that read states are pulled back through, and driven again; those from
    # the input are not.
    assert (counts["drives"], counts["feedbacks"], counts["gradients"]) == (7 + 2 * 5, 2 * 5, 2 * 7)


def test_hopfield_networks_with_skips_tend_to_the_implicit_gradient():
    model, (x, y) = skips(pool=False), problem()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.6)
    network = dp.Network.from_module(model)
    settings = {
        "energy": "hopfield",
        "free_schedule": "even_odd(500)",
        "relaxation": "blocks(even_odd(500))",
        "tolerance": 1e-11,
    }
    expected = dp.EquilibriumPropagation(**settings).exact_gradients(network, x, y)
    errors = []
    for beta in (0.02, 0.01):
        out = dp.EquilibriumPropagation(beta=beta, **settings).gradients(network, x, y)
        assert out.status.ok
        errors.append(max(distance(out.gradients[n], expected[n]) for n in expected))
    assert 3.3 < errors[0] / errors[1] < 4.8, errors


@pytest.mark.parametrize("update", ["majorized", "fixed_point"])
def test_lifted_networks_with_skips_descend_their_objective(update):
    """The curvature that majorises a block is that of all its readers together."""
    model, (x, y) = skips(pool=False), problem()
    network, exact = dp.Network.from_module(model), autograd_gradients(model, x, y)
    values = []
    for sweeps in (1, 2, 4, 8):
        rule = dp.Lifted(update=update, max_sweeps=sweeps, tolerance=0.0, beta=(0.05, 0.1, 0.2, 0.1))
        states = rule.infer(network, x, y).means
        values.append(float(dp.objectives.lifted(network, states, y, rule.loss, rule.beta).detach().sum()))
    if update == "majorized":
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values)), values
    out = dp.Lifted(update=update, max_sweeps=200, beta=0.01).gradients(network, x, y)
    assert min(cosine(out.gradients[n], exact[n]) for n in exact) > 0.95


def test_a_layered_model_dualizes():
    model, (x, y) = skips(), problem()
    expected = autograd_gradients(model, x, y)
    dual = dp.dualize(model, coupling="transposed", alpha=0.0, beta=1e-4)
    nn.functional.cross_entropy(dual(x), y).backward()
    found = {n: p.grad for n, p in dual.named_parameters()}
    assert_same(found, expected, 1e-2)


def test_feedback_weights_are_used_in_layered_models_too():
    model, (x, y) = skips(), problem()
    converted = dp.feedback.convert(model, "random", generator=torch.Generator().manual_seed(0))
    network = dp.Network.from_module(converted)
    found = dp.DualPropagation(beta=1e-4).gradients(network, x, y).gradients
    expected = autograd_gradients(converted, x, y)
    assert_same(found, expected, 1e-2)
    exact = dp.DualPropagation().exact_gradients(network, x, y)
    assert distance(exact["1.from_0.weight"], expected["1.from_0.weight"]) > 0.1


def relu_layer(sources, synapses=None):
    made = synapses or tuple(Synapse({f"{s}": nn.Linear(5, 5)}) for s in sources)
    return Layer(made, dp.neurons.ReLU(), tuple(sources))


def test_what_is_no_network_is_refused():
    with pytest.raises(dp.SettingError, match="no layer reads layer 1, so that it could never learn"):
        dp.Network([relu_layer([0]), relu_layer([0])])
    with pytest.raises(dp.SettingError, match=r"layer 2 has 1 synapses but reads 2 layers"):
        dp.Network([relu_layer([0]), relu_layer([0, 1], (Synapse({"a": nn.Linear(5, 5)}),))])
    with pytest.raises(dp.SettingError, match=r"layer 2 must read earlier layers, got \[2\]"):
        dp.Layered([(None, {0: nn.Linear(5, 5)}), (None, {2: nn.Linear(5, 5)})])


def test_a_layered_model_that_cant_be_split_is_run_and_told_why():
    shared = nn.Linear(5, 5)
    models = {
        r"shares parameters with '1\.from_0'": dp.Layered([(nn.ReLU(), {0: shared}), (None, {1: shared})]),
        "layer 1 holds GELU.* as its activation, which is none of": dp.Layered(
            [(nn.GELU(), {0: nn.Linear(5, 5)}), (None, {1: nn.Linear(5, 5)})]
        ),
        "layer 1 holds ReLU": dp.Layered([(None, {0: nn.Sequential(nn.Linear(5, 5), nn.ReLU())})]),
    }
    for reason, model in models.items():
        network = dp.Network.from_module(model)
        assert network.is_recorded
        assert re.search(reason, repr(network))


def test_spectral_damping_asks_for_constants_where_a_layer_has_several_readers():
    network, (x, y) = dp.Network.from_module(skips()), problem()
    with pytest.raises(dp.SettingError, match=r"layers \(2, 3, 4\) read layer 1\. Give the constants yourself"):
        dp.DualPropagation(alpha=0.0, damping="spectral").gradients(network, x, y)
    out = dp.DualPropagation(alpha=0.0, damping=(1.0, 1.0, 1.0), beta=0.1).gradients(network, x, y)
    assert out.status.ok


def test_the_implicit_gradient_is_found_where_skips_close_odd_cycles():
    """Updated all together, v would diverge where the states settle."""
    model = dp.Layered(
        [
            (nn.Tanh(), {0: nn.Linear(1, 1)}),
            (nn.Tanh(), {1: nn.Linear(1, 1)}),
            (None, {2: nn.Linear(1, 1), 1: nn.Linear(1, 1)}),
        ]
    ).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(0.1 if name.endswith("bias") else -0.7)
    network = dp.Network.from_module(model)
    x, y = torch.full((2, 1), 0.3, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    settings = {
        "energy": "hopfield",
        "loss": "squared_error",
        "free_schedule": "even_odd(900)",
        "relaxation": "blocks(even_odd(900))",
    }
    rule = dp.EquilibriumPropagation(beta=1e-3, tolerance=1e-11, **settings)
    assert_same(rule.gradients(network, x, y).gradients, rule.exact_gradients(network, x, y), 1e-3)


def test_spectral_damping_weighs_by_the_beta_of_the_layer_that_reads():
    """Layers 1 and 2 read the input and layer 3 both: the reader of layer 1 is not layer 2."""
    model = dp.Layered(
        [
            (nn.Tanh(), {0: nn.Linear(5, 4)}),
            (nn.Tanh(), {0: nn.Linear(5, 4)}),
            (nn.Tanh(), {1: nn.Linear(4, 4), 2: nn.Linear(4, 4)}),
            (None, {3: nn.Linear(4, 3)}),
        ]
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    network, (x, y) = dp.Network.from_module(model), batch((5,), 3, 6)
    betas = (1.0, 0.1, 1.0, 1.0)
    norms = [float(torch.linalg.matrix_norm(model.maps(j)[k].weight.detach(), 2)) for j, k in ((3, 1), (3, 2), (4, 3))]
    ratios = [betas[0] / betas[2], betas[1] / betas[2], betas[2] / betas[3]]
    constants = tuple(max(0.0, r * n**2 - 1) / 2 for r, n in zip(ratios, norms, strict=True))
    common = {"alpha": 0.0, "beta": betas, "schedule": "up_down(3)"}
    by_hand = dp.DualPropagation(damping=constants, **common).infer(network, x, y)
    rule = dp.DualPropagation(damping="spectral", **common)
    state = None
    for _ in range(40):
        state = rule.infer(network, x, y, state=state)
    for k in range(1, 5):
        torch.testing.assert_close(state.plus[k], by_hand.plus[k], rtol=1e-4, atol=1e-6)


def test_paths_of_different_shapes_are_refused_and_not_broadcast():
    model = dp.Layered([(nn.ReLU(), {0: nn.Linear(6, 5)}), (None, {1: nn.Linear(5, 4), 0: nn.Linear(6, 1)})])
    x, y = batch((6,), 4, dtype=torch.float32)
    fused = dp.DualPropagation(engine="fused")
    for rule in (dp.DualPropagation(), fused, dp.EquilibriumPropagation(), dp.Lifted()):
        with pytest.raises(
            dp.SettingError, match=r"reads layers \(1, 0\) through maps that give shapes .* which can't be added"
        ):
            rule.gradients(dp.Network.from_module(model), x, y)


def test_a_plain_residual_is_an_identity():
    model = dp.Layered(
        [(nn.Tanh(), {0: nn.Linear(5, 4)}), (nn.Tanh(), {1: nn.Linear(4, 4)}), (None, {2: nn.Linear(4, 4), 1: nn.Identity()})]
    ).double()
    network, (x, y) = dp.Network.from_module(model), batch()
    expected = autograd_gradients(model, x, y)
    out = dp.EquilibriumPropagation(beta=1e-3).gradients(network, x, y)
    assert_same(out.gradients, expected, 1e-4)
    assert dp.Backprop().gradients(network, x, y).diagnostics == {"drives": 4, "feedbacks": 3, "gradients": 3}


def test_hooks_on_a_layered_model_run():
    """Split at its modules, the model's own hooks would be skipped."""
    model = skips()
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    network, (x, y) = dp.Network.from_module(model), problem()
    assert network.is_recorded
    out = dp.DualPropagation(beta=1e-5, engine="explicit").gradients(network, x, y)
    assert_same(out.gradients, autograd_gradients(model, x, y), 1e-4)


def test_one_state_below_is_not_enough_for_a_layer_that_reads_several():
    network, (x, _) = dp.Network.from_module(skips()), problem()
    s = torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    with pytest.raises(dp.SettingError, match=r"layer 3 reads layers \(2, 1\): pass all states"):
        dp.objectives.layer_energy(network, 3, s, x)


def test_the_constant_of_a_majorized_block_is_the_curvature_of_all_that_read_it():
    """c_k = Σ_j (β_k/β_j) ‖W_jk‖²: of one reader alone the objective may rise, where weights are
    large."""
    model = dp.Layered(
        [
            (nn.Tanh(), {0: nn.Linear(5, 4)}),
            (nn.Tanh(), {1: nn.Linear(4, 4)}),
            (None, {2: nn.Linear(4, 3), 1: nn.Linear(4, 3)}),
        ]
    ).double()
    network, (x, y) = dp.Network.from_module(model), batch((5,), 3, 6)
    squared = {
        (j, k): float(torch.linalg.matrix_norm(model.maps(j)[k].weight.detach(), 2)) ** 2 for j, k in ((2, 1), (3, 1), (3, 2))
    }
    with torch.no_grad():
        rule = dp.Lifted(beta=(0.2, 0.1, 0.4))
        _, first, second, _ = rule.inference(rule.problem(network, x, y, None, None)).constants
    assert float(first) == pytest.approx(0.2 / 0.1 * squared[2, 1] + 0.2 / 0.4 * squared[3, 1], rel=1e-3)
    assert float(second) == pytest.approx(0.1 / 0.4 * squared[3, 2], rel=1e-3)


@pytest.mark.parametrize("kernel", ["native", "eager"])
def test_a_drive_that_is_a_state_is_not_written_over(kernel):
    """Layer 2 has no map of its own: its drive is the state of layer 1, which layer 3 reads too.

    Upwards layer 2 is updated last of the two. Written over its drive, its state would be that of
    layer 1.
    """
    model = drawn(
        lambda: dp.Layered(
            [
                (nn.ReLU(), {0: nn.Linear(5, 6)}),
                (nn.Hardtanh(0.0, 0.5), {1: nn.Identity()}),
                (None, {2: nn.Linear(6, 4), 1: nn.Linear(6, 4)}),
            ]
        )
    )
    (x, y), beta = batch(), 0.4
    rule = dp.DualPropagation(engine="explicit", beta=beta, alpha=0.7, schedule="bottom_up(4)")
    with dp.kernels.using(kernel):
        network = dp.Network.from_module(model)
        dyads, out = rule.infer(network, x, y), rule.gradients(network, x, y)
    for source in (1, 2):
        expected = -dyads.difference(3).T @ dyads.mean(source) / (beta * len(y))
        assert distance(out.gradients[f"3.from_{source}.weight"], expected) <= 1e-12
