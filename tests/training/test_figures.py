"""Figures and the alignment that they show."""

import math
import struct
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from dualprop import training
from dualprop.alignment import LayerAlignment, alignment
from dualprop.analysis import plots
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.network import Network
from dualprop.rules import Backprop, DualPropagation, PredictiveCoding
from dualprop.training.records import Cost, Layer


def size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def draw(runs, folder: Path) -> dict[str, tuple[int, int]]:
    """The figures' sizes by name; each is a whole picture of a size that a reader can use."""
    paths = plots.draw(runs, folder)
    sizes = {path.name: size(path) for path in paths}
    assert {p.name for p in folder.iterdir()} == sizes.keys()
    for name, (width, height) in sizes.items():
        assert 800 <= width <= 3000, name
        assert 250 <= height <= 3000, name
    return sizes


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_run_with_alignment_has_curves_and_a_map_of_angles(seeds, recipe, train, tmp_path):
    """One seed has no spread and several have: both must be drawn, without a warning."""
    run = train(recipe(rule=DualPropagation()), seeds=seeds)
    assert draw([("dual_propagation", run)], tmp_path / "figures").keys() == {"training_curves.png", "angle_to_backprop.png"}


def test_runs_without_alignment_have_curves_alone(recipe, train, tmp_path):
    """An empty map would say that the angles are nought."""
    run = train(recipe(rule=DualPropagation(), align=False))
    assert draw([("dp", run)], tmp_path / "figures").keys() == {"training_curves.png"}


def test_runs_with_feedback_weights_show_how_near_they_are_to_the_forward_ones(recipe, train, tmp_path):
    """One panel a run with such weights, and none for a run without; its curves are the
    metrics'."""
    plain = train(recipe(rule=DualPropagation()), name="a")
    learned, fixed = (train(recipe(rule=DualPropagation(), feedback=kind), name=kind) for kind in ("kolen_pollack", "random"))
    sizes = draw([("dp", plain), ("kp-dp", learned), ("fa-dp", fixed)], tmp_path / "figures")
    assert sizes.keys() == {"training_curves.png", "angle_to_backprop.png", "weight_alignment.png"}
    figure = plots.weight_alignment_curves([("kp-dp", learned), ("fa-dp", fixed)])
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["kp-dp", "fa-dp"]
    for axes, run in zip(panels, (learned, fixed), strict=True):
        recorded = [[layer.cosine for layer in m.weight_alignment] for m in run.metrics(0)]
        drawn = [list(line.get_ydata()) for line in axes.lines]
        assert drawn == [list(series) for series in zip(*recorded, strict=True)]


def test_the_map_leaves_out_back_propagation(recipe, train, tmp_path):
    """Its angle to itself is nought by definition."""
    assert draw([("backprop", train(recipe()))], tmp_path / "figures").keys() == {"training_curves.png"}


def test_a_comparison_is_drawn_in_one_figure_and_again_over_the_old_one(recipe, train, tmp_path):
    """`report` draws where figures are already."""
    labelled = [("backprop", train(recipe(), name="a")), ("dual_propagation", train(recipe(rule=DualPropagation()), name="b"))]
    first = draw(labelled, tmp_path / "figures")
    (tmp_path / "figures" / ".dualprop-1-0123456789abcdef.writing").write_bytes(b"left by a killed process")
    assert draw(labelled, tmp_path / "figures") == first


def test_more_rules_than_colours_are_drawn_in_an_overview(recipe, train, tmp_path):
    """Curves of one colour can't be told apart, and a map for each would be a poster: a line each,
    with its own numbers."""
    rules = {"bp": Backprop(), **{f"dp-{number}": DualPropagation(beta=number) for number in (1.0, 2.0, 3.0, 4.0, 5.0)}}
    labelled = [(name, train(recipe(rule=rule), name=name, seeds=(0, 1))) for name, rule in rules.items()]
    assert "overview.png" not in draw(labelled, tmp_path / "few")
    labelled.append(("pc", train(recipe(rule=PredictiveCoding(steps=1), model=MLP(widths=(8, 8))), name="pc", seeds=(0, 1))))
    assert draw(labelled, tmp_path / "figures").keys() == {"training_curves.png", "overview.png"}
    rest = {"rule": "", "engine": "", "is_one_sweep": False, "milliseconds": 1.0, "least_milliseconds": 1.0, "rounds": 5}
    rest |= {"lower_quartile": 1.0, "upper_quartile": 1.0}
    costs = {name: Cost(label=name, ratio=1.0 + number, **rest) for number, (name, _) in enumerate(labelled)}
    draw_with_costs = plots.draw(labelled, tmp_path / "costs", costs)
    assert [path.name for path in draw_with_costs] == ["training_curves.png", "overview.png"]
    accuracies, times, angles, _ = plots.overview(labelled, costs).axes
    assert [tick.get_text() for tick in accuracies.get_yticklabels()] == [name for name, _ in labelled]
    assert [text.get_text() for text in times.texts] == ["1", "2", "3", "4", "5", "6", "7"]
    for height, (_, run) in enumerate(labelled):
        shown = [line for line in accuracies.lines if list(line.get_ydata())[:1] == [height] and line.get_marker() == "o"]
        assert list(shown[0].get_xdata()) == [100 * result.test_accuracy for result in run.results()]
        last = [run.metrics(seed)[-1].alignment for seed in run.seeds]
        means = [[seed[k].angle for seed in last] for k in range(len(last[0]))]
        told = [text.get_text() for text in angles.texts if text.get_position()[1] == height]
        assert told == ["none" if None in each else f"{sum(each) / 2:.1f}" for each in means]
    assert "none" in [text.get_text() for text in angles.texts], "one step of PC has not reached the first layer"


