"""`dualprop check` and `dualprop bench` as a user runs them."""

import json

import pytest

from dualprop.analysis import cost
from dualprop.cli import bench, main
from dualprop.cli.bench import BenchOptions
from dualprop.errors import SettingError
from dualprop.rules import DualPropagation


def test_check_shows_that_every_piece_of_evidence_holds(capsys):
    """A claim that fails must not hide among those that hold."""
    main(["check"])
    shown = capsys.readouterr().out
    assert "0 failed" in shown
    assert "✗" not in shown
    assert "slow transcription" in shown
    assert "fused engine = explicit engine" in shown


def test_check_matches_the_authors_cases(capsys, shared_folder):
    """The cases are found by --reference, and each is listed."""
    main(["check", "--reference", str(shared_folder / "golden")])
    shown = capsys.readouterr().out
    for path in (shared_folder / "golden").glob("*.npz"):
        assert f"✓ authors' code: {path.stem}" in shown


def test_check_fails_where_a_rule_is_wrong(capsys, monkeypatch):
    """Exit code 1 and a cross: a check that can't fail is no evidence."""
    shares = DualPropagation._shares.fget
    monkeypatch.setattr(DualPropagation, "_shares", property(lambda rule: shares(rule)[::-1]))
    with pytest.raises(SystemExit) as stopped:
        main(["check"])
    assert stopped.value.code == 1
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "--reference", "nowhere"], "holds no reference case"),
        (["check", "--sed", "1"], "Did you mean '--seed'"),
        (["bench", "--models", "mpl"], "Did you mean 'mlp'"),
        (["bench", "--rounds", "0"], "rounds must be at least 1"),
        (["bench", "--out", "no/such/folder/b.json"], "does not exist"),
        (["bench", "--device", "nonsense"], "--device cpu"),
    ],
)
def test_mistakes_in_check_and_bench_are_told_in_one_line(words, told, capsys):
    """The remedy is in the line."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(error.splitlines()) == 1
    assert told in error


def test_bench_measures_every_contender_against_the_plain_loop(capsys, tmp_path, monkeypatch):
    """A row for each, ratios to the loop, memory from a fresh process, and the environment in the file."""
    monkeypatch.setattr("dualprop.analysis.benchmark.MODELS", _tiny_models())
    out = tmp_path / "bench.json"
    main(["bench", "--models", "mlp", "--rounds", "3", "--batch-size", "4", "--no-compiled", "--no-memory", "--out", str(out)])
    shown = capsys.readouterr().out
    written = json.loads(out.read_text())
    rows = written["models"]["mlp"]
    assert written["environment"]["torch"] in shown
    assert [row["label"] for row in rows][:2] == [cost.PLAIN, cost.PLAIN_AGAIN]
    assert rows[0]["ratio"] == 1.0
    assert any("explicit" in row["label"] for row in rows)
    assert any("fused" in row["label"] for row in rows)
    for row in rows:
        assert row["lower_quartile"] <= row["ratio"] <= row["upper_quartile"]


def test_bench_measures_every_variant_by_its_counted_operations_too(capsys, tmp_path, monkeypatch):
    """The cost table: a variant whose settings were lost on the way would show the counts of another."""
    from dualprop.recipes.variants import VARIANTS

    monkeypatch.setattr("dualprop.analysis.benchmark.MODELS", _tiny_models())
    out = tmp_path / "bench.json"
    main(["bench", "--models", "mlp", "--rules", "all", "--rounds", "1", "--batch-size", "4", "--no-memory", "--out", str(out)])
    rows = {row["label"]: row for row in json.loads(out.read_text())["models"]["mlp"]}
    assert list(rows) == [cost.PLAIN, cost.PLAIN_AGAIN, *VARIANTS]
    assert "count_ratio" not in rows[cost.PLAIN]
    counts = {name: tuple(rows[name][kind] for kind in cost.COUNTS) for name in VARIANTS}
    # Four layers. One sweep: L drives, L-1 feedbacks, L gradients; two updates have two times L gradients.
    for name in ("bp", "dp", "dp-transposed", "kp-dp", "fa-dp", "sign-dp"):
        assert counts[name] == (4, 3, 4), name
        assert rows[name]["count_ratio"] == 1.0
    # An up and a down sweep from earlier states: L drives for the prediction, of which the first is shared, L-1 more on the
    # way up; a feedback for each hidden layer on both ways.
    assert counts["l-dp"] == (7, 6, 4)
    assert counts["ms-dp"] == (4 + 7, 3 + 6, 8), "the first update of a batch starts from the forward pass"
    assert rows["ms-dp"]["count_ratio"] == pytest.approx((11 + 9 + 8) / 11)
    assert " 1.00 " in capsys.readouterr().out


def test_an_unknown_variant_is_refused_before_anything_is_measured():
    """A bench takes minutes."""
    with pytest.raises(SettingError, match=r"unknown variant 'kpdp'\. Did you mean"):
        bench.main(["--rules", "kpdp"])


def test_quartiles_of_few_rounds_lie_among_the_ratios():
    """Extrapolated from two rounds, a quartile was below nought."""
    found = cost._timing([1.0, 9.0], [1.0, 1.0])
    assert 1.0 <= found.lower_quartile <= found.ratio <= found.upper_quartile <= 9.0


def test_memory_is_that_of_a_fresh_process():
    """A child's ru_maxrss begins at its parent's; 256 MB held here must not show in the child."""
    import torch

    from dualprop.analysis import benchmark

    held = torch.ones(64_000_000)
    entry = benchmark.engines(benchmark.recipe("mlp", 4, "cpu", 1), compiled=False)[0]
    found = cost.memory(entry, (784,), 10, steps=1)
    # Parameters, gradients and two moments of 2.8 million float32 are 45 MB, of which the steps add 34.
    assert 25 < found.by_steps < 150
    assert len(held) == 64_000_000


def test_bench_says_its_defaults():
    """The issue's setting: an MLP and a small conv net at batch 100."""
    assert BenchOptions().batch_size == 100
    assert "mlp" in BenchOptions().models
    assert "conv" in BenchOptions().models


def _tiny_models():
    from dualprop.models import MLP

    return {"mlp": (MLP(widths=(8, 8, 8)), (12,))}
