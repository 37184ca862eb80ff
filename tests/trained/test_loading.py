"""A run's model without its data: it normalises by itself, and knows what its outputs mean."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop import data, training
from dualprop.errors import CheckpointError, DataError, RunError, SettingError
from dualprop.models import ConvNet
from dualprop.trained import Standardisation
from dualprop.training import checkpoint, runs, weights


def test_a_loaded_model_scores_on_raw_numbers_what_the_run_scored(trained, digits):
    """Fed without standardising, digits lost two points, and nothing said so."""
    x, y = digits
    model = dp.load(trained, seed=3)
    assert not model.training
    assert torch.equal(model.standardisation.mean, torch.full((1, 1, 1), 16 * np.float32(0.3059)))
    splits = data.load("digits", seed=3)
    rows = splits.test.x.float()
    right = (model(rows).argmax(1) == splits.test.y).double().mean().item()
    result = next(result for result in runs.load(trained).results() if result.seed == 3)
    assert right == pytest.approx(result.test_accuracy)
    assert model.names == tuple("0123456789")
    assert np.mean([name == str(k) for name, k in zip(model.predict(torch.from_numpy(x)), y, strict=True)]) > 0.5


def test_a_loaded_model_is_the_plain_one_on_x_less_the_mean_by_the_std(trained, digits):
    """In plain PyTorch, without this package: what the weights and two constants say."""
    x = torch.from_numpy(digits[0][:7])
    model, tensors = dp.load(trained), runs.load(trained).best(3).tensors
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    plain.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    expected = plain((x - 16 * 0.3059) / (16 * 0.3765))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.probabilities(x), expected.softmax(1), rtol=1e-5, atol=1e-6)
    assert model.predict(x.to(torch.uint8)) == [str(k) for k in expected.argmax(1).tolist()]


def test_arrays_and_lists_are_taken_and_gaps_name_no_class(trained, digits):
    """argmax of three NaN is the first class."""
    model, x = dp.load(trained), digits[0][:5].astype(np.float32)
    assert model.predict(x) == model.predict(torch.from_numpy(x)) == model.predict(x.tolist())
    x[2, 0, 3, 3] = np.nan
    with pytest.raises(SettingError, match=r"model\.description\.mean"):
        model.predict(x)


def test_the_data_is_not_needed(trained, tmp_path, tiny):
    """A model is taken to where its data is not."""
    x, y = np.random.default_rng(0).normal(5, 3, (60, 4)).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y)
    recipe = dataclasses.replace(tiny, dataset=str(tmp_path / "own.npz"), batch_size=8, epochs=1)
    run = training.create(tmp_path / "run", recipe, (0,))
    training.train(run)
    splits = data.load(recipe.dataset)
    (tmp_path / "own.npz").unlink()
    model = dp.load(tmp_path / "run")
    assert model.description.title == "own"
    assert torch.equal(model.standardisation.mean, splits.train.mean)
    assert torch.equal(model.standardisation.std, splits.train.std)
    expected = model.network(splits.test.batch(torch.arange(5))[0])
    assert torch.equal(model(splits.test.x[:5]), expected)


def test_a_border_is_put_around_images_before_they_are_normalised(tmp_path, tiny):
    """A border of zeros that were normalised values would be grey."""
    model = ConvNet(channels=(2,))
    recipe = dataclasses.replace(tiny, model=model, border=2, epochs=1)
    run = training.create(tmp_path / "run", recipe, (0,))
    training.train(run)
    splits, loaded = data.load("digits", border=2), dp.load(tmp_path / "run")
    assert splits.input_shape == (1, 12, 12)
    inner = splits.test.x[:5, :, 2:-2, 2:-2]
    expected = loaded.network(splits.test.batch(torch.arange(5))[0])
    torch.testing.assert_close(loaded(inner), expected, rtol=1e-5, atol=1e-5)


def test_standardisation_is_by_channel_feature_or_pixel():
    """A mean that broadcasts along another axis is another model."""
    x = torch.rand(3, 2, 4, 5)
    for shape in ((), (2, 1, 1), (2, 4, 5)):
        mean, std = torch.rand(shape), torch.rand(shape) + 1
        assert torch.equal(Standardisation(mean, std)(x), (x - mean) / std)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x / 16, "numbers from 0 to 1, and training had 0 to 16"),
        (lambda x: (x - 4.9) / 6, "training had 0 to 16"),
        (lambda x: x * 16, "numbers from 0 to 256"),
    ],
    ids=["from 0 to 1", "normalised", "bytes"],
)
def test_inputs_in_other_units_are_told(trained, digits, change, told):
    """Of all mistakes with a trained model the most usual, and it costs accuracy in silence."""
    x = torch.from_numpy(digits[0][:100])
    with pytest.warns(UserWarning, match=told):
        dp.load(trained)(change(x))
    dp.load(trained)(x)  # which a warning would fail


def test_the_first_seed_is_loaded_unless_another_is_asked_for(trained):
    first, second = (runs.load(trained).best(seed).tensors["model.1.weight"] for seed in (3, 5))
    assert torch.equal(dp.load(trained).network[1].weight, first)
    assert torch.equal(dp.load(trained, seed=5).network[1].weight, second)
    with pytest.raises(RunError, match="has no seed 0; it has 3, 5"):
        dp.load(trained, seed=0)


def test_feedback_weights_are_left_behind(tmp_path, digits, tiny):
    """They are for learning, and keep a plain network from loading the weights."""
    recipe = dataclasses.replace(tiny, feedback="kolen_pollack", epochs=1)
    training.train(training.create(tmp_path / "run", recipe, (0,)))
    model = dp.load(tmp_path / "run")
    assert [type(module) for module in model.network] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert list(model.network.state_dict()) == ["1.weight", "1.bias", "3.weight", "3.bias"]


def older(run):
    """The same run as an earlier version left it: its checkpoints don't describe the data."""
    for seed in run.seeds:
        path, saved = weights.best_path(run.seed_folder(seed)), run.best(seed)
        about = {name: value for name, value in saved.about.items() if name != "data"}
        tensors = {name: tensor for name, tensor in saved.tensors.items() if not name.startswith("data.")}
        checkpoint.write(path, checkpoint.Checkpoint(tensors, about), saved.belongs_to)