def test_no_two_runs_of_a_figure_are_drawn_alike(recipe, train):
    """A legend whose lines repeat names the wrong rule. Of another loss than the others', a curve
    would lead them all."""
    run, other = train(recipe(rule=DualPropagation())), train(recipe(rule=DualPropagation(loss="squared_error")), name="other")
    number = len(plots.COLOURS) - 1
    error, loss = plots.training_curves([*((f"dp-{k}", run) for k in range(number)), ("other", other)]).axes
    drawn = [(line.get_color(), str(line._unscaled_dash_pattern)) for line in error.lines]
    assert len(set(drawn)) == len(drawn) == number + 1
    assert len(loss.lines) == number
    assert loss.get_title(loc="left").endswith("; not of another loss: other")


def test_many_runs_have_a_panel_each_with_the_twin_behind(recipe, train):
    """Thirty curves in one picture are none. Panels on different scales do not compare."""
    twin, run = train(recipe()), train(recipe(rule=DualPropagation()), name="dp")
    labelled = [("bp", twin), *((f"dp-{number}", run) for number in range(1, 8))]
    figure = plots.small_multiples(labelled)
    panels = [axes for axes in figure.axes if axes.axison]
    errors = {each: [100 * (1 - m.validation_accuracy) for m in each.metrics(0)[1:]] for each in (twin, run)}
    for axes, (label, shown) in zip(panels, labelled, strict=True):
        behind, curve = axes.lines
        assert list(behind.get_ydata()) == pytest.approx(errors[twin])
        assert list(curve.get_ydata()) == pytest.approx(errors[shown])
        assert axes.get_title(loc="left") == f"{label}: {100 * shown.results()[0].test_accuracy:.2f} %"
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert figure.get_suptitle().endswith("dotted: bp")


def test_a_diverged_run_is_called_so_in_every_picture(recipe, train):
    """Else 11 % looks like what the rule can do."""
    rate = {"name": "sgd", "learning_rate": 1e30, "momentum": 0.0}
    good, bad = train(recipe(rule=DualPropagation())), train(recipe(rule=DualPropagation(), optimizer=rate), name="bad")
    labelled = [("dp", good), ("dp-fast", bad)]
    legend = [text.get_text() for text in plots.training_curves(labelled).legends[0].get_texts()]
    assert [text.endswith("(diverged)") for text in legend] == [False, True]
    titles = [axes.get_title(loc="left") for axes in plots.small_multiples(labelled).axes]
    assert [title.endswith("diverged") for title in titles] == [False, True]
    assert [text.get_text() for text in plots.overview(labelled, None).axes[0].texts] == ["diverged"]


def test_epochs_are_whole_and_titles_are_not_cut(recipe, train):
    """An axis from 0 to 2 had 0.25 epochs on it, and a title went beyond the picture's edge."""
    run = train(recipe(rule=DualPropagation(), feedback="kolen_pollack", name="a-recipe-of-a-long-name-" * 5 + "1"))
    label = "a rule of a long name " * 3
    figures = (
        plots.training_curves([(label, run)]),
        plots.angle_maps([(label, run)]),
        plots.weight_alignment_curves([(label, run)]),
        plots.small_multiples([(f"{label}{number}", run) for number in range(7)]),
    )
    for figure in figures:
        figure.draw_without_rendering()
        for axes in figure.axes:
            if axes.get_xlabel() == "epoch":
                assert all(float(tick).is_integer() for tick in axes.get_xticks())
        titles = [axes._left_title for axes in figure.axes] + [figure._suptitle] * bool(figure._suptitle)
        boxes = [title.get_window_extent() for title in titles if title.get_text()]
        assert boxes
        assert all(0 <= box.x0 < box.x1 <= figure.bbox.x1 for box in boxes)


def test_many_layers_of_feedback_weights_are_a_map(recipe, train):
    """Sixteen names of layers covered the curves."""
    depth = plots.MOST_CURVES + 1
    run = train(recipe(rule=DualPropagation(), feedback="kolen_pollack", model=MLP(widths=(5,) * depth)))
    (panel, _) = plots.weight_alignment_curves([("kp-dp", run)]).axes
    (image,) = panel.images
    recorded = [[layer.cosine for layer in m.weight_alignment] for m in run.metrics(0)]
    assert image.get_array().T.tolist() == recorded


