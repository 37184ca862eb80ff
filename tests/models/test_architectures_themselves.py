"""Each architecture in plain PyTorch: a test of dualprop on a broken model would prove nothing."""

import inspect

import pytest
import torch
from architecture import Architecture, example
from architectures import ARCHITECTURES
from kinks import nearest_kink
from torch import nn
from torch.nn import functional as F

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
# What nudges of β = 1e-5 may move a unit by, and a wide margin.
MARGIN = 1e-4


def gradients(architecture: Architecture, model: nn.Module) -> dict[str, torch.Tensor | None]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(architecture.mean_loss(model, *architecture.batch()), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def test_there_are_the_kinds_that_people_write():
    assert len(ARCHITECTURES) >= 60
    assert all(architecture.name == name for name, architecture in ARCHITECTURES.items())


@EVERY
def test_it_runs_and_every_parameter_has_a_gradient(architecture):
    """A parameter without one would be compared with nothing."""
    model = architecture.model()
    assert sum(p.numel() for p in model.parameters()) < 20_000
    found = gradients(architecture, model)
    assert {name for name, g in found.items() if g is None or not g.any()} == set(architecture.without_gradient)
    assert all(bool(g.isfinite().all()) for g in found.values() if g is not None)


@EVERY
def test_it_is_the_same_for_each_call(architecture):
    """Engines are compared on models and batches that are built anew."""
    first, second = (gradients(architecture, architecture.model()) for _ in range(2))
    for name, g in first.items():
        assert (g is None and second[name] is None) or torch.equal(g, second[name]), name


@EVERY
def test_no_unit_is_near_a_kink(architecture):
    """At a kink a dyad's slope is the mean of both sides, and the derivative is one of them."""
    model, (inputs, _) = architecture.model(), architecture.batch()
    assert nearest_kink(lambda: architecture.outputs(model, inputs)) > MARGIN


@pytest.mark.parametrize(
    "architecture", [each for each in ARCHITECTURES.values() if not each.is_random], ids=lambda each: each.name
)
def test_examples_are_tied_where_it_says_so(architecture):
    """The gradient of a batch is the mean of its examples' exactly where nothing ties them."""
    model, (inputs, y) = architecture.model(), architecture.batch()
    whole = architecture.output(architecture.outputs(model, inputs))
    if architecture.ties_examples:
        return
    apart = [architecture.output(architecture.outputs(architecture.model(), example(inputs, i))) for i in range(len(y))]
    torch.testing.assert_close(torch.cat(apart), whole)
    mean = sum(architecture.loss(part, example(y, i)) for i, part in enumerate(apart)) / len(y)
    torch.testing.assert_close(mean, architecture.loss(whole, y))


@EVERY
def test_random_draws_are_told(architecture):
    """A model that draws unsaid would differ between two passes for no fault of an engine."""
    inputs, _ = architecture.batch()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    architecture.outputs(model := architecture.model(), inputs)
    torch.manual_seed(architecture.seed)
    seeded = torch.get_rng_state()
    architecture.outputs(model, inputs)
    assert torch.equal(seeded, torch.get_rng_state()) != architecture.is_random
    torch.set_rng_state(before)


def test_no_architecture_knows_the_library():
    """They stand for the code of people who have never heard of it."""
    for architecture in ARCHITECTURES.values():
        module = inspect.getmodule(architecture.build)
        assert "dualprop" not in inspect.getsource(module).partition('"""')[2].partition('"""')[2], architecture.name


def test_a_kink_is_seen():
    """A check that sees none would let all of them pass."""
    x = torch.tensor([[1.0, 1e-6], [0.5, -2.0]])
    assert nearest_kink(lambda: F.relu(x)) < MARGIN
    assert nearest_kink(lambda: F.hardtanh(x)) < MARGIN
    assert nearest_kink(lambda: (x + 0.3).relu_()) > 0.1
    assert nearest_kink(lambda: torch.tensor([[1.0, 1.0 + 1e-6]]).amax(1)) < MARGIN
    assert nearest_kink(lambda: F.max_pool2d(torch.ones(1, 1, 2, 2), 2)) < MARGIN
