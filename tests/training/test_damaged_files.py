"""Every JSON file that is read, with every field damaged in turn: one line that names file and
field, or a value that is what the file says."""

import copy
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dualprop import training
from dualprop.errors import CheckpointError, DualpropError, RunError, SettingError
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.rules import DualPropagation
from dualprop.training import Optimizer, checkpoint, comparisons, documents, execution, plain, runs, weights
from dualprop.training.documents import Misfit
from dualprop.training.records import Memory, Result
from dualprop.training.seeds import Seed

# By the kind of a value in the file, values that no field of that kind may have.
WRONG = {
    int: ("2", True, [[1]], {"a": 1}),
    float: ("2.5", True, [[1]], {"a": 1}),
    str: (5, True, [["a"]], {"a": "b"}),
    bool: (1, "true", None, [True]),
    list: (5, "ab", True, {"a": 1}),
    dict: (5, "ab", None, [1], True),
    type(None): (True, {"a": 1}),
}
YARDSTICK = {
    "label": "plain", "rule": "", "engine": "", "is_one_sweep": False, "milliseconds": 1.5, "least_milliseconds": 1.25,
    "ratio": 1.0, "lower_quartile": 0.5, "upper_quartile": 1.5, "rounds": 5,
}  # fmt: skip
COST = {
    **YARDSTICK, "drives": 3, "feedbacks": 2, "gradients": 3, "count_ratio": 1.0, "memory_ratio": 1.0, "resident_ratio": 1.0,
    "memory": {"peak": 9.0, "by_steps": 2.5, "tensors": 1.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of one rule, trained, whose costs are made up."""
    made = training.Recipe(
        name="tiny", dataset="digits", model=MLP(widths=(8,)), rule=DualPropagation(loss=CrossEntropy()), batch_size=64,
        epochs=2, num_threads=1, published=(("dp", "98 ± 1"),), grid=((0.5, 1.0),),
    )  # fmt: skip
    comparison = comparisons.create(tmp_path_factory.mktemp("damaged") / "cmp", {"dp": made}, (0,))
    run = training.create(comparison.folder / "dp", made, (0,))
    training.train(run)
    torch.set_flush_denormal(False)
    costs = {"dp": COST, **dict.fromkeys(comparisons.YARDSTICKS, YARDSTICK)}
    comparison.costs_path.write_text(json.dumps(costs))
    return comparison.folder


# File by file: where it lies, and what reads it.
READ = {
    "recipe.json": ("dp/recipe.json", lambda folder: runs.load(folder / "dp")),
    "result.json": ("dp/seed-0/result.json", lambda folder: runs.load(folder / "dp").results()),
    "metrics.jsonl": ("dp/seed-0/metrics.jsonl", lambda folder: runs.load(folder / "dp").metrics(0)),
    "comparison.json": ("comparison.json", lambda folder: comparisons.load(folder).runs),
    "costs.json": ("costs.json", lambda folder: comparisons.load(folder).costs()),
}


@pytest.fixture(params=READ)
def file(request, folder):
    """The path of a file, which is as before when the test ends, and what reads it."""
    path, read = folder / READ[request.param][0], READ[request.param][1]
    content = path.read_bytes()
    yield path, lambda: read(folder)
    if not path.is_file():
        path.unlink()
    path.write_bytes(content)


def values_of(path: Path) -> list[Any]:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [json.loads(line) for line in lines]


def write(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def places(value: Any, keys: tuple = ()) -> list[tuple]:
    """The keys to every field below a value; of a list's items the first stands for all."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    return [place for key, each in inner for place in [(*keys, key), *places(each, (*keys, key))]]


def at(value: Any, keys: tuple) -> Any:
    for key in keys:
        value = value[key]
    return value


def refusal(read, path: Path) -> str:
    """The one line that refuses the file, by its path; printable, and not long."""
    with pytest.raises(RunError) as caught:
        read()
    told = str(caught.value)
    assert str(path) in told
    assert told.isprintable()
    assert len(told) < 1000
    return told


def test_every_field_of_a_wrong_type_is_refused_by_its_name(file):
    """A number in quotes that is taken, a list where one number is expected: another run's settings
    under this one's name, or a traceback."""
    path, read = file
    values = values_of(path)
    tried = 0
    for keys in places(values):
        if len(keys) < 2:
            continue
        for wrong in WRONG[type(at(values, keys))]:
            if "inference" in keys and wrong == 5:  # any number may be there, or several
                continue
            damaged = copy.deepcopy(values)
            at(damaged, keys[:-1])[keys[-1]] = wrong
            write(path, damaged)
            told = refusal(read, path)
            name = next(key for key in reversed(keys) if isinstance(key, str))
            assert name in told, (keys, wrong, told)
            tried += 1
    assert tried > 20


def test_a_field_that_is_missing_has_its_default_or_is_refused(file):
    """Earlier versions wrote fewer fields, and none may be lost in silence by a KeyError later."""
    path, read = file
    values = values_of(path)
    for keys in places(values):
        damaged = copy.deepcopy(values)
        del at(damaged, keys[:-1])[keys[-1]]
        write(path, damaged)
        try:
            read()
        except RunError as error:
            # Of a comparison a default may be another recipe than its run's.
            is_other = path.name == "comparison.json" and "holds a run of other settings or seeds" in str(error)
            assert is_other or str(path) in str(error)  # noqa: PT017 — other missing fields have a default


def test_a_field_that_is_not_known_is_refused_by_its_name(file):
    """A misspelt setting that is ignored is believed to have been used."""
    path, read = file
    values = values_of(path)
    for keys in [(0,), *places(values)]:
        if not isinstance(at(values, keys), dict):
            continue
        damaged = copy.deepcopy(values)
        at(damaged, keys)["unknown_\x1b[31mfield"] = {"a": 1}
        write(path, damaged)
        assert "unknown_\\x1b[31mfield" in refusal(read, path)


TEXTS = {
    "empty": b"", "half": b'{"recipe": {', "no object": b"[]", "null": b"null", "nested lists": b"[" * 100_000,
    "nested objects": b'{"seeds":' * 100_000 + b"1" + b"}" * 100_000, "not UTF-8": b'{"seeds": "\xff"}',
    "UTF-16": '{"seeds": [0]}'.encode("utf-16"), "a mark of bytes": b"\xef\xbb\xbf{}", "no number": b'{"seeds": NaN}',
    "an infinite number": b'{"seeds": [1e999]}', "two values": b"{} {}",
    "half a letter": b'{"seeds": "\\ud800"}', "a huge number": b'{"seeds": [1' + b"0" * 5000 + b"]}",
    "binary": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_json_of_this_file_is_refused(file, text):
    path, read = file
    path.write_bytes(TEXTS[text] + b"\n")
    refusal(read, path)


def test_a_field_that_stands_twice_is_refused_by_its_name(file):
    """Readers differ in which of the two they take."""
    path, read = file
    text = path.read_text()
    name, value = next(iter(values_of(path)[0].items()))
    path.write_text(text.replace("{", f"{{{json.dumps(name)}: {json.dumps(value)}, ", 1))
    assert f"'{name}' stands twice in one object" in refusal(read, path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(file):
    """It would fill the memory."""
    path, read = file
    with open(path, "r+b") as content:
        content.truncate(documents.LARGEST_LINES + 1)
    assert "MB are more than any such file has" in refusal(read, path)


@pytest.mark.parametrize("place", [("device",), ("rule", "loss"), ("rule", "name"), ("optimizer", "name"), ("name",)])
def test_a_terminal_escape_in_a_recipe_is_told_as_its_escape(folder, place):
    path = folder / "dp/recipe.json"
    before = path.read_bytes()
    values = values_of(path)
    at(values[0]["recipe"], place[:-1])[place[-1]] = "\x1b]0;owned\x07\x9b31m"
    write(path, values)
    try:
        assert "\\x1b]0;owned\\x07\\x9b31m" in refusal(lambda: runs.load(folder / "dp"), path)
    finally:
        path.write_bytes(before)


OUT_OF_RANGE = [
    (("rule", "beta"), -1.0), (("rule", "schedule"), "sideways(2)"), (("rule", "coupling"), "none"),
    (("optimizer", "momentum"), 2.0),
    (("model", "activation"), "rellu"), (("model", "widths"), [0]), (("augmentation", "pad"), -1), (("batch_size",), 0),
    (("device",), "gpu"), (("device",), ""), (("dataset",), ""), (("dtype",), "float8"), (("seed_list",), [1, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), OUT_OF_RANGE)
def test_a_value_that_a_recipe_can_not_have_is_refused_by_file_and_field(folder, place, value):
    """The dataclass's own words do not know of the file."""
    path = folder / "dp/recipe.json"
    before = path.read_bytes()
    values = values_of(path)
    at(values[0]["recipe"], place[:-1])[place[-1]] = value
    write(path, values)
    try:
        told = refusal(lambda: runs.load(folder / "dp"), path)
        # An activation's own message does not say which field of a model it is.
        assert ".".join(("recipe", *place)) in told or (f"recipe.{place[0]}: " in told and str(value) in told)
        assert told.endswith("Restore it, or train anew.")
    finally:
        path.write_bytes(before)


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(file):
    path, read = file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DualpropError):
        read()


def test_results_and_metrics_of_another_training_are_noticed(folder, tmp_path):
    """Copied beside each other by mistake, they would be published as one."""
    made = runs.load(folder / "dp").recipe
    other = training.create(tmp_path / "other", dataclasses.replace(made, optimizer=Optimizer(learning_rate=0.1)), (0, 1))
    training.train(other)
    reached = [run.results()[0].validation_accuracy for run in (runs.load(folder / "dp"), other)]
    assert reached[0] != reached[1], "the case can't tell the two by their metrics"
    torch.set_flush_denormal(False)
    seed = folder / "dp/seed-0"
    for name, source, told in (
        ("result.json", other.seed_folder(0), "belongs to another recipe or seed"),
        ("result.json", other.seed_folder(1), "belongs to another recipe or seed"),
        ("metrics.jsonl", other.seed_folder(0), "is not of the same training as result.json"),
    ):
        before = (seed / name).read_bytes()
        (seed / name).write_bytes((source / name).read_bytes())
        try:
            assert told in refusal(lambda: READ[name][1](folder), seed / name)  # noqa: B023 — called at once
        finally:
            (seed / name).write_bytes(before)
    before = (folder / "dp/recipe.json").read_bytes()
    (folder / "dp/recipe.json").write_bytes((other.folder / "recipe.json").read_bytes())
    try:
        with pytest.raises(RunError, match="holds a run of other settings or seeds"):
            _ = comparisons.load(folder).runs
    finally:
        (folder / "dp/recipe.json").write_bytes(before)


def test_metrics_of_another_training_are_noticed_before_they_are_cut_back(folder, tmp_path):
    """A resume cuts the metrics back to where its checkpoint was written: of another run's file
    that is the middle of a line."""
    made = runs.load(folder / "dp").recipe
    run = training.create(tmp_path / "run", made, (0,))
    training.train(run)
    torch.set_flush_denormal(False)
    path = run.seed_folder(0) / "metrics.jsonl"
    (run.seed_folder(0) / "result.json").unlink()
    text = path.read_text()
    others = (text.replace('"epoch": 1', '"epoch": 3'), re.sub(r'("validation_accuracy": 0\.)\d', r"\g<1>0", text))
    assert all(content != text and len(content) == len(text) for content in others)
    for content in others:
        path.write_text(content + content)
        with pytest.raises(RunError, match="is not of the same training as the checkpoint"):
            training.train(run)
        assert path.read_text() == content + content
        torch.set_flush_denormal(False)


def test_every_field_of_a_checkpoints_header_is_checked(folder):
    """Its checksum tells chance, and not another program's header."""
    path = folder / "dp/seed-0/last.safetensors"
    made = runs.load(folder / "dp").recipe
    saved = checkpoint.read(path, weights.belongs_to(made, 0))
    before = path.read_bytes()
    splits = runs.load_data(made, 0)
    damaged = [{**saved.about, name: wrong} for name, value in saved.about.items() for wrong in WRONG[type(value)]]
    damaged += [{**saved.about, "unknown_field": 1}, {**saved.about, "best": {"epoch": "2"}}]
    try:
        for about in damaged:
            checkpoint.write(path, checkpoint.Checkpoint(saved.tensors, about), weights.belongs_to(made, 0))
            run = Seed(made, 0, splits, path.parent, training.Reporter(), execution.resolve(made))
            with pytest.raises(CheckpointError, match="does not fit the run: about") as caught:
                run._restore()
            assert str(path) in str(caught.value)
        for name in saved.tensors:
            for other in ({}, {name: torch.zeros(3, 3, dtype=torch.uint8)}):
                rest = {key: tensor for key, tensor in saved.tensors.items() if key != name}
                checkpoint.write(path, checkpoint.Checkpoint({**rest, **other}, saved.about), weights.belongs_to(made, 0))
                run = Seed(made, 0, splits, path.parent, training.Reporter(), execution.resolve(made))
                with pytest.raises(CheckpointError, match=r"does not fit the (run|model)"):
                    run._restore()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"peak": 1, "by_steps": 2}', '{"peak": "1", "by_steps": 2, "tensors": 3}'])
def test_what_the_memory_measuring_process_answers_is_checked(text):
    with pytest.raises(Misfit):
        Memory.from_plain(documents.parse(text))


def test_a_value_of_a_wrong_type_is_refused_from_python_as_from_a_file(recipe):
    """The checks are the dataclasses' own."""
    for changes in (
        {"device": "gpu"}, {"device": ""}, {"device": None}, {"dataset": None}, {"dataset": " "}, {"batch_size": 2.5},
        {"batch_size": True}, {"border": 2.5}, {"flush_subnormals": None}, {"num_threads": 2.5}, {"published": None},
        {"published": ("dp", "98")}, {"rule": "backprop"}, {"model": None}, {"optimizer": {}.keys()}, {"seed_list": "0"},
        {"grid": ((0.5,),)}, {"name": None}, {"epochs": "3"}, {"validation_fraction": "0.1"},
    ):  # fmt: skip
        with pytest.raises(SettingError, match=next(iter(changes))):
            recipe(**changes)
    for changes in ({"widths": 8}, {"widths": (2.5,)}, {"activation": None}, {"init": 1}):
        with pytest.raises(SettingError, match=next(iter(changes))):
            MLP(**changes)


def test_what_is_written_is_read_as_it_was(folder):
    """Also by the schema that a recipe's dataclasses make."""
    run = runs.load(folder / "dp")
    assert plain.from_plain(training.Recipe, plain.to_plain(run.recipe), "recipe") == run.recipe
    (result,) = run.results()
    assert Result.from_plain(json.loads(json.dumps(result.to_plain()))) == result
    (line, *_), (epoch, *_) = values_of(folder / "dp/seed-0/metrics.jsonl"), run.metrics(0)
    assert (epoch.epoch, epoch.validation_loss) == (line["epoch"], line["validation_loss"])
    assert [layer.to_plain() for layer in epoch.alignment] == line["alignment"]
