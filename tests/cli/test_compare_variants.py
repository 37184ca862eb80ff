"""`dualprop compare --variants` and `dualprop list variants`, as a user types them."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from dualprop import recipes, training
from dualprop.cli import tables
from dualprop.recipes.variants import VARIANTS
from dualprop.rules import DualPropagation
from dualprop.training import files

PUBLISHED = (("dp", "98.43 ± 0.03"), ("l-dp", "98.42 ± 0.07"), ("bp", "98.45 ± 0.04"))


@pytest.fixture
def published(monkeypatch):
    """digits-mlp with published figures, as mnist-mlp has them."""
    made = recipes.digits_mlp()
    rule = DualPropagation(beta=0.25, loss=made.rule.loss)
    made = dataclasses.replace(made, published=PUBLISHED, batch_size=64, rule=rule)
    monkeypatch.setitem(recipes.RECIPES, "digits-mlp", lambda: made)
    return made


def cells(name, out):
    """The words of the table's row."""
    rows = [line.strip("│┃ ").split() for line in out.splitlines()]
    return next(row for row in rows if row and row[0] == name)


def test_variants_are_listed_with_what_they_are(dualprop):
    """A name that is typed from the paper must be found here."""
    answer = dualprop("list", "variants")
    assert (answer.code, answer.err) == (0, "")
    for name, variant in VARIANTS.items():
        (line,) = [line for line in answer.out.splitlines() if line.split()[:1] == [name]]
        assert " ".join(variant.summary.split()[:3]) in line


def test_variants_are_trained_from_the_same_seeds_and_shown_beside_the_published_figures(dualprop, folder, short, published):
    """A published figure in another row than its variant's would be a false claim."""
    words = ("--variants", "bp,dp,p-dp", "--seeds", "2", "--no-costs", "--out", "cmp")
    answer = dualprop("compare", *short, *words)
    assert (answer.code, answer.err) == (0, "")
    assert "published" in answer.out
    for name, figure in (("dp", "98.43 ± 0.03"), ("bp", "98.45 ± 0.04"), ("p-dp", "–")):
        result = json.loads((folder / f"cmp/{name}/results.json").read_text())
        own = f"{100 * result['test_accuracy_mean']:.2f} ± {100 * result['test_accuracy_std']:.2f}"
        assert cells(name, answer.out)[1:-1] == [*own.split(), *figure.split()]
        made = json.loads((folder / f"cmp/{name}/recipe.json").read_text())
        assert made["seeds"] == [0, 1]
        base = dataclasses.replace(published, epochs=1, num_threads=1)
        assert made["recipe"] == VARIANTS[name].apply(base).to_plain()
    assert "l-dp" not in answer.out
    assert list(json.loads((folder / "cmp/results.json").read_text())["rules"]) == ["bp", "dp", "p-dp"]

    # Resumed and reported, the comparison still knows its variants.
    (folder / "cmp/p-dp/seed-1/result.json").unlink()
    for again in (("compare", "--resume", "cmp"), ("report", "cmp")):
        shown = dualprop(*again)
        assert shown.code == 0
        assert all(cells(name, shown.out) == cells(name, answer.out) for name in ("bp", "dp", "p-dp"))


def test_the_published_variants_are_those_of_the_recipe(dualprop, folder, short, published):
    """In the order of the published table."""
    answer = dualprop("compare", *short, "--variants", "published", "--seeds", "1", "--no-align", "--no-costs", "--out", "cmp")
    assert (answer.code, answer.err) == (0, "")
    assert list(json.loads((folder / "cmp/comparison.json").read_text())["rules"]) == ["dp", "l-dp", "bp"]


def test_published_figures_are_not_shown_beside_another_network_than_theirs(dualprop, folder, short, published):
    """Another width, loss or step would stand beside figures that it has nothing to do with."""
    words = ("--variants", "published", "--model.widths", "16", "--seeds", "1", "--no-align", "--no-costs", "--out", "cmp")
    answer = dualprop("compare", *short, *words)
    assert (answer.code, answer.err) == (0, "")
    assert [cells(name, answer.out)[0] for name in ("dp", "l-dp", "bp")] == ["dp", "l-dp", "bp"]
    assert "published" not in answer.out
    assert "98.43" not in answer.out


