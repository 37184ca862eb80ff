"""The user's own tables: what becomes of numbers, words and gaps, and one line with file, row,
column and remedy for each way in which a table can be wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dualprop import memory
from dualprop.data import Reading, load
from dualprop.data.own import columns
from dualprop.errors import DataError

RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=(60, 2))
KINDS = [("cat", "dog", "owl")[i % 3] for i in range(60)]
COLOURS = [("red", "blue")[i % 2] for i in range(60)]


def table(tmp_path: Path, *rows: str, name: str = "own.csv") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def animals(tmp_path: Path, divider: str = ",", changes: dict[int, str] | None = None) -> Path:
    """Sixty rows of two numbers, a colour and an animal; some rows are as said."""
    rows = [divider.join(("weight", "height", "colour", "animal"))]
    rows += [
        divider.join((repr(w), repr(h), colour, kind))
        for (w, h), colour, kind in zip(NUMBERS.tolist(), COLOURS, KINDS, strict=True)
    ]
    for row, text in (changes or {}).items():
        rows[row - 1] = text
    return table(tmp_path, *rows)


ANIMAL = Reading(target="animal")


def failure(path: Path, reading: Reading = ANIMAL) -> str:
    """The message of the DataError, proved to be one line that begins with the file."""
    with pytest.raises(DataError) as raised:
        load(str(path), reading=reading)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert message.endswith(".")
    return message


def raw(part) -> np.ndarray:
    """The inputs as they are kept, before they are standardised."""
    return part.x.numpy()


@pytest.mark.parametrize("divider", [",", ";", "\t", "|"])
def test_numbers_categories_and_classes_are_read_whatever_divides_them(tmp_path, divider):
    """A table read as one column would still train, on nothing."""
    splits = load(str(animals(tmp_path, divider)), reading=ANIMAL)
    assert splits.task.names == ("cat", "dog", "owl")
    assert splits.inputs.names == ("weight", "height", "colour=blue", "colour=red")
    x = np.concatenate([raw(part) for part in (splits.train, splits.validation, splits.test)])
    expected = [[*pair, float(c == "blue"), float(c == "red")] for pair, c in zip(NUMBERS.tolist(), COLOURS, strict=True)]
    np.testing.assert_array_equal(sorted(x.tolist()), sorted(np.float32(expected).tolist()))


def test_each_row_keeps_its_own_class(tmp_path):
    """Inputs and targets that part ways in the splits are noise that nothing tells."""
    splits = load(str(animals(tmp_path)), reading=ANIMAL)
    kind_of = {np.float32(w): kind for (w, _), kind in zip(NUMBERS.tolist(), KINDS, strict=True)}
    for part in (splits.train, splits.validation, splits.test):
        told = [splits.task.names[k] for k in part.y.tolist()]
        assert told == [kind_of[weight] for weight in raw(part)[:, 0]]


def test_standardisation_is_of_the_training_part_alone_and_leaves_gaps_out(tmp_path):
    """The mean over all rows would let the test part into training; a gap taken for 0 would move
    it."""
    gaps = {row: f",{float(NUMBERS[row - 2, 1])!r},red,{KINDS[row - 2]}" for row in (5, 9, 31)}
    splits = load(str(animals(tmp_path, changes=gaps)), reading=ANIMAL)
    assert any("weight (3)" in remark for remark in splits.remarks)
    height_of_gap = {np.float32(NUMBERS[row - 2, 1]) for row in gaps}
    x = raw(splits.train)
    there = x[[height not in height_of_gap for height in x[:, 1]]].astype(np.float64)
    np.testing.assert_allclose(splits.train.mean.numpy()[0], there[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(splits.train.std.numpy()[0], there[:, 0].std(), rtol=1e-5)
    for part in (splits.train, splits.validation, splits.test):
        filled = part.batch(torch.arange(len(part)))[0].numpy()
        is_gap = np.array([height in height_of_gap for height in raw(part)[:, 1]])
        np.testing.assert_array_equal(filled[is_gap, 0], 0)


def test_rows_with_gaps_are_dropped_or_refused_where_that_is_said(tmp_path):
    path = animals(tmp_path, changes={5: f",1.0,red,{KINDS[3]}", 9: f"1.0,2.0,red,{KINDS[7]}"})
    kept = load(str(path), reading=Reading(target="animal", missing="drop"))
    assert len(kept.train) + len(kept.validation) + len(kept.test) == 59
    assert failure(path, Reading(target="animal", missing="refuse")).startswith(f"{path}: row 5, column 'weight': no value.")
    without_target = animals(tmp_path, changes={7: "1.0,2.0,red,NA"})
    assert "row 7, column 'animal': no value" in failure(without_target)
    assert len(load(str(without_target), reading=Reading(target="animal", missing="drop")).train) > 0


def test_a_number_is_a_target_of_regression_and_is_standardised(tmp_path):
    """Targets of another scale than the outputs would need another learning rate for each table."""
    splits = load(str(animals(tmp_path)), reading=Reading(target="weight"))
    assert splits.task.kind == "regression"
    assert splits.train.y.shape == (len(splits.train), 1)
    y = splits.train.y.double()
    assert abs(float(y.mean())) < 1e-6
    assert abs(float(y.std(correction=0)) - 1) < 1e-6
    back = splits.test.y.numpy()[:, 0] * splits.task.std[0] + splits.task.mean[0]
    assert all(np.abs(NUMBERS[:, 0] - each).min() < 1e-5 for each in back)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 2], "classification"),
        ([3, 4, 5, 6, 7, 8], "classification"),
        (range(30), "regression"),
        ([0.5, 1.0, 2.0], "regression"),
        (["yes", "no"], "classification"),
    ],
)
def test_the_task_goes_by_the_targets(tmp_path, values, kind):
    rows = ["x,target", *(f"{0.1 * i},{list(values)[i % len(values)]}" for i in range(60))]
    path = table(tmp_path, *rows)
    assert load(str(path)).task.kind == kind
    if kind == "classification" and values != ["yes", "no"]:
        assert load(str(path), reading=Reading(task="regression")).task.kind == "regression"


def test_classes_that_are_numbers_are_in_their_order():
    """Sorted as words, class 10 would come before class 2 in every table and picture."""
    from dualprop.data.own.targets import class_names

    assert class_names(["10", "2", "1"]) == ("1", "2", "10")
    assert class_names(["b", "10", "2"]) == ("10", "2", "b")


def test_several_columns_of_zeros_and_ones_are_labels(tmp_path):
    rows = ["x,fur,wings", *(f"{i * 0.3},{i % 2},{int(i % 3 == 0)}" for i in range(40))]
    splits = load(str(table(tmp_path, *rows)), reading=Reading(target="fur, wings"))
    assert splits.task.kind == "multilabel"
    assert splits.task.names == ("fur", "wings")
    assert splits.train.y.dtype == torch.float32
    assert set(splits.train.y.unique().tolist()) == {0.0, 1.0}


def test_numbers_that_are_names_are_categories_where_that_is_said(tmp_path):
    """Postal codes have no order and no mean."""
    rows = ["code,x,target", *(f"{(1010, 8001, 20095)[i % 3]},{i / 7},{'ab'[i % 2]}" for i in range(40))]
    path = table(tmp_path, *rows)
    assert load(str(path)).inputs.names == ("code", "x")
    named = load(str(path), reading=Reading(categories="code"))
    assert named.inputs.names == ("code=1010", "code=20095", "code=8001", "x")


def test_a_saved_index_is_left_out_and_a_row_number_is_told(tmp_path):
    """A table sorted by its class is learned perfectly from the number of the row."""
    rows = [",id,x,target", *(f"{i},{i},{(7 * i) % 11},{'ab'[i > 20]}" for i in range(40))]
    splits = load(str(table(tmp_path, *rows)))
    assert splits.inputs.names == ("id", "x")
    assert any("saved index" in remark for remark in splits.remarks)
    assert any("column 'id' counts the rows" in remark for remark in splits.remarks)
    assert load(str(table(tmp_path, *rows)), reading=Reading(ignore="id")).inputs.names == ("x",)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({18: "1.0,heavy,red,cat"}, "row 18, column 'height': 'heavy' is no number, as 59 of 60 values are."),
        ({18: "1.0,1e60,red,cat"}, "row 18, column 'height': '1e60' is beyond what float32 holds"),
        ({18: "inf,1,red,cat"}, "row 18, column 'weight': 'inf' is beyond"),
        ({18: "1_000,1,red,cat"}, "row 18, column 'weight': '1_000' is no number"),
        ({18: "1.0,2.0,red"}, "row 18 has 3 cells, the first line 4 (divided by ',')"),
        ({18: '1.0,2.0,"red,cat'}, "can't be read"),
        ({1: "weight,weight,colour,animal"}, "column 2 is named 'weight' like column 1"),
        ({1: "weight,,colour,animal"}, "column 2 has no name"),
        ({1: "1.0,2.0,3.0,4.0"}, "the first line holds numbers alone"),
        ({1: "weight,height,colour,beast"}, "has no column 'animal', which --reading.target names. It has weight, "),
        ({1: "weight,height,colour,animals"}, "Did you mean 'animals'?"),
        ({1: ""}, "has no first line"),
    ],
)
def test_a_malformed_table_is_told_in_one_line_with_its_place(tmp_path, changes, complaint):
    assert complaint in failure(animals(tmp_path, changes=changes))


def test_what_no_one_can_predict_from_or_tell_apart_is_refused(tmp_path):
    assert "which column is predicted is not said" in failure(animals(tmp_path), Reading())
    rows = ["x,target", *(f"{i},a" for i in range(20))]
    assert "holds 1 class; there is nothing to tell apart" in failure(table(tmp_path, *rows), Reading())
    rows = ["x,target", *(f"{i},word{i}" for i in range(20))]
    assert "too many for classes" in failure(table(tmp_path, *rows), Reading())
    rows = ["name,target", *(f"name{i},{'ab'[i % 2]}" for i in range(columns.MAX_CATEGORIES + 1))]
    assert "Leave it out by --reading.ignore name" in failure(table(tmp_path, *rows), Reading())
    assert "has no column to predict target from" in failure(table(tmp_path, *rows), Reading(ignore="name"))
    rows = ["x;target", *(f"{i},5;{'ab'[i % 2]}" for i in range(20))]
    assert "row 2, column 'x': '0,5' has a decimal comma" in failure(table(tmp_path, *rows), Reading())


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\x00\x01\x02" * 100, b"a,target\n\xff\xfe,1\n", b"a,target\n", b"a" * 100_000, b"PK\x03\x04" + b"\x00" * 50],
)
def test_bytes_of_any_kind_are_one_line(tmp_path, content):
    """What is no table must not end in a traceback, nor train."""
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    failure(path, Reading())


def test_a_cell_without_an_end_and_rows_without_a_number_meet_limits(tmp_path, monkeypatch):
    """A small file that claims much, and a large one, must not fill the memory first."""
    path = table(tmp_path, "x,target", "1" * 200_000 + ",a")
    assert "field larger than field limit" in failure(path, Reading())
    rows = ["x,target", *(f"{i},{'ab'[i % 2]}" for i in range(10_001))]
    monkeypatch.setattr(memory, "free", lambda *_, **__: 1_000_000)
    assert "fill the memory that is free" in failure(table(tmp_path, *rows), Reading())


def test_the_digest_changes_with_what_is_read_and_not_with_how_it_is_written(tmp_path):
    """A resume compares it: another target or a corrected cell is other data, a semicolon is
    not."""
    first = load(str(animals(tmp_path)), reading=ANIMAL).digest
    assert load(str(animals(tmp_path, ";")), reading=ANIMAL, seed=4).digest == first
    assert load(str(animals(tmp_path, changes={9: "1.0,2.0,red,cat"})), reading=ANIMAL).digest != first
    assert load(str(animals(tmp_path)), reading=Reading(target="colour")).digest != first
    renamed = animals(tmp_path)
    renamed.write_text(renamed.read_text().replace("owl", "rat"))
    assert load(str(renamed), reading=ANIMAL).digest != first


def test_parquet_is_read_as_the_same_table(tmp_path):
    """Its types say what CSV leaves open."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "own.parquet"
    content = {"weight": NUMBERS[:, 0], "height": NUMBERS[:, 1], "colour": COLOURS, "animal": KINDS}
    pyarrow.parquet.write_table(pyarrow.table(content), path)
    ours, theirs = load(str(animals(tmp_path)), reading=ANIMAL), load(str(path), reading=ANIMAL)
    assert theirs.train.x.equal(ours.train.x)
    assert theirs.train.y.equal(ours.train.y)
    assert theirs.digest == ours.digest
    content["weight"] = [None, *NUMBERS[1:, 0]]
    pyarrow.parquet.write_table(pyarrow.table(content), path)
    assert any("weight (1)" in remark for remark in load(str(path), reading=ANIMAL).remarks)
    content["nested"] = [[1, 2]] * 60
    pyarrow.parquet.write_table(pyarrow.table(content), path)
    assert "column 'nested' holds list<" in failure(path)
    whole = path.read_bytes()
    for part in (b"", whole[: len(whole) // 2], b"PAR1" + whole[4:200], whole[:-20] + b"\x55" * 20):
        path.write_bytes(part)
        assert "can't be read as Parquet" in failure(path)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "own.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'dualprop\[tables\]'"):
        load(str(path), reading=ANIMAL)