def test_a_run_of_an_earlier_version_is_loaded_with_its_data_or_says_what_is_missing(trained, tmp_path, digits):
    shutil.copytree(trained, tmp_path / "run")
    older(runs.load(tmp_path / "run"))
    x = torch.from_numpy(digits[0][:5])
    torch.testing.assert_close(dp.load(tmp_path / "run")(x), dp.load(trained)(x))
    plain = json.loads((tmp_path / "run/recipe.json").read_text())
    plain["recipe"]["dataset"] = str(tmp_path / "gone.npz")
    (tmp_path / "run/recipe.json").write_text(json.dumps(plain))
    run = runs.load(tmp_path / "run")
    for seed in run.seeds:
        saved = checkpoint.read(weights.best_path(run.seed_folder(seed)), None)
        checkpoint.write(weights.best_path(run.seed_folder(seed)), saved, weights.belongs_to(run.recipe, seed))
    with pytest.raises(DataError, match=r"did not keep the mean and std .*gone\.npz does not exist"):
        dp.load(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": [1, 8]},
        {"input_shape": [64]},
        {"task": {"kind": "classification", "names": ["a"]}},
        {"task": {"kind": "classification", "names": ["a"] * 10}},
        {"task": {"kind": "regression", "names": []}},
        {"border": -1},
        {"title": 3},
        {"new": 1},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused_by_the_file(trained, tmp_path, change):
    """Whoever computes a checksum can write anything into a run's folder."""
    shutil.copytree(trained, tmp_path / "run")
    run = runs.load(tmp_path / "run")
    path, saved = weights.best_path(run.seed_folder(3)), run.best(3)
    about = {**saved.about, "data": {**saved.about["data"], **change}}
    checkpoint.write(path, checkpoint.Checkpoint(saved.tensors, about), saved.belongs_to)
    with pytest.raises(CheckpointError, match=r"best\.safetensors does(n't| not)"):
        dp.load(tmp_path / "run")


def test_an_example_of_another_shape_is_refused(trained):
    with pytest.raises(SettingError, match=r"x must have shape \(N, 1, 8, 8\), got \(2, 64\)"):
        dp.load(trained)(torch.zeros(2, 64))


def test_outputs_that_are_no_probabilities_are_not_called_so(tmp_path, tiny):
    """Squared error's outputs need not add up to 1."""
    recipe = dataclasses.replace(tiny, rule=dp.DualPropagation(loss="squared_error"), epochs=1)
    training.train(training.create(tmp_path / "run", recipe, (0,)))
    with pytest.raises(SettingError, match="learned by squared_error, and its outputs are no probabilities"):
        dp.load(tmp_path / "run").probabilities(torch.zeros(1, 1, 8, 8))
