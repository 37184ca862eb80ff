"""What a step of target propagation costs, what it keeps, draws and leaves alone, and what it
refuses."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
from comparison import assert_same, cosine
from networks import batch, conv_net, images, mlp
from torch import nn

import dualprop as dp
from dualprop import recipes, training
from dualprop.models import MLP
from dualprop.training import step

DEPTH = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def packed(rule, outcome):
    return rule.pack_state(outcome.state)


@pytest.mark.parametrize("iterations", [0, 3, (1, 0, 5)])
def test_every_evaluation_of_a_synapse_is_counted_those_of_the_feedbacks_learning_too(iterations):
    """Its cost is what target propagation is known for: a step of learning is a drive, a feedback
    and two gradients."""
    rule, (x, y) = dp.TargetPropagation(iterations=iterations), batch()
    total = sum(iterations) if isinstance(iterations, tuple) else iterations * (DEPTH - 1)
    plain = rule.gradients(dp.Network.from_module(mlp("tanh")), x, y, generator=generator()).diagnostics
    assert plain == {"drives": DEPTH + total, "feedbacks": DEPTH - 1 + total, "gradients": DEPTH + 2 * total}
    if iterations == 0:
        assert plain == dp.Network.from_module(mlp("tanh")).counts_of_backprop()


def test_drives_are_counted_as_they_are_made(monkeypatch):
    """A count that is a formula alone would go on saying what the code once did."""
    calls = []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, s: calls.append(self) or forward(self, s))
    x, y = batch()
    out = dp.TargetPropagation(iterations=(1, 0, 5)).gradients(dp.Network.from_module(mlp()), x, y, generator=generator())
    assert out.diagnostics["drives"] == len(calls) == DEPTH + 6


def test_neither_the_state_that_is_passed_nor_the_model_is_written_into():
    """A step that is taken again from the same state, to look at its angles, must not move what the
    run goes on with."""
    rule, model, (x, y) = dp.TargetPropagation(start="random"), conv_net("tanh"), images()
    network = dp.Network.from_module(model)
    state = rule.gradients(network, x, y, generator=generator()).state
    held = {name: tensor.clone() for name, tensor in rule.pack_state(state).items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = rule.gradients(network, x, y, state=state, generator=generator(1))
    rule.statistics(network, x, y, state=state, generator=generator(2))
    assert_same(rule.pack_state(state), held, 0.0)
    assert_same(model.state_dict(), weights, 0.0)
    assert all(not torch.equal(tensor, held[name]) for name, tensor in packed(rule, out).items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.weights = {}


def test_symmetric_feedback_starts_as_a_copy_of_the_forward_weights():
    """Were it the weights themselves, the optimizer would move both, and learning the one would
    write into the other."""
    model, (x, y) = mlp("tanh"), batch()
    state = dp.TargetPropagation(iterations=0).gradients(dp.Network.from_module(model), x, y).state
    for k, weight in state.weights.items():
        assert torch.equal(weight, model[2 * (k - 1)].weight)
        assert weight.data_ptr() != model[2 * (k - 1)].weight.data_ptr()


def test_a_state_goes_through_a_checkpoint_and_learning_goes_on_as_if_it_had_not():
    """Momenta count too: without them the next step would be another one."""
    rule, network, (x, y) = dp.TargetPropagation(start="random"), dp.Network.from_module(conv_net("tanh")), images()
    state = rule.gradients(network, x, y, generator=generator()).state
    names = {f"{kind}.{k}" for kind in ("weights", "momenta") for k in (2, 3, 4)}
    assert set(rule.pack_state(state)) == names
    again = rule.unpack_state({name: tensor.clone() for name, tensor in rule.pack_state(state).items()})
    expected = rule.gradients(network, x, y, state=state, generator=generator(1))
    found = rule.gradients(network, x, y, state=again, generator=generator(1))
    assert_same(found.gradients, expected.gradients, 0.0)
    assert_same(packed(rule, found), packed(rule, expected), 0.0)
    assert rule.pack_state(None) == {}
    assert rule.unpack_state({}) is None


def test_feedback_weights_outlive_a_batch_also_where_a_recipe_resets_states():
    """They are no batch's own: started anew at each batch, they would never learn."""
    rule, model, (x, y) = dp.TargetPropagation(start="random"), mlp("tanh"), batch()
    recipe = dataclasses.replace(recipes.from_name("digits-mlp"), rule=rule, updates_per_batch=2, reset_states=True)
    network, optimizer = dp.Network.from_module(model), torch.optim.SGD(model.parameters(), lr=0.0)
    _, state = step.training_step(recipe, network, optimizer, x, y, None, generator())
    outcomes, later = step.training_step(recipe, network, optimizer, x, y, state, generator(1))
    expected = rule.gradients(network, x, y, state=state, generator=generator(1))
    assert_same(outcomes[0].gradients, expected.gradients, 0.0)
    assert later is outcomes[1].state


