"""New examples from files: pictures, arrays and tables, and what is printed of them."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import dualprop as dp
from dualprop import training
from dualprop.errors import DataError, SettingError
from dualprop.models import MLP
from dualprop.trained import predict, predicting


def test_the_same_digit_is_the_same_in_every_kind_of_file(trained, digits, tmp_path):
    """A picture's white is 255 and a digit's 16: read as it stands, each pixel was 16 times too
    large."""
    x = digits[0][7:8]
    Image.fromarray((x[0, 0] * 255 / 16).round().astype(np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "grey.npy", x[:, 0])
    np.savez(tmp_path / "a.npz", x=x.astype(np.uint8))
    rows = [[f"pixel {i}" for i in range(64)], x.reshape(-1).tolist()]
    (tmp_path / "a.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    files = tuple(tmp_path / name for name in ("a.npy", "a.png", "grey.npy", "a.npz", "a.csv"))
    made = predict(trained, files)
    expected = dp.load(trained).probabilities(torch.from_numpy(x))[0].tolist()
    for prediction in made:
        assert list(prediction.values.values()) == pytest.approx(expected, abs=2e-2 if "png" in prediction.file else 1e-5)
        assert prediction.said == str(int(np.argmax(expected)))
    assert [prediction.file for prediction in made] == [str(path) for path in files]


def test_csv_and_json_lines_say_the_same(trained, digits, tmp_path):
    np.save(tmp_path / "x.npy", digits[0][:3])
    made = predict(trained, (tmp_path / "x.npy",), out=tmp_path / "p.csv")
    predict(trained, (tmp_path / "x.npy",), format="jsonl", out=tmp_path / "p.jsonl")
    table = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(table) == len(lines) == len(made) == 3
    for row, line, each in zip(table, lines, made, strict=True):
        assert row["prediction"] == line["prediction"] == each.said
        assert row["place"] == line["place"]
        for name, value in line["probabilities"].items():
            assert float(row[f"p({name})"]) == pytest.approx(value, rel=1e-5)
        assert sum(line["probabilities"].values()) == pytest.approx(1)


def test_a_picture_of_another_size_is_brought_to_the_models_and_said_so(trained, tmp_path):
    Image.new("L", (40, 30), 200).save(tmp_path / "wide.png")
    options = predicting.PredictOptions(trained, (tmp_path / "wide.png",))
    (told,) = predicting.run_prediction(options).remarks
    assert told.endswith("wide.png: 40×30 pixels, cut to its middle and resized to 8×8.")


def own_table(tmp_path, tiny):
    """A run on a table of a number and a category, in which the category decides."""
    lines = ["size,colour,class", *(f"{i % 7},{('red', 'blue')[i % 2]},{('apple', 'plum')[i % 2]}" for i in range(80))]
    (tmp_path / "fruit.csv").write_text("\n".join(lines))
    recipe = dataclasses.replace(tiny, dataset=str(tmp_path / "fruit.csv"), batch_size=8, epochs=20, model=MLP(widths=(8,)))
    training.train(training.create(tmp_path / "run", recipe, (0,)))
    return tmp_path / "run"


def test_a_tables_columns_are_found_by_their_names(tmp_path, tiny):
    """In another order, with columns that the model does not know, and with a gap, which becomes
    the training part's mean."""
    run = own_table(tmp_path, tiny)
    (tmp_path / "new.csv").write_text("note,colour,size\na,blue,3\nb,red,3\nc,red,\n")
    told = predicting.run_prediction(predicting.PredictOptions(run, (tmp_path / "new.csv",)))
    assert [each.partition("new.csv: ")[2] for each in told.remarks] == [
        "values are missing in size (1); the training part's mean takes their place.",
        "not read: note.",
    ]
    made = told.predictions
    assert [each.said for each in made] == ["plum", "apple", "apple"]
    assert list(made[0].values) == ["apple", "plum"]
    assert [each.place for each in made] == ["row 2", "row 3", "row 4"]
    (tmp_path / "new.csv").write_text("colour,size\ngreen,3\n")
    with pytest.raises(DataError, match=r"new\.csv: row 2, column 'colour': 'green' is none of the categories known"):
        predict(run, (tmp_path / "new.csv",))
    (tmp_path / "new.csv").write_text("size\n3\n")
    with pytest.raises(DataError, match=r"new\.csv has no column 'colour'"):
        predict(run, (tmp_path / "new.csv",))


BAD = {
    "text.npy": (b"no array", r"text\.npy is truncated or damaged"),
    "x.txt": (b"1,2", r"x\.txt is of no kind that is read"),
    "cut.png": (b"\x89PNG\r\n\x1a\nxxxx", r"cut\.png can't be read"),
    "few.csv": (b"a,b\n1,2\n", r"few\.csv has 2 columns, and an example has 64 numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_read_is_named_with_the_remedy(trained, tmp_path, name):
    content, told = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        predict(trained, (tmp_path / name,))


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((3, 8, 9)), r"shape \(3, 8, 9\), and the model reads \(N, 1, 8, 8\)"),
        (np.full((3, 8, 8), np.nan), "NaN"),
        (np.zeros((3, 8, 8), complex), "complex128"),
        (np.array([[None]]), "pickle"),
    ],
    ids=["shape", "nan", "complex", "objects"],
)
def test_an_array_that_is_not_read_is_named(trained, tmp_path, array, told):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=told):
        predict(trained, (tmp_path / "x.npy",))


def test_nothing_is_written_where_one_of_the_files_is_not_read(trained, digits, tmp_path):
    """Half a table looks like a whole one."""
    np.save(tmp_path / "good.npy", digits[0][:3])
    with pytest.raises(DataError):
        predict(trained, (tmp_path / "good.npy", tmp_path / "absent.npy"), out=tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_names_of_files_steer_no_terminal(trained, digits, tmp_path):
    np.save(tmp_path / "a\x1b[31m,b.npy", digits[0][:1])
    options = predicting.PredictOptions(trained, (tmp_path / "a\x1b[31m,b.npy",))
    for form in ("csv", "jsonl"):
        assert "\x1b" not in "".join(predicting.run_prediction(options).lines(form))


def test_predicting_needs_files(trained):
    with pytest.raises(SettingError, match="needs the files to predict"):
        predict(trained)
