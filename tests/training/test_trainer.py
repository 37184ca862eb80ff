"""The trainer: against a loop written out in plain PyTorch, what it tests at the end, when it
stops, and what seeds decide."""

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from dualprop import recipes, training
from dualprop.data import batches, load
from dualprop.losses import SquaredError
from dualprop.models import MLP
from dualprop.rules import AbstractRule, Backprop, DualPropagation
from dualprop.training import Reporter, checkpoint, learner, seeds
from dualprop.training.stepping import Alone
from dualprop.training.weights import initial_model


def accuracy(model: nn.Module, examples) -> float:
    """Written out: one batch, the normalisation by hand."""
    x = (examples.x.to(torch.float64) - examples.mean.double()) / examples.std.double()
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(x)
    return float((logits.argmax(1) == examples.y).double().mean())


def weights(run: training.Run, name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The model's tensors of a checkpoint, read without the package."""
    tensors = safetensors.torch.load_file(run.seed_folder(seed) / f"{name}.safetensors")
    return {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}


def test_back_propagation_in_the_trainer_is_a_plain_pytorch_loop(recipe, train):
    """Every comparison rests on the twin: trained otherwise than PyTorch trains, it would be a
    straw man."""
    made = recipe(
        rule=Backprop(loss=SquaredError()), model=MLP(widths=(16, 12)), batch_size=50, epochs=3, align=False,
        optimizer={"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1, "cosine": True, "warmup_epochs": 1.0},
    )  # fmt: skip
    run = train(made, seeds=(5,))

    splits = load("digits", validation_fraction=0.1, seed=5)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1, foreach=False)
    order, steps = torch.Generator().manual_seed(5), len(splits.train) // 50
    losses = []
    for epoch in range(3):
        losses.append(0.0)
        for i, rows in enumerate(torch.randperm(len(splits.train), generator=order).split(50)[:steps]):
            number = epoch * steps + i
            rate = 3e-3 * number / steps
            if number >= steps:
                rate = 3e-3 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (number - steps) / (2 * steps))).item())
            optimizer.param_groups[0]["lr"] = rate
            x, y = splits.train.batch(rows)
            loss = ((model(x) - nn.functional.one_hot(y, 10)) ** 2).sum(1).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item() / steps
    for name, tensor in weights(run, "last", seed=5).items():
        expected = model.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
    told = [metrics.train_loss for metrics in run.metrics(5)[1:]]
    assert told == pytest.approx(losses, rel=1e-5)
    assert run.metrics(5)[-1].validation_accuracy == pytest.approx(accuracy(model, splits.validation), abs=1e-9)


def test_the_epoch_that_was_best_on_the_validation_part_is_tested(recipe, train):
    """Testing the last epoch, or choosing by the test set, would report another number under the
    same name."""
    made = recipe(optimizer={"name": "sgd", "learning_rate": 0.7, "momentum": 0.0}, epochs=7, validation_fraction=0.05)
    run = train(made)
    metrics, result = run.metrics(0), run.results()[0]
    told = [m.validation_accuracy for m in metrics]
    best = told.index(max(told))
    assert 0 < best < 7, f"the case must have its best epoch before the last: {told}"
    assert (result.best_epoch, result.validation_accuracy) == (best, max(told))

    splits = load("digits", validation_fraction=0.05, seed=0)
    model = made.model.build(splits.input_shape, splits.num_classes)
    scores = {}
    for name in ("best", "last"):
        model.load_state_dict(weights(run, name))
        scores[name] = accuracy(model, splits.test), accuracy(model, splits.validation)
    assert scores["best"] == pytest.approx((result.test_accuracy, max(told)), abs=1e-9)
    assert scores["last"][1] == pytest.approx(told[-1], abs=1e-9)
    assert scores["last"][0] != scores["best"][0], "the case can't tell the two apart"


def test_the_metrics_begin_before_training_and_have_a_line_for_each_epoch(recipe, train):
    """A curve that is shifted by one epoch shows one rule ahead of the other."""
    run = train(recipe(epochs=3))
    metrics = run.metrics(0)
    assert [m.epoch for m in metrics] == [0, 1, 2, 3]
    assert metrics[0].train_loss is None
    assert all(None not in (m.train_loss, m.train_accuracy, m.learning_rate, m.numbers["drives"]) for m in metrics[1:])
    assert metrics[-1].train_loss < metrics[1].train_loss


