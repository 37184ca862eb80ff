"""The package against the slow transcription beside this file, over a covering set of settings
drawn from a fixed seed."""

import random

import pytest
import torch
import transcription
from comparison import assert_same, numbered, rounding
from networks import batch, conv_net, images, mlp
from torch.nn import functional as F
from transcription import Setting, Stage, transcribe

import dualprop as dp

CHOICES = {
    "schedule": [
        "alternating_sweeps(1)", "alternating_sweeps(3)", "up_down(1)", "up_down(2)", "bottom_up(1)", "bottom_up(5)",
        "odd_even(3)", "even_odd(3)", "synchronous(2)", "synchronous(9)", "random_order(3)", "random_order(30)",
        "2+4,1+3,4,2+1", "1,1,4,4,3",
    ],
    "coupling": ["original", "transposed"],
    "alpha": [0.0, 0.3, 0.5, 1.0],
    "beta": [1e-3, 1.0, 10.0, (0.3, 1.0, 0.5, 2.0)],
    "activation": ["relu", "hard_sigmoid", "tanh", "sigmoid", "leaky_relu"],
    "architecture": ["mlp", "none", "before", "after"],
    "start": ["forward", "zeros", "previous"],
    "nudge": ["default", "current", "forward", "exact"],
    "damping": [None, None, (0.0, 0.0, 0.0), (0.5, 0.0, 1.5), (1.0, 2.0, 0.25)],
    "loss": ["cross_entropy", "squared_error"],
}  # fmt: skip