def test_a_table_without_published_figures_has_no_column_for_them(tmp_path):
    """And one with figures of other variants alone neither: a column of dashes says nothing."""
    made = dataclasses.replace(recipes.digits_mlp(), published=(("l-dp", "98.42 ± 0.07"),))
    for names, is_shown in ((("bp", "dp"), False), (("bp", "l-dp"), True)):
        runs = [(n, training.create(tmp_path / f"{n}-{is_shown}", VARIANTS[n].apply(made), (0,))) for n in names]
        told = io.StringIO()
        tables.show_runs(runs, Console(width=120, file=told))
        text = told.getvalue()
        assert ("published" in text) == is_shown
        assert ("98.42 ± 0.07" in text) == is_shown


def test_what_a_cosine_is_of_is_told_where_it_is_not_of_one_gradient_to_back_propagation(tmp_path):
    """A Hopfield network's cosine of 1 is no agreement with back-propagation, nor accuracy after
    twice the updates a gain."""
    names = ("bp", "dp", "ms-dp", "ipc", "chl", "hep", "ep-clamped")
    recipe = recipes.digits_mlp()
    runs = [(name, training.create(tmp_path / name, VARIANTS[name].apply(recipe), (0,))) for name in names]
    told = io.StringIO()
    tables.show_runs(runs, Console(width=120, file=told))
    lines = told.getvalue().splitlines()
    assert "chl, hep: predictions are an equilibrium's, and the cosine is to the implicit gradient there." in lines
    assert "ms-dp: 2 updates of the weights a batch, and the cosine of what they add up to." in lines
    assert "ipc: 20 updates of the weights a batch, and the cosine of what they add up to." in lines
    assert "ep-clamped: trained by squared error, bp by cross entropy." in lines
    told = io.StringIO()
    tables.show_runs(runs[:2], Console(width=120, file=told))
    assert "equilibrium" not in told.getvalue()
    assert "updates" not in told.getvalue()
    for name, run in runs:
        result = {
            "seed": 0, "test_accuracy": 0.9 if name == "bp" else 0.99, "test_loss": 0.1, "num_test": 1000, "best_epoch": 1,
            "validation_accuracy": 0.9, "epochs": 1, "stopped": "", "belongs_to": f"{run.recipe.digest()} seed 0",
        }  # fmt: skip
        run.seed_folder(0).mkdir()
        files.write_json(run.seed_folder(0) / "result.json", result)
    told = io.StringIO()
    tables.show_runs(runs, Console(width=120, file=told))
    verdicts = {line.split(":")[0]: line for line in told.getvalue().splitlines() if "above back-propagation" in line}
    assert verdicts["dp"].endswith("above back-propagation.")
    assert verdicts["ipc"].endswith("above back-propagation, by 20 updates a batch.")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--rules", "backprop", "--variants", "dp"), "--rules and --variants exclude each other. Give one of them."),
        (("--variants", "dp,ldp"), "unknown variant 'ldp'. Did you mean 'l-dp'?"),
        (("--variants", "dp,dp"), "a variant is named twice: dp,dp"),
        (("--variants", "published"), "recipe digits-mlp holds no published figures"),
        (("--variants", "dp,"), "unknown variant ''"),
        (("--variants", "damped-dp", "--rule.beta", "0.1", "0.2"), "it is of 3 layers"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_one_line_with_nothing_left_behind(words, reason, refused):
    """A comparison that starts wrong costs a night."""
    assert reason in refused("compare", *words, "--out", "cmp")


def test_inference_that_did_not_settle_is_told_at_the_end_of_a_seed(dualprop, folder, short):
    """In the metrics alone nobody would see it."""
    rule = ("--rule.alpha", "0", "--rule.tolerance", "1e-12", "--rule.schedule", "up_down(1)")
    answer = dualprop("train", *short, *rule, "--seeds", "1", "--no-align", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    (line,) = [line for line in answer.out.splitlines() if "did not settle" in line]
    assert "steps of the last epoch inference did not settle" in line
