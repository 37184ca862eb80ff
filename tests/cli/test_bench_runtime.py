"""`dualprop bench --table runtime` as a user runs it, on networks of a few units."""

import dataclasses
import json

import pytest
import torch

from dualprop import Network, recipes
from dualprop.analysis import drawing
from dualprop.bench import contenders, models, rows, runtime, timing
from dualprop.bench.rows import largest_angle
from dualprop.bench.runtime import METHODS
from dualprop.cli import main
from dualprop.models import VGG
from dualprop.recipes import variants

QUICK = ("--table", "runtime", "--rounds", "2", "--batch-size", "4", "--seconds", "0")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """The recipes' networks with four units in each layer, for images of 8×8 that are pooled no
    more than twice."""
    for name in {method.recipe for method in METHODS.values()}:
        made = recipes.from_name(name)
        model = made.model
        sizes = {"channels": (4,) * len(model.channels)}
        if isinstance(model, VGG):
            sizes |= {"pooled": (2, 3), "dense": (4,) * len(model.dense)}
        rule = made.rule
        if "hopfield" in name:
            rule = dataclasses.replace(rule, relaxation="blocks(odd_even(3))", free_schedule="odd_even(5)")
        small = dataclasses.replace(made, rule=rule, model=dataclasses.replace(model, **sizes))
        monkeypatch.setitem(recipes.RECIPES, name, lambda small=small: small)
    monkeypatch.setattr(runtime, "SHAPE", (3, 8, 8))


def measured(folder, *words):
    """What the command wrote."""
    main(["bench", *QUICK, *words, "--out", str(folder / "bench.json")])
    return json.loads((folder / "bench.json").read_text())


def test_every_method_has_a_row_beside_its_own_twin(capsys, tmp_path):
    """A row that took another network's loop for its twin would show a ratio of sizes."""
    written = measured(tmp_path, "--no-memory")
    by_network = {group["model"]: group for group in written["groups"]}
    assert set(by_network) == {method.recipe for method in METHODS.values()}
    shown = capsys.readouterr().out
    for name, method in METHODS.items():
        group = by_network[method.recipe]
        by_label = {row["label"]: row for row in group["rows"]}
        assert group["layers"] == recipes.from_name(method.recipe).model.depth
        assert group["refused"] == {}
        assert list(by_label)[:2] == [timing.PLAIN, timing.PLAIN_AGAIN]
        row = by_label[name]
        assert row["published"] == method.published
        assert row["seconds_per_epoch"] == pytest.approx(row["milliseconds"] / 1e3 * 50_000 / 4)
        assert by_label[timing.PLAIN]["ratio"] == 1
        assert f"\n   {name} " in shown
        assert f"{name} {runtime.told_seconds(row['seconds_per_epoch'])} (" in shown, "no line while the others are measured"
    assert "published" in by_network["cifar10-vgg16"]["rows"][0]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert written["options"].keys() == {
        "table",
        "rounds",
        "batch_size",
        "threads",
        "device",
        "channels_last",
        "rules",
        "seconds",
        "memory",
    }


def test_the_table_fits_a_narrow_console(tmp_path, capsys, monkeypatch):
    """Cut numbers are none: what there is no room for is in the file."""
    monkeypatch.setenv("COLUMNS", "80")
    measured(tmp_path, "--rules", "pc,chl", "--no-memory")
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "D/F/G" not in shown.split("D/F/G: drives")[0]
    assert all(heading in shown for heading in ("s/epoch", "count", "own"))


def test_seconds_are_told_with_three_digits():
    """3.5 seconds an epoch, as published for DP, must not read 4."""
    assert [runtime.told_seconds(seconds) for seconds in (0.0421, 3.5, 99.94, 240.4, 14397.0)] == [
        "0.0421", "3.5", "99.9", "240", "14,397",
    ]  # fmt: skip


def test_the_published_figures_are_those_of_the_authors_slides():
    """Høier et al. (2023): DP 3.5, holomorphic EP 1700, DTP 240 seconds per epoch."""
    assert {name: method.published for name, method in METHODS.items() if method.published} == {
        "dp": 3.5, "hep": 1700.0, "dtp": 240.0,
    }  # fmt: skip