def covering(count):
    """Each choice is spread evenly over the cases: `count` cases hold every pair of choices many
    times."""
    draw = random.Random(0)
    columns = {}
    for name, values in CHOICES.items():
        column = (values * (count // len(values) + 1))[:count]
        draw.shuffle(column)
        columns[name] = column
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


CASES = covering(240)


def identifier(case):
    return "-".join(str(value).replace(" ", "") for value in case.values())


def stages(architecture, model, activation):
    """The same network as explicit functions of explicit tensors: the model gives the numbers, not
    the structure."""
    drives = {
        "mlp": [transcription.linear] * 4,
        "none": [transcription.conv, transcription.conv, transcription.linear, transcription.linear],
        "before": [transcription.conv, transcription.conv_then_pool, transcription.linear, transcription.linear],
        "after": [transcription.conv, transcription.conv, transcription.pool_then_linear, transcription.linear],
    }[architecture]
    values = [p.detach().clone() for p in model.parameters()]
    assert len(values) == 8
    return [
        Stage(drive, activation if k < 3 else "identity", {"weight": values[2 * k], "bias": values[2 * k + 1]})
        for k, drive in enumerate(drives)
    ]


def groups_of(schedule, depth, seed):
    """The groups of one run, read off the schedule; its own tests write them out by hand."""
    generator = torch.Generator().manual_seed(seed)
    return [step.layers for step in dp.schedules.parse(schedule).steps(depth, generator)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_states_and_gradients_are_those_of_the_transcription(case):
    """Reuse, reordering and fused arithmetic may save work; they may not change a digit beyond
    rounding."""
    alpha, beta, coupling, exact = case["alpha"], case["beta"], case["coupling"], case["nudge"] == "exact"
    betas = beta if isinstance(beta, tuple) else (beta,) * 4
    if exact:
        # Inside the domain of the exact nudge: uphill share times β below ½ for squared error,
        # below 1 for cross-entropy.
        uphill = (1 - alpha if coupling == "original" else alpha) * betas[-1]
        limit = 0.5 if case["loss"] == "squared_error" else 1.0
        if uphill > limit:
            betas = tuple(b * limit / uphill for b in betas)
    is_mlp = case["architecture"] == "mlp"
    model = mlp(case["activation"], seed=3) if is_mlp else conv_net(case["activation"], case["architecture"], seed=3)
    (x, y), (old_x, old_y) = (batch(n=3), batch(n=3, seed=1)) if is_mlp else (images(n=2), images(n=2, seed=1))
    at_forward = coupling == "transposed" or case["damping"] is not None
    if case["nudge"] in ("current", "forward"):
        at_forward = case["nudge"] == "forward"
    rule = dp.DualPropagation(
        engine="explicit",
        coupling=coupling,
        alpha=alpha,
        beta=betas,
        schedule=case["schedule"],
        start=case["start"],
        output_nudge="exact" if exact else "linearized",
        linearize_at=case["nudge"] if case["nudge"] in ("current", "forward") else None,
        damping=case["damping"],
        loss=case["loss"],
    )
    setting = Setting(
        coupling=coupling,
        alpha=alpha,
        betas=betas,
        groups=groups_of(case["schedule"], 4, seed=5),
        arrival=3 if case["schedule"].startswith("synchronous") else 0,
        start=case["start"],
        exact=exact,
        at_forward=at_forward,
        damping=case["damping"],
        loss=case["loss"],
    )
    network, explicit = dp.Network.from_module(model), stages(case["architecture"], model, case["activation"])
    classes = 4 if is_mlp else 3
    state = previous = None
    if case["start"] == "previous":
        state = rule.infer(network, old_x, old_y, generator=torch.Generator().manual_seed(5))
        previous = transcribe(explicit, setting, old_x, F.one_hot(old_y, classes).double())
    out = rule.gradients(network, x, y, state=state, generator=torch.Generator().manual_seed(5))
    expected = transcribe(explicit, setting, x, F.one_hot(y, classes).double(), previous)

    size = max(float(s.norm()) for s in expected.plus + expected.minus)
    # At α = 0 or 1 with β = 10 the loop through s̄ has a gain above one, up to |2α-1| ‖W‖²:
    # rounding grows with each step.
    growth = size * len(setting.groups)
    state_tolerance = rounding(1.0) * growth
    tolerance = state_tolerance / min(*betas, 1.0)
    assert tolerance < 1e-4, f"states of size {size} leave nothing to compare"
    scaled = {f"s+[{k}]": s / size for k, s in enumerate(out.state.plus)}
    wanted = {f"s+[{k}]": s / size for k, s in enumerate(expected.plus)}
    scaled |= {f"s-[{k}]": s / size for k, s in enumerate(out.state.minus)}
    wanted |= {f"s-[{k}]": s / size for k, s in enumerate(expected.minus)}
    assert_same(scaled, wanted, state_tolerance, "states")
    found = dict(zip(expected.gradients, out.gradients.values(), strict=True))
    assert_same(found, expected.gradients, tolerance, "gradients")
    means = [alpha * p + (1 - alpha) * m for p, m in zip(expected.plus, expected.minus, strict=True)]
    assert_same(numbered(out.state.means, "mean"), numbered(means, "mean"), state_tolerance * size, "means")


@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("schedule", ["alternating_sweeps(1)", "up_down(2)"])
def test_a_softmax_output_is_that_of_the_transcription(coupling, alpha, loss, schedule):
    """Its units are coupled, and its own loss is on probabilities; both are written out here once
    more."""
    model, (x, y) = torch.nn.Sequential(*mlp("tanh", seed=3), torch.nn.Softmax(1)), batch(n=3)
    rule = dp.DualPropagation(coupling=coupling, alpha=alpha, beta=0.05, loss=loss, schedule=schedule, engine="explicit")
    layers = stages("mlp", model, "tanh")
    layers[-1].activation = "softmax"
    setting = Setting(coupling, alpha, (0.05,) * 4, groups_of(schedule, 4, 0), at_forward=coupling == "transposed", loss=loss)
    expected = transcribe(layers, setting, x, F.one_hot(y, 4).double())
    network = dp.Network.from_module(model)
    dyads, found = rule.infer(network, x, y), rule.gradients(network, x, y).gradients
    assert_same(numbered(dyads.plus, "plus"), numbered(expected.plus, "plus"), rounding(0.05))
    assert_same(numbered(dyads.minus, "minus"), numbered(expected.minus, "minus"), rounding(0.05))
    assert_same(dict(zip(expected.gradients, found.values(), strict=True)), expected.gradients, rounding(0.05))
