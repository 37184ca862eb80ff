"""How own examples are divided: each class in its proportion, the test part the same for every
seed; and arrays of numbers and labels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualprop.data import Reading, load
from dualprop.data.splits import draw_in_proportion
from dualprop.errors import DataError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4)).astype(np.float32)


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    fraction=st.floats(0.02, 0.9),
    seed=st.integers(0, 100),
)
def test_every_class_has_its_share_to_within_one_and_keeps_one(counts, fraction, seed):
    """Rounding that favours a class, or takes its only example, shows in small data alone."""
    y = np.repeat(np.arange(len(counts)), counts)
    rest, drawn = draw_in_proportion(y, fraction, seed, "here")
    assert sorted([*rest, *drawn]) == list(range(len(y)))
    of_rest, of_drawn = (np.bincount(y[part], minlength=len(counts)) for part in (rest, drawn))
    assert (of_rest >= 1).all()
    wanted = min(max(round(fraction * len(y)), 1), len(y) - 1)
    share = np.array(counts) * wanted / len(y)
    assert (of_drawn <= np.floor(share) + 1).all()
    # Below its share by one or more only where a class would be left empty.
    assert all(d > s - 1 or r == 1 for d, s, r in zip(of_drawn, share, of_rest, strict=True))
    assert len(drawn) == wanted or (of_rest == 1).any()


def test_parts_are_in_proportion_and_the_test_part_is_of_no_seed(tmp_path):
    """Of 6 rare examples in 60 a random test part of ten holds none every third time."""
    y = np.repeat([0, 1], [54, 6])
    np.savez(tmp_path / "own.npz", x_train=X, y_train=y)
    one, other = (load(str(tmp_path / "own.npz"), seed=seed) for seed in (1, 2))
    for splits in (one, other):
        # Shares of the test part's 10 and of the validation part's 5: 1 and 0.5.
        of_train, of_validation, of_test = (int(part.y.sum()) for part in (splits.train, splits.validation, splits.test))
        assert of_test == 1
        assert (of_train, of_validation) in ((4, 1), (5, 0))
    assert one.test.x.equal(other.test.x)
    assert not one.validation.x.equal(other.validation.x)
    random = load(str(tmp_path / "own.npz"), reading=Reading(stratify=False))
    assert not random.test.x.equal(one.test.x)


def test_named_data_sets_are_divided_as_ever():
    """Published runs must come back bit for bit: these are the first validation labels of digits at
    seed 0, drawn by one permutation of all training examples."""
    import torch

    splits = load("digits", seed=0)
    number = len(splits.train) + len(splits.validation)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    drawn = order[: round(0.1 * number)].sort().values
    y = torch.empty(number, dtype=torch.int64)
    y[drawn] = splits.validation.y
    rest = torch.ones(number, dtype=torch.bool)
    rest[drawn] = False
    y[rest] = splits.train.y
    from sklearn.datasets import load_digits

    counts = np.bincount(load_digits().target) - np.bincount(splits.test.y.numpy())
    assert np.bincount(y.numpy()).tolist() == counts.tolist()
    assert splits.inputs is None


def arrays(tmp_path: Path, **entries: object) -> str:
    np.savez(tmp_path / "own.npz", **{"x_train": X, **entries})
    return str(tmp_path / "own.npz")


def test_arrays_hold_numbers_and_labels_too(tmp_path):
    numbers = load(arrays(tmp_path, y_train=X[:, 0] + 0.5))
    assert numbers.task.kind == "regression"
    assert numbers.train.y.shape == (len(numbers.train), 1)
    several = load(arrays(tmp_path, y_train=X[:, :2] + 0.5, target_names=np.array(["left", "right"])))
    assert several.task.names == ("left", "right")
    labels = load(arrays(tmp_path, y_train=(X[:, :3] > 0).astype(int)))
    assert (labels.task.kind, labels.num_classes) == ("multilabel", 3)
    named = load(arrays(tmp_path, y_train=np.arange(60) % 3, target_names=np.array(["a", "b", "c"])))
    assert named.task.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"y_train": np.where(X[:, 0] > 1, np.nan, X[:, 0])}, "y_train holds NaN or inf"),
        ({"y_train": np.arange(60) % 3, "target_names": np.array(["a", "b"])}, "target_names must hold 3 different words"),
        ({"y_train": np.arange(60) % 3, "target_names": np.array(["a", "b", "b"])}, "must hold 3 different words"),
        ({"y_train": X[:, :2], "x_test": X, "y_test": X[:, :3]}, "(3,) in y_test, (2,) in y_train"),
        ({"y_train": X[:, :0]}, "y_train has shape (60, 0)"),
    ],
)
def test_targets_that_do_not_fit_are_told(tmp_path, entries, complaint):
    with pytest.raises(DataError) as raised:
        load(arrays(tmp_path, **entries))
    assert complaint in str(raised.value)


def test_npy_files_are_tables_or_parts_in_a_folder(tmp_path):
    y = np.arange(60) % 3
    np.save(tmp_path / "all.npy", np.column_stack([X, y]))
    splits = load(str(tmp_path / "all.npy"), reading=Reading(target="4"))
    assert splits.inputs.names == ("0", "1", "2", "3")
    assert splits.task.names == ("0", "1", "2")
    records = np.zeros(60, dtype=[("size", "f4"), ("kind", "U3")])
    records["size"], records["kind"] = X[:, 0], np.array(["cat", "dog", "owl"])[y]
    np.save(tmp_path / "records.npy", records)
    assert load(str(tmp_path / "records.npy"), reading=Reading(target="kind")).task.names == ("cat", "dog", "owl")
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, array in (("x_train", X), ("y_train", y), ("x_test", X[:6]), ("y_test", y[:6])):
        np.save(parts / f"{name}.npy", array)
    assert len(load(str(parts)).test) == 6
    np.save(tmp_path / "objects.npy", np.array([{}] * 3), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        load(str(tmp_path / "objects.npy"), reading=Reading(target="0"))
