"""Numbers, labels and imbalanced classes in the trainer: their scores against scikit-learn's, the
epoch that is chosen, and that every rule learns them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from dualprop import bench, losses, recipes, training
from dualprop.data import Reading, Task, load
from dualprop.errors import SettingError
from dualprop.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from dualprop.models import MLP
from dualprop.rules import Backprop, DualPropagation
from dualprop.training import scoring
from dualprop.training.recipe import Optimizer
from dualprop.training.scoring import Score

RANDOM = np.random.default_rng(0)
CPU = torch.device("cpu")


def told(task: Task, outputs: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The scores of these outputs, counted in batches of 7."""
    tally = scoring.tally(task, CPU)
    for rows in torch.arange(len(y)).split(7):
        tally.add(torch.from_numpy(outputs)[rows], torch.from_numpy(y)[rows])
    return tally.scores()


def test_scores_of_classes_are_scikit_learns():
    """Balanced accuracy is the mean over the classes that are there: one that is not counts
    nothing."""
    outputs, y = RANDOM.normal(size=(50, 7)), RANDOM.choice([0, 0, 0, 0, 1, 2, 4, 5, 6], 50)
    ours = told(Task("classification", tuple("abcdefg")), outputs, y)
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(y, outputs.argmax(1)))
    assert ours["balanced_accuracy"] == pytest.approx(np.mean([(outputs.argmax(1)[y == k] == k).mean() for k in np.unique(y)]))
    expected = metrics.top_k_accuracy_score(y, outputs, k=5, labels=range(7))
    assert ours["top5_accuracy"] == pytest.approx(expected)


def test_scores_of_numbers_are_scikit_learns_in_the_targets_own_unit():
    y = RANDOM.normal(size=(50, 2))
    outputs = y + RANDOM.normal(size=(50, 2)) * [0.3, 2.0]
    mean, std = np.array([100.0, -3.0]), np.array([5.0, 0.1])
    ours = told(Task("regression", ("a", "b"), tuple(mean), tuple(std)), outputs, y)
    assert ours["r2"] == pytest.approx(metrics.r2_score(y * std + mean, outputs * std + mean))
    assert ours["mae"] == pytest.approx(metrics.mean_absolute_error(y * std + mean, outputs * std + mean))


def test_r2_is_0_of_the_mean_and_of_a_constant_target_and_1_of_the_truth():
    task, y = Task("regression", ("a",), (0.0,), (1.0,)), RANDOM.normal(size=(40, 1))
    assert told(task, np.full_like(y, y.mean()), y)["r2"] == pytest.approx(0, abs=1e-12)
    assert told(task, y, y)["r2"] == pytest.approx(1)
    assert told(task, y, np.ones_like(y))["r2"] == 0


def test_scores_of_labels_are_scikit_learns():
    y = (RANDOM.random((60, 4)) < [0.5, 0.2, 0.1, 0.0]).astype(np.float32)
    outputs = y + RANDOM.normal(size=(60, 4)) - 0.5
    ours = told(Task("multilabel", tuple("abcd")), outputs, y)
    assert ours["f1"] == pytest.approx(metrics.f1_score(y, outputs >= 0, average="micro"))
    assert ours["mean_average_precision"] == pytest.approx(
        metrics.average_precision_score(y[:, :3], outputs[:, :3], average="macro")
    )


def tiny(dataset: Path, **changes: object) -> training.Recipe:
    """A recipe of own data that trains in a second."""
    settings = {
        "name": "own", "dataset": str(dataset), "model": MLP(widths=(16,)), "rule": DualPropagation(loss=SquaredError()),
        "optimizer": Optimizer(name="adam", learning_rate=1e-2), "batch_size": 20, "epochs": 8, "align": False,
    }  # fmt: skip
    return training.Recipe(**{**settings, **changes})  # type: ignore[arg-type]