class Watcher(Reporter):
    """Keeps what the trainer tells."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.started: list[tuple[int, int, int]] = []
        self.finished: list[int] = []

    def seed_started(self, seed, num_steps, done):
        self.started.append((seed, num_steps, done))

    def step_done(self, done, num_examples, loss, num_correct):
        self.steps.append(done)

    def seed_finished(self, result):
        self.finished.append(result.seed)


def first_batches(monkeypatch, make_run, rule: AbstractRule) -> list[list[torch.Tensor]]:
    """Weights, inputs and labels of every step of a run by the rule."""
    seen: list[list[torch.Tensor]] = []
    gather = Alone.gather

    def recording(self, seeds):
        x, y = gather(self, seeds)
        seen.append([*(p.detach().clone() for p in self.network.parameters.values()), x.clone(), y.clone()])
        return x, y

    with monkeypatch.context() as patch:
        patch.setattr(Alone, "gather", recording)
        make_run(rule)
    return seen


def test_two_rules_of_one_seed_see_the_same_weights_batches_and_division(recipe, train, monkeypatch):
    """The difference between two rules is small: with different seeds' noise in it, it would mean
    nothing."""
    rules = {"bp": Backprop(), "dp": DualPropagation(), "random": DualPropagation(schedule="random_order(6)")}
    runs = {}
    seen = {
        name: first_batches(
            monkeypatch, lambda r, n=name: runs.update({n: train(recipe(rule=r, capture="off"), seeds=(3,), name=n)}), rule
        )
        for name, rule in rules.items()
    }
    for name in ("dp", "random"):
        assert len(seen[name]) == len(seen["bp"]) > 20
        assert all(a.equal(b) for a, b in zip(seen[name][0], seen["bp"][0], strict=True)), "the first step differs"
        for number, (one, other) in enumerate(zip(seen[name], seen["bp"], strict=True)):
            assert one[-2].equal(other[-2]), f"{name}: other examples in step {number}"
            assert one[-1].equal(other[-1]), f"{name}: other labels in step {number}"
        before = [run.metrics(3)[0].validation_loss for run in (runs[name], runs["bp"])]
        assert before[0] == before[1]
    assert not seen["bp"][0][-2].equal(seen["bp"][20][-2]), "every epoch had the same order"


def test_other_seeds_begin_from_other_weights_and_orders(recipe, train, monkeypatch):
    """Five runs of one seed have no spread."""
    seen = {s: first_batches(monkeypatch, lambda r, s=s: train(recipe(), seeds=(s,), name=str(s)), Backprop()) for s in (1, 2)}
    assert not any(a.equal(b) for a, b in zip(seen[1][0], seen[2][0], strict=True))


def test_training_leaves_the_global_generator_alone(recipe, train):
    """A run that reads or moves it gives another result after anything else has drawn a number."""
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = train(recipe(rule=DualPropagation(schedule="random_order(4)")), name="a")
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(12)
    second = train(recipe(rule=DualPropagation(schedule="random_order(4)")), name="b")
    assert all(a.equal(b) for a, b in zip(weights(first, "last").values(), weights(second, "last").values(), strict=True))


def test_comparing_with_back_propagation_changes_nothing_in_the_run(recipe, train):
    """Measured and unmeasured runs must be the same run."""
    rule = DualPropagation(start="previous", schedule="random_order(4)")
    with_it, without = (train(recipe(rule=rule, align=align), name=str(align)) for align in (True, False))
    assert with_it.metrics(0)[-1].alignment
    assert not without.metrics(0)[-1].alignment
    for a, b in zip(weights(with_it, "last").values(), weights(without, "last").values(), strict=True):
        assert a.equal(b)


def test_a_divergence_stops_the_run_with_a_reason_and_its_results_are_written(recipe, train):
    """A night of NaN, or a run that ends without its results."""
    run = train(recipe(optimizer={"name": "sgd", "learning_rate": 1e30, "momentum": 0.0}, epochs=50))
    (result,) = run.results()
    assert result.stopped.startswith("diverged in epoch 1 by step 20: ")
    assert "Lower the learning rate" in result.stopped
    assert result.epochs == 1 == len(run.metrics(0)) - 1
    written = json.loads((run.folder / "results.json").read_text())
    assert written["seeds"] == [result.to_plain()]


def test_a_divergence_within_an_epoch_is_noticed_within_fifty_steps(recipe, train):
    """An epoch of a large data set may take an hour."""
    watcher = Watcher()
    made = recipe(optimizer={"name": "sgd", "learning_rate": 1e30, "momentum": 0.0}, batch_size=8)
    run = train(made, reporter=watcher)
    assert watcher.steps[-1] == seeds.CHECK_EVERY == 50
    assert "in epoch 1 by step 50" in run.results()[0].stopped


def test_a_collapse_of_the_validation_accuracy_stops_the_run(recipe, train, monkeypatch):
    """Some rules fail without a NaN: the network forgets everything and trains on."""
    told = iter([0.1, 0.8, 0.41, 0.39])
    evaluate = learner.evaluate

    def collapsing(model, examples, *others, **settings):
        score = evaluate(model, examples, *others, **settings)
        is_validation = len(examples) == 144
        return dataclasses.replace(score, accuracy=next(told)) if is_validation else score

    monkeypatch.setattr(learner, "evaluate", collapsing)
    run = train(recipe(epochs=9))
    (result,) = run.results()
    assert "validation accuracy fell to 0.3900, less than half of its best, after epoch 3" in result.stopped
    assert (result.epochs, result.best_epoch, result.validation_accuracy) == (3, 1, 0.8)


def test_seeds_run_in_turn_and_finished_ones_are_not_trained_again(recipe, train):
    """A resume that trains finished seeds again costs a night; one that skips unfinished ones costs
    the result."""
    watcher = Watcher()
    run = train(recipe(), seeds=(4, 1), reporter=watcher)
    assert [seed for seed, *_ in watcher.started] == watcher.finished == [4, 1]
    assert len(watcher.steps) == 2 * 2 * 20
    (run.seed_folder(1) / "result.json").unlink()
    again = Watcher()
    results = training.train(training.load(run.folder), reporter=again)
    assert (again.started, again.steps, again.finished) == ([(1, 40, 40)], [], [4, 1])
    assert [each["seed"] for each in results["seeds"]] == [4, 1]
    accuracies = torch.tensor([each["test_accuracy"] for each in results["seeds"]], dtype=torch.float64)
    assert results["test_accuracy_mean"] == pytest.approx(accuracies.mean().item(), rel=1e-12)
    assert results["test_accuracy_std"] == pytest.approx(accuracies.std().item(), rel=1e-12)


def test_one_seed_has_no_spread(recipe, train):
    """A standard deviation of nought would claim certainty."""
    run = train(recipe(epochs=1))
    assert json.loads((run.folder / "results.json").read_text())["test_accuracy_std"] is None


def test_double_precision_is_trained_in_double_precision(recipe, train):
    """Quietly cast to float32, a check at 1e-10 would fail elsewhere."""
    run = train(recipe(dtype="float64", epochs=1, rule=DualPropagation(start="previous")))
    saved = checkpoint.read(run.seed_folder(0) / "last.safetensors", f"{run.recipe.digest()} seed 0")
    kinds = {name: tensor.dtype for name, tensor in saved.tensors.items() if name.startswith(("model", "optimizer", "rule"))}
    assert any(name.startswith("rule.mean") for name in kinds)
    wide = [dtype for name, dtype in kinds.items() if not name.endswith(".step")]
    assert set(wide) == {torch.float64}


@pytest.mark.parametrize("rule", ["dual_propagation", "backprop"])
def test_digits_are_learned_in_a_few_epochs_by(rule, tmp_path):
    """The real recipe, shortened: everything before can be right while nothing is learned."""
    made = dataclasses.replace(recipes.from_name("digits-mlp").with_rule(rule), epochs=8, align=False)
    results = training.train(training.create(tmp_path / "run", made, (0,)))
    assert results["test_accuracy_mean"] >= 0.95
    assert results["seeds"][0]["stopped"] == ""


def test_a_diverged_model_is_never_the_best_one(recipe, train):
    """All of its outputs are NaN, which argmax takes for class 0: luckier than untrained weights,
    it would be tested."""
    optimizer = {"name": "sgd", "learning_rate": 1e30, "momentum": 0.0}
    run = train(recipe(model=MLP(widths=(4,)), batch_size=107, optimizer=optimizer))
    accuracies = [m.validation_accuracy for m in run.metrics(0)]
    assert accuracies[0] < accuracies[1], "the case must have NaN luckier than the untrained weights"
    (result,) = run.results()
    assert (result.best_epoch, result.validation_accuracy) == (0, accuracies[0])
    assert all(tensor.isfinite().all() for tensor in weights(run, "best").values())


def test_the_running_mean_of_the_weights_is_validated_and_tested(recipe, train):
    """a ← a + (w - a) / steps after each step, and a is what the numbers are of."""
    made = recipe(optimizer={"name": "sgd", "learning_rate": 0.05, "momentum": 0.0}, averaging=7.0, select="last")
    run = train(made)
    plain = train(recipe(optimizer={"name": "sgd", "learning_rate": 0.05, "momentum": 0.0}), name="plain")
    splits = load("digits", validation_fraction=0.1, seed=0)
    for name, weight in weights(run, "last").items():
        assert weight.equal(weights(plain, "last")[name]), "the mean is not what is trained"

    model, mean = (initial_model(made, 0, splits) for _ in range(2))
    optimizer, order, steps = torch.optim.SGD(model.parameters(), lr=0.05), torch.Generator().manual_seed(0), 0
    for _ in range(made.epochs):
        for x, y in batches(splits.train, made.batch_size, generator=order, drop_last=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            share = 1 / 7 if steps else 1.0
            for a, w in zip(mean.parameters(), model.parameters(), strict=True):
                a.data += share * (w.data - a.data)
            steps += 1
    for name, weight in weights(run, "best").items():
        torch.testing.assert_close(weight, mean.state_dict()[name], rtol=1e-4, atol=1e-6)
    result = run.results()[0]
    assert result.test_accuracy == pytest.approx(accuracy(mean, splits.test), abs=1e-9)
    assert result.validation_accuracy == pytest.approx(accuracy(mean, splits.validation), abs=1e-9)


def test_the_last_epoch_is_tested_where_the_recipe_selects_it(recipe, train):
    """A thousand examples are too few to choose by."""
    made = recipe(
        optimizer={"name": "sgd", "learning_rate": 0.7, "momentum": 0.0}, epochs=7, validation_fraction=0.05, select="last"
    )
    run = train(made)
    told = [m.validation_accuracy for m in run.metrics(0)]
    assert told[-1] < max(told), "the case can't tell the two apart"
    assert (run.results()[0].best_epoch, run.results()[0].validation_accuracy) == (7, told[-1])
    assert all(weights(run, "best")[name].equal(weight) for name, weight in weights(run, "last").items())


def test_accuracy_over_views_is_of_the_mean_of_their_logits_and_stands_beside_the_plain_one(recipe, train):
    """An average over six looks is another task than one look: a number of one can't stand for the
    other."""
    run = train(recipe(views="flips_and_shifts"))
    splits, model = load("digits", validation_fraction=0.1, seed=0), MLP(widths=(8,)).build((1, 8, 8), 10)
    model.load_state_dict(weights(run, "best"))
    x, y = splits.test.batch(torch.arange(len(splits.test)))
    total = torch.zeros(len(x), 10)
    around = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    for share, view in ((2, x), (1, around[:, :, :8, :8]), (1, around[:, :, 2:, 2:])):
        total += share / 8 * (model(view) + model(view.flip(3)))
    result = run.results()[0]
    assert result.test_accuracy_over_views == pytest.approx(float((total.argmax(1) == y).double().mean()), abs=1e-9)
    assert result.test_accuracy == pytest.approx(accuracy(model, splits.test), abs=1e-9)
    assert result.test_accuracy_over_views != result.test_accuracy, "the case can't tell the two apart"
    assert train(recipe(), name="plain").results()[0].test_accuracy_over_views is None
    assert "test_accuracy_over_views_mean" in (run.folder / "results.json").read_text()