def test_feedback_weights_are_in_a_runs_checkpoint_and_their_alignment_in_its_metrics(tmp_path):
    """What a run says of its feedback is what there is to see whether it has learned."""
    recipe = dataclasses.replace(
        recipes.from_name("digits-mlp"), rule=dp.TargetPropagation(iterations=2), model=MLP(widths=(8, 6)), epochs=1,
        num_threads=1,
    )  # fmt: skip
    run = training.create(tmp_path / "run", recipe, (0,))
    training.train(run)
    tensors = safetensors.torch.load_file(tmp_path / "run" / "seed-0" / "last.safetensors")
    assert {name for name in tensors if name.startswith("rule.")} == {
        "rule.weights.2", "rule.weights.3", "rule.momenta.2", "rule.momenta.3",
    }  # fmt: skip
    lines = (tmp_path / "run" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    alignment = json.loads(lines[-1])["inference"]["feedback_alignment"]
    assert len(alignment) == 2
    assert all(0.5 < angle <= 1 for angle in alignment)
    torch.set_flush_denormal(False)


def test_a_layer_that_is_a_pool_alone_and_one_of_frozen_weights_have_feedback_too():
    """The first has nothing to learn, and the second's feedback still must."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(),
                          nn.Linear(27, 4), nn.Tanh(), nn.Linear(4, 3)).double()  # fmt: skip
    model[5].weight.requires_grad_(False)
    x, y = images()
    network = dp.Network.from_module(model)
    out = dp.TargetPropagation(iterations=0).gradients(network, x, y)
    expected = dp.Backprop().gradients(network, x, y)
    assert set(out.state.weights) == {3, 4}
    for name in ("0.weight", "0.bias"):
        assert cosine(out.gradients[name], expected.gradients[name]) > 0.99
    learned = dp.TargetPropagation(start="random").gradients(network, x, y, generator=generator())
    assert "5.weight" not in learned.gradients
    assert out.diagnostics == network.counts_of_backprop()


def test_feedback_that_diverges_is_a_status_that_says_what_to_lower():
    """Not a NaN in the weights."""
    x, y = batch()
    rule = dp.TargetPropagation(feedback_rate=1e30, iterations=20)
    status = rule.gradients(dp.Network.from_module(mlp()), x, y, generator=generator()).status
    assert not status.is_finite
    assert "the feedback's learning rate" in status.message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, r"beta must be positive and finite, got 0"),
        ({"beta": True}, "beta must be one number"),
        ({"iterations": -1}, r"iterations must be at least 0, got -1"),
        ({"iterations": 2.5}, "iterations must be a whole number, or one number per layer"),
        ({"iterations": ()}, "iterations must be from 0 to 1000000"),
        ({"noise": 0.0}, r"noise must be positive and finite, got 0\. For no feedback learning use iterations=0"),
        ({"noise": (0.1, float("inf"))}, "noise must be positive and finite"),
        ({"feedback_rate": -1.0}, r"feedback_rate must be positive and finite, got -1\. Use None"),
        ({"feedback_momentum": 1.0}, r"feedback_momentum must be in \[0, 1\), got 1"),
        ({"feedback_decay": -1.0}, "feedback_decay must be at least 0 and finite, got -1"),
        ({"start": "transposed"}, "start must be one of 'symmetric', 'random', got 'transposed'"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_the_remedy(settings, message):
    with pytest.raises(dp.SettingError, match=message) as refusal:
        dp.TargetPropagation(**settings)
    assert "\n" not in str(refusal.value)


NETWORKS = {
    "two maps in a row": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)),
        r"layer 2 holds maps \('2', '3'\) that are not one plain Linear .* Split them by an activation, nn\.Identity\(\)",
    ),
    "padding that is not zero": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 3), nn.ReLU(), nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
            nn.ReLU(), nn.Flatten(), nn.Linear(3, 4),
        ),
        r"layer 2 holds maps \('3'\)",
    ),
    "coupled units": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Softmax(1), nn.Linear(4, 4)),
        r"layer 1 \('0'\) is a Softmax, whose units are coupled.* End the model in logits",
    ),
    "feedback weights of its own": (
        lambda: dp.feedback.convert(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4)), "random"),
        r"layer 1 holds feedback weights of its own \('0'\).* Give it the plain model, feedback='exact'",
    ),
    "several sources": (
        lambda: dp.Layered([(nn.ReLU(), {0: nn.Linear(5, 4)}), (None, {1: nn.Linear(4, 4), 0: nn.Linear(5, 4)})]),
        r"layer 2 \('2\.from_1'\) reads layers \(1, 0\), but a target goes back along a chain\. Use a model without skips",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_no_feedback_map_is_known_for_is_refused_by_name(case):
    """Trained by something else in its place, it would be compared under the wrong name."""
    make, message = NETWORKS[case]
    x, y = batch()
    with pytest.raises(dp.DualpropError, match=message) as refusal:
        dp.TargetPropagation().gradients(dp.Network.from_module(make().double()), x, y, generator=generator())
    assert "\n" not in str(refusal.value)


def test_settings_a_state_or_a_generator_that_do_not_fit_are_refused():
    network, (x, y) = dp.Network.from_module(mlp()), batch()
    for settings in ({"iterations": (1, 2)}, {"noise": (0.1, 0.2)}, {"feedback_rate": (0.1, 0.2)}):
        (name,) = settings
        with pytest.raises(dp.SettingError, match=rf"{name} lists 2 values, but it is of 3 layers, 2 to 4\. Give one"):
            dp.TargetPropagation(**settings).gradients(network, x, y, generator=generator())
    with pytest.raises(dp.SettingError, match=r"pass generator=torch\.Generator\(\)"):
        dp.TargetPropagation().gradients(network, x, y)
    other = dp.Network.from_module(mlp(widths=(5, 9, 7, 6, 4)))
    state = dp.TargetPropagation().gradients(other, x, y, generator=generator()).state
    with pytest.raises(dp.SettingError, match=r"are of another network\. Pass state=None"):
        dp.TargetPropagation().gradients(network, x, y, state=state, generator=generator())
    with pytest.raises(dp.SettingError, match="half precision"), torch.autocast("cpu", torch.bfloat16):
        dp.TargetPropagation().gradients(dp.Network.from_module(mlp(dtype=torch.float32)), x.float(), y, generator=generator())


def test_needs_a_generator_and_can_be_captured_only_as_its_settings_say():
    assert dp.TargetPropagation().needs_generator
    assert dp.TargetPropagation(iterations=0, start="random").needs_generator
    assert not dp.TargetPropagation(iterations=(0, 0, 0)).needs_generator
    assert "noise" in dp.TargetPropagation().capture_obstacle
    assert not dp.TargetPropagation(iterations=0, start="random").capture_obstacle
    assert dp.TargetPropagation().keeps_state
