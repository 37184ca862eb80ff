"""`dualprop reproduce` as it is typed: the plan is told, mistakes are lines, and exit codes say
what failed."""

import dataclasses
import json

import pytest

from dualprop import recipes
from dualprop.reproduction import items, writing
from dualprop.reproduction.items import Figure, Item


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """One item of two runs on digits, and one whose data are not there; pictures are not drawn."""
    digits = recipes.from_name("digits-mlp")
    model = dataclasses.replace(digits.model, widths=(5,))
    tiny = dataclasses.replace(digits, name="tiny", model=model, epochs=1, batch_size=64, seed_list=(0,), num_threads=1)
    monkeypatch.setitem(recipes.RECIPES, "tiny", lambda: tiny)
    monkeypatch.setitem(recipes.RECIPES, "absent", lambda: dataclasses.replace(tiny, name="absent", dataset="absent.npz"))
    for name in list(items.ITEMS):
        monkeypatch.delitem(items.ITEMS, name)
    monkeypatch.setitem(items.ITEMS, "tiny", Item("two rules", (Figure("tiny", "bp"), Figure("tiny", "dp"))))
    monkeypatch.setitem(items.ITEMS, "absent", Item("no data", (Figure("absent", "dp"),)))
    monkeypatch.setattr(writing, "draw", lambda *_: [])


def test_the_plan_is_told_and_the_table_shown(dualprop, folder):
    answer = dualprop("reproduce", "tiny", "--minutes", "60", "--out", "out", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.out.index("the plan") < answer.out.index("planned: 2 runs in") < answer.out.index("test accuracy")
    assert "tiny: 2 of 2 runs" in answer.out
    assert "tables: out/results.md" in answer.out
    assert json.loads((folder / "out/plan.json").read_text())["left"] == []


def test_what_does_not_fit_is_told_and_goes_on_with_resume(dualprop, folder):
    answer = dualprop("reproduce", "tiny", "--minutes", "0.0001", "--out", "out", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert "2 runs are left: go on with --resume out" in answer.out
    answer = dualprop("reproduce", "--resume", "out")
    assert answer.code == 0, answer.err
    assert "tiny: 2 of 2 runs" in answer.out


def test_a_failure_is_a_line_and_the_exit_code_says_so(dualprop, folder):
    answer = dualprop("reproduce", "--out", "out", "--device", "cpu")
    assert answer.code == 3
    assert "failed: absent.dp: DataError: " in answer.out
    assert "Traceback" not in answer.out + answer.err
    assert "Traceback" in (folder / "out/failures.json").read_text()
    assert "tiny: 2 of 2 runs" in answer.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tinyy",), "unknown item 'tinyy'. Did you mean 'tiny'?"),
        (("tiny", "--minutes", "-1"), "minutes"),
        (("tiny", "--minuets", "1"), "Did you mean '--minutes'?"),
        (("tiny", "--device", "nonsense"), "device"),
        (("tiny", "--dtype", "tf32", "--device", "cpu"), "tf32"),
        (("--resume", "absent"), "holds no reproduction.json"),
        (("tiny", "--resume", "absent"), "Leave out items"),
        (("tiny", "--allow-changed"), "no meaning without resume"),
        (("tiny", "--epochs", "0"), "epochs"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(words, told, dualprop, folder):
    answer = dualprop("reproduce", *words)
    assert answer.code == 2
    assert told in answer.err
    assert answer.err.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_the_items_are_listed(dualprop):
    assert dualprop("reproduce", "--list").out == dualprop("list", "items").out
    assert "two rules; 2 runs of 1 epoch," in dualprop("list", "items").out