def test_a_run_of_one_epoch_has_a_point_where_others_have_a_curve(recipe, train):
    """A line through one point is nothing: the loss would look as if it had not been recorded."""
    figure = plots.training_curves([("dp", train(recipe(rule=DualPropagation(), epochs=1)))])
    error, loss = figure.axes
    assert [line.get_marker() for line in loss.lines] == ["o"]
    assert [line.get_marker() for line in error.lines] == ["None"]


def test_a_diverged_run_is_drawn(recipe, train, tmp_path):
    """Its losses are not finite; it is the run that one wants to see most."""
    run = train(recipe(rule=DualPropagation(), optimizer={"name": "sgd", "learning_rate": 1e30, "momentum": 0.0}))
    assert "training_curves.png" in draw([("dp", run)], tmp_path / "figures")


def network() -> Network:
    torch.manual_seed(0)
    return Network.from_module(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)


def test_back_propagation_is_aligned_with_itself():
    """The measure's own noise: it must lie far below the angles that are shown."""
    found = alignment(network(), Backprop(loss=CrossEntropy()), *batch())
    assert [layer.layer for layer in found] == ["0", "2", "4"]
    for layer in found:
        assert layer.cosine == pytest.approx(1, abs=1e-12)
        assert layer.norm_ratio == pytest.approx(1, abs=1e-12)
        assert layer.angle < 1e-3


def test_alignment_is_the_cosine_of_all_of_a_layers_parameters():
    """Written out: weight and bias as one vector, the rule's loss and not the default one."""
    net, (x, y), rule = network(), batch(), DualPropagation(beta=0.5, alpha=0.0, loss="squared_error")
    found = rule.gradients(net, x, y).gradients
    exact = Backprop(loss="squared_error").gradients(net, x, y).gradients
    for name, layer in zip("024", alignment(net, rule, x, y), strict=True):
        a, b = (torch.cat([g[f"{name}.weight"].flatten(), g[f"{name}.bias"]]).double() for g in (found, exact))
        assert layer.cosine == pytest.approx(float(torch.dot(a, b) / a.norm() / b.norm()), rel=1e-12)
        assert layer.norm_ratio == pytest.approx(float(a.norm() / b.norm()), rel=1e-12)
        assert layer.angle == pytest.approx(math.degrees(math.acos(layer.cosine)), rel=1e-6)


def test_dual_propagation_is_nearly_aligned_and_nearer_for_a_smaller_beta():
    """The map of angles is the evidence that DP follows BP; it must show the angle fall with
    beta."""
    angles = {
        beta: max(layer.angle for layer in alignment(network(), DualPropagation(beta=beta, alpha=0.0), *batch()))
        for beta in (1.0, 0.1, 0.01)
    }
    assert angles[0.01] < angles[0.1] < angles[1.0] < 60
    assert angles[0.01] < 1


def test_the_angles_of_a_trained_run_are_small_in_its_metrics(recipe, train):
    """As they come to the map: by layer, after each epoch, at the weights of that epoch."""
    run = train(recipe(rule=DualPropagation()))
    for metrics in run.metrics(0):
        assert [layer.layer for layer in metrics.alignment] == ["1", "3"]
        assert all(0 <= layer.angle < 20 and 0.8 < layer.norm_ratio < 1.2 for layer in metrics.alignment)


def test_the_angle_is_in_degrees():
    """45° and not 0.785."""
    assert LayerAlignment("1", math.sqrt(0.5), 1.0).angle == pytest.approx(45)
    assert LayerAlignment("1", 1 + 1e-12, 1.0).angle == 0
    assert LayerAlignment("1", -1.0, 1.0).angle == 180


def test_a_run_that_was_not_trained_yet_is_drawn_empty(recipe, tmp_path):
    """`report` on a run that has just begun."""
    run = training.create(tmp_path / "run", recipe(), (0,))
    assert draw([("backprop", run)], tmp_path / "figures").keys() == {"training_curves.png"}


def test_a_layer_without_a_gradient_has_no_angle():
    """A dead layer shown at 0° would be shown as perfectly aligned."""
    assert math.isnan(LayerAlignment("1", math.nan, math.nan).angle)


def test_a_map_with_a_layer_that_never_has_an_angle_is_drawn(recipe, train, tmp_path, monkeypatch):
    """A dead layer in every seed must not stop the picture, nor warn."""
    run = train(recipe(rule=DualPropagation()))
    dead = Layer(layer="1", cosine=None, norm_ratio=None, angle=None)
    metrics = [replace(each, alignment=(dead, *each.alignment[1:])) for each in run.metrics(0)]
    monkeypatch.setattr(training.Run, "metrics", lambda self, seed: metrics)
    assert "angle_to_backprop.png" in draw([("dp", run)], tmp_path / "figures")
