"""Large activations are walked in pieces and written over; here small ones are, so that the oracles
see that path too."""

import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop.analysis import evidence
from dualprop.analysis.transcription import transcribe
from dualprop.kernels import dyadic as kernels
from dualprop.kernels import native


@pytest.fixture(autouse=True, params=["pieces", "native"])
def tiny_pieces(monkeypatch, request):
    """Pieces of three elements, which a machine without a C compiler walks; and the native kernel,
    which also writes over."""
    monkeypatch.setattr(kernels, "PIECE", 3)
    if request.param == "pieces":
        monkeypatch.setattr(native, "is_available", lambda: False)


def test_the_transcription_is_matched_in_pieces():
    """A piece that reads what another wrote would be wrong in large networks alone."""
    for item in evidence.transcription_cases():
        assert item.holds, (item.claim, item.measured)


def test_the_authors_cases_are_matched_in_pieces(shared_folder):
    """As above, on the authors' numbers."""
    for item in evidence.reference_cases(shared_folder / "golden"):
        assert item.holds, (item.claim, item.measured)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.Identity, lambda: nn.Hardtanh(0, 1)])
@pytest.mark.parametrize("coupling", ["original", "transposed"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", ["alternating_sweeps(1)", "synchronous(4)", "odd_even(2)", "1,3,2,2,3,1,2"])
def test_final_updates_are_written_over_drives_that_nobody_needs(activation, coupling, alpha, schedule):
    """A drive or a feedback that is overwritten too early, or that is a view of a state, gives
    wrong numbers without a word."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(12, 5)
    model = nn.Sequential(conv, activation(), activation(), nn.MaxPool2d(2), nn.Flatten(), linear).double()
    network, x, y = dp.Network.from_module(model), torch.randn(4, 2, 4, 4).double(), torch.arange(4)
    rule = dp.DualPropagation(coupling=coupling, alpha=alpha, schedule=schedule)
    before = x.clone()
    plus, minus, gradients = transcribe(network, rule, x, y, list(rule.schedule.steps(network.depth)))
    for _ in range(2):
        dyads, outcome = rule.infer(network, x, y), rule.gradients(network, x, y)
        for k in range(network.depth + 1):
            assert torch.allclose(dyads.plus[k], plus[k], rtol=0, atol=1e-12), k
            assert torch.allclose(dyads.minus[k], minus[k], rtol=0, atol=1e-12), k
        for name, gradient in gradients.items():
            assert torch.allclose(outcome.gradients[name], gradient, rtol=0, atol=1e-12), name
    assert torch.equal(x, before)


def test_dualized_models_are_the_same_in_pieces():
    """The fused engine's difference, against the explicit one where they are equal."""
    for item in evidence.autograd_cases():
        assert item.holds, (item.claim, item.measured)