def own(tmp_path: Path, y: np.ndarray, **entries: np.ndarray) -> Path:
    np.savez(tmp_path / "own.npz", x_train=X, y_train=y, **entries)
    return tmp_path / "own.npz"


X = RANDOM.normal(size=(300, 3)).astype(np.float32)
PLANE = X @ np.array([[30.0], [-20.0], [5.0]]) + 1000


@pytest.mark.parametrize("rule", [Backprop(loss=SquaredError()), DualPropagation(loss=SquaredError())], ids=["bp", "dp"])
def test_a_linear_law_is_learned_whatever_its_unit(tmp_path, rule):
    """Targets about 1000 that were not standardised would drown the inputs; scores that were would
    be in no unit."""
    run = training.create(tmp_path / "run", tiny(own(tmp_path, PLANE), rule=rule), (0,))
    training.train(run)
    (result,) = run.results()
    assert result.headline == "r2"
    assert 0.95 < result.score <= 1
    splits = load(str(tmp_path / "own.npz"), seed=0)
    y = splits.test.y.numpy() * splits.task.std[0]
    assert 0 < result.test_mae < 0.3 * np.abs(y).mean()
    assert result.test_accuracy is None
    last = run.metrics(0)[-1]
    assert last.validation_accuracy is None
    assert last.train_accuracy is None
    summed = json.loads((tmp_path / "run" / "results.json").read_text())
    assert summed["test_r2_mean"] == result.score


def test_labels_are_learned_by_their_own_loss(tmp_path):
    y = np.concatenate([X[:, :1] > 0, X[:, 1:2] > 0.5, X[:, :1] + X[:, 2:] > 0], 1).astype(int)
    made = tiny(own(tmp_path, y), rule=DualPropagation(loss=BinaryCrossEntropy()), epochs=15)
    run = training.create(tmp_path / "run", made, (0,))
    training.train(run)
    (result,) = run.results()
    assert result.headline == "f1"
    assert result.score > 0.8
    assert result.test_mean_average_precision > 0.85


def test_a_loss_that_does_not_read_the_targets_is_refused_and_replaced_where_a_run_is_begun(tmp_path):
    """Cross-entropy of one output is 0 whatever the target: it would train without a word."""
    path = own(tmp_path, PLANE)
    made = tiny(path, rule=DualPropagation())
    with pytest.raises(SettingError, match=r"is of regression, whose targets cross_entropy does not read. Give --rule.loss"):
        training.train(training.create(tmp_path / "run", made, (0,)))
    report = bench.train(dataclasses.replace(made, epochs=1), out=tmp_path / "begun")
    assert report.runs["dual_propagation"].recipe.rule.loss == SquaredError()
    with pytest.raises(SettingError, match="softmax output is of classes"):
        bench.train(dataclasses.replace(made, model=MLP(widths=(8,), output="softmax")), out=tmp_path / "softmax")


def test_balanced_weights_find_a_rare_class(tmp_path):
    """Without them the net that always says "common" is right nine times in ten. Every step is the
    one of plain PyTorch with these weights: as many examples of each class."""
    rare = (X[:, 0] + 0.8 * RANDOM.normal(size=300) > 1.6).astype(int)
    made = tiny(own(tmp_path, rare), rule=Backprop(loss=CrossEntropy()), epochs=10, optimizer=Optimizer(learning_rate=3e-2))
    recall = {}
    for weights in ("none", "balanced"):
        run = training.create(tmp_path / weights, dataclasses.replace(made, class_weights=weights), (0,))
        training.train(run)
        (result,) = run.results()
        assert result.imbalance > 2
        recall[weights] = result.test_balanced_accuracy
    assert recall["balanced"] > recall["none"]


