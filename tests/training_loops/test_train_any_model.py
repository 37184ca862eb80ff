"""The script that trains one model by each rule: what it writes, and that it goes on where it was
stopped.

On blobs that a small convolutional network learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SCRIPTS = Path(__file__).parents[2] / "scripts"
STEPS = 6


class Small(nn.Module):
    """BatchNorm and activations that are called, as in the real models."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(h + 1).mean((2, 3)))


@pytest.fixture
def script(monkeypatch):
    """The script with a task of its own, which can be stopped at a step."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import any_tasks
    import train_any_model

    train_any_model.stopped_at = None

    def batch(step):
        if step == train_any_model.stopped_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        y = torch.arange(8) % 2
        return torch.randn(8, 1, 5, 5, generator=generator) + y[:, None, None, None], y

    def accuracy(model):
        assert not model.training
        x, y = batch(10**6)
        return float((model(x).argmax(1) == y).float().mean())

    optimizer = any_tasks.Optimizer(name="sgd", learning_rate=0.1, cosine=True, warmup_epochs=0.1)
    task = any_tasks.Task(Small, batch, 8, 4, optimizer, "test accuracy", accuracy)
    monkeypatch.setitem(any_tasks.TASKS, "resnet18", lambda options: task)
    threads, flushes = torch.get_num_threads(), torch.set_flush_denormal(False)
    yield train_any_model
    torch.set_num_threads(threads)
    if flushes:
        torch.set_flush_denormal(False)


def run(script, out, *rules, every=2):
    arguments = [str(out), "--model", "resnet18", "--steps", str(STEPS), "--every", str(every), "--rules", *rules]
    script.main(arguments)
    return {rule: json.loads((out / f"{rule}.json").read_text()) for rule in rules}


@pytest.fixture
def quiet(script, monkeypatch):
    """The script, which draws nothing."""
    monkeypatch.setattr(script, "draw", lambda records, title, path: None)
    return script


def test_every_rule_trains_and_is_held_against_back_propagation(quiet, tmp_path):
    rules = ("bp", "dp-fused", "dp", "ep", "pc")
    records = run(quiet, tmp_path, *rules)
    first = {rule: records[rule]["losses"][0]["loss"] for rule in rules}
    for rule in rules:
        assert [each["step"] for each in records[rule]["losses"]] == [2, 4, 6]
        assert [each["step"] for each in records[rule]["held_out"]] == [4, 6]
        assert all(0 <= each["test accuracy"] <= 1 for each in records[rule]["held_out"])
        # The same model, batches and optimizer: only a step by other gradients lies between.
        assert first[rule] == pytest.approx(first["bp"], rel=0.2)
        if rule != "bp":
            assert [set(each) for each in records[rule]["angles"]] == [{"step", "conv", "norm", "head"}] * 3
    # The output is linear, and its gradient by DP that of BP but for the mean state.
    assert all(each["head"] < 5 for rule in ("dp", "dp-fused", "ep") for each in records[rule]["angles"])
    # Both engines compute one rule.
    for ours, theirs in zip(records["dp"]["losses"], records["dp-fused"]["losses"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_a_rule_that_comes_later_is_drawn_beside_the_others(script, tmp_path, monkeypatch):
    drawn, draw = [], script.draw
    monkeypatch.setattr(script, "draw", lambda records, title, path: drawn.append((list(records), path)))
    run(script, tmp_path, "dp")
    run(script, tmp_path, "bp")
    run(script, tmp_path, "dp")
    assert drawn == [(rules, tmp_path / "curves.png") for rules in (["dp"], ["bp", "dp"], ["bp", "dp"])]
    records = {rule: json.loads((tmp_path / f"{rule}.json").read_text()) for rule in ("bp", "dp")}
    assert [len(record["runs"]) for record in records.values()] == [1, 1]
    draw(records, "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_measuring_does_not_disturb_training(quiet, tmp_path):
    """BatchNorm's statistics would move twice."""
    often, seldom = (run(quiet, tmp_path / str(every), "dp-fused", every=every)["dp-fused"] for every in (1, 3))
    means = np.array([each["loss"] for each in often["losses"]]).reshape(2, 3).mean(1)
    assert [each["loss"] for each in seldom["losses"]] == pytest.approx(means.tolist(), rel=1e-12)
    assert often["held_out"] == seldom["held_out"]


@pytest.mark.parametrize("rule", ["dp-fused", "ep"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(quiet, tmp_path, rule):
    whole = run(quiet, tmp_path / "whole", rule)[rule]
    quiet.stopped_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(quiet, tmp_path / "parts", rule)
    quiet.stopped_at = None
    parts = run(quiet, tmp_path / "parts", rule)[rule]
    assert [each["from_step"] for each in parts["runs"]] == [0, 2]
    for key in ("losses", "angles", "held_out"):
        assert parts[key] == whole[key]
    saved = [torch.load(tmp_path / name / f"{rule}.pt", weights_only=True)["model"] for name in ("whole", "parts")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_folder_of_other_settings_is_refused(quiet, tmp_path):
    run(quiet, tmp_path, "bp")
    with pytest.raises(SystemExit, match="holds other settings"):
        run(quiet, tmp_path, "dp", every=3)


def test_a_loss_that_is_not_finite_ends_a_rule_and_keeps_the_last_good_checkpoint(quiet, tmp_path, monkeypatch):
    exact = quiet.loss_by

    def loss_by(name, beta, model, terms):
        loss = exact(name, beta, model, terms)
        calls = iter(range(STEPS))
        return lambda x, y: loss(x, y) * (float("nan") if next(calls) == 3 else 1.0)

    monkeypatch.setattr(quiet, "loss_by", loss_by)
    record = run(quiet, tmp_path, "bp")["bp"]
    assert record["message"] == "the loss is nan at step 3. Lower the learning rate."
    saved = torch.load(tmp_path / "bp.pt", weights_only=True)
    assert json.loads(saved["record"])["step"] == 2
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_the_text_is_cut_into_what_is_learned_and_what_is_held_out(script):
    import argparse

    task = script.TASKS["gpt"](argparse.Namespace(batch_size=3, seed=1))
    x, y = task.batch(5)
    assert x.shape == y.shape == (3, 64)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(task.batch(5)[0], x)
    assert not torch.equal(task.batch(6)[0], x)
    letters = task.model().tokens.num_embeddings
    # Where all letters are alike, the loss says how many there are.
    assert task.held_out(lambda x: torch.zeros(len(x), letters, 64)) == pytest.approx(np.log(letters), rel=1e-5)
