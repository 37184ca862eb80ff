"""The self-test of a device: what it compares, and that a wrong way is found and recorded."""

import json

import pytest
import torch

from dualprop.recipes import variants
from dualprop.reproduction import items, selftest
from dualprop.reproduction.items import Item
from dualprop.rules import DualPropagation
from dualprop.training.recipe import Optimizer, Recipe


@pytest.fixture
def _few(monkeypatch):
    """Four variants, a table of times of a few steps, and the item that is the self-test."""
    few = {name: variants.VARIANTS[name] for name in ("bp", "dp", "dp-transposed", "r-dp-100")}
    monkeypatch.setattr(variants, "VARIANTS", few)
    cpu = {"models": "mlp", "precisions": "float32", "seconds": 0.0, "rounds": 1, "engines": "explicit"}
    monkeypatch.setattr(selftest, "TIMED", {"cpu": cpu})
    monkeypatch.setattr(selftest, "_ratios", lambda *_: selftest.Check(result="measured", ratios={"bp": 1.0}))
    monkeypatch.setitem(items.ITEMS, "self-test", Item("the self-test", task="self-test"))


def base(rule):
    return Recipe(name="x", dataset="none", model=selftest.NETWORKS["mlp"][0], rule=rule, optimizer=Optimizer(), kernel="eager")


@pytest.mark.usefixtures("_few")
def test_every_variant_is_tested_on_every_network_before_anything_is_measured(reproducing):
    came = reproducing("tiny", "self-test")
    checks = json.loads((reproducing.folder / "self-test.json").read_text())
    names = [f"{variant}, {network}" for network in selftest.NETWORKS for variant in ("bp", "dp", "dp-transposed", "r-dp-100")]
    assert list(checks) == [*names, "time of mlp, float32"]
    assert {checks[name]["result"] for name in names} == {"holds"}
    assert max(checks[name]["difference"] for name in names) < selftest.ROUNDING
    assert reproducing.watch.said_lines[0] == "self-test: 9 of 9 checks hold, 0 fail"
    assert came.is_well
    assert "8 checks in float64 hold" in (reproducing.folder / "results.md").read_text()


@pytest.mark.usefixtures("_few")
def test_a_check_that_fails_is_recorded_and_made_again_on_a_resume(reproducing, monkeypatch):
    """The fused engine off by a hundred-thousandth, and a variant that raises."""
    weights = selftest._weights

    def off(recipe, shape):
        found = weights(recipe, shape)
        if isinstance(recipe.rule, DualPropagation) and recipe.rule.engine == "fused":
            return {name: weight * (1 + 1e-5) for name, weight in found.items()}
        if str(getattr(recipe.rule, "schedule", "")).startswith("random"):
            raise RuntimeError("CUDA error: an illegal memory access")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(selftest, "_weights", off)
        came = reproducing("self-test", "tiny")
    assert not came.is_well
    assert came.results["items"]["tiny"]["is_whole"]
    failures = {failure.label: failure for failure in came.failures}
    expected = {f"self-test: {variant}, {network}" for variant in ("dp-transposed", "r-dp-100") for network in ("mlp", "conv")}
    assert set(failures) == expected
    assert "the fused engine differs by 1.0e-05" in failures["self-test: dp-transposed, mlp"].error
    assert "illegal memory access" in failures["self-test: r-dp-100, conv"].error
    assert "Traceback" in failures["self-test: r-dp-100, conv"].traceback
    text = (reproducing.folder / "results.md").read_text()
    assert "dp-transposed, mlp fails: the fused engine differs" in text
    assert reproducing.resume().is_well


@pytest.mark.usefixtures("_few")
def test_checks_for_which_there_is_no_time_are_made_by_a_resume(reproducing, monkeypatch):
    made = selftest._agrees

    def slow(*args):
        reproducing.time.now += 10
        return made(*args)

    monkeypatch.setattr(selftest, "_agrees", slow)
    reproducing("self-test", minutes=1)
    checks = reproducing.folder / "self-test.json"
    assert len(json.loads(checks.read_text())) == 2  # a quarter of a minute
    assert "no time for 7 of 9 checks" in reproducing.watch.said_lines[0]
    reproducing.resume()
    assert len(json.loads(checks.read_text())) == 9


def test_a_gpu_is_held_against_the_cpu_and_captured_steps_against_both():
    def ways(name):
        return selftest._ways(variants.named(name).apply(base(DualPropagation())), "cuda")

    assert {"cuda", "the captured step", "the chosen kernel on cuda", "the fused engine on cuda"} <= set(ways("dp-transposed"))
    assert ways("bp")["the captured step"].capture == "on"
    assert ways("bp")["the captured step"].device == "cuda"
    assert "the captured step" not in ways("r-dp-100")  # which draws anew at each step
    assert "the fused engine" not in ways("dp")  # equal to the second order of β only


def test_a_gradient_that_is_no_number_is_a_difference():
    ones, nans = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, float("nan")])}
    assert selftest._difference(ones, nans) != selftest._difference(ones, nans)
    assert selftest._difference(ones, {"w": torch.tensor([1.0, 1.0 + 2**0.5])}) == pytest.approx(1.0)


def test_all_of_the_checks_are_made_in_the_order_of_the_issue():
    """Correctness before times."""
    from dualprop.reproduction.options import Setting

    names = [name for name, _ in selftest._checks(Setting(items=(), device="cuda"))]
    assert len(names) == 2 * len(variants.VARIANTS) + 9
    assert names[-9:] == [f"time of {m}, {p}" for m in ("mlp", "vgg16", "vgg5") for p in ("float32", "tf32", "bfloat16")]