def test_rows_have_the_counts_and_angles_of_their_rule(tmp_path, capsys):
    """A variant that was lost on the way would show another's counts; an angle to the wrong
    gradient anything."""
    written = measured(tmp_path, "--rules", "dp,chl", "--no-memory")
    dp, chl = (group["rows"][2] for group in written["groups"])
    assert (dp["drives"], dp["feedbacks"], dp["gradients"], dp["count_ratio"]) == (16, 15, 16, 1.0)
    assert dp["angle"] == dp["angle_to_backprop"]
    assert chl["angle"] != chl["angle_to_backprop"]
    made = variants.named("chl").apply(recipes.from_name("cifar10-cnn-chl"))
    contender = contenders.Contender("chl", dataclasses.replace(made, batch_size=4))
    model, x, y = contender.problem((3, 8, 8), 10, seed=0)
    network = Network.from_module(model)
    found = made.rule.gradients(network, x, y).gradients
    assert chl["angle"] == pytest.approx(largest_angle(network, found, made.rule.exact_gradients(network, x, y)), abs=1e-2)
    model.zero_grad()
    made.rule.loss.value(model(x), y).mean().backward()
    exact = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert chl["angle_to_backprop"] == pytest.approx(largest_angle(network, found, exact), abs=1e-2)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("   chl"))
    assert row.split()[-2:] == [f"{chl['angle_to_backprop']:.2f}", f"{chl['angle']:.2f}"]


def test_angles_of_a_rule_with_state_are_with_what_the_timed_steps_have_left():
    """Feedback maps that are drawn anew have learned from a batch alone: their angle is that of no
    training."""
    made = variants.named("dtp").apply(recipes.from_name("cifar10-vgg-dtp"))
    seen = []
    rule = made.rule

    class Watched(type(rule)):
        def inference(self, problem):
            seen.append(problem.state)
            return super().inference(problem)

    watched = Watched(**{field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)})
    object.__setattr__(watched, "iterations", (1,) * 5)
    recipe = dataclasses.replace(made, rule=watched, batch_size=4, optimizer=models.RESTING)
    (entry,), refused = rows.ready([contenders.Contender("dtp", recipe)], (3, 8, 8), 10)
    assert refused == {}
    taken = len(seen)
    found = runtime._angles(entry, (3, 8, 8), 10)
    # One more step, and the gradients that are compared.
    assert len(seen) == taken + 2
    assert seen[0] is None
    assert seen[-1] is not None
    assert not torch.equal(seen[-1].weights[2], seen[1].weights[2])
    assert 0 < found["angle"] == found["angle_to_backprop"] <= 180


def test_memory_is_measured_where_it_is_asked_for(monkeypatch, tmp_path, capsys):
    """Each contender in a fresh process: none where it is left out."""
    from dualprop.bench import memory

    asked = []
    monkeypatch.setattr(
        memory,
        "measure",
        lambda entry, *given: (
            asked.append((entry.label, given)) or memory.Memory(peak=9e2, by_steps=8e2, tensors=2.0 * len(asked))
        ),
    )
    written = measured(tmp_path, "--rules", "dp")
    assert [label for label, _ in asked] == [timing.PLAIN, timing.PLAIN_AGAIN, "dp"]
    assert {given for _, given in asked} == {((3, 8, 8), 10, 1)}
    assert written["groups"][0]["rows"][2]["memory_ratio"] == pytest.approx(3.0)
    assert " 3.00 " in capsys.readouterr().out


def test_a_method_that_cannot_run_is_listed_with_the_reason(monkeypatch, tmp_path, capsys):
    """A row that is missing without a word would read as one that was measured and forgotten."""
    take = contenders.Contender.step

    def failing(self, *arguments):
        if self.label == "ep-published":
            raise RuntimeError("out of memory\nand much more")
        return take(self, *arguments)

    monkeypatch.setattr(contenders.Contender, "step", failing)
    (group,) = measured(tmp_path, "--rules", "ep,ep-published", "--no-memory")["groups"]
    assert [row["label"] for row in group["rows"]][2:] == ["ep"]
    assert group["refused"] == {"ep-published": "out of memory"}
    assert "can't run here: ep-published: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--models", "mlp"), "table 'runtime' does not read --models"),
        (("--rules", "ep-hopfeld"), "Did you mean 'ep-hopfield'"),
        (("--rules", "lpom"), "has no method 'lpom'"),
        (("--rules", "dp,dp"), "names one twice"),
        (("--alphas", "0"), "does not read --alphas"),
    ],
)
def test_mistakes_are_told_in_one_line(words, told, refused):
    assert told in refused("bench", "--table", "runtime", *words)


def test_the_figure_has_a_line_for_every_method(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: kept.append(figure))
    written = measured(tmp_path, "--rules", "dp,ep,ep-published", "--no-memory")
    labels = [label.get_text() for label in kept[-1].axes[0].get_yticklabels()]
    assert [label.split()[0] for label in labels] == ["dp", "ep", "ep-published"]
    assert len(kept) == len(written["groups"]) == 2, "drawn after every network"