def test_weights_are_n_by_k_times_n_k():
    task = Task("classification", ("a", "b", "c"), counts=(10, 30, 0))
    assert task.balanced_weights() == (2.0, pytest.approx(2 / 3), 0.0)
    assert sum(w * n for w, n in zip(task.balanced_weights(), task.counts, strict=True)) == pytest.approx(40)
    assert task.imbalance == 3
    made = recipes.from_name("digits-mlp")
    weighted = dataclasses.replace(made, class_weights="balanced").weighted(task)
    assert weighted.rule.loss.class_weights == task.balanced_weights()


def test_of_epochs_as_accurate_the_one_of_lower_loss_is_kept(tmp_path):
    """On iris, of 12 validation examples, the third of 30 epochs was the first that was as accurate
    as any, and stayed the best: 88 % on the test part where the last has more."""
    separated = np.concatenate([X[:, :1] + 4 * np.sign(X[:, :1]), X[:, 1:]], 1).astype(np.float32)
    np.savez(tmp_path / "own.npz", x_train=separated, y_train=(X[:, 0] > 0).astype(int))
    made = tiny(tmp_path / "own.npz", rule=Backprop(loss=CrossEntropy()), epochs=12)
    run = training.create(tmp_path / "run", made, (0,))
    training.train(run)
    epochs = run.metrics(0)
    highest = max(epoch.validation_accuracy for epoch in epochs)
    tied = [epoch for epoch in epochs if epoch.validation_accuracy == highest]
    assert len(tied) > 3, "not this case"
    chosen = min(tied, key=lambda epoch: epoch.validation_loss)
    assert chosen.epoch > tied[0].epoch
    assert run.results()[0].best_epoch == chosen.epoch


def test_a_run_of_own_data_is_resumed_to_the_same_end(tmp_path):
    """Its data is read again: the same rows must be in the same parts, standardised alike."""
    path = own(tmp_path, PLANE)
    whole = training.create(tmp_path / "whole", tiny(path, epochs=4), (0,))
    training.train(whole)
    killed = training.create(tmp_path / "killed", tiny(path, epochs=4), (0,))

    class Stops(training.Reporter):
        def epoch_done(self, metrics):
            if metrics["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(killed, reporter=Stops())
    training.train(killed)
    assert killed.metrics(0) == whole.metrics(0)
    assert killed.results() == whole.results()


def test_fewer_epochs_shorten_the_warm_up_and_the_cosine_with_them():
    """A recipe of 130 epochs that warms up over 10 of them could not be tried for 5."""
    made = recipes.from_name("cifar10-vgg16")
    short = made.with_epochs(5)
    assert short.epochs == 5
    assert short.optimizer.warmup_epochs == pytest.approx(made.optimizer.warmup_epochs * 5 / made.epochs)
    assert short.optimizer.cosine_epochs == pytest.approx(made.optimizer.cosine_epochs * 5 / made.epochs)
    assert made.with_epochs(2 * made.epochs).optimizer.warmup_epochs == made.optimizer.warmup_epochs


def test_a_run_is_named_after_its_data(tmp_path):
    """A table titled digits-mlp above numbers of one's own data is wrong."""
    np.savez(tmp_path / "my data.npz", x_train=X, y_train=(X[:, 0] > 0).astype(int))
    made = dataclasses.replace(recipes.from_name("digits-mlp"), dataset=str(tmp_path / "my data.npz"), epochs=1, align=False)
    report = bench.train(made, seeds=1, out=tmp_path / "run")
    run = report.runs["dual_propagation"]
    assert run.recipe.name == "my-data-mlp"
    assert not run.recipe.published
    assert recipes.from_name("digits-mlp").name == "digits-mlp"


def test_a_task_has_a_loss_and_a_score():
    """A new kind of task must not be scored as another."""
    from dualprop.data.tasks import HEADLINE_OF, LOSS_OF

    names = {each.name for each in dataclasses.fields(Score)}
    assert set(HEADLINE_OF.values()) <= names
    assert all(losses.from_name(name) for name in LOSS_OF.values())
    assert Reading().task == "auto"
