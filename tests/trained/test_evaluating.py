"""What a model gets wrong, against counts by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import dualprop as dp
from dualprop import data
from dualprop.errors import RunError
from dualprop.trained import evaluate, mistakes
from dualprop.training import runs


def said_and_true(folder, part):
    """Probabilities (N, K) and classes (N,) of a part, without the module under test."""
    splits = data.load("digits", seed=3)
    examples = getattr(splits, part)
    model = dp.load(folder, seed=3)
    return model.probabilities(examples.x.float()), examples.y


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch, request):
    """Drawing takes longer than all the rest."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(mistakes, "draw", lambda *_: [])


@pytest.mark.parametrize("part", ["test", "validation"])
def test_scores_are_those_of_counting(trained, part):
    """Rows are what an example is, columns what it was taken for; turned round, precision and
    recall change places."""
    made = evaluate(trained, part=part)
    probabilities, truth = said_and_true(trained, part)
    said = probabilities.argmax(1)
    for i in range(10):
        for j in range(10):
            assert made.confusion[i, j] == int(((truth == i) & (said == j)).sum())
    for k, each in enumerate(made.classes):
        right = int(((truth == k) & (said == k)).sum())
        assert each.number == int((truth == k).sum())
        assert each.recall == pytest.approx(right / each.number)
        assert each.precision == (pytest.approx(right / int((said == k).sum())) if int((said == k).sum()) else None)
    assert made.accuracy == pytest.approx((said == truth).double().mean().item())
    assert made.balanced_accuracy == pytest.approx(np.mean([each.recall for each in made.classes]))
    assert made.num_mistakes == int((said != truth).sum())


def test_the_test_accuracy_is_the_runs_own(trained):
    result = next(result for result in runs.load(trained).results() if result.seed == 5)
    assert evaluate(trained, seed=5).accuracy == pytest.approx(result.test_accuracy)


def test_the_worst_mistakes_are_those_it_was_surest_of(trained):
    probabilities, truth = said_and_true(trained, "test")
    said = probabilities.argmax(1)
    rows = torch.arange(len(truth))
    margins = probabilities[rows, said] - probabilities[rows, truth]
    made = evaluate(trained, mistakes=4)
    assert len(made.mistakes) == 4
    expected = sorted(margins[said != truth].tolist(), reverse=True)[:4]
    assert [each.margin for each in made.mistakes] == pytest.approx(expected, abs=1e-5)
    for each in made.mistakes:
        assert (each.truth, each.said) == (str(int(truth[each.index])), str(int(said[each.index])))


def test_the_pictures_lie_in_the_run_and_the_numbers_where_asked(trained, tmp_path):
    made = evaluate(trained, out=tmp_path / "numbers.json")
    assert [path.name for path in made.figures] == ["confusion_matrix-seed-3-test.png", "worst_mistakes-seed-3-test.png"]
    for path in made.figures:
        assert path.parent == trained / "figures"
        with Image.open(path) as image:
            assert min(image.size) > 300
    assert json.loads((tmp_path / "numbers.json").read_text())["confusion"] == made.confusion.tolist()


def test_other_data_than_the_runs_is_refused(trained, tmp_path):
    """Scores of another test set would pass for the run's."""
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run/environment.json"
    plain = json.loads(path.read_text())
    for start in plain["starts"]:
        start["data"] = "0" * 32
    path.write_text(json.dumps(plain))
    with pytest.raises(RunError, match=r"digits is not the data that .* was trained on"):
        evaluate(tmp_path / "run")
