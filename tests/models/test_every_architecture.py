"""Every engine on every architecture, against plain autograd on the same model.

A model is only trained if each of five things holds, and none of them shows in a loss curve: the
limit of small β in each parameter, a β that counts, an untouched prediction, buffers that change
once a step, and a β per example whatever shape an activation sees.
"""

import pytest
import torch
from architecture import example
from architectures import ARCHITECTURES
from engines import ENGINES, argument, autograd, autograd_loss, disagreement, distance, network_of

import dualprop as dp

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
BY = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
# Those whose examples don't depend on each other.
APART = [each for each in ARCHITECTURES.values() if not (each.ties_examples or each.is_random)]
SMALL = 1e-5
# Where a large nudge changes nothing: the loss is nudged linearly, the output is linear, and below
# it are cells that are exact inside a synapse, or rectified units, of which none crosses its kink.
EXACT = {
    ("equilibrium_propagation", name)
    for name in ("lstm_classifier", "gru_classifier", "elman_network", "regression", "mixture_of_experts")
}
# Where states leave the probabilities that the loss is defined for.
OUT_OF_DOMAIN = {("predictive_coding", "vae")}


@BY
@EVERY
def test_a_small_beta_gives_the_gradient(engine, architecture):
    """In every parameter; a sum over all would hide a layer that learns nothing."""
    batch = architecture.batch()
    found, expected = engine.step(architecture, batch, SMALL), autograd(architecture, batch)
    assert list(found.gradients) == list(expected.gradients)
    wrong = disagreement(found.gradients, expected.gradients, cosine=0.9999, ratio=1e-3)
    assert not wrong, "\n".join(wrong)


@BY
@EVERY
def test_a_large_beta_does_not(engine, architecture):
    """Else the rule is back-propagation under another name."""
    batch = architecture.batch()
    if (engine.name, architecture.name) in OUT_OF_DOMAIN:
        with pytest.raises(dp.SettingError, match="use a loss of any real outputs"):
            engine.step(architecture, batch, engine.large)
        return
    found, expected = engine.step(architecture, batch, engine.large), autograd(architecture, batch)
    is_exact = distance(found.gradients, expected.gradients) < 1e-9
    assert is_exact == ((engine.name, architecture.name) in EXACT)


@BY
@EVERY
def test_the_output_is_the_models_own(engine, architecture):
    """To the bit: a network that predicts something else is another network."""
    batch = architecture.batch()
    assert torch.equal(engine.step(architecture, batch, 0.5).output, autograd(architecture, batch).output)


@BY
@EVERY
def test_buffers_change_once_a_step(engine, architecture):
    """However many passes a rule makes, statistics and power iterations move as in one."""
    batch, plain = architecture.batch(), architecture.model()
    with torch.no_grad():
        architecture.outputs(plain, batch[0])
    found = engine.step(architecture, batch, 0.5).buffers
    expected = dict(plain.named_buffers())
    assert list(found) == list(expected)
    changed = [name for name, buffer in expected.items() if not torch.equal(found[name], buffer)]
    assert not changed


@pytest.mark.sampled(3)
@BY
@pytest.mark.parametrize("architecture", APART, ids=lambda each: each.name)
def test_beta_is_per_example(engine, architecture):
    """The gradient of a batch is the mean of its examples' at any β, as the loss is of theirs.

    A β that counts rows, tokens, windows or views as examples would break it, and so would a nudge
    that leaks from one example into another.
    """
    inputs, y = architecture.batch()
    whole = engine.step(architecture, (inputs, y), 0.5).gradients
    apart = [engine.step(architecture, (example(inputs, i), example(y, i)), 0.5).gradients for i in range(len(y))]
    mean = {name: sum(gradients[name] for gradients in apart) / len(y) for name in whole}
    wrong = disagreement(whole, mean, cosine=1 - 1e-9, ratio=1e-8, nothing=1e-9)
    assert not wrong, "\n".join(wrong)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("rule", [dp.DualPropagation, dp.EquilibriumPropagation, dp.PredictiveCoding])
@EVERY
def test_a_rule_called_like_a_loss_delivers_its_gradients(rule, architecture):
    """Through autograd's accumulation, scaled by what multiplies the loss, and none where none is
    due."""
    inputs, y = architecture.batch()
    network, called = (network_of(architecture, architecture.model()) for _ in range(2))
    settled = rule(loss=dp.losses.from_function(architecture.loss))
    torch.manual_seed(architecture.seed)
    expected = settled.gradients(network, argument(inputs), y).gradients
    torch.manual_seed(architecture.seed)
    loss = settled(called, argument(inputs), y)
    (2 * loss).backward()
    torch.testing.assert_close(loss.detach(), autograd_loss(architecture))
    for name, p in called.parameters.items():
        torch.testing.assert_close(
            torch.zeros_like(p) if p.grad is None else p.grad, 2 * expected[name], msg=lambda told, name=name: f"{name}: {told}"
        )


@EVERY
def test_dualize_leaves_the_evaluated_model_as_it_was(architecture):
    """Accuracies are taken in eval(), where fast paths and running statistics are used."""
    inputs, _ = architecture.batch()
    with torch.no_grad():
        expected = architecture.output(architecture.outputs(architecture.model().eval(), inputs))
        found = architecture.output(architecture.outputs(dp.dualize(architecture.model()).eval(), inputs))
    assert torch.equal(found, expected)
    assert list(dp.dualize(architecture.model()).state_dict()) == list(architecture.model().state_dict())


@EVERY
def test_a_view_leaves_the_model_as_it_was(architecture):
    """`from_module` reads; what it read still predicts, and holds no other parameters."""
    model, (inputs, _) = architecture.model(), architecture.batch()
    network = network_of(architecture, model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(network.parameters) == trained
    assert torch.equal(
        architecture.output(architecture.outputs(model, inputs)),
        architecture.output(architecture.outputs(architecture.model(), inputs)),
    )
