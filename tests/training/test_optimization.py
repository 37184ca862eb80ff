"""Optimizers and the learning rate: against the formula written out, and against PyTorch's unfused
kernels."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from dualprop.errors import SettingError
from dualprop.training import Optimizer, checkpoint, optimization

NAMES = {
    "sgd": Optimizer(name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.01),
    "sgd without momentum": Optimizer(name="sgd", learning_rate=0.05, momentum=0.0),
    "sgd with nesterov": Optimizer(name="sgd", learning_rate=0.05, momentum=0.8, nesterov=True),
    "adam": Optimizer(name="adam", learning_rate=1e-2, weight_decay=0.1),
    "adamw": Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.1),
}


def rates(settings: Optimizer, steps_per_epoch: int, epochs: int) -> list[float]:
    return [optimization.learning_rate(settings, s, steps_per_epoch, epochs) for s in range(steps_per_epoch * epochs)]


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_half_cosine():
    """A warm-up counted in steps for epochs, or a cosine over the wrong length, trains: only never
    as published."""
    settings = Optimizer(learning_rate=0.4, warmup_epochs=1.5, warmup_from=0.1, cosine=True, final_learning_rate=0.02)
    found = rates(settings, steps_per_epoch=4, epochs=5)  # 6 steps of warm-up, 14 of cosine
    warmup = [0.1 + 0.3 * step / 6 for step in range(6)]
    cosine = [0.02 + 0.38 * 0.5 * (1 + math.cos(math.pi * step / 14)) for step in range(14)]
    assert found == pytest.approx(warmup + cosine, rel=1e-12)
    assert found[0] == 0.1
    assert found[6] == max(found) == 0.4


def test_the_cosine_ends_with_the_run_close_to_its_final_rate():
    """A cosine that turns before the end would raise the rate again; one that is cut would leave it
    high."""
    settings = Optimizer(learning_rate=1.0, cosine=True, final_learning_rate=0.25)
    found = rates(settings, steps_per_epoch=50, epochs=4)
    assert all(earlier > later for earlier, later in pairwise(found))
    assert found[-1] == pytest.approx(0.25, abs=1e-4)
    assert optimization.learning_rate(settings, 200, 50, 4) == pytest.approx(0.25, abs=1e-15)


def test_without_warm_up_and_cosine_the_rate_is_constant():
    """The MNIST recipe of the paper has a constant rate."""
    assert set(rates(Optimizer(learning_rate=3e-5), 3, 4)) == {3e-5}


def test_a_warm_up_shorter_than_a_step_is_none():
    """Rounding it up would divide by nought or take a step at a rate of nought."""
    assert rates(Optimizer(learning_rate=0.5, warmup_epochs=0.1), 4, 2) == [0.5] * 8


def test_the_rate_reaches_every_parameter_group():
    """A group that is left out would keep the rate of the last step, unseen."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights], lr=1.0)
    optimization.set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def unfused(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer as its documentation has it, one parameter at a time."""
    if settings.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov,
            weight_decay=settings.weight_decay, foreach=False,
        )  # fmt: skip
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    optimizer.step()


def small_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_optimizers_take_the_steps_of_the_plain_ones(name):
    """Fused kernels are other code: a setting that they ignore (weight decay, nesterov) would
    change every result."""
    one = small_model()
    other = copy.deepcopy(one)
    fused, plain = optimization.build(NAMES[name], one), unfused(NAMES[name], other)
    assert all(group["fused"] for group in fused.param_groups)
    for number in range(10):
        for optimizer in (fused, plain):
            optimization.set_learning_rate(optimizer, 0.01 * (number + 1))
        step(one, fused, number)
        step(other, plain, number)
    for (parameter, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=lambda text, p=parameter: f"{p}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_read_from_a_checkpoint_goes_on_bit_for_bit(name, tmp_path: Path):
    """Momentum or a step count that starts anew makes a bump after each resume, and no error."""
    straight = small_model(torch.float32)
    optimizer = optimization.build(NAMES[name], straight)
    for number in range(3):
        step(straight, optimizer, number)
    path = tmp_path / "last.safetensors"
    tensors = {**checkpoint.model_tensors(straight), **checkpoint.optimizer_tensors(optimizer)}
    checkpoint.write(path, checkpoint.Checkpoint(tensors, {}), "x")

    resumed = small_model(torch.float32)
    other = optimization.build(NAMES[name], resumed)
    saved = checkpoint.read(path, "x")
    checkpoint.restore_model(resumed, saved, path)
    checkpoint.restore_optimizer(other, saved)
    for number in range(3, 6):
        step(straight, optimizer, number)
        step(resumed, other, number)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert a.equal(b)
    states = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for index in states[0]:
        for key, value in states[0][index].items():
            assert value is None or value.equal(states[1][index][key]), f"{key} of parameter {index}"


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"name": "adamm"}, "name must be one of 'adam', 'adamw', 'sgd', got"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
        ({"momentum": -1.0}, "momentum must be in [0, 1)"),
        ({"nesterov": True}, "nesterov needs name='sgd'"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "with a momentum above 0"),
        ({"warmup_from": 0.1}, "warmup_from has no meaning without warmup_epochs"),
        ({"final_learning_rate": 0.1}, "final_learning_rate and cosine_epochs have no meaning without cosine"),
        ({"cosine_epochs": 3.0}, "final_learning_rate and cosine_epochs have no meaning without cosine"),
        ({"cosine": True, "cosine_epochs": 2.0, "warmup_epochs": 2.0}, "cosine_epochs must be more than warmup_epochs, got 2"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, remedy):
    """A setting that is ignored would be believed to have been used."""
    with pytest.raises(SettingError) as caught:
        Optimizer(**settings)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layer_factors_multiply_the_rate_of_each_layer_through_schedule_and_resume():
    """Scellier et al. 2023 give each layer a rate of its own; a factor that a set rate overwrote
    would last for one step."""
    settings = Optimizer(name="sgd", learning_rate=0.1, momentum=0.0, layer_factors=(1.0, 0.5))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = optimization.build(settings, model)
    for rate in (0.1, 0.04):
        optimization.set_learning_rate(optimizer, rate)
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        moves = [float((old - p.detach()).mean()) for old, p in zip(before, model.parameters(), strict=True)]
        assert moves == pytest.approx([rate, rate, rate / 2, rate / 2], rel=1e-5)
    saved = checkpoint.Checkpoint(checkpoint.optimizer_tensors(optimizer), {})
    checkpoint.restore_optimizer(optimizer, saved)
    optimization.set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_layer_factors_that_are_not_one_for_each_layer_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SettingError, match=r"lists 3 factors, but the model has 2 modules with parameters\. Give one each"):
        optimization.build(Optimizer(layer_factors=(1.0, 1.0, 1.0)), model)
    with pytest.raises(SettingError, match=r"layer_factors\[\d\] must be at least 0 and finite"):
        Optimizer(layer_factors=(1.0, -1.0))


def test_normalisations_learn_faster_by_their_factor_and_decay_as_the_others():
    """Their biases are few and their gradients small (Jordan 2024, §3.4). A decay that grew with
    the rate would hold them at zero."""
    rate, factor, decay = 0.1, 8.0, 0.25
    settings = Optimizer(name="sgd", learning_rate=rate, momentum=0.0, weight_decay=decay, norm_factor=factor)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    before = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for p in model.parameters():
        p.data.fill_(1.0)
        p.grad = torch.full_like(p, 3.0)
    optimization.build(settings, model).step()
    for name, p in model.named_parameters():
        step = rate * 3.0 * (factor if name.startswith("1.") else 1.0)
        assert (p - (before[name] - step - rate * decay)).abs().max() < 1e-12, name
